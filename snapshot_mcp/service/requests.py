"""Query and body models of the REST face, and parsing them from raw text.

Both revisions' spellings are accepted (CONTRACT.md, "Differences of the later revision"). Unknown parameters and fields are
rejected, so that a misspelt filter never returns more than was requested. JSON is parsed whatever the Content-Type. A field
that `Needs` a feature is unknown to a zone that does not declare it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeVar, get_origin
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import (
    MAX_IDS,
    MAX_LIMIT,
    MAX_NAME_CHARACTERS,
    MAX_OFFSET,
    Request,
    SnapshotFilter,
    SnapshotUpdate,
    first_repeated,
)
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import SnapshotType
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.contract.values import parse_time

MAX_QUERY_BYTES = 65_536
"""Twice the size of terms with 120 ids of 255 characters, percent-encoded."""

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Needs:
    """Marks a field that exists only where the zone declares the feature (CONTRACT.md, "Terms")."""

    feature: Feature


def fields_without(model: type[BaseModel], features: Collection[Feature]) -> list[str]:
    """Return the model's fields that need a feature missing in `features`."""
    return [
        name
        for name, field in model.model_fields.items()
        if any(isinstance(one, Needs) and one.feature not in features for one in field.metadata)
    ]


SNAPSHOT_TYPES = {
    "0": SnapshotType.INCREMENTAL,
    "1": SnapshotType.FULL,
    **{f"IS_{member.name}": member for member in SnapshotType},
}

FULL = {0: 0, 1: 1, "0": 0, "1": 1, "IS_AUTH": 0, "IS_FULL": 1}


def _split(values: list[str]) -> tuple[str, ...]:
    """Split repeated keys and comma-separated values; reject commas alone, which would be a filter that matches all."""
    parts = tuple(part for value in values for part in value.split(",") if part)
    if not parts:
        raise ValueError("must have a value, not only commas")
    return parts


def _snapshot_type(value: str) -> SnapshotType:
    if value not in SNAPSHOT_TYPES:
        raise ValueError("must be 0 (or IS_INCREMENTAL) or 1 (or IS_FULL)")
    return SNAPSHOT_TYPES[value]


def _is_full(value: object) -> int:
    if not isinstance(value, (int, str)) or isinstance(value, bool) or value not in FULL:
        raise ValueError("must be 0 (or IS_AUTH) or 1 (or IS_FULL)")
    return FULL[value]


def _digits(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 16:
        raise ValueError("must be a whole number, 0 or more")
    return int(value)


def _terms(value: str) -> Terms:
    """Parse terms from the text of a query parameter."""
    try:
        given = _json_object(value)
    except ValueError:
        raise ValueError("must be a JSON object") from None
    try:
        return Terms.model_validate(given)
    except ValidationError as error:
        raise ValueError(_details(error)) from None


Id = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Text = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=MAX_IDS)]
_VALUE = {"type": "string", "maxLength": MAX_NAME_CHARACTERS, "pattern": "[^,]"}
_VALUES = WithJsonSchema({"type": "array", "items": _VALUE, "maxItems": MAX_IDS})
Values = Annotated[tuple[Text, ...], Field(max_length=MAX_IDS), BeforeValidator(_split), _VALUES]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET), BeforeValidator(_digits)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT), BeforeValidator(_digits)]
Flag = Annotated[int, Field(ge=0, le=1), BeforeValidator(_digits)]
_TYPES = WithJsonSchema({"enum": [0, 1, "IS_INCREMENTAL", "IS_FULL"]})
Type = Annotated[SnapshotType | None, BeforeValidator(_snapshot_type), _TYPES]
Full = Annotated[int, BeforeValidator(_is_full), WithJsonSchema({"enum": [0, 1, "IS_AUTH", "IS_FULL"]})]
JSON_TEXT = {"type": "string", "contentMediaType": "application/json"}
QueryTerms = Annotated[Terms | None, Needs(Feature.TERMS), BeforeValidator(_terms), WithJsonSchema(JSON_TEXT)]


class NoQuery(Request):
    """The query of an operation without parameters."""


class SnapshotsQuery(Request):
    """The query of GET /volume_snapshots: the specification's ten parameters, all optional."""

    snapshots: Values = ()
    resource_id: Text = ""
    snapshot_type: Type = None
    status: Values = ()
    search_word: Text = ""
    tags: Values = ()
    verbose: Flag = 0
    offset: Offset = 0
    limit: Limit = 10
    root_id: Text = ""

    def filter(self) -> SnapshotFilter:
        """Return the query as the provider takes it."""
        return SnapshotFilter.model_validate(dict(self))


class _ResourcesQuery(Request):
    status: Values = ()
    search_word: Text = ""
    offset: Offset = 0
    limit: Limit = 10


class _DisksQuery(_ResourcesQuery):
    verbose: Annotated[Flag, Needs(Feature.TERMS)] = 0


