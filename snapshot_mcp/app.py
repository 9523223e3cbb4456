"""The composition root: the one place that knows all parts and connects them.

Commands call these functions and nothing below them. Imports are inside the functions, so a command loads only what it uses.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from snapshot_mcp.contract.errors import BadRequest, InternalError, NotUsable, UnknownZone, Unsupported
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.mounts import network_filesystem
from snapshot_mcp.ground.permissions import reason_of
from snapshot_mcp.providers import ZoneSettings, zone_models
from snapshot_mcp.providers.local.settings import LocalZoneSettings
from snapshot_mcp.settings import LOCAL, PREFIX, ZONE_VARIABLES, Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from socket import socket

    from anyio import Event
    from mcp.server.mcpserver import MCPServer

    from snapshot_mcp.contract.own_file import OwnFile as OwnFile
    from snapshot_mcp.contract.parts import Copier
    from snapshot_mcp.contract.provider import Provider
    from snapshot_mcp.copies.settings import CopySettings
    from snapshot_mcp.doctor import Symptom as Symptom
    from snapshot_mcp.guard import Approval as Approval
    from snapshot_mcp.guard import Deed as Deed
    from snapshot_mcp.guard import Door as Door
    from snapshot_mcp.guard import Guard as Guard
    from snapshot_mcp.guard import PersonAct as PersonAct
    from snapshot_mcp.guard import Policy
    from snapshot_mcp.guard import Question as Question
    from snapshot_mcp.guard import QuestionAnswer as QuestionAnswer
    from snapshot_mcp.guard.page.process import PageProcess
    from snapshot_mcp.history.history import JobHistory
    from snapshot_mcp.operator_file import OperatorFile
    from snapshot_mcp.providers.ceph.scratch import Scratch as Scratch
    from snapshot_mcp.providers.ceph.zone import CephZone as CephZone
    from snapshot_mcp.providers.local import LocalZone as LocalZone
    from snapshot_mcp.providers.local.formats import Form as Form
    from snapshot_mcp.providers.local.moving import Move as Move
    from snapshot_mcp.providers.local.nbd.server import NbdServer as NbdServer
    from snapshot_mcp.providers.local.rebuild import RebuildReport as RebuildReport
    from snapshot_mcp.providers.local.serving import RestorePointContent as RestorePointContent
    from snapshot_mcp.providers.local.zone import Oversight as Oversight
    from snapshot_mcp.server.callers import Callers, Roll
    from snapshot_mcp.service import KeyFile
    from snapshot_mcp.zones import Zones

    OwnZone = LocalZone | CephZone

log = logging.getLogger(__name__)

SERVICE_KEY_FILE = "zone-serve.json"
"""In the home folder: the key pairs of `zone serve`."""

PAGE_PROGRAM = ("snapshot_mcp.serving", "serve_page")
"""Module and function of the approval page's process."""


def own_settings() -> Settings:
    """Load the settings with this process's environment. Raises SettingsError, also for a home that cannot be used."""
    settings = load_settings(os.environ)
    with suppress(FileNotFoundError):
        try:
            os.scandir(settings.home).close()
        except (NotADirectoryError, PermissionError) as error:
            raise SettingsError(
                f"The data folder {str(settings.home)!r} cannot be used: {reason_of(error, settings.home)}.",
                hint="Set SNAPSHOT_MCP_HOME to a folder of this user, or correct its permissions.",
            ) from None
    if kind := network_filesystem(settings.home):
        log.warning(
            "%s is on a network filesystem (%s), where SQLite's log is not safe: set SNAPSHOT_MCP_HOME to a local disk",
            settings.home,
            kind,
        )
    return settings


def build_zones(settings: Settings) -> Zones:
    """Return all zones; each is built when it is first used."""
    from snapshot_mcp.zones import Zones

    factories = {name: partial(_build_zone, settings, name) for name in settings.zones}
    return Zones(factories, default=settings.first_zone, production=settings.production_zones)


