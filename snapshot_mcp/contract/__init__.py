"""The volume-snapshot contract, between providers and everything above them.

The server, the guard, the zones and the REST service use it; every provider implements it. Nothing here does I/O or imports
more than pydantic and the standard library. Nouns: snapshot, chain, volume, instance, image, job, zone.
"""
