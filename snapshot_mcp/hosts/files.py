"""Put the server's entry into a host's file. All else stays, the old file is kept beside it, and a doubtful file is refused."""

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snapshot_mcp.contract.errors import BadRequest, InternalError
from snapshot_mcp.ground.files import fsync_folder, written_beside
from snapshot_mcp.hosts.entries import Entry, Host
from snapshot_mcp.hosts.launch import NAME

MAX_BYTES = 16 * 1024 * 1024
"""Largest file that is changed; Claude Code's own has some MiB."""

TRANSPORT = {
    "type",
    "command",
    "args",
    "env",
    "cmd",
    "envs",
    "env_keys",
    "url",
    "httpUrl",
    "serverUrl",
    "uri",
    "headers",
} | {
    "bearer_token_env_var",
    "source",
}
"""Keys that say how a server is reached: of an older entry only the others stay."""

PREFERENCES = {"startup_timeout_sec", "tool_timeout_sec", "timeout", "enabled", "disabled", "name", "description"}
"""Keys that we only propose: what a person has set stays."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was done to `path`; `kept` is the old file's copy, None if there was none or nothing was changed."""

    path: Path
    is_changed: bool
    kept: Path | None = None


def write(host: Host, entry: Entry) -> Written:
    """Merge the entry into the host's file. Raises BadRequest if the file cannot be merged, InternalError if not written."""
    path = Path(os.path.realpath(host.file()))
    try:
        old = _read(path)
        text = decoded(path, old or b"")
        new = merged(host, entry, text, path)
        if new == text and old is not None:
            return Written(path, is_changed=False)
        return _replace(path, old, new.encode("utf-8"))
    except OSError as error:
        raise InternalError(
            f"{str(path)!r} could not be changed: {error.strerror or error}.",
            hint=f"Nothing was changed. Without --write the entry is printed, to be pasted into {host.title}.",
        ) from None


def decoded(path: Path, content: bytes) -> str:
    """Return a file's text. Raises BadRequest."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(path, f"it is not UTF-8 at byte {error.start}") from None


def merged(host: Host, entry: Entry, text: str, path: Path) -> str:
    """Return the text with the entry in its place. Raises BadRequest, naming what is wrong with the file."""
    read, put = FORMATS[host.format]
    try:
        before = read(text)
        known = before.get(host.place) or {}
        old = known.get(NAME) or {}
        kept = {
            key: value
            for key, value in old.items()
            if key in PREFERENCES or (key not in TRANSPORT and key not in entry)
        }
        wanted = entry | kept
        if old == wanted:
            return text
        new = put(text, host.place, wanted)
        expected = before | {host.place: known | {NAME: wanted}}
        if read(new) != expected:
            raise ValueError("it is written in a way that cannot be changed safely")
    except RecursionError:
        raise _refused(path, "it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _refused(path, _reason(error)) from None
    return new


def _reason(error: Exception) -> str:
    if type(error) in {TypeError, AttributeError, LookupError}:
        return "a part of it is not a table of names and values"
    return " ".join(str(error).split())[:200]


def _refused(path: Path, reason: str) -> BadRequest:
    return BadRequest(
        f"{str(path)!r} was not changed: {reason}.",
        hint="Correct the file, or paste the entry by hand; without --write it is printed.",
    )


def _read(path: Path) -> bytes | None:
    with suppress(FileNotFoundError), path.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _refused(path, "it is not a regular file")
        content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _refused(path, f"it is larger than {MAX_BYTES // 1024**2} MiB")
        return content
    return None


def _replace(path: Path, old: bytes | None, new: bytes) -> Written:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = _keep(path, old) if old is not None else None
    with written_beside(path, new) as temporary:
        if old is not None:
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        if _read(path) != old:
            raise BadRequest(f"{str(path)!r} was changed in the meantime.", hint="Nothing was changed here. Try again.")
        temporary.replace(path)
    fsync_folder(path.parent)
    return Written(path, is_changed=True, kept=kept)


def _keep(path: Path, content: bytes) -> Path:
    """Write a copy beside the file, readable by its owner alone; an older copy is never overwritten."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1, 100):
        copy = path.with_name(f"{path.name}.{stamp}{f'-{number}' if number > 1 else ''}.bak")
        with suppress(FileExistsError):
            descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            return copy
    raise FileExistsError(0, "too many copies of it are beside it")


def _read_json(text: str) -> Any:
    from snapshot_mcp.hosts import jsonc

    return jsonc.read(text) if text.strip("\ufeff \t\r\n") else {}


