"""How long a provider is waited for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Every time that is waited for something, in seconds; `read_tries` counts the first one too.

    The worst change (a look before it, a lost answer, a look after it) ends within a minute, before MCP hosts give up.
    """

    connect_seconds: float = 5.0
    read_seconds: float = 10.0
    change_seconds: float = 25.0
    token_seconds: float = 10.0
    total_seconds: float = 25.0
    """For one read with all its retries; a change has its own time beside it."""
    read_tries: int = 4
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 4.0
    lookup_seconds: float = 8.0
    """How long a change whose answer was lost is looked for."""
    silence_seconds: float = 45.0
    """A stream without even a heartbeat for so long is broken."""
    poll_seconds: float = 2.0
    outage_seconds: float = 60.0
    """A watch that has heard nothing of the zone for so long gives up."""
    stream_retry_seconds: float = 60.0
    """Before a provider without a stream is asked again for one."""
