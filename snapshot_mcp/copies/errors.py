"""What goes wrong with a copy before anything is sent."""

from snapshot_mcp.contract.errors import Unsupported

INSTALL = (
    "Install the extra: pip install 'snapshot-mcp[copies]' (pipx: pipx inject snapshot-mcp 'snapshot-mcp[copies]')."
)


def needs_extra(what: str) -> Unsupported:
    """Return the error of a missing package."""
    return Unsupported(f"{what} needs packages that are not installed.", hint=INSTALL)
