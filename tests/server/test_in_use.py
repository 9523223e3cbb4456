"""A model sees who has a disk before it asks a person for a roll-back."""

import pytest

from tests.local.test_in_use import holder
from tests.server.lab import Lab, data_of, text_of


@pytest.mark.anyio
async def test_list_resources_names_who_has_a_disk(lab: Lab) -> None:
    """ "A zone says of a disk whether something holds it": in the text and in the structure."""
    disk = await lab.add_disk("web")
    async with lab.connect() as client:
        with holder(f"f = os.open({disk.path!r}, os.O_RDWR)") as process:
            answer = await client.call_tool("list_resources", {})
        (row,) = data_of(answer)["resources"]
        assert f"process {process.pid} (" in row["held_by"]
        assert f"IN USE: {row['held_by']}" in text_of(answer)
        (row,) = data_of(await client.call_tool("list_resources", {}))["resources"]
        assert "held_by" not in row
