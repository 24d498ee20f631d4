"""The read-outs against cases whose answer is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.read_outs import (
    UNDECIDED,
    angle_density,
    class_counts,
    density_against_time,
    kernel_width,
    likely_class,
    line_direction,
    order_parameter,
    transition_counts,
    transition_probability,
)


def test_a_window_belongs_to_its_likeliest_class_or_to_none() -> None:
    probability = np.array([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0.0, 0.5, 0.5]])
    assert likely_class(probability).tolist() == [0, UNDECIDED, 1]
    assert likely_class(np.zeros((2, 0))).tolist() == [UNDECIDED, UNDECIDED]
    assert likely_class(np.zeros((0, 3))).shape == (0,)


def test_undecided_windows_are_counted_in_no_class() -> None:
    assert class_counts(np.array([2, 0, UNDECIDED, 2]), 4).tolist() == [1, 0, 2, 0]


def test_only_atoms_seen_in_both_frames_make_transitions() -> None:
    counts = transition_counts(
        np.array([5, 7, 9, -1, 4]),
        np.array([0, 1, 1, 0, UNDECIDED]),
        np.array([9, 5, 8, -1, 4]),
        np.array([0, 0, 1, 1, 1]),
        2,
    )
    assert counts.tolist() == [[1, 0], [1, 0]]  # 5 stayed 0; 9 went from 1 to 0; 7, 8, -1 and 4 say nothing


def test_probabilities_of_leaving_a_class_add_up_to_one_and_an_unseen_class_has_none() -> None:
    probability = transition_probability(np.array([[3, 1], [0, 0]]))
    assert probability[0].tolist() == [0.75, 0.25]
    assert np.isnan(probability[1]).all()


def test_the_density_of_one_value_at_one_time_is_the_kernel() -> None:
    grid = np.array([1.0, 1.5])
    density = density_against_time([0.0], [np.array([1.0])], [0.0, 3.0], grid, time_sd_s=1.0, value_sd=0.5)
    peak = 1 / (0.5 * np.sqrt(2 * np.pi))
    expected = [peak, peak * np.exp(-0.5)]
    np.testing.assert_allclose(density, [expected, expected])  # alone at any time that it reaches


def test_the_density_follows_the_frames_in_time_and_integrates_to_one() -> None:
    rng = np.random.default_rng(1)
    frames = [rng.normal(0.0, 1.0, 400), rng.normal(0.0, 1.0, 100), rng.normal(8.0, 1.0, 300)]
    grid = np.linspace(-8, 16, 481)
    density = density_against_time([0, 1, 20], frames, [0, 20, 50], grid, time_sd_s=1.0, value_sd=0.3)
    assert np.trapezoid(density[:2], grid, axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert (density[:2] @ grid) * 0.05 == pytest.approx([0, 8], abs=0.2)
    assert np.isnan(density[2]).all()


def test_a_frame_with_more_windows_weighs_more() -> None:
    density = density_against_time(
        [0.0, 0.0], [np.zeros(3), np.ones(1)], [0.0], [0.0, 1.0], time_sd_s=1.0, value_sd=0.01
    )
    assert density[0, 0] / density[0, 1] == pytest.approx(3)


@pytest.mark.parametrize(("time_sd", "value_sd", "times"), [(0.0, 1.0, [0.0]), (1.0, 0.0, [0.0]), (1, 1, [])])
def test_a_density_without_a_width_or_without_its_times_is_refused(
    time_sd: float, value_sd: float, times: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"above 0|go together"):
        density_against_time(times, [np.zeros(2)], [0], [0], time_sd_s=time_sd, value_sd=value_sd)


def test_the_width_of_a_kernel_is_silvermans_and_never_nothing() -> None:
    values = np.random.default_rng(2).normal(0, 2.0, 10_000)
    assert kernel_width(values) == pytest.approx(0.9 * 2.0 * 10_000**-0.2, rel=0.05)
    assert kernel_width(np.zeros(10)) > 0
    assert kernel_width(np.zeros(1)) > 0


def test_rods_in_line_are_ordered_whichever_way_they_point() -> None:
    order = order_parameter(np.array([0.3, 0.3 + np.pi, 0.3 - np.pi]))
    assert order.parameter == pytest.approx(1)
    assert order.director_rad == pytest.approx(0.3)


def test_crossed_rods_have_no_order_and_three_to_one_have_half() -> None:
    assert order_parameter(np.array([0.0, np.pi / 2])).parameter == pytest.approx(0, abs=1e-12)
    assert order_parameter(np.array([0.0, 0, 0, np.pi / 2])).parameter == pytest.approx(0.5)
    assert order_parameter(np.array([0.0, np.pi / 2]), weight=np.array([3.0, 1])).parameter == pytest.approx(
        0.5
    )


def test_the_order_of_nothing_is_not_known() -> None:
    assert np.isnan(order_parameter(np.zeros(0)).parameter)
    assert np.isnan(order_parameter(np.zeros(2), weight=np.zeros(2)).director_rad)


def test_angles_that_are_the_same_by_symmetry_are_one_peak_and_integrate_to_one() -> None:
    grid = np.linspace(0, np.pi, 721)[:-1]
    density = angle_density(np.array([0.5, 0.5 + np.pi]), grid, sd_rad=0.1)
    assert grid[density.argmax()] == pytest.approx(0.5, abs=0.005)
    assert density.sum() * np.pi / 720 == pytest.approx(1)
    assert density.max() == pytest.approx(1 / (0.1 * np.sqrt(2 * np.pi)), rel=0.02)


def test_a_longer_wall_counts_for_more() -> None:
    density = angle_density(np.array([0.0, 1.0]), [0.0, 1.0], sd_rad=0.05, weight=np.array([4.0, 1.0]))
    assert density[0] / density[1] == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("angle_deg", [-80.0, -45.0, 0.0, 20.0, 60.0, 89.0])
def test_a_rod_and_a_wall_run_where_they_were_drawn(angle_deg: float) -> None:
    row, col = np.mgrid[-12:12, -12:12] + 0.5
    angle = np.deg2rad(angle_deg)
    across, along = -col * np.sin(angle) + row * np.cos(angle), col * np.cos(angle) + row * np.sin(angle)
    rod = np.exp(-0.5 * (across / 1.5) ** 2 - 0.5 * (along / 6) ** 2)
    wall = np.tanh(across / 2)
    found = np.rad2deg(line_direction(np.stack([rod, wall])[:, None]))
    error = np.mod(found - angle_deg + 90, 180) - 90
    assert np.abs(error).max() < 1.0


def test_channels_that_show_one_line_are_read_together() -> None:
    row = np.mgrid[-12:12, -12:12][0] + 0.5
    both = np.stack([np.tanh(row / 2), np.exp(-(row**2) / 8)])[None]  # a response and its amplitude at a wall
    assert line_direction(both) == pytest.approx([0.0], abs=1e-6)
