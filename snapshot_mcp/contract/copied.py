"""What is known of copies elsewhere (CONTRACT.md, "What our own face adds")."""

from collections.abc import Sequence

from snapshot_mcp.contract.base import ZoneModel
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.contract.values import OwnTime, WireCount, WireName, WireText, format_time


class Copied(ZoneModel):
    """A restore point in a copy elsewhere: when it was last read back there; until when it stays, if it was deleted here.

    `keep_days`: how long it stays there after a deletion from now on.
    """

    copy_name: WireName = ""
    verified_at: OwnTime = None
    until: OwnTime = None
    keep_days: WireCount = 0


def copied_in_words(copies: Sequence[Copied], *, is_long: bool = False) -> str:
    """Return which copies have a restore point, and until when if it was deleted here; "" for none.

    `is_long`: with when it was last read back there.
    """
    return ", ".join(
        f"{clean_text(one.copy_name)}"
        + (f" (read back {format_time(one.verified_at)})" if is_long and one.verified_at else "")
        + (f" until {format_time(one.until)}" if one.until else "")
        for one in copies
    )


class CopyStatus(ZoneModel):
    """How a copy of a zone stands: what it holds, what it lacks, when it last ran well, and why it last failed ("" for not).

    `checked_at`: all that was sent was read back; `restored_at`: and restored, with the recovery key. `former`: writers of this
    zone at the same place that are not tended any more, after the keys or the encryption were changed.
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
    former: WireText = ""
