"""The bases of the contract's models."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class ZoneModel(BaseModel):
    """Base of what a zone returns: frozen, unknown fields kept."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, defer_build=True)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        return self.model_dump(mode="json")


class Request(BaseModel):
    """Base of what is sent to a zone: frozen, unknown fields rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)
