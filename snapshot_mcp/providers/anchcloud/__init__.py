"""A zone of a provider that speaks the volume-snapshot REST API (CONTRACT.md), over httpx.

Nouns: call (what is asked), reply (what came back), change (a call that alters the zone), picture (what the zone showed
at a moment), key pair and token. httpx is loaded with the first call, not before.
"""
