"""`[copies.NAME]`: what is refused, in words; and what bounds a copy."""

import time
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.errors import StorageFull
from snapshot_mcp.copies.limits import Bandwidth, refuse_over
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.settings import SettingsError, load_settings

KEYS = 'access_key_id = "a"\nsecret_access_key = "canary"'

REFUSED = {
    'to = "nas"': "should be a whole path",
    'to = "ftp://x/y"': "should be a folder or s3://BUCKET/PREFIX",
    'to = ""': "must not be empty",
    'to = "s3://b/x"\n' + KEYS: "a bucket has 3 to 63",
    'to = "s3://bucket/../x"\n' + KEYS: "should be s3://BUCKET/PREFIX",
    'to = "s3://bucket/x"': "needs access_key_id and secret_access_key",
    'to = "s3://bucket/x"\nendpoint = "http://s3.example.org"\n' + KEYS: "should be https",
    'to = "s3://bucket/x"\nendpoint = "https://me:pw@s3.example.org"\n' + KEYS: "without a name or password",
    'to = "/nas"\nbandwidth = "1KiB/s"': "greater than or equal to 65536",
    'to = "/nas"\nbandwidth = "fast"': 'such as "500GiB" or "20MiB/s"',
    'to = "/nas"\nkeep_deleted_days = 0': "greater than or equal to 1",
    'to = "/nas"\nencryption = "rot13"': "should be 'age' or 'none'",
    'to = "/nas"\nzones = ["other"]': "'other' is not an embedded (local) zone",
    'to = "/nas"\nencrypt = true': "unknown setting",
    "zones = []": "is missing",
    'to = "/nas"\nlock = "compliance"': "`lock` needs an object store",
}


@pytest.mark.parametrize("rows", REFUSED)
def test_what_is_wrong_is_said_without_the_values_of_secrets(rows: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[copies.nas]\n{rows}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({"SNAPSHOT_MCP_CONFIG": str(path), "SNAPSHOT_MCP_HOME": str(tmp_path)})
    assert REFUSED[rows] in caught.value.message
    assert "copies" in caught.value.message
    assert "canary" not in caught.value.message


@pytest.mark.parametrize(
    ("fields", "is_sealed"),
    [
        ({"to": "/nas"}, False),
        ({"to": "/nas", "encryption": "age"}, True),
        ({"to": "s3://bucket/x", "access_key_id": "a", "secret_access_key": "b"}, True),
        ({"to": "s3://bucket/x", "access_key_id": "a", "secret_access_key": "b", "encryption": "none"}, False),
        ({"to": "s3://bucket/x", "instance_metadata": True}, True),
    ],
)
def test_an_object_store_is_sealed_unless_the_operator_says_none(fields: dict[str, Any], is_sealed: bool) -> None:
    settings = CopySettings.model_validate(fields)
    assert settings.is_sealed == is_sealed
    assert "'b'" not in repr(settings)


def test_a_bandwidth_is_kept_over_all_that_is_sent() -> None:
    slept: list[float] = []
    limit = Bandwidth(1 << 20, slept.append)
    started = time.monotonic()
    for _ in range(20):
        limit.wait(1 << 20)
    assert 17.5 <= max(slept) - (time.monotonic() - started) + 1 <= 21
    Bandwidth(None, slept.append).wait(1 << 40)


def test_a_ceiling_is_not_passed() -> None:
    refuse_over(100, 90, 10, "nas")
    refuse_over(None, 1 << 60, 1 << 60, "nas")
    with pytest.raises(StorageFull) as caught:
        refuse_over(100, 90, 11, "nas")
    assert "ceiling of 100 bytes" in caught.value.message
    assert "[copies.nas]" in caught.value.hint