def build_guard(
    settings: Settings,
    file: OperatorFile | None = None,
    roles: Callable[[], Mapping[str, frozenset[str]] | None] = lambda: None,
    url: str = "",
    *,
    has_page: bool = True,
) -> Guard:
    """Return a guard that creates files only when needed, and follows the operator's file.

    Without `roles` a person at this machine decides for every principal. With the `url` of a server over HTTP, approvers
    decide there once the settings name one. Without `has_page` it starts no process for the approval page.
    """
    from snapshot_mcp.guard import Guard
    from snapshot_mcp.guard.consent.doors import Doors
    from snapshot_mcp.operator_file import OperatorFile

    file = file or OperatorFile(settings)
    shell_command = command(settings.variables)

    def doors() -> Doors:
        try:
            tokens = file.now().tokens
        except SettingsError:
            tokens = file.last_good.tokens
        if not url or not any("approver" in one.roles for one in tokens.values()):
            return Doors(shell_command, zone_variables=ZONE_VARIABLES)
        return Doors(shell_command, f"{url.rsplit('/', 1)[0]}/approvals", ZONE_VARIABLES)

    def rules(zone: str) -> Policy:
        try:
            now = file.now()
        except SettingsError as error:
            raise InternalError(
                f"The operator's settings have become unusable ({error.message}), so their rules are unknown.",
                hint="Nothing was done. The operator of this server must correct them.",
            ) from None
        is_human = zone in settings.production_zones_by(now)
        return now.guard.model_copy(update={"consent": "human"}) if is_human else now.guard

    open_zone = partial(_build_zone, settings)
    page = _page_process(settings) if has_page else None
    return Guard(settings.home, settings.guard, rules=rules, roles=roles, open_zone=open_zone, doors=doors, page=page)


def _page_process(settings: Settings) -> PageProcess:
    """Return what starts the page of the home, with the settings of the home and nothing else of this program's variables."""
    from snapshot_mcp.guard.page.process import PageProcess

    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return PageProcess(settings.home, PAGE_PROGRAM, environ | settings.place)


def command(variables: Mapping[str, str]) -> str:
    """Return how a shell runs this program with these variables, from any folder."""
    from snapshot_mcp.guard.consent.doors import shell_command

    return shell_command(sys.argv[0], sys.executable, variables)


def deed(operation: str, zone: Provider, by: str, **arguments: Any) -> Deed:
    """Return the record of an act by a command, which nobody else has to approve; `by` is the user."""
    from snapshot_mcp.guard.consent.journal import Deed

    return Deed(operation, zone.zone, zone.location, by, "command line", arguments)


def build_server(
    settings: Settings,
    *,
    file: OperatorFile | None = None,
    callers: Callers | None = None,
    url: str = "",
    leaving: Event | None = None,
) -> MCPServer[Any]:
    """Return the MCP server over all zones: for stdio, or with a `url` for HTTP, where `callers` have tokens.

    Waits are cut short once `leaving` is set.
    """
    from snapshot_mcp.operator_file import OperatorFile
    from snapshot_mcp.server.build import build_server

    operator_file = file or OperatorFile(settings)

    return build_server(
        build_zones(settings),
        partial(build_guard, settings, operator_file, partial(roles_in, operator_file), url),
        read_only=settings.read_only,
        callers=callers,
        url=url,
        home=settings.home,
        leaving=leaving,
    )


def build_shell(
    settings: Settings, ask: Callable[[Question], QuestionAnswer] | None = None, name: str = "shell"
) -> MCPServer[Any]:
    """Return the same server for a command of the person's own: `ask` (blocking) puts the guard's questions to them.

    Without `ask` nobody is asked, and what needs a consent waits for an approval as it does for any host.
    """
    from snapshot_mcp import __version__
    from snapshot_mcp.guard.consent.terminal import TerminalPerson
    from snapshot_mcp.server.build import build_server

    return build_server(
        build_zones(settings),
        partial(build_guard, settings, has_page=False),
        read_only=settings.read_only,
        home=settings.home,
        person=TerminalPerson(ask, name, __version__) if ask else None,
    )


