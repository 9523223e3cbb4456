"""What a test knows of the files, the people and the jobs by itself, held against what was done.

`Model.compare` is to be called after every step. It fails on an act without a yes that covers it at that moment, an act twice,
a denied act, an overwrite of content that no safety snapshot holds (unless it was agreed to go without), and a disk that is
half rolled back and called whole.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapshot_mcp.contract.models import Volume
from snapshot_mcp.guard.consent.approval import GRANTED_SECONDS, Approval
from snapshot_mcp.guard.consent.states import State
from snapshot_mcp.guard.plan.plan import DeletionLoss, RollbackLoss
from snapshot_mcp.providers.local.identity import Identity, identity_at
from tests.whole_way.paths import elsewhere
from tests.whole_way.scene import Scene

SECTOR = 512
Key = tuple[str, int, int]


def key_of(identity: Identity) -> Key:
    """One file, however many names it has."""
    return identity.filesystem, identity.inode, identity.born_ns


def read(path: Path) -> bytes | None:
    """What a file holds; None while somebody keeps it, whom an ordinary reader would wait for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except BlockingIOError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read()


def is_mixture(data: bytes, one: bytes, other: bytes) -> bool:
    """Whether each sector of it is of one of the two, which may be of different lengths."""
    size = len(data)
    if size not in (len(one), len(other)):
        return False
    one, other = (content[:size].ljust(size, b"\0") for content in (one, other))
    return all(
        data[at : at + SECTOR] in (one[at : at + SECTOR], other[at : at + SECTOR]) for at in range(0, size, SECTOR)
    )


@dataclass
class File:
    """`content` is what it held when it was last looked at, `writing` the job that overwrites it and is not over."""

    content: bytes
    writing: str = ""


@dataclass(frozen=True)
class Yes:
    """What a person agreed to, when, and which file the disk was then."""

    approval: Approval
    at: float
    identity: str


