"""`/openapi.json`: OpenAPI 3.1, made from the table of operations and the models that really read and write.

What needs a feature is in it where a zone that is served declares it.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

import snapshot_mcp
from snapshot_mcp.contract.models import Job, Quota
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.service import answers
from snapshot_mcp.service.operations import OPERATIONS, ZONE_PATH, Operation
from snapshot_mcp.service.requests import JSON_TEXT, fields_without

_REF = "#/components/schemas/{model}"

_REASONS = {
    400: "Malformed, or contradicts itself",
    401: "No valid token",
    403: "The key pair's role does not allow it, or a quota is reached",
    404: "No such id or zone",
    405: "The method does not fit the path",
    409: "A job is in the way, or the state forbids it",
    413: "The body is too large",
    421: "The Host is not served here",
    429: "Throttled",
    500: "The zone failed, or stored bytes are damaged",
    501: "This zone cannot do that",
    503: "The zone cannot be reached",
    504: "It is unknown whether the change was carried out",
    507: "No room on the disk",
}


_SCOPES = {
    "reader": "Look",
    "writer": "Also back up, export, rename, recover and cancel",
    "full": "Also delete and roll back",
}
"""Roles of key pairs; a token has its key pair's role, whatever it is asked for with."""


class _Schema(GenerateJsonSchema):
    """An answer leaves out what is unset, so only fields with a value of their own are always there."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        schema = field.get("schema", {})
        is_unset = schema.get("type") == "default" and schema.get("default", ...) is None
        return not is_unset if self.mode == "serialization" else super().field_is_required(field, total)


Zones = tuple[tuple[str, frozenset[Feature]], ...]


def build_openapi(zones: Mapping[str, Collection[Feature]]) -> dict[str, Any]:
    """Return the document for a face that serves `zones`, by id, with the features of each."""
    return _document(tuple((name, frozenset(features)) for name, features in zones.items()))


@lru_cache(maxsize=4)
def _document(zones: Zones) -> dict[str, Any]:
    features = frozenset[Feature]().union(*(declared for _, declared in zones))
    offered = [one for one in OPERATIONS if one.feature is None or one.feature in features]
    read: list[tuple[Any, JsonSchemaMode]] = [(one.body, "validation") for one in offered if one.body]
    written: list[tuple[Any, JsonSchemaMode]] = [
        (model, "serialization")
        for model in (
            answers.Envelope,
            answers.SnapshotsAnswer,
            answers.VolumesAnswer,
            answers.InstancesAnswer,
            answers.ImagesAnswer,
            answers.TokenAnswer,
            answers.HealthAnswer,
            Job,
            Quota,
        )
    ]
    models, definitions = models_json_schema(read + written, ref_template=_REF, schema_generator=_Schema)
    names = {model: schema for (model, _), schema in models.items()}
    for model, _ in read:
        for name in fields_without(model, features):
            del definitions["$defs"][model.__name__]["properties"][name]
    paths: dict[str, dict[str, Any]] = {}
    for operation in offered:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, names, zones, features)
    if Feature.WATCH in features:
        paths[f"{ZONE_PATH}/notifier/stream"] = {"get": _stream(zones)}
    paths["/v2/oauth2/token"] = {"post": _token(names)}
    paths["/healthz"] = {"get": _public("Health", "Whether it serves", names[answers.HealthAnswer])}
    paths["/openapi.json"] = {"get": _public("OpenApi", "This document", {"type": "object"})}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Volume snapshots",
            "version": snapshot_mcp.__version__,
            "description": "Back disks up, look at their restore points, bring them back.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "token": {
                    "type": "oauth2",
                    "flows": {"clientCredentials": {"tokenUrl": "/v2/oauth2/token", "scopes": _SCOPES}},
                },
                "keyPair": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _json(schema: dict[str, Any], description: str = "The answer") -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): _json({"$ref": _REF.format(model="Envelope")}, _REASONS[status]) for status in statuses}


def _path_parameters(path: str, zones: Zones, feature: Feature | None) -> list[dict[str, Any]]:
    names = [name for name, features in zones if feature is None or feature in features]
    schemas: dict[str, dict[str, Any]] = {"zone": {"type": "string", "enum": names}}
    return [
        {"name": name, "in": "path", "required": True, "schema": schemas.get(name, {"type": "string", "minLength": 1})}
        for name in ("zone", "snapshot_id", "job_id")
        if f"{{{name}}}" in path
    ]


def _operation(
    operation: Operation, names: dict[Any, dict[str, Any]], zones: Zones, features: frozenset[Feature]
) -> dict[str, Any]:
    parameters = _path_parameters(operation.path, zones, operation.feature)
    if operation.query:
        absent = fields_without(operation.query, features)
        query = TypeAdapter(operation.query).json_schema(mode="validation")
        parameters += [
            _query_parameter(name, schema) for name, schema in query["properties"].items() if name not in absent
        ]
    answer: dict[str, Any] = {"description": "Done"}
    if operation.answer is not None:
        answer = _json(names.get(operation.answer) or {"type": "array", "items": names[operation.answer.__args__[0]]})
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": [{"token": [str(operation.role)]}],
        "parameters": parameters,
        "responses": {str(operation.status): answer, **_errors(*operation.errors)},
    }
    if operation.body:
        document["requestBody"] = {"required": True, "content": {"application/json": {"schema": names[operation.body]}}}
    return document


def _query_parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is JSON inside says so, with the schema of what is in it."""
    parameter = {"name": name, "in": "query", "required": False}
    if schema.items() >= JSON_TEXT.items():
        return {**parameter, "content": {"application/json": {"schema": {"$ref": _REF.format(model="Terms")}}}}
    return {**parameter, "schema": _plain(schema)}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title" and value is not None}


def _stream(zones: Zones) -> dict[str, Any]:
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    return {
        "operationId": "WatchJobs",
        "summary": "A Job at each change of its status (event: message), and heartbeats (event: hb)",
        "security": [{"token": ["reader"]}],
        "parameters": _path_parameters(f"{ZONE_PATH}/notifier/stream", zones, Feature.WATCH),
        "responses": {
            "200": {"description": "Server-sent events", "content": stream},
            **_errors(400, 401, 403, 404, 421, 429, 500, 501, 503),
        },
    }


def _token(names: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {"grant_type": {"type": "string", "const": "client_credentials"}},
        "required": ["grant_type"],
    }
    return {
        "operationId": "IssueToken",
        "summary": "A token for a key pair (OAuth 2 client credentials)",
        "security": [{"keyPair": []}],
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": form}}},
        "responses": {"200": _json(names[answers.TokenAnswer]), **_errors(400, 401, 403, 413, 421)},
    }


def _public(name: str, summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": {"200": _json(schema), **_errors(400, 403, 421)},
    }
