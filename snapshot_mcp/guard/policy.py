"""The operator's rules for destructive work: the `[guard]` table of the settings."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Policy(BaseModel):
    """What no consent allows, and what only a person's consent does."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def tighten(policy: Policy, rules: Mapping[str, str]) -> Policy:
    """Return the policy with the environment's rules, each of which may only make it stricter. Raises ValueError."""
    for name in rules:
        raise ValueError(f"{name} is no setting")
    return policy
