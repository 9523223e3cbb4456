"""The whole way under every sequence (hypothesis): yes and no, workers that hang and die, paths that lead elsewhere, backups and
deletions by others, clocks that move, reboots, rules that change. What must never be is in `model`."""

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.guard import Policy, withdrawal
from snapshot_mcp.guard.approval import GRANTED_SECONDS
from snapshot_mcp.guard.client import Question
from snapshot_mcp.guard.clock import Moment
from snapshot_mcp.guard.policy import Protect
from snapshot_mcp.guard.states import State
from tests.guard.conftest import Person, agrees
from tests.whole_way import workers
from tests.whole_way.model import Model
from tests.whole_way.paths import CHUNK, REPLACED, elsewhere, put_back
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
INDEX = st.integers(0, 7)
EVENTS_WITHOUT_PATHS = (
    "write",
    "write",
    "resize 2",
    "resize 4",
    "resize 6",
    "wait 61",
    "wait 259200",
    "deny",
    "others",
)
EVENTS = st.lists(
    st.sampled_from(
        [
            *(f"path {kind}" for kind in REPLACED),
            "path back",
            "write",
            "write",
            "wait 61",
            "wait 259200",
            "deny",
            "others",
        ]
    ),
    min_size=1,
    max_size=3,
)
"""What happens while there is no worker to see it."""


@pytest.fixture(autouse=True, scope="module")
def nursery_of_the_module(nursery: Nursery) -> Iterator[None]:
    """Hypothesis builds its machines without fixtures. A no does not wait long for a worker that is frozen."""
    NURSERY.append(nursery)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(withdrawal, "STOP_SECONDS", 0.2)
        yield
    NURSERY.clear()


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


