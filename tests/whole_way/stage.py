"""What the sequences of `test_every_sequence` happen on: one disk, one home, one person, and how each of them acts."""

import random
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard import Policy
from snapshot_mcp.guard.consent.states import State
from snapshot_mcp.guard.plan.policy import Protect
from snapshot_mcp.guard.plan.question import Question
from tests.guard.conftest import Person, agrees
from tests.whole_way import workers
from tests.whole_way.model import Model
from tests.whole_way.scene import Scene, open_scene
from tests.whole_way.workers import Nursery

POLICIES = {
    "as usual": Policy(),
    "read-only": Policy(read_only=True),
    "production": Policy(consent="human"),
    "protected": Policy(protect=Protect(names=frozenset({"pg-*"}))),
    "safety required": Policy(safety_snapshot="required"),
    "last copy stays": Policy(last_good_copy="refuse"),
}
FORBIDS_ALL = ("read-only", "production", "protected")
"""Without a PIN no door is strong enough for production."""

PYTHON = sys.executable
NURSERY: list[Nursery] = []


class TurnedUptime:
    """The guards' clock: a wall clock that can be set, an uptime that only passes, and a run of the system."""

    def __init__(self, scene: Scene) -> None:
        self._real = scene.clock
        self.wall, self.run, self.uptime = 0.0, 0, 0.0

    def read(self) -> Moment:
        now = self._real.read()
        return Moment(now.wall + self.wall, f"run {self.run}", now.uptime + self.uptime)

    def turn(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds


class Stage(RuleBasedStateMachine):
    """The calls of its methods, and what must be true after each."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="whole-way-"))
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        opening = self.portal.call(_opening, self.folder)
        self.scene: Scene = self.stack.enter_context(self.portal.wrap_async_context_manager(opening))
        self.clock = TurnedUptime(self.scene)
        self.scene.clock = self.clock  # type: ignore[assignment]
        self.model = Model(self.scene)
        self.model.note_files()
        self.policy = "as usual"
        self.is_startable = True
        self.shown: dict[str, str] = {}
        """Which file the disk was in the plan that a pending approval shows."""
        self.chance = random.Random(3)

    def teardown(self) -> None:
        self.is_startable = True
        workers.kill(self.scene.zone_folder)
        self.stack.close()
        shutil.rmtree(self.folder)

    @property
    def is_startable(self) -> bool:
        """Whether a worker can be started, by anybody."""
        return sys.executable == PYTHON

    @is_startable.setter
    def is_startable(self, is_startable: bool) -> None:
        sys.executable = PYTHON if is_startable else "/nowhere/python"

    # Who does something

    def guard(self) -> Any:
        return self.scene.guard(rules=lambda zone: POLICIES[self.policy])

    def call(self, work: Any, *args: Any, **options: Any) -> Any:
        """Run it to its end; None where it is refused in the contract's words."""

        async def run() -> Any:
            try:
                return await work(*args, **options)
            except ZoneError:
                return None

        self._raise_worker()
        return self.portal.call(run)

    def _raise_worker(self) -> None:
        """The product starts one by itself; this is the same one, sooner."""
        if self.is_startable:
            NURSERY[0].start(self.scene.zone_folder)

    def _nth_snapshot(self, index: int) -> str:
        rows = self.scene.rows(
            "SELECT snapshot_id FROM snapshots WHERE resource_id = ? ORDER BY rowid", self.scene.disk_id
        )
        return str(rows[index % len(rows)]["snapshot_id"]) if rows else "ss-none"

    def _approvals(self) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self.portal.call(self.guard().list_approvals)
        return tuple(sorted(found, key=lambda one: (one.opened.wall, one.id)))

    @initialize()
    def begin(self) -> None:
        for name in ("full", "monday"):
            self._raise_worker()
            self.portal.call(self.scene.back_up, name)
            self.scene.scribble(len(name))
            self.model.note_files(is_written=True)

    def _ask(self, operation: str, index: int, answer: str, *, safety: bool) -> None:
        target = self._nth_snapshot(index)
        seen: list[str] = []

        def reply(question: Question) -> str:
            seen.append(self.model.present_identity())
            return agrees(question) if answer == "yes" else "keep"

        person = Person([reply] * 4) if answer != "nobody" else Person(can_ask=False)
        before = {one.id for one in self._approvals()}
        identity = self.model.present_identity()
        arguments = {"snapshot_id": target, "snapshot_ids": [target], "safety_snapshot": safety}
        self._make(operation, arguments, person)
        for one in self._approvals():
            if one.id not in before and one.decided and one.state is not State.DENIED:
                self.model.note_yes(one, seen[-1] if seen else identity)

    def _make(self, operation: str, arguments: dict[str, Any], person: Person) -> Any:
        """Make a guarded call; what the rules forbid starts nothing, whoever agreed."""
        guard, count, identity = self.guard(), len(self.scene.acts()), self.model.present_identity()
        if operation == "delete":
            outcome = self.call(guard.delete_snapshot, self.scene.zone, arguments["snapshot_id"], person)
        else:
            call, safety = guard.rollback_to_snapshots, arguments["safety_snapshot"]
            outcome = self.call(call, self.scene.zone, arguments["snapshot_ids"], person, safety_snapshot=safety)
        if self.policy in FORBIDS_ALL:
            assert len(self.scene.acts()) == count, f"{self.policy}, and yet {outcome}"
        for one in self._approvals():
            if one.state is State.PENDING and (one.id not in self.shown or (outcome and outcome.approval_id == one.id)):
                self.shown[one.id] = identity
        return outcome

    # What must be true

    @invariant()
    def nothing_was_done_that_nobody_agreed_to(self) -> None:
        if self.is_startable and not workers.is_frozen(self.scene.zone_folder):
            self._settle()
        self._compare()
        self.portal.call(self.scene.verify, self.guard())

    def _compare(self) -> None:
        disk = self.portal.call(self.scene.disk)
        self.model.compare(self._approvals(), disk, list(self.guard().audit.records()))

    def _settle(self) -> None:
        """Wait until nothing is under way, or the worker has stopped itself."""

        async def is_over() -> bool:
            return not await self.scene.provider.list_unfinished_jobs()

        def is_settled() -> bool:
            if workers.is_frozen(self.scene.zone_folder):
                return True
            self._raise_worker()
            return bool(self.portal.call(is_over))

        workers.until(is_settled)


async def _opening(folder: Path) -> Any:
    return open_scene(folder)
