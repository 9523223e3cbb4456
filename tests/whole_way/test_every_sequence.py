"""The whole way under every sequence (hypothesis): yes and no, workers that hang and die, paths that lead elsewhere, backups and
deletions by others, clocks that move, reboots, rules that change. What must never be is in `model`."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from snapshot_mcp.guard.carry import withdrawal
from snapshot_mcp.guard.consent.approval import GRANTED_SECONDS
from snapshot_mcp.guard.consent.states import State
from tests.guard.conftest import Person
from tests.whole_way import workers
from tests.whole_way.model import SECTOR
from tests.whole_way.paths import CHUNK, REPLACED, elsewhere, put_back
from tests.whole_way.stage import NURSERY, POLICIES, Stage
from tests.whole_way.workers import Nursery

INDEX = st.integers(0, 7)
EVENTS = st.lists(
    st.sampled_from(
        [
            *(f"path {kind}" for kind in REPLACED),
            *("path back", "write", "write", "resize 2", "resize 4", "resize 6"),
            *("wait 61", "wait 259200", "deny", "others"),
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


class WholeWay(Stage):
    """Everything that can happen."""

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

    @rule(index=INDEX, is_repeated=st.booleans())
    def approve(self, index: int, is_repeated: bool) -> None:
        """A person says yes to what waits, in a terminal; then the same call comes again, or does not."""
        waiting = [one for one in self._approvals() if one.state is State.PENDING]
        if not waiting:
            return
        one = waiting[index % len(waiting)]
        if granted := self.call(self.guard().approve, one.id, None):
            self.model.note_yes(granted, self.shown[one.id])
        if is_repeated:
            self._make(one.call.operation, dict(one.call.arguments), Person(can_ask=False))

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
        """The disk's user cuts it off, or writes something behind its end; either way its last sector is a new one."""
        if self._is_free() and (size := self.scene.path.stat().st_size) != chunks * CHUNK:
            os.truncate(self.scene.path, min(size, chunks * CHUNK))
            with self.scene.path.open("ab") as file:
                file.write(self.chance.randbytes(max(0, chunks * CHUNK - size)))
            with self.scene.path.open("r+b") as file:
                file.seek(chunks * CHUNK - SECTOR)
                file.write(self.chance.randbytes(SECTOR))
            self.model.note_files(is_written=True)

    def _is_free(self) -> bool:
        try:
            os.close(os.open(self.scene.path, os.O_RDWR | os.O_NONBLOCK))
        except (BlockingIOError, FileNotFoundError):
            return False
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


SHORT = settings(
    max_examples=4,
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


def test_a_roll_back_that_is_carried_on_right_before_the_next_one_is_no_loss() -> None:
    """A worker that starts carries the broken-off one on by itself: what the next one saves is not what was seen last."""
    way = WholeWay()
    try:
        way.begin()
        way.break_a_roll_back_off(step=1, index=0, safety=False, events=["path nothing"])
        way.nothing_was_done_that_nobody_agreed_to()
        way.lead_the_path("back")
        way.nothing_was_done_that_nobody_agreed_to()
        workers.kill(way.scene.zone_folder)
        NURSERY[0].start(way.scene.zone_folder)
        workers.until(lambda: way.scene.resumptions("successful"))
        way.agree_to_a_roll_back(index=1, safety=True)
        way.nothing_was_done_that_nobody_agreed_to()
        assert [one["status"] for one in way.scene.acts("ApplySnapshots")] == ["failed", "successful"]
    finally:
        way.teardown()


@pytest.mark.long
def test_whatever_happens_for_long_only_what_was_agreed_to_is_done() -> None:
    run_state_machine_as_test(
        WholeWay, settings=settings(SHORT, max_examples=120, stateful_step_count=40, phases=Phase)
    )
