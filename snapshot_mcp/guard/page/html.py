"""What a person sees: plain HTML without a script, readable on a phone and with the keyboard alone.

The templates escape whatever they are given; names were cleaned by `wording` before.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.contract.tree import Links
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.page.timeline import timelines
from snapshot_mcp.guard.plan.plan import DeletionLoss, LostSnapshot
from snapshot_mcp.guard.plan.wording import about, effects, format_moment

STYLE = files(__package__).joinpath("templates", "style.css").read_text(encoding="utf-8")
STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""For the Content-Security-Policy: this style and nothing else."""

MAX_LANE = 3
"""Further branches share the last lane; a phone is narrow."""


@dataclass(frozen=True, slots=True)
class ChainRow:
    """A snapshot in the drawn tree: `marks` are its style classes, `branches_off` names the parent of a fork's first one."""

    snapshot: LostSnapshot
    marks: tuple[str, ...]
    branches_off: str = ""


def render_approval(
    approval: Approval,
    *,
    path: str,
    token: str,
    has_pin: bool,
    phrase: str,
    command: str,
    warning: str = "",
    problem: str = "",
) -> str:
    """Return an approval's page at `path`: `token` goes with the decision, `phrase` shows that it is not a false page.

    `warning` is about the page itself, `problem` says why the last decision was rejected.
    """
    loss = approval.plan.loss
    return _render(
        "approval",
        approval=approval,
        chain=chain_rows(loss) if isinstance(loss, DeletionLoss) else (),
        timelines=timelines(approval.plan, approval.opened.time),
        effects=effects(approval.plan),
        path=path,
        token=token,
        has_pin=has_pin,
        phrase=phrase,
        command=command,
        warning=warning,
        problem=problem,
    )


def render_list(waiting: Sequence[tuple[Approval, str]], *, phrase: str) -> str:
    """Return the page with the approvals that wait for a person, each with the path of its page."""
    return _render("list", waiting=waiting, phrase=phrase)


def render_message(message: str, hint: str = "") -> str:
    """Return a page with only a message."""
    return _render("message", message=message, hint=hint)


def render_refresh(path: str) -> str:
    """Return what makes a browser load the page at `path` once it has read this, after the end of another."""
    return _render("refresh", path=path)


def chain_rows(loss: DeletionLoss) -> list[ChainRow]:
    """Return the snapshots, each after its parent; a branch moves one lane to the right, so that a long chain stays narrow."""
    by_id = {one.snapshot_id: one for one in loss.snapshots}
    parents = {one.parent_id for one in loss.snapshots}
    lanes: dict[str, int] = {}
    rows: list[ChainRow] = []
    for id_, _ in Links({id_: one.parent_id for id_, one in by_id.items()}).depth_first():
        one = by_id[id_]
        is_fork = one.parent_id in lanes and rows[-1].snapshot.snapshot_id != one.parent_id
        lane = lanes[id_] = min(MAX_LANE, lanes.get(one.parent_id, 0) + is_fork)
        marks = {
            "root": one.parent_id not in lanes,
            "fork": is_fork,
            "leaf": id_ not in parents,
            f"lane{lane}": lane > 0,
        }
        branches_off = by_id[one.parent_id].name if is_fork else ""
        rows.append(ChainRow(one, tuple(mark for mark, is_set in marks.items() if is_set), branches_off))
    return rows


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(f"{template}.html").render(values)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.globals["style"] = Markup(STYLE)
    templates.filters |= {
        "about": lambda one: about(one, " · "),
        "bytes": format_bytes,
        "clean": clean_text,
        "minute": lambda moment: f"{moment:%Y-%m-%d %H:%M} UTC",
        "moment": format_moment,
        "quoted": quoted,
    }
    return templates