class VolumesQuery(_DisksQuery):
    """The query of GET /volumes."""

    volumes: Values = ()


class InstancesQuery(_DisksQuery):
    """The query of GET /instances."""

    instances: Values = ()


class ImagesQuery(_ResourcesQuery):
    """The query of GET /images."""

    images: Values = ()


class DeleteQuery(Request):
    """The query of a deletion: all but `terms` repeats the path, and a `snapshot` other than the path's id is an error."""

    snapshot: Text = ""
    snapshot_name: str = ""
    description: str = ""
    terms: QueryTerms = None


class CreateBody(Request):
    """Resources to back up."""

    resources: Ids
    snapshot_name: Text
    is_full: Full = 0


class ApplyBody(Request):
    """Snapshots to roll back to."""

    snapshots: Ids
    terms: Annotated[Terms | None, Needs(Feature.TERMS)] = None
    safety_snapshot_name: Annotated[Text, Needs(Feature.ONE_HOLD)] = ""


class CaptureInstanceBody(Request):
    """A snapshot to export to an image."""

    snapshot: Id
    image_name: Text


class CreateVolumeBody(Request):
    """A snapshot to export to a volume."""

    snapshot: Id
    volume_name: Text


class CaptureInstanceNamedBody(Request):
    """The later revision's form, with the id in the path."""

    snapshot: Text = ""
    image_name: Text


class CreateVolumeNamedBody(Request):
    """The later revision's form, with the id in the path."""

    snapshot: Text = ""
    volume_name: Text


class UpdateBody(Request):
    """Fields of a snapshot to change."""

    snapshot_name: Text | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    tags: Annotated[list[Text], Field(max_length=MAX_IDS)] | None = None

    def update(self) -> SnapshotUpdate:
        """Return the body as the provider takes it."""
        return SnapshotUpdate.model_validate(dict(self))


class VerifyBody(Request):
    """Snapshots to verify."""

    snapshots: Ids


class FinishedJobsQuery(Request):
    """The query of GET /finished_jobs: those that ended at `since` or later, the newest first."""

    since: Annotated[datetime, BeforeValidator(parse_time)]
    limit: Limit = 10


class LeaseBody(Request):
    """Deleted snapshots to recover."""

    resources: Ids


def read_query(model: type[Model], raw: bytes, features: Collection[Feature]) -> Model:
    """Return the query as `model`; a parameter without a value counts as absent, except `terms`."""
    if len(raw) > MAX_QUERY_BYTES:
        raise BadRequest(f"The query has {len(raw)} bytes.", hint=f"Send at most {MAX_QUERY_BYTES}.")
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=500)
    except ValueError:
        raise BadRequest("The query is not UTF-8 text, or has too many fields.") from None
    given: dict[str, list[str]] = {}
    for key, value in pairs:
        if value or key not in model.model_fields or key == "terms":  # empty terms must not permit a change
            given.setdefault(key, []).append(value)
    return validated(model, {key: _one_or_many(model, key, values) for key, values in given.items()}, features)


def _one_or_many(model: type[BaseModel], key: str, values: list[str]) -> object:
    field = model.model_fields.get(key)
    if field is not None and get_origin(field.annotation) is tuple:
        return values
    if len(values) > 1:
        raise BadRequest(f"The parameter {clean_text(key)!r} is given {len(values)} times.", hint="Send it once.")
    return values[0]


def read_json(model: type[Model], raw: bytes, features: Collection[Feature]) -> Model:
    """Return the body as `model`, whatever its Content-Type."""
    try:
        value = _json_object(raw.decode("utf-8-sig"))
    except ValueError:
        raise BadRequest("The body is not a JSON object.", hint="Send one JSON object.") from None
    return validated(model, value, features)


def _json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for anything else, BadRequest for a repeated field."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Reject repeated fields: a proxy may have read the other value."""
    if (repeated := first_repeated(key for key, _ in pairs)) is not None:
        raise BadRequest(f"The field {clean_text(repeated)!r} is given twice.", hint="Send it once.")
    return dict(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def validated(model: type[Model], values: Mapping[str, Any], features: Collection[Feature]) -> Model:
    """Return `values` as `model`. Raises BadRequest, which names each field and what is wrong with it."""
    if unknown := values.keys() & fields_without(model, features):
        details = "; ".join(f"{_place([name])}: Extra inputs are not permitted" for name in sorted(unknown))
        raise BadRequest(f"Invalid request: {details}.", hint="x-snapshot-features lists what this zone supports.")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise BadRequest(f"Invalid request: {clean_text(_details(error), 400)}.") from None


def _details(error: ValidationError) -> str:
    """Say which fields are wrong, and why."""
    return "; ".join(f"{_place(one['loc'])}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()[:5])


def _place(location: Sequence[int | str]) -> str:
    return (
        ".".join(repr(clean_text(part, 40)) if isinstance(part, str) else str(part) for part in location)
        or "the request"
    )
