"""The REST face: the volume-snapshot API (CONTRACT.md) served over any Provider.

It would be a way round the guard, so it always asks for credentials. It knows the contract and nothing above it. Nouns: key
pair, role, token, operation, gate, hub.
"""

from snapshot_mcp.service.face import build_service
from snapshot_mcp.service.key_file import KeyFile, KeyPair, as_json
from snapshot_mcp.service.keys import TokenBook
from snapshot_mcp.service.roles import Role
from snapshot_mcp.service.run import bind, parse_address, running, serve

__all__ = [
    "KeyFile",
    "KeyPair",
    "Role",
    "TokenBook",
    "as_json",
    "bind",
    "build_service",
    "parse_address",
    "running",
    "serve",
]
