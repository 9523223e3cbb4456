"""An approval's states, as a table, and the doors that a consent can come through.

pending ──► granted ──► spent ──► denied, taken back: the zone cancelled the job before it had an effect
   │          │  ▲        │ given back: the zone refused for certain, nothing happened
   │          │  └────────┘
   ├──► denied ◄─┤ withdrawn
   └──► expired ◄┘ its time is over, or the plan became worse
"""

from enum import StrEnum


class State(StrEnum):
    PENDING = "pending"
    GRANTED = "granted"
    DENIED = "denied"
    SPENT = "spent"
    EXPIRED = "expired"


IN_WORDS = {
    State.PENDING: "waits for you",
    State.GRANTED: "approved",
    State.DENIED: "denied",
    State.SPENT: "used",
    State.EXPIRED: "expired",
}
"""As people read them."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.GRANTED, State.DENIED, State.EXPIRED}),
    State.GRANTED: frozenset({State.SPENT, State.DENIED, State.EXPIRED}),
    State.SPENT: frozenset({State.GRANTED, State.DENIED}),
    State.DENIED: frozenset(),
    State.EXPIRED: frozenset(),
}
"""A state and those that may follow it.

`spent` goes back to `granted` only on a definite refusal of the zone, and to `denied` only when the zone has cancelled the job.
"""

OPEN = (State.PENDING, State.GRANTED)


class Door(StrEnum):
    """Where a consent came from. The first two prove no person."""

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
"""As people read them."""

PROOFS_IN_WORDS = {Door.UNPROVEN: ", without a PIN", Door.TERMINAL: ", with the PIN", Door.PAGE: ", with the PIN"}
"""What a yes through them was proved with; a no needs no proof."""
