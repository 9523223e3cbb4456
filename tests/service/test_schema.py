"""Schemathesis over /openapi.json: no 5xx, and every answer fits its schema."""

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import CHECKS
from schemathesis.schemas import APIOperation

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.service.openapi import build_openapi
from tests.conftest import end_worker
from tests.disks import back_up, make_image
from tests.marks import few
from tests.rest_face import ZONE_ID, Served, fetch_token, served_in_thread

SCHEMA = schemathesis.openapi.from_dict(build_openapi({ZONE_ID: LocalZone.features}))
OPERATIONS: dict[str, APIOperation] = {
    result.ok().label: result.ok()
    for result in SCHEMA.get_all_operations()
    if not result.ok().path.endswith("/notifier/stream")  # has no end
}
CHECKED = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str, dict[str, str]]]:
    """A face in a thread of its own, a token, and ids that exist."""
    folder = tmp_path_factory.mktemp("schema")

    async def prepare() -> dict[str, str]:
        zone = LocalZone(folder / "zone")
        volume = await zone.add_resource(make_image(folder / "disk", 1 << 16), "disk")
        snapshot = await back_up(zone, volume.id)
        await zone.aclose()
        return {"vol": volume.id, "ss": snapshot}

    ids = anyio.run(prepare)
    with served_in_thread(folder / "zone") as face:
        yield face, anyio.run(fetch_token, face.url), ids
    end_worker(folder / "zone")


def with_known_ids(value: Any, ids: dict[str, str]) -> Any:
    """The same request about things that exist."""
    match value:
        case {**fields}:
            known = {
                "snapshot_id": ids["ss"],
                "snapshot": ids["ss"],
                "snapshots": [ids["ss"]],
                "resources": [ids["vol"]],
            }
            return {key: known.get(key, one) for key, one in fields.items()}
        case _:
            return value


def exercise(label: str, target: tuple[Served, str, dict[str, str]], examples: int) -> None:
    face, token, ids = target
    strategy = OPERATIONS[label].as_strategy()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy, is_known=st.booleans())
    def run(case: Case, is_known: bool) -> None:
        if is_known:
            case.path_parameters = with_known_ids(case.path_parameters, ids)
            case.body = with_known_ids(case.body, ids)
        headers = {"Authorization": f"Bearer {token}"}
        response = case.call(base_url=face.url, headers=headers)
        case.validate_response(response, checks=CHECKED)

    run()


@pytest.mark.parametrize("label", few(sorted(OPERATIONS), 11))
def test_answers_fit_the_published_schema(label: str, target: tuple[Served, str, dict[str, str]]) -> None:
    """A few requests of each kind."""
    exercise(label, target, 12)


@pytest.mark.long
@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_many_answers_fit_the_published_schema(label: str, target: tuple[Served, str, dict[str, str]]) -> None:
    """Many requests of each kind."""
    exercise(label, target, 300)