@dataclass
class Model:
    scene: Scene
    now: float = 0.0
    files: dict[Key, File] = field(default_factory=dict)
    yeses: dict[str, Yes] = field(default_factory=dict)
    admitted_at: dict[str, float] = field(default_factory=dict)
    effective: set[str] = field(default_factory=set)
    overdue: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    carried_on: set[str] = field(default_factory=set)
    """The jobs that had carried an interrupted roll-back to its end by the last look."""

    # What the test does itself

    def places(self) -> Iterator[tuple[Path, Key]]:
        for path in (self.scene.path, elsewhere(self.scene.path)):
            if identity := identity_at(path):
                yield path, key_of(identity)

    def note_files(self, *, is_written: bool = False) -> None:
        """The test has just made or moved files, or written to the one at the path (`is_written`)."""
        for path, key in self.places():
            content = read(path)
            if content is not None and (key not in self.files or (is_written and path == self.scene.path.resolve())):
                self.files[key] = File(content)

    def present_identity(self) -> str:
        return str(identity_at(self.scene.path) or "")

    def note_yes(self, approval: Approval, identity: str) -> None:
        self.yeses.setdefault(approval.id, Yes(approval, self.now, identity))

    def take_back(self, approval: Approval) -> None:
        self.yeses.pop(approval.id, None)

    def pass_time(self, seconds: float, *, is_reboot: bool = False) -> None:
        """What has not begun by then is over; what a worker that lives is at has."""
        self.now += seconds
        for job in self.scene.acts():
            is_ours = job["job_id"] in self.admitted_at
            is_late = is_reboot or self.now - self.admitted_at.get(job["job_id"], self.now) > 60
            is_waiting = not job["has_effect"] and (is_reboot or job["status"] == "pending")
            if is_ours and is_late and is_waiting and job["status"] in ("pending", "working"):
                self.overdue.add(job["job_id"])

    # What was done

    def compare(self, approvals: tuple[Approval, ...], disk: Volume, records: list[dict[str, Any]]) -> None:
        acts = [job for job in self.scene.acts() if job["job_id"] not in self.others]
        by_job: dict[str, list[Approval]] = {}
        for approval in approvals:
            if approval.job_id:
                by_job.setdefault(approval.job_id, []).append(approval)
        for job in acts:
            self.admitted_at.setdefault(job["job_id"], self.now)
            owners = by_job.get(job["job_id"], [])
            if (job["has_effect"] or job["status"] == "successful") and job["job_id"] not in self.effective:
                assert len(owners) == 1, f"an act that nobody agreed to: {job}"
                self._is_covered(job, owners[0])
                self.effective.add(job["job_id"])
        self._no_denied_act(approvals)
        self._one_act_a_yes(records)
        for path, key in self.places():
            self._is_explained(path, key, acts)
        self.carried_on = {one["job_id"] for one in self.scene.resumptions("successful")}
        self._is_said(disk)

    def _is_covered(self, job: dict[str, Any], approval: Approval) -> None:
        yes = self.yeses.get(approval.id)
        assert yes is not None, f"an act without a yes: {approval}"
        assert job["job_id"] not in self.overdue, f"an act after its time: {job}"
        assert self.admitted_at[job["job_id"]] - yes.at < GRANTED_SECONDS, f"a yes that was over: {job}"
        owned = [one for one in self.effective if one in self._jobs_of(approval)]
        assert not owned, f"an act twice: {owned} and {job}"
        loss = yes.approval.plan.loss
        if isinstance(loss, DeletionLoss):
            assert job["action"] == "DeleteSnapshots"
            going = set(json.loads(job["resource_ids"]))
            assert going <= {one.snapshot_id for one in loss.snapshots}, f"more than was agreed to: {going}"
            assert loss.takes_last_good_copy or self._is_any_left(), "the last good copy went"
        else:
            assert job["action"] == "ApplySnapshots"
            request = json.loads(job["request"])
            assert list(request["targets"].values()) == [one.snapshot_id for one in loss.overwrites]
            (agreed,) = request["disks"].values()
            assert agreed["identity"] == yes.identity, f"another file than was agreed to: {agreed}"
            self._is_saved(job, request, loss)

    def _is_saved(self, job: dict[str, Any], request: dict[str, Any], loss: RollbackLoss) -> None:
        """What is overwritten, as the test knows it, is in the safety snapshot; the file is being written to from now on."""
        (agreed,) = request["disks"].values()
        identity = Identity.parse(agreed["identity"])
        assert identity is not None
        file = self.files[key_of(identity)]
        file.content = self._content_before(file)
        file.writing = job["job_id"]
        assert bool(request["safety"]) or not loss.has_safety_snapshot, f"without a safety snapshot: {job}"
        for safety_id in request["safety"].values():
            assert self.scene.content_of(safety_id) == file.content, "content that no safety snapshot holds"

    def _content_before(self, file: File) -> bytes:
        """What the file held when a new act began on it.

        A worker that starts carries an interrupted roll-back on by itself, so that one may have come to its end between the
        last look and this act: then the file held what was agreed to there, and nothing else.
        """
        if not file.writing:
            return file.content
        target = self._target_of(file.writing)
        ended = [one for one in self.scene.resumptions("successful") if one["job_id"] not in self.carried_on]
        is_ended = target in [self._target_of(one["job_id"]) for one in ended]
        return self.scene.content_of(target) if is_ended else file.content

    def _target_of(self, job_id: str) -> str:
        """The snapshot that a roll-back makes the disk."""
        (job,) = self.scene.rows("SELECT request FROM jobs WHERE job_id = ?", job_id)
        (target,) = json.loads(job["request"])["targets"].values()
        return str(target)

    def _jobs_of(self, approval: Approval) -> set[str]:
        return {approval.job_id} - {""}

    def _is_any_left(self) -> bool:
        found = self.scene.rows(
            "SELECT count(*) AS number FROM snapshots WHERE resource_id = ? AND status = 'available'",
            self.scene.disk_id,
        )
        return bool(found[0]["number"])

    def _no_denied_act(self, approvals: tuple[Approval, ...]) -> None:
        for approval in approvals:
            if approval.state is State.DENIED:
                assert approval.job_id not in self.effective or not approval.job_id, f"a denied act: {approval}"
                self.take_back(approval)

    def _one_act_a_yes(self, records: list[dict[str, Any]]) -> None:
        """Counted in the record: nothing is spent again that was not given back."""
        spent: dict[str, int] = {}
        for record in records:
            step = {"spent": 1, "given back": -1}.get(record["event"], 0)
            spent[record.get("approval", "")] = spent.get(record.get("approval", ""), 0) + step
        assert all(count in (0, 1) for count in spent.values()), spent

    def _is_explained(self, path: Path, key: Key, acts: list[dict[str, Any]]) -> None:
        file, content = self.files.get(key), read(path)
        assert file is not None, f"a file that nobody made at {path}"
        if content is None or (content == file.content and not file.writing):
            return
        job = next((one for one in acts if one["job_id"] == file.writing), None)
        assert job is not None, f"{path} was written to by nobody's leave"
        wanted = self.scene.content_of(self._target_of(job["job_id"]))
        if content == wanted:
            file.writing = "" if self._is_over(job) else file.writing
        else:
            assert is_mixture(content, file.content, wanted), (
                f"{path} holds neither what it held nor what was agreed to"
            )
        file.content = content

    def _is_over(self, job: dict[str, Any]) -> bool:
        return job["status"] in ("successful", "failed")

    def _is_said(self, disk: Volume) -> None:
        """A disk that is neither the old one nor the new one says so."""
        at_path = next((key for path, key in self.places() if path == self.scene.path), None)
        file = self.files.get(at_path) if at_path else None
        if file and file.writing and read(self.scene.path) is not None:
            job = self.scene.rows("SELECT * FROM jobs WHERE job_id = ?", file.writing)[0]
            if file.content != self.scene.content_of(self._target_of(job["job_id"])) and self._is_over(job):
                assert disk.status == "pending", f"half rolled back and called whole: {disk}"
