"""The batcher: who waits for whom, and for how long."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.batcher import Batcher, BatcherConfig


def batcher(full_windows: int = 100, patience_ms: float = 2.0) -> Batcher[str]:
    return Batcher(BatcherConfig(full_windows=full_windows, patience_ms=patience_ms))


def test_a_frame_leaves_at_once_when_nothing_else_is_coming() -> None:
    gathered = batcher()
    gathered.put("frame", 60, now_s=10.0)
    assert gathered.take(10.0, is_more_coming=False) == ["frame"]
    assert gathered.statistics().alone == 1
    assert gathered.statistics().largest_wait_s == 0


def test_a_frame_waits_for_another_that_is_coming_but_no_longer_than_its_patience() -> None:
    gathered = batcher(patience_ms=2.0)
    gathered.put("first", 10, now_s=10.0)
    assert gathered.due_at_s() == pytest.approx(10.002)
    assert gathered.take(10.0019, is_more_coming=True) == []
    gathered.put("second", 10, now_s=10.0019)
    assert gathered.take(10.0021, is_more_coming=True) == ["first", "second"]
    assert gathered.statistics().due == 1


def test_a_full_batch_does_not_wait() -> None:
    gathered = batcher(full_windows=100)
    gathered.put("first", 60, now_s=0.0)
    gathered.put("second", 40, now_s=0.0)
    assert gathered.due_at_s() == 0.0
    assert gathered.take(0.0, is_more_coming=True) == ["first", "second"]
    assert gathered.statistics().full == 1


def test_what_does_not_fit_waits_for_the_next_batch_with_its_own_patience() -> None:
    gathered = batcher(full_windows=100, patience_ms=2.0)
    gathered.put("first", 60, now_s=0.0)
    gathered.put("second", 50, now_s=0.001)
    assert gathered.take(0.001, is_more_coming=True) == ["first"]
    assert gathered.take(0.001, is_more_coming=True) == []
    assert gathered.due_at_s() == pytest.approx(0.003)
    assert gathered.take(0.003, is_more_coming=True) == ["second"]


def test_a_frame_of_more_windows_than_a_batch_makes_up_one_alone() -> None:
    gathered = batcher(full_windows=100)
    gathered.put("large", 1500, now_s=0.0)
    gathered.put("small", 1, now_s=0.0)
    assert gathered.take(0.0, is_more_coming=True) == ["large"]
    assert gathered.take(0.0, is_more_coming=False) == ["small"]


def test_no_patience_encodes_each_frame_as_it_comes() -> None:
    gathered = batcher(patience_ms=0.0)
    gathered.put("frame", 1, now_s=5.0)
    assert gathered.take(5.0, is_more_coming=True) == ["frame"]


def test_an_empty_batcher_is_never_due() -> None:
    gathered = batcher()
    assert gathered.due_at_s() == math.inf
    assert gathered.take(1e9, is_more_coming=False) == []
    assert gathered.statistics().alone == 0


STEPS = st.lists(
    st.tuples(st.integers(0, 150), st.floats(0, 0.004), st.booleans(), st.booleans()), max_size=40
)


@given(STEPS)
def test_everything_leaves_once_in_its_order_and_in_time_where_it_is_asked_in_time(
    steps: list[tuple[int, float, bool, bool]],
) -> None:
    gathered: Batcher[int] = Batcher(BatcherConfig(full_windows=100, patience_ms=2.0))
    now_s, taken = 0.0, []
    for number, (windows, gap_s, is_asked, is_more_coming) in enumerate(steps):
        gathered.put(number, windows, now_s)
        now_s += gap_s
        if is_asked:
            batch = gathered.take(now_s, is_more_coming=is_more_coming)
            assert len(batch) <= 1 or sum(steps[i][0] for i in batch) <= 100
            assert batch or now_s < gathered.due_at_s()
            taken += batch
    while batch := gathered.take(now_s, is_more_coming=False):
        taken += batch
    assert taken == list(range(len(steps)))
    assert gathered.statistics()[:2] == (0, 0)


@pytest.mark.parametrize(("full_windows", "patience_ms"), [(0, 2.0), (100, -1.0), (100, math.nan)])
def test_an_impossible_batch_is_refused_by_name(full_windows: int, patience_ms: float) -> None:
    with pytest.raises(ValueError, match=r"batch\..* is .*; it takes"):
        batcher(full_windows, patience_ms)
