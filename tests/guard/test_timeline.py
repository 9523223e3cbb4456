"""What a roll-back loses, on a time line (GUARD.md, "The page")."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.guard.page.timeline import EDGE, MAX_POINTS, WIDTH, Timeline, duration_in_words, timelines
from snapshot_mcp.guard.plan.plan import Head, Overwrite, Plan, Rest, RollbackLoss

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def plan(since: datetime | None, taken: list[datetime | None], name: str = "pg-data") -> Plan:
    one = Overwrite(
        resource_id="vol-1",
        resource_name=name,
        snapshot_id="ss-0",
        snapshot_name="nightly",
        since=since,
        restarts="",
        size_before=1,
        size_after=1,
        epoch=0,
    )
    lineage = tuple((f"ss-{number}", at) for number, at in enumerate(taken))
    head = Head(resource_id="vol-1", lineage=lineage, known=frozenset(), newest=None)
    loss = RollbackLoss(zone="local", location="/zone", overwrites=(one,), has_safety_snapshot=True)
    return Plan(loss=loss, heads=(head,), rest=Rest(good_remaining=1))


def drawn(since: datetime | None, taken: list[datetime | None]) -> Timeline:
    (line,) = timelines(plan(since, taken), NOW)
    return line


def test_what_was_written_since_the_restore_point_is_lost_and_later_points_lie_between() -> None:
    days = [NOW - timedelta(days=number) for number in (5, 4, 3, 2, 1)]
    line = drawn(days[1], [*days, None])
    assert (line.lost, len(line.later)) == ("4 days", 3)
    gaps = {second - first for first, second in zip((line.target_x, *line.later), line.later, strict=False)}
    assert max(gaps) - min(gaps) <= 1
    assert "“pg-data” returns to “nightly” of 2026-11-22 12:00:00 UTC; 4 days up to" in line.in_words
    assert "3 restore points in between stay" in line.in_words


def test_without_a_known_time_everything_is_drawn_as_lost() -> None:
    line = drawn(None, [NOW - timedelta(days=1)])
    assert (line.target_x, line.lost, line.later) == (EDGE, "an unknown time", ())


moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))


@given(since=st.none() | moments, taken=st.lists(st.none() | moments, max_size=60), asked=moments)
def test_whatever_the_times_are_the_drawing_stays_within_its_edges(
    since: datetime | None, taken: list[datetime | None], asked: datetime
) -> None:
    """Clocks of zones are not ours: a restore point may be of the future."""
    (line,) = timelines(plan(since, taken), asked)
    assert EDGE <= line.target_x < line.now_x <= WIDTH - EDGE
    assert all(line.target_x <= x <= line.now_x for x in line.later)
    assert len(line.later) <= MAX_POINTS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "less than a second"),
        (-5, "less than a second"),
        (1, "1 second"),
        (61, "1 minute 1 second"),
        (7200, "2 hours"),
        (86400 + 1, "1 day"),
        (3 * 86400 + 4 * 3600 + 59, "3 days 4 hours"),
    ],
)
def test_a_length_of_time_has_two_units_at_most(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words
