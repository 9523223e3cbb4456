"""Tells a person how to approve. A model that passes it on cannot use it.

Over HTTP with enrolled approvers, only they can decide. Elsewhere it is a command that runs as printed, and the approval page.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_mcp.ground.shell import quote

if TYPE_CHECKING:
    from snapshot_mcp.guard.consent.approval import Approval

PROGRAM = "snapshot-mcp"
IN_A_TERMINAL = "For the person, in a terminal of their own:"


@dataclass(frozen=True, slots=True)
class PageLink:
    """A link to an approval's page, "" if there is none. `note`: what a person has to know of the page."""

    url: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Doors:
    """The ways to approve. `command`: this program in a shell; `approvers_url`: where enrolled approvers decide, or "".

    `zone_variables`: the environment variables that describe a zone, which a person's shell may lack.
    """

    command: str = PROGRAM
    approvers_url: str = ""
    zone_variables: tuple[str, ...] = ()

    def how_to_approve(self, approval: "Approval", *, link: PageLink, has_pin: bool) -> str:
        """Return a few lines for a person; the command has a line of its own."""
        if self.approvers_url:
            return (
                "Another principal with the approver role decides, over HTTP with their own token:\n"
                f"POST {self.approvers_url}/{approval.id}\n"
                'The body is {"decision": "approve", "digest": "…"} or {"decision": "deny"};'
                f" GET {self.approvers_url} shows the plan and its digest."
            )
        lines = [IN_A_TERMINAL, f"{self.command} approve {approval.id}"]
        if approval.call.is_strict and not has_pin:
            lines.insert(0, "This needs a PIN, and none is set. The operator of this server has to set one first.")
        if link.url:
            lines.append(f"Or on the approval page: {link.url}" if has_pin else f"Or deny it on this page: {link.url}")
            lines += filter(None, [link.note])
        return "\n".join(lines)


def shell_command(argv0: str, executable: str, variables: Mapping[str, str]) -> str:
    """Return a shell command for this program that works in any folder and environment.

    `argv0`: how it was started, `executable`: its interpreter, `variables`: the environment that it needs.
    """
    started = shutil.which(argv0) if os.sep not in argv0 else argv0
    if started and Path(started).name == PROGRAM and os.access(started, os.X_OK):
        words = [str(Path(started).absolute())]
    else:
        words = [str(Path(executable).absolute()), "-m", "snapshot_mcp"]
    return " ".join([*(f"{name}={quote(value)}" for name, value in variables.items()), *map(quote, words)])
