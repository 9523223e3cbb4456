"""The REST face: the volume-snapshot API (CONTRACT.md) served over any Provider.

It bypasses the guard, so it always requires credentials. It knows the contract and nothing above it. Nouns: key pair, role,
token, operation, gate, hub.
"""

from snapshot_mcp.service.face import build_service
from snapshot_mcp.service.key_file import KeyFile, KeyPair
from snapshot_mcp.service.keys import TokenBook
from snapshot_mcp.service.roles import Role
from snapshot_mcp.service.run import bind, parse_address, running, serve

__all__ = ["KeyFile", "KeyPair", "Role", "TokenBook", "bind", "build_service", "parse_address", "running", "serve"]
