"""An approval's states as a table, and the doors through which a consent can come.

pending ──► granted ──► spent ──► denied, taken back: the zone cancelled the job before it had an effect
   │          │  ▲        │ given back: the zone refused for certain, nothing happened
   │          │  └────────┘
   ├──► denied ◄─┤ withdrawn
   └──► expired ◄┘ timed out, or voided
"""

from enum import StrEnum


class State(StrEnum):
    """The state of an approval."""

    PENDING = "pending"
    GRANTED = "granted"
    DENIED = "denied"
    SPENT = "spent"
    EXPIRED = "expired"


IN_WORDS = {
    State.PENDING: "waiting for you",
    State.GRANTED: "approved",
    State.DENIED: "denied",
    State.SPENT: "used",
    State.EXPIRED: "expired",
}
"""The states as people read them."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.GRANTED, State.DENIED, State.EXPIRED}),
    State.GRANTED: frozenset({State.SPENT, State.DENIED, State.EXPIRED}),
    State.SPENT: frozenset({State.GRANTED, State.DENIED}),
    State.DENIED: frozenset(),
    State.EXPIRED: frozenset(),
}
"""The states that may follow each state.

`spent` returns to `granted` only after a definite refusal by the zone, and becomes `denied` only if the zone cancelled the job.
"""

OPEN = (State.PENDING, State.GRANTED)


class Door(StrEnum):
    """How a consent was given. The first two do not prove that a person gave it."""

    CLIENT = "client"
    UNPROVEN = "terminal without a PIN"
    TERMINAL = "terminal"
    PAGE = "page"
    APPROVER = "approver"


PROVEN = frozenset({Door.TERMINAL, Door.PAGE, Door.APPROVER})

DOORS_IN_WORDS = {
    Door.CLIENT: "through the host's dialog",
    Door.UNPROVEN: "in a terminal",
    Door.TERMINAL: "in a terminal",
    Door.PAGE: "on the approval page",
    Door.APPROVER: "as an approver over HTTP",
}
"""The doors as people read them."""

PROOFS_IN_WORDS = {Door.UNPROVEN: ", without a PIN", Door.TERMINAL: ", with the PIN", Door.PAGE: ", with the PIN"}
"""What proved a yes through these doors; a no needs no proof."""
