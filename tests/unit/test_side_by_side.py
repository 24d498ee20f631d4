"""Parts of a computation run side by side, and what one raises is not lost."""

from __future__ import annotations

import threading

import pytest

from models.side_by_side import side_by_side, usual_threads


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_the_order_of_the_parts(threads: int) -> None:
    parts = [lambda i=i: i * i for i in range(7)]  # type: ignore[misc]
    assert side_by_side(parts, threads) == [i * i for i in range(7)]


def test_two_parts_run_at_the_same_time() -> None:
    met = threading.Barrier(2, timeout=10.0)
    assert sorted(side_by_side([met.wait, met.wait], 2)) == [0, 1]


def test_one_thread_is_the_callers_own() -> None:
    assert set(side_by_side([threading.get_ident] * 3, 1)) == {threading.get_ident()}


@pytest.mark.parametrize("wrong", [0, 1])
def test_what_a_part_raises_is_raised_when_the_others_are_done(wrong: int) -> None:
    done = []

    def part(number: int) -> None:
        if number == wrong:
            raise ValueError("of this part")
        done.append(number)

    with pytest.raises(ValueError, match="of this part"):
        side_by_side([lambda: part(0), lambda: part(1)], 2)
    assert done == [1 - wrong]


def test_two_threads_are_usual_at_most() -> None:
    assert 1 <= usual_threads() <= 2
