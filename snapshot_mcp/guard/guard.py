"""`Guard`, the front of the part: all that servers and commands call.

Every server start imports it, and most never destroy anything, so guarded calls and the records are imported on first use.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import Forbidden, UnknownZone, ZoneError
from snapshot_mcp.contract.models import Job, Resource, Snapshot
from snapshot_mcp.contract.own_file import OwnFile
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.ground.clock import Clock, SystemClock
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.consent.client import Client
from snapshot_mcp.guard.consent.states import Door, State
from snapshot_mcp.guard.plan.policy import Policy
from snapshot_mcp.guard.recording import ActRecorder
from snapshot_mcp.zones import Zone

if TYPE_CHECKING:
    from snapshot_mcp.guard.carry.calls import GuardedCalls
    from snapshot_mcp.guard.carry.ends import Ends
    from snapshot_mcp.guard.consent.address import PageKeeper
    from snapshot_mcp.guard.consent.approval import Approval
    from snapshot_mcp.guard.consent.approvals import Approvals
    from snapshot_mcp.guard.consent.audit import Audit
    from snapshot_mcp.guard.consent.doors import Doors, PageLink
    from snapshot_mcp.guard.links import PageLinks
    from snapshot_mcp.guard.plan.person import PersonAct

SAFETY_WAIT_SECONDS = 20.0
"""How long a call waits for its safety snapshot; hosts give up after 30 to 60 s."""


class Guard(ActRecorder):
    """The guard of a home; any number of processes may have one. No file is created before the first guarded call.

    `rules` returns the operator's current rules for a zone. They are read again at each use, so tightening a rule affects
    running servers too; the stricter of them and `policy` applies.
    `roles` returns the current roles of the people in the operator's file, None if they are unknown or irrelevant.
    `open_zone` opens a zone of the settings by name, to look up or cancel a job outside a server; the guard closes it.
    `doors` returns the current ways to approve. `page` starts the approval page's process; None for a guard that gives out no
    links to it.
    """

    def __init__(
        self,
        folder: Path,
        policy: Policy,
        *,
        rules: Callable[[str], Policy] | None = None,
        roles: Callable[[], Mapping[str, frozenset[str]] | None] = lambda: None,
        open_zone: Callable[[str], Provider] | None = None,
        doors: "Callable[[], Doors] | None" = None,
        page: "PageKeeper | None" = None,
        clock: Clock | None = None,
        safety_wait_seconds: float = SAFETY_WAIT_SECONDS,
    ) -> None:
        super().__init__(folder, clock or SystemClock(), roles)
        self.policy = policy
        self._present_rules = rules
        self._open_zone = open_zone
        self._present_doors = doors
        self._page = page
        self._safety_wait_seconds = safety_wait_seconds

    # Guarded calls

    async def delete_snapshot(self, zone: Zone, snapshot_id: str, client: Client) -> GuardedOutcome:
        """Delete a snapshot and everything built on it. Raises the zone's errors."""
        from snapshot_mcp.guard.carry.acts import Deletion

        await self.note_ends(zone.provider)
        return await self._calls.run(Deletion(self._calls.surroundings, zone, snapshot_id, client))

    async def rollback_to_snapshots(
        self,
        zone: Zone,
        snapshot_ids: Sequence[str],
        client: Client,
        *,
        safety_snapshot: bool = True,
        on_progress: Callable[[tuple[Job, ...]], Awaitable[None]] | None = None,
    ) -> GuardedOutcome:
        """Overwrite the snapshots' disks with them. `on_progress` is called with the safety snapshot's job."""
        from snapshot_mcp.guard.carry.acts import Rollback

        await self.note_ends(zone.provider)
        return await self._calls.run(
            Rollback(self._calls.surroundings, zone, snapshot_ids, client, safety_snapshot, on_progress)
        )

    async def preview_deletion(self, zone: Zone, snapshot_id: str, client: Client) -> GuardedOutcome:
        """Return what `delete_snapshot` would do now; touch no approval and ask nobody."""
        from snapshot_mcp.guard.carry.acts import Deletion

        return await self._calls.preview(Deletion(self._calls.surroundings, zone, snapshot_id, client))

    async def preview_rollback(
        self, zone: Zone, snapshot_ids: Sequence[str], client: Client, *, safety_snapshot: bool = True
    ) -> GuardedOutcome:
        """Return what `rollback_to_snapshots` would do now; touch no approval and ask nobody."""
        from snapshot_mcp.guard.carry.acts import Rollback

        act = Rollback(self._calls.surroundings, zone, snapshot_ids, client, safety_snapshot, None)
        return await self._calls.preview(act)

    async def refuse_rename(self, zone: Zone, snapshot: Snapshot) -> str:
        """Return why the snapshot must keep its name and tags, "" if it need not: protection may depend on them."""
        from snapshot_mcp.guard.plan.rules import refuse_protected

        refusal = refuse_protected(await self._rules(zone.name), snapshot)
        return refusal.message if refusal else ""

    # Ends of jobs

    async def note_ends(self, provider: Provider) -> None:
        """Record the missing ends of approved jobs in this zone, as far as it reports them. Creates no file."""
        if self._has_records():
            await self._ends.ask(provider)

    async def note_jobs(self, provider: Provider, jobs: Sequence[Job]) -> None:
        """Record the missing ends of approved jobs among `jobs`. Creates no file."""
        if self._has_records():
            await in_thread(self._ends.note, provider.location, jobs)

    async def note_all_ends(self) -> None:
        """Call `note_ends` for every zone with a missing end that can be opened from here."""
        if self._open_zone is None or not self._has_records():
            return
        for name in sorted({one.call.zone for one in await in_thread(self._ends.missing)}):
            with suppress(ZoneError):
                async with self._opened(name) as provider:
                    await self._ends.ask(provider)

    @asynccontextmanager
    async def _opened(self, name: str) -> AsyncIterator[Provider]:
        assert self._open_zone is not None
        provider = self._open_zone(name)
        try:
            yield provider
        finally:
            await provider.aclose()

    def _has_records(self) -> bool:
        """Whether anything was recorded. A stat takes microseconds, so no thread is used."""
        return (self._folder / "guard.sqlite").exists()

    # A person's decisions

    async def list_approvals(self) -> "tuple[Approval, ...]":
        """Return all approvals, open ones first, then the newest first."""
        found = await in_thread(self._approvals.list_all)
        await self.links.look_after(found)
        return found

    async def get_approval(self, approval_id: str) -> "Approval":
        """Return an approval. Raises: NotFound."""
        approval = await in_thread(self._approvals.get, approval_id)
        await self.links.look_after([approval])
        return approval

    async def approve(
        self,
        approval_id: str,
        pin: str | None,
        *,
        digest: str | None = None,
        door: Door = Door.TERMINAL,
        by: str = "local",
    ) -> "Approval":
        """Grant the plan whose `digest` the person saw; None means the current one.

        Raises: NotFound, NotDecidable, WrongPin, PinLocked; Forbidden for an approver who made the request.
        """
        from snapshot_mcp.guard.consent.errors import WrongPin

        approval = await self.get_approval(approval_id)
        about = {"approval": approval_id, "by": by}
        if door is Door.TERMINAL:
            door = await self.prove_person(pin, about)
        elif door is Door.PAGE:
            await in_thread(lambda: self._records.pin.check(pin, door=door.value, about=about, link=approval_id))
        elif door is Door.APPROVER and approval.call.principal == by:
            raise Forbidden(
                f"Approval {approval_id} was requested by {by!r}, who cannot approve it.",
                hint="Another approver has to decide.",
            )
        if door is Door.UNPROVEN and approval.call.is_strict:
            raise WrongPin(
                "This approval needs a PIN, and none is set.",
                hint="The operator sets one with the command `pin` in this home.",
            )
        seen = approval.plan.digest if digest is None else digest
        return await in_thread(lambda: self._approvals.grant(approval_id, digest=seen, door=door, by=by))

    async def deny(self, approval_id: str, *, door: Door = Door.TERMINAL, by: str = "local") -> "Approval":
        """Deny an approval, revoke a granted one, or take back a used one whose job has had no effect.

        Raises: NotFound; NotDecidable, which says what became of it; the errors of the zone that has to cancel the job.
        """
        from snapshot_mcp.guard.consent.errors import NotDecidable

        try:
            return await in_thread(lambda: self._approvals.deny(approval_id, door=door, by=by))
        except NotDecidable:
            approval = await self.get_approval(approval_id)
            if approval.state is not State.SPENT or approval.job_end:
                raise
        return await self._take_back(approval, door, by)

    async def _take_back(self, approval: "Approval", door: Door, by: str) -> "Approval":
        from snapshot_mcp.guard.carry.withdrawal import Withdrawal, unreachable

        if self._open_zone is None:
            raise unreachable(approval, "this program cannot reach its zone", await in_thread(self._doors))
        try:
            async with self._opened(approval.call.zone) as provider:
                return await Withdrawal(self._approvals, self._ends, provider).take_back(approval, door, by)
        except UnknownZone as error:
            doors = await in_thread(self._doors)
            raise unreachable(approval, error.message.rstrip("."), doors) from None

    async def plan_purge(self, zone_name: str, deleted: Sequence[Snapshot]) -> "PersonAct":
        """Plan to destroy these deleted snapshots permanently, under the current rules."""
        from snapshot_mcp.guard.plan.person import plan_purge

        return plan_purge(zone_name, deleted, await self._rules(zone_name))

    async def plan_file_deletion(self, zone_name: str, file: OwnFile) -> "PersonAct":
        """Plan to delete the file of an exported volume or image, under the current rules."""
        from snapshot_mcp.guard.plan.person import plan_file_deletion

        return plan_file_deletion(zone_name, file, await self._rules(zone_name))

    async def plan_forget(self, zone_name: str, disk: Resource, points: Sequence[Snapshot]) -> "PersonAct":
        """Plan to destroy all restore points of a disk for ever, under the current rules."""
        from snapshot_mcp.guard.plan.person import plan_forget

        return plan_forget(zone_name, disk, points, await self._rules(zone_name))

    async def plan_move(self, zone_name: str, label: str, lines: Sequence[str]) -> "PersonAct":
        """Plan to move a disk to a file that may not be its own, under the current rules."""
        from snapshot_mcp.guard.plan.person import plan_move

        return plan_move(label, lines, await self._rules(zone_name))

    async def prove_person(self, pin: str | None, about: Mapping[str, Any]) -> Door:
        """Check the PIN of a person at a terminal, if one is set, and return their door.

        `about`: what the PIN is given for, for the record. Raises: WrongPin, PinLocked.
        """
        if not await self.has_pin():
            return Door.UNPROVEN
        await in_thread(lambda: self._records.pin.check(pin, door=Door.TERMINAL.value, about=about))
        return Door.TERMINAL

    async def void_departed(self, before: Mapping[str, frozenset[str]], now: Mapping[str, frozenset[str]]) -> None:
        """Void what was requested or granted by people who lost the role for it. Both arguments are roles by name."""
        await in_thread(self._approvals.void_departed, before, now)

    async def has_pin(self) -> bool:
        """Whether a PIN is set in this home."""
        return await in_thread(self._records.pin.is_set)

    async def is_pin_locked(self) -> bool:
        """Whether the PIN is locked in terminals after wrong attempts."""
        return await in_thread(self._records.pin.is_locked)

    async def set_pin(self, new: str, old: str | None = None, *, by: str = "local", phrase: str | None = None) -> None:
        """Set the first PIN, or change it with the old one. Raises: BadRequest, WrongPin, PinLocked.

        `phrase`: words that the approval page shows, "" for none; None keeps those that there are.
        """
        await in_thread(lambda: self._records.pin.set(new, old, by=by, phrase=phrase))

    async def phrase(self) -> str:
        """Return the words by which the person knows their approval page, "" for none."""
        return await in_thread(self._records.pin.phrase)

    async def _rules(self, zone: str) -> Policy:
        if self._present_rules is None:
            return self.policy
        return self.policy.merged(await in_thread(self._present_rules, zone))

    async def how_to_approve(self, approval: "Approval", link: "PageLink") -> str:
        """Tell a person in a few lines how to approve it here."""
        doors = await in_thread(self._doors)
        return doors.how_to_approve(approval, link=link, has_pin=await self.has_pin())

    @property
    def home(self) -> Path:
        """The folder of the records."""
        return self._folder

    @property
    def command(self) -> str:
        """This program as a person's shell runs it."""
        return self._doors().command

    def _doors(self) -> "Doors":
        from snapshot_mcp.guard.consent.doors import Doors

        return self._present_doors() if self._present_doors else Doors()

    async def link(self, approval_id: str) -> "PageLink":
        """Return the link to the approval's page; none if there is no page or enrolled approvers decide instead."""
        from snapshot_mcp.guard.consent.doors import PageLink

        if (await in_thread(self._doors)).approvers_url:
            return PageLink()
        return await self.links.link(approval_id)

    async def page_port(self) -> int:
        """Return the port that the approval page keeps, 0 if no link to it is in use."""
        address = await in_thread(self._records.addresses.find)
        return address.port if address else 0

    # Imported and opened on first use

    @cached_property
    def links(self) -> "PageLinks":
        """The links to the approval page."""
        from snapshot_mcp.guard.links import PageLinks

        return PageLinks(self._page)

    @cached_property
    def _calls(self) -> "GuardedCalls":
        from snapshot_mcp.guard.carry.calls import GuardedCalls
        from snapshot_mcp.guard.carry.surroundings import Surroundings

        here = Surroundings(self._rules, self._records, self._clock, self._safety_wait_seconds)
        return GuardedCalls(here, self.link, self.how_to_approve)

    @cached_property
    def _ends(self) -> "Ends":
        from snapshot_mcp.guard.carry.ends import Ends

        return Ends(self._records.register)

    @property
    def _approvals(self) -> "Approvals":
        return self._records.approvals

    @property
    def audit(self) -> "Audit":
        """The audit record."""
        return self._records.audit