def _put_json(text: str, place: str, entry: Entry) -> str:
    from snapshot_mcp.hosts import jsonc

    return jsonc.put(text if text.strip("\ufeff \t\r\n") else "{\n}\n", (place, NAME), entry)


def _read_toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text.removeprefix("\ufeff"))


def _put_toml(text: str, place: str, entry: Entry) -> str:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    text, behind = _without_what_is_behind(text, place)
    try:
        document = tomlkit.parse(text.removeprefix("\ufeff"))
        if place not in document:
            document.add(place, tomlkit.table(is_super_table=True))
        servers = document[place]
        if NAME not in servers:
            servers[NAME] = tomlkit.table()
        table = servers[
            NAME
        ]  # changed key by key: comments in it stay, and those behind it, which belong to what follows
        for key in [one for one in table if one not in entry]:
            del table[key]
        for key, value in entry.items():
            if key not in table or table[key] != value:
                table[key] = value
        new = ("\ufeff" if text.startswith("\ufeff") else "") + tomlkit.dumps(document)
    except TOMLKitError as error:
        raise ValueError(str(error)) from None
    if not behind:
        return new
    lines = new.splitlines(keepends=True)
    _, end = _lines_of_entry(lines, place)
    return "".join([*lines[:end], *behind, *lines[end:]])


def _lines_of_entry(lines: list[str], place: str) -> tuple[int, int]:
    """Return where an entry's tables begin and end in the lines of a TOML file, both the end of the file for none."""
    ours = re.compile(rf"\s*\[\s*{re.escape(place)}\s*\.\s*[\"']?{re.escape(NAME)}[\"']?\s*[.\]]")
    begin = next((at for at, line in enumerate(lines) if ours.match(line)), len(lines))
    others = (at for at in range(begin, len(lines)) if lines[at].lstrip().startswith("[") and not ours.match(lines[at]))
    return begin, next(others, len(lines))


def _without_what_is_behind(text: str, place: str) -> tuple[str, list[str]]:
    """Part the comments that follow an entry, and belong to what comes next, from the text."""
    lines = text.splitlines(keepends=True)
    begin, end = _lines_of_entry(lines, place)
    start = end
    while start > begin and (not lines[start - 1].strip() or lines[start - 1].lstrip().startswith("#")):
        start -= 1
    if begin == len(lines) or not any(line.strip() for line in lines[start:end]):
        return text, []
    return "".join([*lines[:start], *lines[end:]]), lines[start:end]


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _put_yaml(text: str, place: str, entry: Entry) -> str:
    """Change lines and nothing else: a YAML library would lay out the whole file anew."""
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    newline = "\r\n" if "\r\n" in text else "\n"
    if root is None:
        return text + _block({place: {NAME: entry}}, "", newline)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("it is not a table of names and values")
    at = next((pair for pair in root.value if pair[0].value == place), None)
    if root.flow_style:
        raise ValueError("it is written in braces")
    if at is None:
        return text + ("" if text.endswith("\n") else newline) + _block({place: {NAME: entry}}, "", newline)
    key, table = at
    if not isinstance(table, yaml.MappingNode) or not table.value:
        start, end = key.start_mark.index, table.end_mark.index
        return text[:start] + _block({place: {NAME: entry}}, "", newline).rstrip() + text[end:]
    if table.flow_style:
        raise ValueError(f"{place} is written in braces")
    indent = " " * table.start_mark.column
    block = _block({NAME: entry}, indent, newline)
    old = next((pair for pair in table.value if pair[0].value == NAME), None)
    if old is None:
        start = table.value[0][0].start_mark.index - table.start_mark.column
        return text[:start] + block + text[start:]
    start, end = old[0].start_mark.index, _last(old[1])
    return text[:start] + block.strip() + text[end:]


def _last(node: Any) -> int:
    """Return where a node's own text ends: a block's end is only noticed where the next thing begins."""
    import yaml

    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _last(last[1] if isinstance(node, yaml.MappingNode) else last)


def _block(data: Any, indent: str, newline: str) -> str:
    import yaml

    lines = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000).splitlines()
    return "".join(f"{indent}{line}{newline}" for line in lines)


FORMATS = {"json": (_read_json, _put_json), "toml": (_read_toml, _put_toml), "yaml": (_read_yaml, _put_yaml)}
"""How to read each format, and how to put an entry into its text."""


def printed(host: Host, entry: Entry) -> str:
    """Return what the file holds with nothing but this entry."""
    return FORMATS[host.format][1]("", host.place, entry).strip()
