"""snapshot-mcp: volume snapshots for assistants.

The parts, from the waist outwards: `contract` (the words everything speaks), `providers` (zones that implement it),
`jobs` (following work to its end), `guard` (consent of a human), `server` (the MCP face), `service` (the REST face),
`cli` (commands for people). `app` alone wires them.
"""

__version__ = "0.1.0"
