"""Layout and drawing of a resource's restore points as trees. Pure.

A chain without branches is drawn straight down, not indented at each step. At a branch, the path to the head (or else to the
newest point) continues straight and the others are indented:

    ◉ ss-1  full
    ├─● ss-2
    │ ● ss-3
    ● ss-4  ◀ head
"""

from collections.abc import Iterator, Sequence

from snapshot_mcp.contract.copied import copied_in_words
from snapshot_mcp.contract.models import Snapshot, format_time
from snapshot_mcp.contract.text import clean_text, consistency_in_words, format_bytes, quoted
from snapshot_mcp.contract.tree import SnapshotTree, taken_at
from snapshot_mcp.server.results import consistency_of, status_of, type_of
from snapshot_mcp.server.rows import ChainNode, Worth


def layout(snapshots: Sequence[Snapshot]) -> list[ChainNode]:
    """Return the nodes in the order in which they are drawn, roots oldest first."""
    tree = SnapshotTree(snapshots)
    return [_node(one, tree, art[:-2]) for one, art in _walk(tree)]


def bytes_beside_the_newest(snapshots: Sequence[Snapshot]) -> int:
    """Return what all chains store but the one with the newest snapshot."""
    taken = [(moment.timestamp(), one) for one in snapshots if (moment := taken_at(one))]
    if not taken:
        return 0
    root = max(taken, key=lambda pair: pair[0])[1].root_id
    return sum(one.stored_bytes for one in snapshots if one.root_id != root)


def draw(snapshots: Sequence[Snapshot]) -> list[str]:
    """Return the tree as lines of text, one for each restore point."""
    tree = SnapshotTree(snapshots)
    rows = [(art, one) for one, art in _walk(tree)]
    width = max((len(art) + len(clean_text(one.snapshot_id)) for art, one in rows), default=0)
    return [_line(art, one, width, tree) for art, one in rows]


def _walk(tree: SnapshotTree) -> Iterator[tuple[Snapshot, str]]:
    """Yield each snapshot with the art before its id. Iterative, because a chain may be long."""
    ranks = _ranks(tree)
    for root in tree.roots:
        stack: list[tuple[Snapshot, str, str]] = [(root, "", "")]
        while stack:
            one, lead, art = stack.pop()
            yield one, f"{art}{'◉' if one.is_full else '●'} "
            branches = tree.children(one.snapshot_id)
            if not branches:
                continue
            straight = max(branches, key=lambda child: ranks[child.snapshot_id])
            stack.append((straight, lead, lead))
            for branch in reversed([child for child in branches if child is not straight]):
                stack.append((branch, f"{lead}│ ", f"{lead}├─"))


def _ranks(tree: SnapshotTree) -> dict[str, tuple[int, float]]:
    """Return by id whether its subtree has the head, and the time of the newest snapshot there."""
    rank: dict[str, tuple[int, float]] = {}
    for id_ in reversed(tree.depths):
        moment = taken_at(tree[id_])
        own = (int(bool(tree[id_].is_head)), moment.timestamp() if moment else 0.0)
        below = [rank[child.snapshot_id] for child in tree.children(id_)]
        rank[id_] = (max(own[0], *(head for head, _ in below), 0), max(own[1], *(time for _, time in below), 0.0))
    return rank


def _node(one: Snapshot, tree: SnapshotTree, art: str) -> ChainNode:
    return ChainNode(
        snapshot_id=clean_text(one.snapshot_id),
        parent_id=clean_text(one.parent) if one.parent else None,
        root_id=clean_text(one.root_id),
        depth=tree.depths[one.snapshot_id],
        name=clean_text(one.snapshot_name),
        type=type_of(one),
        status=status_of(one),
        snapshot_time=format_time(taken_at(one)),
        stored_bytes=one.stored_bytes,
        consistency=consistency_of(one),
        is_head=bool(one.is_head),
        is_damaged=bool(one.is_damaged),
        verified_at=format_time(one.verified_at) or None,
        worth=_worth(one, tree),
        art=art,
    )


def _worth(one: Snapshot, tree: SnapshotTree) -> Worth | None:
    id_ = one.snapshot_id
    if not one.is_available:
        return None
    if one.is_damaged:
        return "damaged"
    if id_ in tree.sound:
        return "good" if id_ in tree.good else "fuzzy"
    path = [id_, *(above.snapshot_id for above in tree.ancestors(id_))]
    return "unsound" if all(map(tree.is_placed, path)) else "unknown"


def _line(art: str, one: Snapshot, width: int, tree: SnapshotTree) -> str:
    snapshot_id = clean_text(one.snapshot_id)
    marks = [] if one.is_available else [status_of(one)]
    if one.is_damaged:
        marks.append("DAMAGED")
    if not tree.is_placed(one.snapshot_id):
        marks.append("(parent unknown)")
    if one.is_head:
        marks.append("◀ head")
    if one.copies:
        marks.append(f"copied: {copied_in_words(one.copies)}")
    columns = (
        f"{art}{snapshot_id}".ljust(width),
        f"{'full' if one.is_full else '+':<4}",
        format_time(taken_at(one)) or "not taken yet".ljust(20),
        format_bytes(one.stored_bytes).rjust(10),
        quoted(one.snapshot_name),
        *filter(None, [consistency_in_words(one.consistency)]),
        *marks,
    )
    return "  ".join(columns)
