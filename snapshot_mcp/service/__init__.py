"""The REST face: the volume-snapshot API (contract.md) served over any Provider.

It would be a way round the guard, so it always asks for credentials. It knows the contract and nothing above it. Nouns: key
pair, token, operation, gate, hub.
"""

from snapshot_mcp.service.face import build_service
from snapshot_mcp.service.keys import KeyPair, TokenBook, load_or_create_key_pair
from snapshot_mcp.service.run import bind, parse_address, running, serve, url_of

__all__ = [
    "KeyPair",
    "TokenBook",
    "bind",
    "build_service",
    "load_or_create_key_pair",
    "parse_address",
    "running",
    "serve",
    "url_of",
]
