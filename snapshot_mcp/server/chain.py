"""The restore points of a resource as trees: laid out and drawn. Pure.

A chain that does not branch is drawn straight down, so that thirty restore points do not march off to the right. Where it
branches, the way to the head (else to the newest point) goes straight on and the others stand beside it:

    ◉ ss-1  full
    ├─● ss-2
    │ ● ss-3
    ● ss-4  ◀ head
"""

from collections.abc import Iterator, Sequence

from snapshot_mcp.contract.models import Snapshot, format_time
from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.server.results import ChainNode, age_order, status_of, type_of

Children = dict[str, list[Snapshot]]


def layout(snapshots: Sequence[Snapshot]) -> list[ChainNode]:
    """Return the nodes in the order they are drawn, roots oldest first. What has no known parent is a root."""
    children = _children(snapshots)
    return [_node(one, depth) for one, depth, _ in _walk(children)]


def draw(snapshots: Sequence[Snapshot]) -> list[str]:
    """Return the tree as lines of text, a restore point each."""
    rows = [(art, one) for one, _, art in _walk(_children(snapshots))]
    width = max((len(art) + len(clean_text(one.snapshot_id)) for art, one in rows), default=0)
    return [_line(art, one, width) for art, one in rows]


def below(snapshots: Sequence[Snapshot], snapshot_id: str) -> list[Snapshot]:
    """Return everything that was built on it, without itself."""
    children = _children(snapshots)
    found: list[Snapshot] = []
    todo = list(children.get(snapshot_id, ()))
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one.snapshot_id, ())
    return found


def _children(snapshots: Sequence[Snapshot]) -> Children:
    """Snapshots by parent, oldest first; "" holds the roots. A loop, which no zone should send, is cut at its oldest."""
    known = {one.snapshot_id for one in snapshots}
    children: Children = {}
    for one in age_order(snapshots):
        parent = one.parent if one.parent in known else None
        children.setdefault(parent or "", []).append(one)
    reached = {one.snapshot_id for one, _, _ in _walk(children)}
    for one in age_order(snapshots):
        if one.snapshot_id not in reached:
            children[one.parent or ""].remove(one)
            children.setdefault("", []).append(one)
            reached |= {one.snapshot_id for one, _, _ in _walk(children)}
    return children


def _walk(children: Children) -> Iterator[tuple[Snapshot, int, str]]:
    """Yield each snapshot with its depth and the art before its id. Without recursion: a chain may be long."""
    newest_head = _straight_on(children)
    for root in children.get("", ()):
        stack: list[tuple[Snapshot, int, str, str]] = [(root, 0, "", "")]
        while stack:
            one, depth, lead, art = stack.pop()
            yield one, depth, f"{art}{'◉' if one.is_full else '●'} "
            branches = children.get(one.snapshot_id, [])
            if not branches:
                continue
            straight = max(branches, key=lambda child: newest_head[child.snapshot_id])
            stack.append((straight, depth + 1, lead, lead))
            for branch in reversed([child for child in branches if child is not straight]):
                stack.append((branch, depth + 1, f"{lead}│ ", f"{lead}├─"))


def _straight_on(children: Children) -> dict[str, tuple[int, float]]:
    """For each snapshot: does the head stand in its subtree, and how new is the newest there."""
    order: list[Snapshot] = []
    todo = list(children.get("", ()))
    while todo:
        one = todo.pop()
        order.append(one)
        todo += children.get(one.snapshot_id, ())
    rank: dict[str, tuple[int, float]] = {}
    for one in reversed(order):
        moment = one.snapshot_time or one.create_time
        own = (int(bool(one.is_head)), moment.timestamp() if moment else 0.0)
        below_it = [rank[child.snapshot_id] for child in children.get(one.snapshot_id, ())]
        rank[one.snapshot_id] = (
            max(own[0], *(head for head, _ in below_it), 0),
            max(own[1], *(time for _, time in below_it), 0.0),
        )
    return rank


def _node(one: Snapshot, depth: int) -> ChainNode:
    return ChainNode(
        snapshot_id=clean_text(one.snapshot_id),
        parent_id=clean_text(one.parent) if one.parent else None,
        root_id=clean_text(one.root_id),
        depth=depth,
        name=clean_text(one.snapshot_name),
        type=type_of(one),
        status=status_of(one),
        snapshot_time=format_time(one.snapshot_time or one.create_time),
        size_bytes=one.stored_bytes,
        is_head=bool(one.is_head),
        is_damaged=bool(one.is_damaged),
    )


def _line(art: str, one: Snapshot, width: int) -> str:
    snapshot_id = clean_text(one.snapshot_id)
    marks = [] if one.is_available else [status_of(one)]
    if one.is_damaged:
        marks.append("DAMAGED")
    if one.is_head:
        marks.append("◀ head")
    columns = (
        f"{art}{snapshot_id}".ljust(width),
        f"{'full' if one.is_full else '+':<4}",
        format_time(one.snapshot_time or one.create_time) or "not taken yet".ljust(20),
        format_bytes(one.stored_bytes).rjust(10),
        quoted(one.snapshot_name),
        *marks,
    )
    return "  ".join(columns)
