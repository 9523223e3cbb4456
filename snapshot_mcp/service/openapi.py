"""`/openapi.json`: OpenAPI 3.1, built from the table of operations and the models that read and write.

Whatever needs a feature is included if one of the served zones declares that feature.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

import snapshot_mcp
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.service import answers
from snapshot_mcp.service.operations import OPERATIONS, ZONE_PATH, Operation
from snapshot_mcp.service.requests import JSON_TEXT, fields_without

_REF = "#/components/schemas/{model}"

_REASONS = {
    400: "The request is malformed or contradictory",
    401: "No valid token",
    403: "The key pair's role does not allow it, or a quota is exhausted",
    404: "Unknown id or zone",
    405: "The path does not support the method",
    409: "Blocked by a job or by the present state",
    413: "The body is too large",
    421: "The Host is not served here",
    429: "Too many requests",
    500: "Internal error, or stored bytes are damaged",
    501: "Not supported by the zone",
    503: "The zone cannot be reached",
    504: "It is unknown whether the change was carried out",
    507: "The disk is full",
}

_SCOPES = {
    "reader": "Read",
    "writer": "Also back up, export, rename, recover and cancel",
    "full": "Also delete and roll back",
}
"""A token has its key pair's role, whatever scope is requested."""

_Schemas = dict[Any, dict[str, Any]]


class _Schema(GenerateJsonSchema):
    """JSON schemas in which a field of an answer is required unless its default is None: unset fields are left out."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        schema = field.get("schema", {})
        is_unset = schema.get("type") == "default" and schema.get("default", ...) is None
        return not is_unset if self.mode == "serialization" else super().field_is_required(field, total)


Zones = tuple[tuple[str, frozenset[Feature]], ...]


def build_openapi(zones: Mapping[str, Collection[Feature]]) -> dict[str, Any]:
    """Return the document for a service with these zones; `zones` maps each id to the zone's features."""
    return _document(tuple((name, frozenset(features)) for name, features in zones.items()))


@lru_cache(maxsize=4)
def _document(zones: Zones) -> dict[str, Any]:
    features = frozenset[Feature]().union(*(declared for _, declared in zones))
    offered = [one for one in OPERATIONS if one.feature is None or one.feature in features]
    read: list[tuple[Any, JsonSchemaMode]] = [(one.body, "validation") for one in offered if one.body]
    written: list[tuple[Any, JsonSchemaMode]] = [(model, "serialization") for model in _written_models()]
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
    paths["/healthz"] = {"get": _public("Health", "Whether the service is running", names[answers.HealthAnswer])}
    paths["/openapi.json"] = {"get": _public("OpenApi", "This document", {"type": "object"})}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Volume snapshots",
            "version": snapshot_mcp.__version__,
            "description": "Back up disks, list their restore points, and roll back to one.",
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


def _written_models() -> list[Any]:
    found = (item for one in OPERATIONS for item in getattr(one.answer, "__args__", (one.answer,)) if item)
    return list(dict.fromkeys([answers.Envelope, answers.TokenAnswer, answers.HealthAnswer, *found]))


def _json(schema: dict[str, Any], description: str = "Success") -> dict[str, Any]:
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


def _operation(operation: Operation, names: _Schemas, zones: Zones, features: frozenset[Feature]) -> dict[str, Any]:
    parameters = _path_parameters(operation.path, zones, operation.feature)
    if operation.query:
        absent = fields_without(operation.query, features)
        query = TypeAdapter(operation.query).json_schema(mode="validation")
        parameters += [
            _query_parameter(name, schema) for name, schema in query["properties"].items() if name not in absent
        ]
    answer: dict[str, Any] = {"description": "Success"}
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
    """Describe a parameter; one that holds JSON text has the schema of its content."""
    parameter = {"name": name, "in": "query", "required": False}
    if schema.items() >= JSON_TEXT.items():
        return {**parameter, "content": {"application/json": {"schema": {"$ref": _REF.format(model="Terms")}}}}
    plain = {key: value for key, value in schema.items() if key != "title" and value is not None}
    return {**parameter, "schema": plain}


def _stream(zones: Zones) -> dict[str, Any]:
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    return {
        "operationId": "WatchJobs",
        "summary": "Send a Job at each change of its status (event: message), and heartbeats (event: hb)",
        "security": [{"token": ["reader"]}],
        "parameters": _path_parameters(f"{ZONE_PATH}/notifier/stream", zones, Feature.WATCH),
        "responses": {
            "200": {"description": "Server-sent events", "content": stream},
            **_errors(400, 401, 403, 404, 421, 429, 500, 501, 503),
        },
    }


def _token(names: _Schemas) -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {"grant_type": {"type": "string", "const": "client_credentials"}},
        "required": ["grant_type"],
    }
    return {
        "operationId": "IssueToken",
        "summary": "Issue a token for a key pair (OAuth 2 client credentials)",
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