def answer_of(text: str, pin: str) -> QuestionAnswer:
    """Return what a person typed at a question of the guard's."""
    from snapshot_mcp.guard import QuestionAnswer

    return QuestionAnswer("answered", text, pin)


def build_history(settings: Settings, zones: Zones) -> JobHistory:
    """Return the history of the home, over zones that are open."""
    from snapshot_mcp.history.history import JobHistory
    from snapshot_mcp.history.register import JobRegister

    async def guard() -> Guard:
        return build_guard(settings)

    return JobHistory(JobRegister(settings.home), zones, guard)


async def examine(environ: Mapping[str, str]) -> list[Symptom]:
    """Return what is well and wrong with this installation; nothing of it is changed, and databases are read from copies."""
    from snapshot_mcp.doctor.examine import Patient, examine
    from snapshot_mcp.doctor.symptom import well, wrong

    try:
        settings = load_settings(environ)
    except SettingsError as error:
        return [wrong("settings", error.message, error.hint)]
    path = settings.path
    where = f"Read from {path}." if path and path.is_file() else "There is no settings file: the defaults hold."

    def guard_of(home: Path) -> Guard:
        return build_guard(settings.model_copy(update={"home": home}), has_page=False)

    names, shell = tuple(settings.zones), command(settings.variables)
    patient = Patient(settings.home, names, shell, partial(_build_zone, settings), guard_of)
    return [well("settings", where), *await examine(patient)]


def disk_form(
    form: str, bases: Sequence[Path], qmp: str = "", agent: str = "", domain: str = "", *, is_monitored: bool = True
) -> Form:
    """Return what a person says that a disk is: its format, the images that it is based on, and its machine."""
    from snapshot_mcp.providers.local.formats import Form, Machine

    machine = Machine(qmp, agent, domain, is_monitored) if qmp or domain else None
    return Form(form, tuple(bases), machine)


def open_local_zone(settings: Settings, name: str = "") -> LocalZone:
    """Return an embedded zone for its own commands. Raises UnknownZone, or BadRequest if it is not embedded."""
    is_local = {one: isinstance(zone, LocalZoneSettings) for one, zone in settings.zones.items()}
    name = name or next((one for one in is_local if is_local[one]), settings.first_zone)
    zone = _zone_settings(settings, name)
    if not isinstance(zone, LocalZoneSettings):
        where = "they are found by themselves" if zone.is_own else "they are managed at its provider"
        raise BadRequest(
            f"Zone {name!r} is not an embedded (local) zone.", hint=f"Its disks are not registered: {where}."
        )
    return zone.build(settings.site(name))


def local_zones(settings: Settings) -> list[str]:
    """Return the names of the embedded zones."""
    return [name for name, zone in settings.zones.items() if isinstance(zone, LocalZoneSettings)]


def open_own_zone(settings: Settings, name: str = "") -> OwnZone:
    """Return a zone of ours, embedded or not, for the commands that all of them have. Raises UnknownZone, BadRequest."""
    is_own = {one: zone.is_own for one, zone in settings.zones.items()}
    is_local = [one for one, zone in settings.zones.items() if isinstance(zone, LocalZoneSettings)]
    name = name or next(iter([*is_local, *(one for one in is_own if is_own[one])]), settings.first_zone)
    zone = _zone_settings(settings, name)
    if not zone.is_own:
        raise BadRequest(f"Zone {name!r} is not a zone of our own.", hint="It is managed at its provider.")
    return cast("OwnZone", zone.build(settings.site(name)))


def build_copier(folder: Path) -> Copier:
    """Return what copies the embedded zone in a folder elsewhere, by the operator's file as it is at each moment."""
    from snapshot_mcp.copies.copier import HomeCopier

    def now() -> tuple[Path, Mapping[str, CopySettings]]:
        try:
            settings = own_settings()
        except SettingsError as error:
            raise NotUsable(f"The operator's settings are unusable: {error.message}", hint=error.hint) from None
        place = ("local", str(folder.resolve()))
        names = [
            name for name, zone in settings.zones.items() if (zone.provider, zone.place(settings.site(name))) == place
        ]
        return settings.home, {copy: one for name in names for copy, one in settings.copies_of(name).items()}

    return HomeCopier(now)


