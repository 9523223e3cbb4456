"""The volume-snapshot contract: the narrow waist of the product.

Everything above (server, guard, jobs, service) speaks it, every provider implements it. Nothing here does I/O, and
nothing here imports more than pydantic and the standard library. Nouns: snapshot, chain, volume, instance, image, job, zone.
"""
