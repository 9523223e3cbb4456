"""What a person sees: plain HTML without a script, readable on a phone and with the keyboard alone. Everything that comes
from outside is escaped here; names were cleaned by `wording` before."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.contract.tree import Links
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.states import State
from snapshot_mcp.guard.plan.plan import DeletionLoss, LostSnapshot
from snapshot_mcp.guard.plan.wording import Line, about, effects, format_moment

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5a6572;--page:#f3f4f6;--card:#fff;--line:#d5dae0;--stop:#b42318;
--stopbg:#fef3f2;--go:#1a6f4a;--focus:#1d5fd1}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a3acb8;--page:#14171b;--card:#1e2227;--line:#363c44;
--stop:#ff8a7a;--stopbg:#2c1a18;--go:#55c493;--focus:#7fb0ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:42rem;margin:0 auto;padding:1.25rem 1rem 3rem}
.brand{color:var(--soft);font-size:.875rem;margin:0 0 .75rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.25rem;overflow-wrap:anywhere}
h1{font-size:1.375rem;line-height:1.3;margin:0 0 .75rem}
h2{font-size:1rem;margin:1.25rem 0 .25rem}
ul{margin:.25rem 0;padding-left:1.25rem}
li{margin:.125rem 0}
.warn{background:var(--stopbg);border-left:4px solid var(--stop);border-radius:6px;padding:.5rem .75rem;margin:.5rem 0;
font-weight:600}
.chain{max-height:20rem;overflow:auto;border:1px solid var(--line);border-radius:8px;padding:.5rem .75rem;list-style:none}
.chain li{position:relative;margin:0;padding:.25rem 0 .25rem 1.5rem}
.chain li::before{content:"";position:absolute;left:.3125rem;top:0;bottom:0;border-left:2px solid var(--stop)}
.chain li::after{content:"";position:absolute;left:0;top:.75rem;width:.75rem;height:.75rem;border-radius:50%;
background:var(--card);border:2px solid var(--stop)}
.chain li.root::before,.chain li.fork::before{top:.75rem}
.chain li.leaf::before{bottom:auto;height:.75rem}
.chain li.root.leaf::before,.chain li.fork.leaf::before{display:none}
.chain b{display:block;font-weight:600}
.lane1{margin-left:1.25rem!important}.lane2{margin-left:2.5rem!important}.lane3{margin-left:3.75rem!important}
.soft{color:var(--soft);font-size:.875rem}
.state{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 .625rem;font-size:.8125rem;
font-weight:600;margin-bottom:.5rem}
.granted{color:var(--go)}.denied,.expired{color:var(--stop)}
form{margin:1rem 0 0;border-top:1px solid var(--line);padding-top:1rem}
label{display:block;font-weight:600;margin:.75rem 0 .25rem}
input{width:100%;font:inherit;color:inherit;background:var(--page);border:1px solid var(--soft);border-radius:8px;
padding:.625rem .75rem}
.buttons{display:flex;flex-wrap:wrap;gap:.75rem;margin-top:1rem}
button{font:inherit;font-weight:600;border-radius:8px;padding:.75rem 1rem;cursor:pointer;flex:1 1 12rem;min-height:2.75rem}
.keep{background:var(--go);border:1px solid var(--go);color:var(--card)}
.destroy{background:var(--card);border:1px solid var(--stop);color:var(--stop)}
:focus-visible{outline:3px solid var(--focus);outline-offset:2px}
code{font-size:.9375em}
"""

STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""For the Content-Security-Policy: this style and nothing else."""

MAX_LANE = 3
"""Further branches share the last lane; a phone is narrow."""


@dataclass(frozen=True, slots=True)
class View:
    """An approval as it is shown: `token` goes with the decision, `problem` is why the last one was not taken."""

    approval: Approval
    token: str = field(repr=False)
    has_pin: bool
    command: str
    problem: str = ""


def render_approval(view: View) -> str:
    approval = view.approval
    state = f'<span class="state {approval.state.value}">{approval.standing}</span>'
    problem = f'<p class="warn" role="alert">{escape(view.problem)}</p>' if view.problem else ""
    body = f"{state}<h1>{escape(approval.title)}?</h1>{problem}{_plan(approval)}{_asked(approval)}"
    if approval.state is State.PENDING:
        body += _decision(view)
    elif approval.state is State.GRANTED:
        body += _withdrawal(
            view, "The assistant can repeat its call now. Until it has, you can take the approval back."
        )
    elif approval.state is State.SPENT and approval.job_end is None:
        body += _withdrawal(view, f"{approval.course} While it has had no effect, you can take it back.")
    else:
        reason = f": {escape(clean_text(approval.reason))}" if approval.reason else ""
        course = f" {escape(approval.course)}" if approval.course else ""
        body += f"<p>This approval is {approval.standing}{reason}.{course} There is nothing left to decide.</p>"
    return _document(f"{approval.title}?", body)


def render_list(waiting: Sequence[tuple[str, str]]) -> str:
    """`waiting`: ids and titles."""
    if not waiting:
        return _document("Nothing waits for you", "<h1>Nothing waits for you</h1>")
    rows = "".join(f'<li><a href="/approvals/{escape(id_)}">{escape(title)}</a></li>' for id_, title in waiting)
    return _document("What waits for you", f"<h1>What waits for you</h1><ul>{rows}</ul>")


def render_message(message: str, hint: str = "") -> str:
    return _document("Approval", f"<h1>{escape(message)}</h1><p>{escape(hint)}</p>")


def _plan(approval: Approval) -> str:
    """The whole effect; the snapshots that go drawn as the tree they are, warnings set off."""
    loss = approval.plan.loss
    tree = ""
    if isinstance(loss, DeletionLoss):
        tree = f'<h2>What goes</h2><ul class="chain" tabindex="0" aria-label="What goes">{_tree(loss)}</ul>'
    meaning = "".join(map(_line, effects(approval.plan)))
    return f"{tree}<h2>What it means</h2><ul>{meaning}</ul>"


def _tree(loss: DeletionLoss) -> str:
    """Oldest first along a rail; a branch moves one lane to the right, so that a long chain stays narrow."""
    lanes: dict[str, int] = {}
    rows: list[tuple[LostSnapshot, list[str]]] = []
    parents = {one.parent_id for one in loss.snapshots}
    for one in _depth_first(loss):
        is_fork = one.parent_id in lanes and rows[-1][0].snapshot_id != one.parent_id
        lanes[one.snapshot_id] = min(MAX_LANE, lanes.get(one.parent_id, 0) + is_fork)
        marks = {
            "root": one.parent_id not in lanes,
            "fork": is_fork,
            "leaf": one.snapshot_id not in parents,
            f"lane{lanes[one.snapshot_id]}": lanes[one.snapshot_id] > 0,
        }
        rows.append((one, [mark for mark, is_set in marks.items() if is_set]))
    names = {one.snapshot_id: quoted(one.name) for one in loss.snapshots}
    return "".join(_row(one, marks, names.get(one.parent_id, "") if "fork" in marks else "") for one, marks in rows)


def _row(one: LostSnapshot, marks: list[str], branches_off: str) -> str:
    of = f" · branches off {escape(branches_off)}" if branches_off else ""
    return (
        f'<li class="{" ".join(marks)}"><b>{escape(quoted(one.name))}</b><span class="soft">{format_moment(one.time)} · '
        f"{format_bytes(one.size_bytes)} · {escape(clean_text(one.snapshot_id))}{escape(about(one, ' · '))}{of}</span></li>"
    )


def _depth_first(loss: DeletionLoss) -> list[LostSnapshot]:
    """Each snapshot after what it builds on."""
    by_id = {one.snapshot_id: one for one in loss.snapshots}
    return [by_id[id_] for id_, _ in Links({id_: one.parent_id for id_, one in by_id.items()}).depth_first()]


def _line(line: Line) -> str:
    mark = ' class="warn"' if line.warning else ""
    return f"<li{mark}>{escape(line.text)}</li>"


def _asked(approval: Approval) -> str:
    client = f" through {escape(approval.call.client)}" if approval.call.client else ""
    until = f" Open until {approval.expires_at:%Y-%m-%d %H:%M} UTC." if approval.expires_at else ""
    principal = escape(clean_text(approval.call.principal))
    return (
        f'<p class="soft">Asked by {principal}{client} at {approval.opened.time:%Y-%m-%d %H:%M} UTC in zone'
        f" {escape(approval.call.zone)}. Approval {escape(approval.id)}.{until}</p>"
    )


def _decision(view: View) -> str:
    if not view.has_pin:
        return (
            _form(view, '<button class="keep" name="decision" value="deny">Deny, keep everything</button>')
            + '<p class="soft">No PIN is set, so this page can show and deny, not approve. Set one in a terminal with'
            f" <code>{escape(view.command)} pin</code>{_approve_there(view)}."
            "</p>"
        )
    question = view.approval.question
    fields = ""
    if question.kind == "typed_name":
        fields += (
            f'<label for="name">Type {escape(question.expected_name)} to show that you mean it</label>'
            '<input id="name" name="name" autocomplete="off" autocapitalize="off" spellcheck="false">'
        )
    fields += (
        '<label for="pin">Your PIN, to approve</label>'
        '<input id="pin" name="pin" type="password" autocomplete="off" maxlength="128">'
    )
    act = "deletion" if view.approval.call.operation == "delete" else "roll-back"
    buttons = (
        f'<button class="destroy" name="decision" value="approve">Approve the {act}</button>'
        '<button class="keep" name="decision" value="deny">Deny, keep everything</button>'
    )
    return _form(view, buttons, fields)


def _approve_there(view: View) -> str:
    """What takes no PIN can be approved in a terminal all the same."""
    approval = view.approval
    command = f"<code>{escape(view.command)} approve {escape(approval.id)}</code>"
    return "" if approval.call.is_strict else f", or approve there with {command}"


def _withdrawal(view: View, note: str) -> str:
    return f"<p>{escape(note)}</p>" + _form(
        view, '<button class="keep" name="decision" value="deny">Take it back</button>'
    )


def _form(view: View, buttons: str, fields: str = "") -> str:
    approval = view.approval
    return (
        f'<form method="post" action="/approvals/{escape(approval.id)}">'
        f'<input type="hidden" name="token" value="{view.token}">'
        f'<input type="hidden" name="digest" value="{approval.plan.digest}">'
        f'{fields}<div class="buttons">{buttons}</div></form>'
    )


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f'<body><main><p class="brand">snapshot-mcp · your approval</p><div class="card">{body}</div></main></body></html>'
    )
