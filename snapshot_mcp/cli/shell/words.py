"""The words of the tools for a person's shell: a command stands where an answer names a tool."""

import re
import shutil
import sys
from typing import Any

COMMAND_OF = {
    "list_snapshots": "snapshots",
    "list_resources": "disks",
    "show_chain": "chain DISK",
    "wait_for_job": "jobs",
    "list_jobs": "jobs",
    "create_snapshots": "back-up DISK",
    "export_to_volume": "restore SNAPSHOT --to-volume NAME",
    "export_to_image": "restore SNAPSHOT --to-image NAME",
    "rename_snapshot": "rename SNAPSHOT NAME",
    "recover_snapshots": "recover SNAPSHOT",
    "verify_snapshots": "verify SNAPSHOT",
    "cancel_job": "cancel JOB",
    "rollback_to_snapshots": "restore SNAPSHOT --in-place",
    "delete_snapshot": "delete SNAPSHOT",
}
"""What a person types for each tool."""

OPTION_OF = {
    "kind image": " --kind image",
    "status available": " --status available",
    "search": " --search WORD",
    "full": " --full",
    "this job_id": "",
    "safety_job_id": "",
}
"""What follows a tool's name, after "with", and the option that it is in a shell."""

_TOOL = re.compile(rf"\b({'|'.join(COMMAND_OF)})\b(?: with ({'|'.join(OPTION_OF)})\b)?")
_OURS = (
    (re.compile(r"\bcall without plan_only\b"), "command without --plan"),
    (re.compile(r"\b(the|this|same|exactly this) call\b", re.I), r"\1 command"),
    (re.compile(r"\b([Cc])all (?=`)"), lambda found: "Run " if found[1] == "C" else "run "),
    (
        re.compile(r"Report the reason verbatim\. Do not retry until the cause is fixed\."),
        "Try again once that is fixed.",
    ),
    (re.compile(r"Tell the person the reason\."), ""),
    (re.compile(r"\bfinished shows\b"), "--finished shows"),
)
QUOTED = re.compile(r"(“[^”]*”)")
"""What other people wrote, which is repeated as it is."""

TEXTS = frozenset({"hint", "message", "how_to_approve"})
"""Fields of a structure that speak to the reader."""


def program() -> str:
    """Return this program as the person's shell, which has just started it, knows it."""
    from snapshot_mcp import app

    return "snapshot-mcp" if shutil.which("snapshot-mcp") == sys.argv[0] else app.command({})


class Words:
    """Words for a shell that runs this program as `command`."""

    def __init__(self, command: str) -> None:
        self._command = command

    def line(self, text: str) -> str:
        """Return a text of the tools' for a person who types commands."""
        return "".join(one if QUOTED.fullmatch(one) else self._own(one) for one in QUOTED.split(text))

    def structure(self, value: Any) -> Any:
        """Return a tool's structure with its texts in the same words."""
        if isinstance(value, list):
            return [self.structure(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            name: self.line(one) if name in TEXTS and isinstance(one, str) else self.structure(one)
            for name, one in value.items()
        }

    def _own(self, text: str) -> str:
        text = _TOOL.sub(lambda found: f"`{self._command} {COMMAND_OF[found[1]]}{OPTION_OF.get(found[2], '')}`", text)
        for pattern, instead in _OURS:
            text = pattern.sub(instead, text)
        return text.strip() if not text.strip() else text
