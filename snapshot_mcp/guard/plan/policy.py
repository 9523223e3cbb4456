"""The operator's rules: the `[guard]` table. What policy refuses, no consent allows.

A rule comes from the operator's file; an environment variable can make it stricter and never looser. A refusal names the
rule and that the operator can change it, not how: what reads it may be a model looking for a way round.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import quoted


class Protect(BaseModel):
    """What is never destroyed: snapshots by id, name pattern or tag, disks by id or name pattern.

    Patterns are shell patterns (`prod-*`), compared without regard to case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()


class Policy(BaseModel):
    """The `[guard]` table.

    `consent`: `ask` takes a person's answer through the client, `human` only an approval outside of it.
    `last_good_copy`: what may become of a disk's last good restore point, `human` (with a typed name) or `refuse`.
    `snapshots_per_approval`: the most that one yes can take. `safety_snapshot`: `required` refuses a roll-back without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    read_only: bool = False
    consent: Literal["ask", "human"] = "ask"
    protect: Protect = Protect()
    last_good_copy: Literal["human", "refuse"] = "human"
    minimum_age_hours: float = Field(default=0, ge=0, allow_inf_nan=False)
    deletions_per_hour: int = Field(10, ge=0)
    snapshots_per_approval: int = Field(100, ge=0)
    safety_snapshot: Literal["default", "required"] = "default"

    def merged(self, other: "Policy") -> "Policy":
        """Return the stricter of the two, rule by rule."""
        return Policy(
            read_only=self.read_only or other.read_only,
            consent="human" if "human" in (self.consent, other.consent) else "ask",
            protect=Protect(
                ids=self.protect.ids | other.protect.ids,
                names=self.protect.names | other.protect.names,
                tags=self.protect.tags | other.protect.tags,
            ),
            last_good_copy="refuse" if "refuse" in (self.last_good_copy, other.last_good_copy) else "human",
            minimum_age_hours=max(self.minimum_age_hours, other.minimum_age_hours),
            deletions_per_hour=min(self.deletions_per_hour, other.deletions_per_hour),
            snapshots_per_approval=min(self.snapshots_per_approval, other.snapshots_per_approval),
            safety_snapshot="required" if "required" in (self.safety_snapshot, other.safety_snapshot) else "default",
        )


VARIABLES: dict[str, tuple[str, ...]] = {
    "SNAPSHOT_MCP_READ_ONLY": ("read_only",),
    "SNAPSHOT_MCP_CONSENT": ("consent",),
    "SNAPSHOT_MCP_PROTECT_IDS": ("protect", "ids"),
    "SNAPSHOT_MCP_PROTECT_NAMES": ("protect", "names"),
    "SNAPSHOT_MCP_PROTECT_TAGS": ("protect", "tags"),
    "SNAPSHOT_MCP_LAST_GOOD_COPY": ("last_good_copy",),
    "SNAPSHOT_MCP_MINIMUM_AGE_HOURS": ("minimum_age_hours",),
    "SNAPSHOT_MCP_DELETIONS_PER_HOUR": ("deletions_per_hour",),
    "SNAPSHOT_MCP_SNAPSHOTS_PER_APPROVAL": ("snapshots_per_approval",),
    "SNAPSHOT_MCP_SAFETY_SNAPSHOT": ("safety_snapshot",),
}
"""The variables that tighten a rule, and the rule. Lists are separated by commas."""

_LOOSEST = Policy(deletions_per_hour=2**31, snapshots_per_approval=2**31)


def tighten_policy(policy: Policy, environ: Mapping[str, str]) -> Policy:
    """Return `policy` as the environment's variables tighten it; one that would loosen a rule changes nothing.

    Raises: BadRequest, naming the variable, for a value that the rule cannot have.
    """
    for variable, path in VARIABLES.items():
        value = environ.get(variable, "").strip()
        if not value:
            continue
        try:
            policy = policy.merged(_policy_of(path, value))
        except ValidationError as error:
            raise BadRequest(
                f"{variable}={quoted(value)} is not a value of {'.'.join(path)}: {error.errors()[0]['msg']}.",
                hint=f"Correct {variable} or unset it.",
            ) from None
    return policy


def _policy_of(path: tuple[str, ...], value: str) -> Policy:
    """The loosest policy that has this one rule."""
    table: dict[str, Any] = _LOOSEST.model_dump(mode="python")
    if path[0] == "protect":
        table["protect"][path[1]] = frozenset(part.strip() for part in value.split(",") if part.strip())
    else:
        table[path[0]] = value
    return Policy.model_validate(table)
