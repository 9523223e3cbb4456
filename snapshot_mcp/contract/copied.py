"""What is known of copies elsewhere (CONTRACT.md, "What our own face adds")."""

from snapshot_mcp.contract.base import ZoneModel
from snapshot_mcp.contract.values import OwnTime, WireCount, WireName, WireText


class Copied(ZoneModel):
    """A restore point in a copy elsewhere: when it was last read back there; until when it stays, if it was deleted here."""

    copy_name: WireName = ""
    verified_at: OwnTime = None
    until: OwnTime = None


class CopyStatus(ZoneModel):
    """How a copy of a zone stands: what it holds, what it lacks, when it last ran well, and why it last failed ("" for not).

    `checked_at`: all that was sent was read back; `restored_at`: and restored, with the recovery key.
    """

    copy_name: WireName = ""
    place: WireText = ""
    writer: WireText = ""
    manifest: WireCount = 0
    copied_count: WireCount = 0
    missing_count: WireCount = 0
    stored_bytes: WireCount = 0
    keep_days: WireCount = 0
    ran_at: OwnTime = None
    problem: WireName = ""
    problem_at: OwnTime = None
    checked_at: OwnTime = None
    restored_at: OwnTime = None
