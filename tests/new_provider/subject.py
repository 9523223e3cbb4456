"""The contract suite's subject: a zone of the throw-away provider."""

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from snapshot_mcp.providers.attic.zone import AtticZone

from tests.contract.subject import Subject, Suite


def subject_names(module: str, *, is_own_rule: bool) -> list[str]:
    return ["attic"]


@asynccontextmanager
async def open_subject(name: str, suite: Suite, options: Mapping[str, Any]) -> AsyncIterator[Subject]:
    with tempfile.TemporaryDirectory() as disks:
        zone = AtticZone(suite.folder, zone="attic", **options)
        yield Subject(zone, zone, Path(disks))
        await zone.aclose()
