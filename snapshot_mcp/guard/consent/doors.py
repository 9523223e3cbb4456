"""How a person approves, for the doors that exist in this program. It is for a person; whoever passes it on cannot use it.

Over HTTP with approvers enrolled it is their door, and nothing else is named. Elsewhere it is a command for a terminal, which
runs as it is printed, and the approval page.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapshot_mcp.guard.consent.approval import Approval

PROGRAM = "snapshot-mcp"
IN_A_TERMINAL = "For the person, in a terminal of their own:"


@dataclass(frozen=True, slots=True)
class Doors:
    """`command`: the program as it runs in a person's shell. `approvers_url`: where approvers decide, "" where there are none.

    `zone_variables`: the environment variables that describe a zone, which a person's shell may lack.
    """

    command: str = PROGRAM
    approvers_url: str = ""
    zone_variables: tuple[str, ...] = ()

    @property
    def has_approvers(self) -> bool:
        return bool(self.approvers_url)

    def how_to_approve(self, approval: "Approval", *, link: str, has_pin: bool) -> str:
        """Return it in a few lines; the command stands alone on one."""
        if self.has_approvers:
            return (
                "Another principal with the approver role decides, over HTTP with a token of their own:\n"
                f"POST {self.approvers_url}/{approval.id}\n"
                'The body is {"decision": "approve", "digest": "…"} or {"decision": "deny"};'
                f" GET {self.approvers_url} shows the plan and its digest."
            )
        lines = [IN_A_TERMINAL, f"{self.command} approve {approval.id}"]
        if approval.call.is_strict and not has_pin:
            lines.insert(0, "This takes a PIN, and none is set: the operator of this server has to set one first.")
        if link:
            lines.append(f"Or on the approval page: {link}" if has_pin else f"The page that can deny it: {link}")
        return "\n".join(lines)


def shell_command(argv0: str, executable: str, variables: Mapping[str, str]) -> str:
    """Return how a shell runs this program, from any folder and with an environment of its own.

    `argv0` is how it was started, `executable` the interpreter that runs it.
    """
    started = shutil.which(argv0) if os.sep not in argv0 else argv0
    if started and Path(started).name == PROGRAM and os.access(started, os.X_OK):
        words = [str(Path(started).absolute())]
    else:
        words = [str(Path(executable).absolute()), "-m", "snapshot_mcp"]
    return " ".join([*(f"{name}={quote(value)}" for name, value in variables.items()), *map(quote, words)])
