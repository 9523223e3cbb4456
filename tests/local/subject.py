"""The contract suite's subject: the embedded zone itself."""

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from snapshot_mcp.providers.local import LocalZone
from tests.contract.subject import Subject, Suite


def subject_names(module: str, *, is_own_rule: bool) -> list[str]:
    return ["local"]


@asynccontextmanager
async def open_subject(name: str, suite: Suite, options: Mapping[str, Any]) -> AsyncIterator[Subject]:
    with tempfile.TemporaryDirectory() as disks:
        local = LocalZone(suite.folder, **options)
        yield Subject(local, local, Path(disks))
        await local.aclose()
