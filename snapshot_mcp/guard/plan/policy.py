"""The operator's rules: the `[guard]` table. What policy refuses, no consent allows.

A rule comes from the operator's file; an environment variable can make it stricter and never looser. Each field declares both
with a `Tightens`; a field without one fails at import. A refusal names the rule and that the operator can change it, not how:
what reads it may be a model looking for a way round.
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

    On a field that is a group of rules, `variable` is what their variables begin with.
    """

    stricter: Callable[[Any, Any], Any]
    variable: str


def either(strict: str) -> Callable[[str, str], str]:
    """Return a choice of the stricter of two words: `strict` if it is one of them."""
    return lambda one, other: strict if strict in (one, other) else one


class Rules(BaseModel):
    """A group of rules, each field of which declares how it tightens. Raises TypeError for a subclass where one does not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if undeclared := cls.model_fields.keys() - cls.declared().keys():
            raise TypeError(
                f"{cls.__name__}: {', '.join(sorted(undeclared))} should declare how it tightens (Tightens)."
            )

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
        """Return the variables that tighten a rule, each with the rule's path from here."""
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
        """Return these rules with the one at `path` as strict as `value` says, at least. Raises ValidationError."""
        name, *rest = path
        here = getattr(self, name)
        if rest:
            return self.model_copy(update={name: here.tightened(tuple(rest), value)})
        words = [part.strip() for part in value.split(",") if part.strip()]
        asked = type(self).model_validate({name: words if isinstance(here, frozenset) else value})
        return self.model_copy(update={name: self.declared()[name].stricter(here, getattr(asked, name))})


class Protect(Rules):
    """What is never destroyed: snapshots by id, name pattern or tag, disks by id or name pattern.

    Patterns are shell patterns (`prod-*`), compared without regard to case.
    """

    ids: Annotated[frozenset[str], Tightens(frozenset.union, "IDS")] = frozenset()
    names: Annotated[frozenset[str], Tightens(frozenset.union, "NAMES")] = frozenset()
    tags: Annotated[frozenset[str], Tightens(frozenset.union, "TAGS")] = frozenset()


class Policy(Rules):
    """The `[guard]` table."""

    read_only: Annotated[bool, Tightens(max, "READ_ONLY")] = False
    consent: Annotated[Literal["ask", "human"], Tightens(either("human"), "CONSENT")] = "ask"
    """`ask` takes a person's answer through the client, `human` only an approval outside of it."""
    protect: Annotated[Protect, Tightens(Protect.merged, "PROTECT_")] = Protect()
    last_good_copy: Annotated[Literal["human", "refuse"], Tightens(either("refuse"), "LAST_GOOD_COPY")] = "human"
    """What may become of a disk's last good restore point: `human` (with a typed name) or `refuse`."""
    minimum_age_hours: Annotated[float, Field(ge=0, allow_inf_nan=False), Tightens(max, "MINIMUM_AGE_HOURS")] = 0
    deletions_per_hour: Annotated[int, Field(ge=0), Tightens(min, "DELETIONS_PER_HOUR")] = 10
    snapshots_per_approval: Annotated[int, Field(ge=0), Tightens(min, "SNAPSHOTS_PER_APPROVAL")] = 100
    """The most that one yes can take."""
    safety_snapshot: Annotated[Literal["default", "required"], Tightens(either("required"), "SAFETY_SNAPSHOT")] = (
        "default"
    )
    """`required` refuses a roll-back without one."""


VARIABLES = Policy.variables()
"""The variables that tighten a rule, and the rule's path. Lists are separated by commas."""


def tighten_policy(policy: Policy, environ: Mapping[str, str]) -> Policy:
    """Return `policy` as the environment's variables tighten it; one that would loosen a rule changes nothing.

    Raises: BadRequest, naming the variable, for a value that the rule cannot have.
    """
    for variable, path in VARIABLES.items():
        value = environ.get(variable, "").strip()
        if not value:
            continue
        try:
            policy = policy.tightened(path, value)
        except ValidationError as error:
            raise BadRequest(
                f"{variable}={quoted(value)} is not a value of {'.'.join(path)}: {error.errors()[0]['msg']}.",
                hint=f"Correct {variable} or unset it.",
            ) from None
    return policy