def make_zone_in(folder: Path) -> LocalZone:
    """Return an embedded zone in a folder of its own, outside of the settings."""
    from snapshot_mcp.providers.local import LocalZone

    return LocalZone(folder, zone=folder.name)


def nbd_server(
    listener: socket, content: RestorePointContent, names: frozenset[str], on_idle: Callable[[], None]
) -> NbdServer:
    """Return a server of a restore point over NBD."""
    from snapshot_mcp.providers.local.nbd.server import NbdServer

    return NbdServer(listener, content, names, on_idle)


def ceph_scratch(conf: Path, pool: str) -> Scratch:
    """Make a namespace in a pool of a cluster for a while. Raises ZoneError."""
    from snapshot_mcp.providers.ceph.clib import CephError
    from snapshot_mcp.providers.ceph.errors import translate
    from snapshot_mcp.providers.ceph.scratch import Scratch

    try:
        return Scratch(conf, pool)
    except CephError as error:
        known = translate(error)
        assert known is not None
        raise known.add(hint=f"The tour uses the pool {pool!r} of {conf} as client.admin.") from None


def as_local(zone: object) -> LocalZone | None:
    """Return the zone as the embedded one, None if it is another."""
    from snapshot_mcp.providers.local import LocalZone

    return zone if isinstance(zone, LocalZone) else None


def as_ceph(zone: object) -> CephZone | None:
    """Return the zone as one on Ceph, None if it is another."""
    if getattr(type(zone), "__name__", "") != "CephZone":
        return None
    from snapshot_mcp.providers.ceph.zone import CephZone

    return zone if isinstance(zone, CephZone) else None


def build_unusable_server(error: SettingsError, leaving: Event | None = None) -> MCPServer[Any]:
    """Return a server without zones that answers every call with what is wrong with the settings."""
    from snapshot_mcp.server.build import build_server
    from snapshot_mcp.zones import Zones

    def guard() -> Guard:
        raise InternalError(error.message, hint=error.hint)

    problem = clean_text(f"{error.message} {error.hint}".strip(), MESSAGE_CHARACTERS)
    return build_server(Zones({}, default=LOCAL), guard, leaving=leaving, problem=problem)


def key_file(settings: Settings) -> KeyFile:
    """Return the file with the key pairs of `zone serve`."""
    from snapshot_mcp.service import KeyFile

    return KeyFile(settings.home / SERVICE_KEY_FILE, command(settings.variables))


def roles_in(file: OperatorFile) -> Mapping[str, frozenset[str]] | None:
    """Return the roles of the people in the operator's file as it is now, None if it is unusable. Blocking."""
    roll = roll_in(file)
    return None if roll.problem else roll.roles


def roll_in(file: OperatorFile) -> Roll:
    """Return the tokens in the operator's file as it is now. Blocking."""
    from snapshot_mcp.server.callers import Caller, Roll

    problem = ""
    try:
        settings = file.now()
    except SettingsError as error:
        settings, problem = file.last_good, error.message
    callers = (Caller(name, one.token, one.roles) for name, one in settings.tokens.items())
    return Roll(tuple(callers), problem)


def _zone_settings(settings: Settings, name: str) -> ZoneSettings:
    if name not in settings.zones:
        from snapshot_mcp.zones.finding import sorted_names

        names = sorted_names(name, list(settings.zones))
        raise UnknownZone(f"Unknown zone {name!r}.", hint=f"Zones: {', '.join(names)}.")
    zone = settings.zones[name]
    if os.name == "nt" and not zone.runs_on_windows:
        others = ", ".join(f'"{one}"' for one, model in zone_models().items() if model.runs_on_windows)
        raise Unsupported(
            f'Zone {name!r} has provider = "{zone.provider}", which does not work on Windows yet.',
            hint=f"Use a zone of another provider: {others}.",
        )
    return zone


def _build_zone(settings: Settings, name: str) -> Provider:
    return _zone_settings(settings, name).build(settings.site(name))
