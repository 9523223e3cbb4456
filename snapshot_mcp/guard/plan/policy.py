"""The operator's rules: the `[guard]` table. No consent overrides them.

A rule comes from the operator's file; an environment variable can only tighten it. Each field declares both with a `Tightens`;
a field without one fails at import. A refusal names the rule but not how to change it, because its reader may be a model
looking for a way around it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import quoted


@dataclass(frozen=True, slots=True)
class Tightens:
    """Declares a rule: `stricter` returns the stricter of two values, `variable` names the variable that can tighten it.

    For a group of rules, `variable` is the prefix of their variables.
    """

    stricter: Callable[[Any, Any], Any]
    variable: str


def either(strict: str) -> Callable[[str, str], str]:
    """Return a function that picks the stricter of two words: `strict` if it is one of them."""
    return lambda one, other: strict if strict in (one, other) else one


class Rules(BaseModel):
    """A group of rules. Raises TypeError for a subclass with a field that does not declare how it tightens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if undeclared := cls.model_fields.keys() - cls.declared().keys():
            raise TypeError(f"{cls.__name__}: {', '.join(sorted(undeclared))} must declare how it tightens (Tightens).")

    @classmethod
    def declared(cls) -> dict[str, Tightens]:
        """Return each rule's declaration, by its name."""
        return {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Tightens)
        }

    @classmethod
    def variables(cls, prefix: str = "SNAPSHOT_MCP_") -> dict[str, tuple[str, ...]]:
        """Return each variable that tightens a rule, with the rule's path in this group."""
        found: dict[str, tuple[str, ...]] = {}
        for name, rule in cls.declared().items():
            group = cls.model_fields[name].annotation
            if isinstance(group, type) and issubclass(group, Rules):
                inner = group.variables(prefix + rule.variable)
                found |= {variable: (name, *path) for variable, path in inner.items()}
            else:
                found[prefix + rule.variable] = (name,)
        return found

    def merged(self, other: Self) -> Self:
        """Return the stricter of the two, rule by rule."""
        stricter = {
            name: rule.stricter(getattr(self, name), getattr(other, name)) for name, rule in self.declared().items()
        }
        return self.model_copy(update=stricter)

    def tightened(self, path: tuple[str, ...], value: str) -> Self:
        """Return these rules with the one at `path` at least as strict as `value`. Raises ValidationError."""
        name, *rest = path
        here = getattr(self, name)
        if rest:
            return self.model_copy(update={name: here.tightened(tuple(rest), value)})
        words = [part.strip() for part in value.split(",") if part.strip()]
        asked = type(self).model_validate({name: words if isinstance(here, frozenset) else value})
        return self.model_copy(update={name: self.declared()[name].stricter(here, getattr(asked, name))})


class Protect(Rules):
    """What must never be destroyed: snapshots by id, name pattern or tag; disks by id or name pattern.

    Patterns are shell patterns (`prod-*`), case-insensitive.
    """

    ids: Annotated[frozenset[str], Tightens(frozenset.union, "IDS")] = frozenset()
    names: Annotated[frozenset[str], Tightens(frozenset.union, "NAMES")] = frozenset()
    tags: Annotated[frozenset[str], Tightens(frozenset.union, "TAGS")] = frozenset()


class Policy(Rules):
    """The `[guard]` table."""

    read_only: Annotated[bool, Tightens(max, "READ_ONLY")] = False
    consent: Annotated[Literal["ask", "human"], Tightens(either("human"), "CONSENT")] = "ask"
    """`ask` accepts a person's answer through the client, `human` only an approval given outside it."""
    protect: Annotated[Protect, Tightens(Protect.merged, "PROTECT_")] = Protect()
    last_good_copy: Annotated[Literal["human", "refuse"], Tightens(either("refuse"), "LAST_GOOD_COPY")] = "human"
    """Whether a disk's last good restore point may be deleted: `human` (confirmed with a typed name) or `refuse`."""
    minimum_age_hours: Annotated[float, Field(ge=0, allow_inf_nan=False), Tightens(max, "MINIMUM_AGE_HOURS")] = 0
    deletions_per_hour: Annotated[int, Field(ge=0), Tightens(min, "DELETIONS_PER_HOUR")] = 10
    snapshots_per_approval: Annotated[int, Field(ge=0), Tightens(min, "SNAPSHOTS_PER_APPROVAL")] = 100
    """Upper bound on what one consent covers."""
    safety_snapshot: Annotated[Literal["default", "required"], Tightens(either("required"), "SAFETY_SNAPSHOT")] = (
        "default"
    )
    """`required` refuses a roll-back without one."""


VARIABLES = Policy.variables()
"""Variables that tighten a rule, and the rule's path. Lists are comma-separated."""


def tighten_policy(policy: Policy, environ: Mapping[str, str]) -> Policy:
    """Return `policy` tightened by the environment's variables; one that would loosen a rule has no effect.

    Raises: BadRequest, naming the variable, for an invalid value.
    """
    for variable, path in VARIABLES.items():
        value = environ.get(variable, "").strip()
        if not value:
            continue
        try:
            policy = policy.tightened(path, value)
        except ValidationError as error:
            raise BadRequest(
                f"{variable}={quoted(value)} is not a valid value of {'.'.join(path)}: {error.errors()[0]['msg']}.",
                hint=f"Correct {variable} or unset it.",
            ) from None
    return policy