class WholeWay(RuleBasedStateMachine):
    """One disk, one home, one person, and everything else that can happen."""

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
        self.is_stuck = False
        self.chance = random.Random(3)

    def teardown(self) -> None:
        sys.executable = PYTHON
        workers.kill(self.scene.zone_folder)
        self.stack.close()
        shutil.rmtree(self.folder)

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
        sys.executable = PYTHON if self.is_startable else "/nowhere/python"
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
        target, guard = self._nth_snapshot(index), self.guard()
        seen: list[str] = []

        def reply(question: Question) -> str:
            seen.append(self.model.present_identity())
            return agrees(question) if answer == "yes" else "keep"

        person = Person([reply] * 4) if answer != "nobody" else Person(can_ask=False)
        before = {one.id for one in self._approvals()}
        identity, count = self.model.present_identity(), len(self.scene.acts())
        if operation == "delete":
            outcome = self.call(guard.delete_snapshot, self.scene.zone, target, person)
        else:
            roll_back = guard.rollback_to_snapshots
            outcome = self.call(roll_back, self.scene.zone, [target], person, safety_snapshot=safety)
        if self.policy in FORBIDS_ALL:
            assert len(self.scene.acts()) == count, f"{self.policy}, and yet {outcome}"
        for one in self._approvals():
            if one.id not in before and one.decided and one.state is not State.DENIED:
                self.model.note_yes(one, seen[-1] if seen else identity)
            elif one.state is State.PENDING and outcome and outcome.approval_id == one.id:
                self.shown[one.id] = identity

    @property
    def shown(self) -> dict[str, str]:
        """Which file the disk was in the plan that a pending approval shows."""
        return self.__dict__.setdefault("_shown", {})

    @rule(index=INDEX, safety=st.sampled_from([True, True, False]))
    def agree_to_a_roll_back(self, index: int, safety: bool) -> None:
        self._ask("roll back", index, "yes", safety=safety)

    @rule(index=INDEX)
    def agree_to_a_deletion(self, index: int) -> None:
        self._ask("delete", index, "yes", safety=False)

    @rule(
        operation=st.sampled_from(["delete", "roll back"]),
        index=INDEX,
        answer=st.sampled_from(["nobody", "keep"]),
        safety=st.booleans(),
    )
    def ask(self, operation: str, index: int, answer: str, safety: bool) -> None:
        self._ask(operation, index, answer, safety=safety)

    @rule(index=INDEX, operation=st.sampled_from(["delete", "roll back"]))
    def approve_and_repeat(self, index: int, operation: str) -> None:
        """A person says yes to what waits, in a terminal; then the same call comes again, or does not."""
        waiting = [one for one in self._approvals() if one.state is State.PENDING]
        if not waiting:
            return
        one = waiting[index % len(waiting)]
        if granted := self.call(self.guard().approve, one.id, None):
            self.model.note_yes(granted, self.shown[one.id])

    @rule(index=INDEX)
    def deny(self, index: int) -> None:
        """A person says no, also to what is granted, used, or over."""
        approvals = self._approvals()
        if not approvals:
            return
        one = approvals[-1 - index % len(approvals)]
        if denied := self.call(self.guard().deny, one.id):
            self.model.take_back(denied)

    # The worker

    @rule(kind=st.sampled_from(["kill", "freeze", "thaw", "unstartable", "startable"]))
    def change_worker(self, kind: str) -> None:
        folder = self.scene.zone_folder
        if kind == "freeze":
            self._raise_worker()
            workers.freeze(folder)
        elif kind == "thaw":
            workers.thaw(folder)
        elif kind == "startable":
            self.is_startable = True
        else:
            workers.kill(folder)
            self.is_startable = kind == "kill"

    @rule(
        step=st.integers(1, 24),
        how=st.sampled_from([signal.SIGKILL, signal.SIGSTOP]),
        operation=st.sampled_from(["roll back", "roll back", "delete"]),
        index=INDEX,
        safety=st.booleans(),
    )
    def doom_the_worker(self, step: int, how: signal.Signals, operation: str, index: int, safety: bool) -> None:
        """It ends or stops itself at some step of what a person then agrees to, and another one goes on."""
        if not self.is_startable or workers.is_frozen(self.scene.zone_folder):
            return
        workers.kill(self.scene.zone_folder)
        NURSERY[0].start(self.scene.zone_folder, step=step, how=how)
        self._ask(operation, index, "yes", safety=safety)

    @rule(step=st.integers(1, 4), index=INDEX, safety=st.booleans(), events=EVENTS)
    def break_a_roll_back_off(self, step: int, index: int, safety: bool, events: list[str]) -> None:
        """Its worker ends after some of the writes, and there is none until other things have happened."""
        folder = self.scene.zone_folder
        if not self.is_startable or workers.is_frozen(folder):
            return
        workers.kill(folder)
        NURSERY[0].start(folder, step=step, kind="write")
        self._ask("roll back", index, "yes", safety=safety)
        workers.until(lambda: workers.worker_pid(folder) is None or not self.scene.unfinished())
        workers.kill(folder)
        self.is_startable = False
        self._happen(events)
        self.is_startable = True

    @rule(operation=st.sampled_from(["delete", "roll back"]), index=INDEX, safety=st.booleans(), events=EVENTS)
    def agree_while_the_worker_hangs(self, operation: str, index: int, safety: bool, events: list[str]) -> None:
        """It goes on when other things have happened, or is ended then."""
        if not self.is_startable:
            return
        self._raise_worker()
        workers.freeze(self.scene.zone_folder)
        self._ask(operation, index, "yes", safety=safety)
        self._happen(events)
        workers.thaw(self.scene.zone_folder)

    def _happen(self, events: list[str]) -> None:
        self._compare()
        for event in events:
            kind, _, what = event.partition(" ")
            if kind == "path":
                self.lead_the_path(what)
            elif kind == "wait":
                self.wait(float(what))
            else:
                acts = {"write": self.write, "deny": self.deny, "others": self.another_deletes, "resize": self.resize}
                acts[kind](int(what or 0))
            self._compare()

    # The world

    @rule(kind=st.sampled_from([*REPLACED, "back", "back"]))
    def lead_the_path(self, kind: str) -> None:
        path = self.scene.path
        if kind == "back":
            put_back(path)
        elif path.exists() and not path.is_symlink():
            elsewhere(path).unlink(missing_ok=True)
            is_kept = workers.is_frozen(self.scene.zone_folder)  # by one that may have the file open: its inode stays
            REPLACED["another file" if is_kept and kind == "the same inode" else kind](path)
        self.model.note_files()

    @rule(seed=st.integers(0, 99))
    def write(self, seed: int) -> None:
        """The disk's user writes to it; whoever holds it is not waited for."""
        if self._is_free():
            self.scene.scribble(seed)
            self.model.note_files(is_written=True)

    @rule(chunks=st.sampled_from([2, 4, 6]))
    def resize(self, chunks: int) -> None:
        """The disk's user cuts it off, or writes something behind its end."""
        if self._is_free():
            size = self.scene.path.stat().st_size
            os.truncate(self.scene.path, min(size, chunks * CHUNK))
            with self.scene.path.open("ab") as file:
                file.write(self.chance.randbytes(max(0, chunks * CHUNK - size)))
            self.model.note_files(is_written=True)

    def _is_free(self) -> bool:
        try:
            os.close(os.open(self.scene.path, os.O_RDWR | os.O_NONBLOCK))
        except (BlockingIOError, FileNotFoundError):
            return False
        self.scene.leave_alone()
        return True

    @rule(is_full=st.booleans())
    def back_up(self, is_full: bool) -> None:
        self.call(self.scene.provider.create_snapshots, [self.scene.disk_id], "scheduled", is_full=is_full)

    @rule(index=INDEX)
    def another_deletes(self, index: int) -> None:
        """Somebody else, past the guard."""
        before = {one["job_id"] for one in self.scene.acts()}
        self.call(self.scene.provider.delete_snapshot, self._nth_snapshot(index))
        self.model.others |= {one["job_id"] for one in self.scene.acts()} - before

    @rule(seconds=st.sampled_from([30.0, 61.0, 150.0, GRANTED_SECONDS, 3 * 86400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.turn(seconds)
        self.scene._inject("begin_until = begin_until - ?", seconds)
        self.model.pass_time(seconds)

    @rule(seconds=st.sampled_from([-86400.0, -600.0, 600.0]))
    def set_the_clock(self, seconds: float) -> None:
        self.clock.wall += seconds

    @rule()
    def reboot(self) -> None:
        workers.kill(self.scene.zone_folder)
        self.scene.reboot()
        self.clock.run += 1
        self.model.pass_time(0, is_reboot=True)

    @rule(policy=st.sampled_from(["as usual", *POLICIES]))
    def edit_the_rules(self, policy: str) -> None:
        self.policy = policy

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


SHORT = settings(
    max_examples=10,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)],
    print_blob=True,
)


def test_whatever_happens_only_what_was_agreed_to_is_done() -> None:
    """Never: an act without a yes that covers it at that moment, an act twice, a denied act, an overwrite of content that no
    safety snapshot holds (unless it was agreed to go without)."""
    run_state_machine_as_test(WholeWay, settings=SHORT)


@pytest.mark.long
def test_whatever_happens_for_long_only_what_was_agreed_to_is_done() -> None:
    run_state_machine_as_test(
        WholeWay, settings=settings(SHORT, max_examples=120, stateful_step_count=40, phases=Phase)
    )
