"""Fixtures that every part's tests share."""

import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from compileall import compile_dir
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from mcp.server.mcpserver.resources import ResourceTemplate

from snapshot_mcp.ground import detached
from snapshot_mcp.providers import PROVIDERS
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.worker import run as run_worker
from tests.disks import worker_pid
from tests.pages import end_pages
from tests.patience import PATIENCE_SECONDS
from tests.whole_way.workers import Nursery

NEEDS_SETTINGS = "not configured: "
"""Begins the reason of a skip that a missing setting causes (a real provider's address); any other is a missing tool."""

LONG_RUN = "long"
"""What `-m` says in a run of the long tests."""

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(NEEDS_SETTINGS):
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI every tool is there: a test that was skipped for want of one has failed."""
    if os.environ.get("CI") and _skipped:
        print("\nSkipped in CI, which counts as failed:", *_skipped, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """Property tests try few examples by default; `-m long` runs them again with many."""
    examples = 300 if config.option.markexpr == LONG_RUN else 30
    settings.register_profile(
        "house", max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("house")
    if not hasattr(config, "workerinput"):
        # Processes that tests start read bytecode; where Python may not write it, each would compile the package anew.
        compile_dir(Path(__file__).parents[1] / "snapshot_mcp", quiet=1)
    _check_schemas_once()
    _build_templates_once()


def _check_schemas_once() -> None:
    """The MCP client checks the output schema of each tool that it calls, some 4 ms each, in a thousand connections."""
    check = Draft202012Validator.check_schema
    checked: set[str] = set()

    def check_once(schema: Any, **options: Any) -> None:
        if (text := json.dumps(schema)) not in checked:
            check(schema, **options)
            checked.add(text)

    Draft202012Validator.check_schema = check_once


def _build_templates_once() -> None:
    """A server builds a resource template of a function in some 3 ms, and the run starts a thousand servers."""
    ResourceTemplate.from_function = lru_cache(ResourceTemplate.from_function)


def pytest_xdist_auto_num_workers() -> int | None:
    """Three for two cores: a third of the run waits for processes, disks and clocks; a worker costs 7 s of CPU to start."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return (3 * (os.cpu_count() or 1) + 1) // 2


def pytest_itemcollected(item: pytest.Item) -> None:
    is_property = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    if is_property and item.config.option.markexpr == LONG_RUN:
        item.add_marker(pytest.mark.long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what each file took, where the long tests ran."""
    if "not long" in config.option.markexpr:
        return
    seconds: Counter[str] = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if type(report) is pytest.TestReport:  # a subtest's time is in its test's
            seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("seconds by file")
    for name, total in seconds.most_common():
        terminalreporter.write_line(f"{total:8.1f}  {name}")
    terminalreporter.write_line(f"{seconds.total():8.1f}  all, over all workers")


ON_THE_LOOP = [
    "snapshot_mcp.server",
    "snapshot_mcp.service",
    "snapshot_mcp.zones",
    "snapshot_mcp.catalogue.zone",
    *(f"snapshot_mcp.providers.{name}.zone" for name in PROVIDERS),
]
"""The async shells and all that they call; what they hand to threads may block there."""
LOOP_FOLDERS = {"server", "service", "zones", "contract", "anchcloud"}
BEFORE_THE_LOOP = ["snapshot_mcp.server.build", "snapshot_mcp.server.prompts", "snapshot_mcp.server.state"]
"""Building a server and its guard reads the prompts and the machine's boot id; nothing waits yet."""


@pytest.fixture(autouse=True)
def event_loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Code of ours that waits for a disk, a lock or a process on the event loop fails the test (ARCHITECTURE.md, "Habits").

    It looks at a hundred frames for each call of the system, a sixth of a run: by default the folders of the loop's code have it.
    """
    is_long = "not long" not in request.config.option.markexpr
    if not is_long and not LOOP_FOLDERS & set(request.node.path.parts):
        yield
        return
    with blockbuster_ctx(scanned_modules=ON_THE_LOOP, excluded_modules=BEFORE_THE_LOOP) as watched:
        for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            # The tracer shares a lock with the other threads that it measures: not ours, and held by chance.
            watched.functions[name].can_block_in("coverage/collector.py", {"lock_data", "unlock_data"})
        # The boot id is read once a process, from memory.
        watched.functions["io.TextIOWrapper.read"].can_block_in("ground/clock.py", {"_read_boot_id"})
        # One stat of a file a request: microseconds, and a thread for it would cost every request more.
        watched.functions["os.stat"].can_block_in("service/key_file.py", {"stamp"})
        watched.functions["os.stat"].can_block_in("guard/guard.py", {"_has_records"})
        yield


@pytest.fixture(autouse=True)
def pages_end_with_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Servers in this process keep the approval page to themselves, unless the test asks for `detached_pages`: a process costs
    0.3 s of CPU. Those of a test's own processes end with it."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    with pytest.MonkeyPatch.context() as patch:
        if "detached_pages" not in request.fixturenames:
            patch.setattr(detached, "is_possible", lambda: False)
        yield
    if folder is not None:
        end_pages(folder)


@pytest.fixture
def detached_pages() -> None:
    """Servers in this process start the page's process, as they do in truth."""


@pytest.fixture(scope="session", autouse=True)
def no_page_outlives_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Also of homes that several tests share."""
    yield
    end_pages(tmp_path_factory.getbasetemp())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks workers from a process that has imported one already: the start of a new interpreter costs 0.2 s of CPU each."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def zone_folder(tmp_path: Path) -> Iterator[Path]:
    """A zone's folder; the worker that a test started on it ends with the test."""
    folder = tmp_path / "home" / "zones" / "local"
    yield folder
    end_worker(folder)


def end_worker(folder: Path) -> None:
    """End the worker that a test started, by its id: an idle one sees that its folder is gone, a busy one is told."""
    if pid := worker_pid(folder):
        os.kill(pid, signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def unused_zone(zone_folder: Path) -> AsyncIterator[LocalZone]:
    """A zone whose folder does not exist yet."""
    zone = LocalZone(zone_folder)
    yield zone
    await zone.aclose()


@pytest.fixture
def local_zone(unused_zone: LocalZone, nursery: Nursery) -> LocalZone:
    """A zone whose worker lives; once it has ended, the product starts the next one."""
    FolderCatalogue(unused_zone.folder).close()
    nursery.start(unused_zone.folder)
    return unused_zone


@pytest.fixture
async def here(zone_folder: Path) -> AsyncIterator[LocalZone]:
    """A zone whose worker is a thread of this process, so that a test can reach into it."""
    worker = threading.Thread(target=run_worker, args=(zone_folder, 3600.0), daemon=True)
    zone_folder.mkdir(parents=True)
    worker.start()
    zone = LocalZone(zone_folder)
    yield zone
    await zone.aclose()
    gone = zone_folder.rename(zone_folder.with_name("gone"))
    worker.join(PATIENCE_SECONDS)
    shutil.rmtree(gone)
