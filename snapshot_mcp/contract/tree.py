"""`SnapshotTree`: which snapshot builds on which, for the plan, the picture, the page and the rules. Pure.

A chain is a tree: one full snapshot with incrementals below it (CONTRACT.md, "A chain is a tree"). A snapshot whose parent is
missing or not listed is placed below the root of its chain, because deleting the full one deletes the whole chain. `Links` is
a tree of bare ids; it cuts a loop, which no zone should send, at the loop's first id.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property

from snapshot_mcp.contract.models import Snapshot

_DAWN = datetime.min.replace(tzinfo=UTC)


class Links:
    """A forest of ids; `parents` maps each id to the one it builds on, or to None or an unknown id for a root."""

    def __init__(self, parents: Mapping[str, str | None]) -> None:
        self._parents = _without_loops(parents)
        self._children: dict[str, list[str]] = {}
        for id_, parent in self._parents.items():
            self._children.setdefault(parent or "", []).append(id_)

    @property
    def roots(self) -> tuple[str, ...]:
        """Ids that build on nothing, in the given order."""
        return tuple(self._children.get("", ()))

    def parent(self, id_: str) -> str | None:
        """Return the id that it builds on directly."""
        return self._parents.get(id_)

    def children(self, id_: str) -> tuple[str, ...]:
        """Return the ids built directly on it, in the given order."""
        return tuple(self._children.get(id_, ())) if id_ else ()

    def ancestors(self, id_: str) -> Iterator[str]:
        """Yield the ids that it builds on, nearest first."""
        above = self.parent(id_)
        while above is not None:
            yield above
            above = self.parent(above)

    def depth_first(self) -> Iterator[tuple[str, int]]:
        """Yield each id after its ancestors, with its depth. Iterative, because a chain may be long."""
        waiting = [(root, 0) for root in reversed(self.roots)]
        while waiting:
            id_, depth = waiting.pop()
            yield id_, depth
            waiting += [(child, depth + 1) for child in reversed(self.children(id_))]


def _without_loops(parents: Mapping[str, str | None]) -> dict[str, str | None]:
    links = {id_: parent if parent in parents else None for id_, parent in parents.items()}
    rank = {id_: number for number, id_ in enumerate(links)}
    settled: set[str] = set()
    for id_ in links:
        path: dict[str, None] = {}
        at: str | None = id_
        while at is not None and at not in settled and at not in path:
            path[at] = None
            at = links[at]
        if at in path:
            ids = list(path)
            links[min(ids[ids.index(at) :], key=rank.__getitem__)] = None
        settled.update(path)
    return links


class SnapshotTree:
    """Restore points as trees, given newest first as a zone lists them. An unknown id has no ancestors and no descendants."""

    def __init__(self, points: Iterable[Snapshot]) -> None:
        newest_first = sorted(
            points, key=lambda one: taken_at(one) or _DAWN, reverse=True
        )  # keeps the order of equal ones
        self._by_id = {one.snapshot_id: one for one in reversed(newest_first)}
        self._links = Links({id_: self._builds_on(one) for id_, one in self._by_id.items()})

    def __contains__(self, id_: object) -> bool:
        return id_ in self._by_id

    def __getitem__(self, id_: str) -> Snapshot:
        return self._by_id[id_]

    @cached_property
    def points(self) -> tuple[Snapshot, ...]:
        """All points, oldest first; points of the same second after those that they build on, else as they were listed."""
        placed: dict[str, Snapshot] = {}
        for one in self._by_id.values():
            above = [base for base in self.ancestors(one.snapshot_id) if taken_at(base) == taken_at(one)]
            placed |= {base.snapshot_id: base for base in reversed(above) if base.snapshot_id not in placed}
            placed[one.snapshot_id] = one
        return tuple(placed.values())

    @cached_property
    def depths(self) -> dict[str, int]:
        """The number of ancestors by id."""
        return dict(self._links.depth_first())

    @property
    def roots(self) -> tuple[Snapshot, ...]:
        """Points that build on nothing, oldest first."""
        return tuple(map(self.__getitem__, self._links.roots))

    @property
    def head(self) -> Snapshot | None:
        """The snapshot that the disk's present content grew from."""
        return next((one for one in self._by_id.values() if one.is_head), None)

    @cached_property
    def sound(self) -> frozenset[str]:
        """Ids of points that can be restored: they and all their ancestors are available and undamaged."""
        sound: set[str] = set()
        for id_, _ in self._links.depth_first():
            one, parent = self._by_id[id_], self._links.parent(id_)
            is_supported = _is_base(one) or (parent is not None and parent == one.parent and parent in sound)
            if is_supported and one.is_available and not one.is_damaged:
                sound.add(id_)
        return frozenset(sound)

    @cached_property
    def good(self) -> frozenset[str]:
        """Ids of sound points that are not fuzzy themselves; a fuzzy parent does no harm, because all blocks were compared."""
        return frozenset(id_ for id_ in self.sound if not is_fuzzy(self._by_id[id_]))

    def parent_id(self, id_: str) -> str | None:
        """Return the id that it is placed below: its parent, or its chain's root if the parent is not known."""
        return self._links.parent(id_)

    def children(self, id_: str) -> tuple[Snapshot, ...]:
        """Return the points placed directly below it, oldest first."""
        return tuple(map(self.__getitem__, self._links.children(id_)))

    def ancestors(self, id_: str) -> tuple[Snapshot, ...]:
        """Return the points that it builds on, nearest first."""
        return tuple(map(self.__getitem__, self._links.ancestors(id_)))

    def descendants(self, id_: str) -> frozenset[str]:
        """Return the ids of everything built on it, which is deleted with it; in a loop these are all the others."""
        found: set[str] = set()
        waiting = [id_]
        while waiting:
            waiting += (below := self._dependents.get(waiting.pop(), frozenset()) - found)
            found |= below
        return frozenset(found - {id_})

    def in_order(self, ids: Iterable[str]) -> tuple[Snapshot, ...]:
        """Return the points with these ids, oldest first; unknown ids are ignored."""
        wanted = frozenset(ids)
        return tuple(one for one in self.points if one.snapshot_id in wanted)

    def chain_of(self, id_: str) -> tuple[Snapshot, ...]:
        """Return all points with the same root, oldest first."""
        root = ([id_, *self._links.ancestors(id_)])[-1]
        return self.in_order({root, *self.descendants(root)})

    def is_placed(self, id_: str) -> bool:
        """Return whether its place is certain: it is full, or its parent is known."""
        return _is_base(self._by_id[id_]) or self._by_id[id_].parent in self._by_id

    @cached_property
    def _dependents(self) -> dict[str, frozenset[str]]:
        """Ids that name it as parent or root, by id; unlike `Links`, loops are kept."""
        dependents: dict[str, set[str]] = {}
        for id_, one in self._by_id.items():
            for above in {one.parent, self._root_of(one)} - {None, id_}:
                dependents.setdefault(above or "", set()).add(id_)
        return {id_: frozenset(below) for id_, below in dependents.items()}

    def _builds_on(self, one: Snapshot) -> str | None:
        return one.parent if one.parent in self._by_id else self._root_of(one)

    def _root_of(self, one: Snapshot) -> str | None:
        """Return the full snapshot of its chain, if that is another one and known."""
        root = self._by_id.get(one.root_id)
        return root.snapshot_id if root and _is_base(root) and root is not one and not one.is_full else None


def is_fuzzy(one: Snapshot) -> bool:
    """Return whether it may be a mixture of states, because its disk was in use (CONTRACT.md, "What our own face adds")."""
    return (one.consistency or "").strip().lower().startswith("fuzzy")


def _is_base(one: Snapshot) -> bool:
    """Return whether it builds on nothing: it is full, or its `parent_id` is `self` in a zone without types."""
    return one.is_full or one.parent_id == "self"


def taken_at(one: Snapshot) -> datetime | None:
    """Return the point in time that it holds, None if unknown."""
    return one.snapshot_time or one.create_time


def age(one: Snapshot) -> tuple[datetime, str]:
    """Return a sort key: oldest first, then by id."""
    return taken_at(one) or _DAWN, one.snapshot_id
