"""A zone of a provider that speaks the volume-snapshot REST API (CONTRACT.md), over httpx.

Nouns: call (a request of the API), reply (its response), change (a call that alters the zone), picture (the state of the zone
at one moment), key pair and token. httpx is loaded with the first call.
"""
