"""`SnapshotTree`: the one answer to "what builds on what", for the plan, the picture, the page and the rules. Pure.

A chain is a tree: one full snapshot, incrementals below it (CONTRACT.md, "A chain is a tree"). A snapshot whose parent the zone
leaves out, or names without listing it, stands below the root of its chain: deleting the full one deletes the whole chain.
`Links` is the tree of bare ids; it cuts a loop, which no zone should send, at the first id of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property

from snapshot_mcp.contract.models import Snapshot

_DAWN = datetime.min.replace(tzinfo=UTC)


class Links:
    """A forest of ids: `parents` says what each builds on, None (or an id that is not among them) for nothing."""

    def __init__(self, parents: Mapping[str, str | None]) -> None:
        self._parents = _without_loops(parents)
        self._children: dict[str, list[str]] = {}
        for id_, parent in self._parents.items():
            self._children.setdefault(parent or "", []).append(id_)

    @property
    def roots(self) -> tuple[str, ...]:
        """Those that build on nothing, in the given order."""
        return tuple(self._children.get("", ()))

    def parent(self, id_: str) -> str | None:
        return self._parents.get(id_)

    def children(self, id_: str) -> tuple[str, ...]:
        """What was built directly on it, in the given order."""
        return tuple(self._children.get(id_, ())) if id_ else ()

    def ancestors(self, id_: str) -> Iterator[str]:
        """What it builds on, nearest first."""
        above = self.parent(id_)
        while above is not None:
            yield above
            above = self.parent(above)

    def depth_first(self) -> Iterator[tuple[str, int]]:
        """Each id after what it builds on, with its depth. Without recursion: a chain may be long."""
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
    """Restore points as the trees they are. An id that is not among them has no ancestors and no descendants."""

    def __init__(self, points: Iterable[Snapshot]) -> None:
        self._by_id = {one.snapshot_id: one for one in sorted(points, key=age)}
        self._links = Links({id_: self._builds_on(one) for id_, one in self._by_id.items()})

    def __contains__(self, id_: object) -> bool:
        return id_ in self._by_id

    def __getitem__(self, id_: str) -> Snapshot:
        return self._by_id[id_]

    @cached_property
    def points(self) -> tuple[Snapshot, ...]:
        """All of them, oldest first; of one second, what is built on another after it."""
        depths = self.depths
        return tuple(
            sorted(self._by_id.values(), key=lambda one: (age(one)[0], depths[one.snapshot_id], one.snapshot_id))
        )

    @cached_property
    def depths(self) -> dict[str, int]:
        """By id, how many it builds on."""
        return dict(self._links.depth_first())

    @property
    def roots(self) -> tuple[Snapshot, ...]:
        return tuple(map(self.__getitem__, self._links.roots))

    @property
    def head(self) -> Snapshot | None:
        """The snapshot that the disk's present content grew from."""
        return next((one for one in self._by_id.values() if one.is_head), None)

    @cached_property
    def sound(self) -> frozenset[str]:
        """Those that can be restored from: available and undamaged, as everything that they build on."""
        sound: set[str] = set()
        for id_, _ in self._links.depth_first():
            one, parent = self._by_id[id_], self._links.parent(id_)
            stands = _is_base(one) or (parent is not None and parent == one.parent and parent in sound)
            if stands and one.is_available and not one.is_damaged:
                sound.add(id_)
        return frozenset(sound)

    @cached_property
    def good(self) -> frozenset[str]:
        """The sound ones that are one state of their disk. A sound one on a fuzzy parent is: all of it was compared."""
        return frozenset(id_ for id_ in self.sound if not is_fuzzy(self._by_id[id_]))

    def parent_id(self, id_: str) -> str | None:
        """The id that it stands below: what it builds on, or its chain's root where that is not known."""
        return self._links.parent(id_)

    def children(self, id_: str) -> tuple[Snapshot, ...]:
        return tuple(map(self.__getitem__, self._links.children(id_)))

    def ancestors(self, id_: str) -> tuple[Snapshot, ...]:
        """What it builds on, nearest first."""
        return tuple(map(self.__getitem__, self._links.ancestors(id_)))

    def descendants(self, id_: str) -> frozenset[str]:
        """Everything that was built on it, which goes when it goes; itself excluded. In a loop all of them go."""
        found: set[str] = set()
        waiting = [id_]
        while waiting:
            waiting += (below := self._dependents.get(waiting.pop(), frozenset()) - found)
            found |= below
        return frozenset(found - {id_})

    def in_order(self, ids: Iterable[str]) -> tuple[Snapshot, ...]:
        """Those of `ids` that are there, oldest first."""
        wanted = frozenset(ids)
        return tuple(one for one in self.points if one.snapshot_id in wanted)

    def chain_of(self, id_: str) -> tuple[Snapshot, ...]:
        """Everything that shares its root, oldest first."""
        root = ([id_, *self._links.ancestors(id_)])[-1]
        return self.in_order({root, *self.descendants(root)})

    def is_placed(self, id_: str) -> bool:
        """Whether the zone says what it builds on; of a full one there is nothing to say."""
        return _is_base(self._by_id[id_]) or self._by_id[id_].parent in self._by_id

    @cached_property
    def _dependents(self) -> dict[str, frozenset[str]]:
        """By id, what goes with it: what names it as its parent or its root, also in a loop that the picture cuts."""
        dependents: dict[str, set[str]] = {}
        for id_, one in self._by_id.items():
            for above in {one.parent, self._root_of(one)} - {None, id_}:
                dependents.setdefault(above or "", set()).add(id_)
        return {id_: frozenset(below) for id_, below in dependents.items()}

    def _builds_on(self, one: Snapshot) -> str | None:
        return one.parent if one.parent in self._by_id else self._root_of(one)

    def _root_of(self, one: Snapshot) -> str | None:
        """The full snapshot of its chain, where it is another one and there."""
        root = self._by_id.get(one.root_id)
        return root.snapshot_id if root and _is_base(root) and root is not one and not one.is_full else None


def is_fuzzy(one: Snapshot) -> bool:
    """Whether it may be a mixture of states, because its disk was in use (CONTRACT.md, "What our own face adds")."""
    return (one.consistency or "").startswith("fuzzy")


def _is_base(one: Snapshot) -> bool:
    """Whether it builds on nothing: a full one, or one of which a zone without types says `self`."""
    return one.is_full or one.parent_id == "self"


def taken_at(one: Snapshot) -> datetime | None:
    """The point in time that it holds, as far as the zone says."""
    return one.snapshot_time or one.create_time


def age(one: Snapshot) -> tuple[datetime, str]:
    """To sort by: the oldest first, then by id."""
    return taken_at(one) or _DAWN, one.snapshot_id
