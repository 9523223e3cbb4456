"""What the contract suite runs over: the subjects that each provider's tests bring (`subject`)."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import end_worker
from tests.contract.subject import Subject, Suite, subject_modules

RUN_BY_CI_APART = {("ceph", "ceph rest")}
"""Too much for the default run beside the others: `.ci/run` always runs them after it."""


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """One zone for the whole suite, so that one worker serves it; each test brings its own disks."""
    folder = tmp_path_factory.mktemp("contract") / "zone"
    with ExitStack() as stack:
        yield Suite(folder, stack)
    end_worker(folder)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_rules: a rule of our own zone (CONTRACT.md, The rules of our own zone)")
    config.addinivalue_line("markers", "zone_options(**options): how the embedded zone is set")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" not in metafunc.fixturenames:
        return
    module = metafunc.module.__name__.rpartition(".")[2]
    is_own_rule = any(metafunc.definition.iter_markers("own_rules"))
    names = [
        (provider, name)
        for provider, subjects in subject_modules().items()
        for name in subjects.subject_names(module, is_own_rule=is_own_rule)
    ]
    params = [pytest.param(one, id=one[1], marks=[pytest.mark.long] if one in RUN_BY_CI_APART else []) for one in names]
    metafunc.parametrize("subject", params, indirect=True)


@pytest.fixture
async def subject(request: pytest.FixtureRequest, suite: Suite) -> AsyncIterator[Subject]:
    provider, name = request.param
    options = getattr(request.node.get_closest_marker("zone_options"), "kwargs", {})
    async with subject_modules()[provider].open_subject(name, suite, options) as opened:
        yield opened
