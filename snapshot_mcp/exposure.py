"""Check whether other users of this machine can read the secrets in the operator's file, or change its rules.

For a private or missing file that costs one `stat`.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from snapshot_mcp.ground.shell import quote
from snapshot_mcp.ground.toml import parse_toml
from snapshot_mcp.settings import MODELS, config_path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def describe_exposure(environ: Mapping[str, str]) -> list[str]:
    """Return the problems with the settings file's owner and mode, each with the command that fixes it."""
    if os.name == "nt":
        return []
    path = config_path(environ)
    try:
        found = path.stat()
    except OSError:
        return []
    if not stat.S_ISREG(found.st_mode):
        return []
    lines = []
    shown, mode = quote(str(path)), stat.S_IMODE(found.st_mode)
    if found.st_uid not in {os.geteuid(), 0}:
        lines.append(
            f"{path} belongs to another user (uid {found.st_uid}), who can change the rules in it."
            f" Run: sudo chown {os.geteuid()} {shown}"
        )
    if mode & OTHERS_WRITE:
        lines.append(f"Other users can change {path} (mode {mode:04o}) and the rules in it. Run: chmod 600 {shown}")
    elif mode & OTHERS and _has_secret(_read(path)):
        lines.append(f"{path} holds secrets, and other users can read it (mode {mode:04o}). Run: chmod 600 {shown}")
    return lines


def _read(path: Path) -> dict[str, Any]:
    """Return the file's tables, none if it cannot be read: loading the settings reports that."""
    try:
        return parse_toml(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}


def _has_secret(table: dict[str, Any]) -> bool:
    """Return whether a token, or a secret field of a zone or of a copy, is set."""
    names = {
        name for model in MODELS.values() for name, field in model.model_fields.items() if field.annotation is SecretStr
    }
    secrets = {"tokens": {"token"}, "zones": names, "copies": {"secret_access_key", "session_token"}}
    return any(one.get(name) for kind, fields in secrets.items() for one in _tables(table, kind) for name in fields)


def _tables(table: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = table.get(name)
    return [one for one in found.values() if isinstance(one, dict)] if isinstance(found, dict) else []
