"""`python -m snapshot_mcp` is `snapshot-mcp`."""

import sys

from snapshot_mcp.cli import main

if __name__ == "__main__":
    sys.exit(main())
