"""Timeouts, retries and pauses of the calls to a provider."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts and pauses in seconds; `read_tries` includes the first try.

    The longest change (reading the zone, a lost answer, a lookup) ends within a minute, before MCP hosts time out.
    """

    connect_seconds: float = 5.0
    read_seconds: float = 10.0
    change_seconds: float = 25.0
    token_seconds: float = 10.0
    total_seconds: float = 25.0
    """For one read with all its retries; a change has its own limit."""
    read_tries: int = 4
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 4.0
    lookup_seconds: float = 8.0
    """How long a change whose answer was lost is looked up."""
    silence_seconds: float = 45.0
    """A stream without a heartbeat for this long is broken."""
    poll_seconds: float = 2.0
    outage_seconds: float = 60.0
    """A watch without any answer for this long fails."""
    stream_retry_seconds: float = 60.0
    """Delay before a provider without a stream is asked for one again."""
