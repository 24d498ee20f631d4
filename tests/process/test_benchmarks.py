"""The benchmarks run and give every figure they promise; how fast they are is not tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FIGURES = {
    "adversary": ("unsafe_let_through", "needlessly_refused", "review_us"),
    "ask": ("p95_ms_4096_n20", "worst_during_refit_ratio", "speedup_vs_botorch", "acquisition_gap"),
    "distortion": (
        "residual_px",
        "residual_px_no_jitter",
        "residual_px_12_counts",
        "residual_px_estimated_lattice",
        "cpu_ms_per_frame",
        "cost_slope_pct_per_100",
        "exact_gp_mean_diff_px",
        "exact_gp_cost_ratio",
        "coverage_min",
        "coverage_max",
        "added_error_px",
        "strain_kept_frozen",
        "strain_kept_drift_only",
        "separate_slope_min_4",
        "separate_strain_px_4",
        "separate_distortion_px_4",
        "separate_slope_min_16",
        "separate_false_strain_px",
        "separate_images_slope",
        "peer_ratio",
    ),
    "encode": (
        "encode_64_ms_p50",
        "encode_64_ms_p99",
        "pose_64_ms_p50",
        "encode_1_ms",
        "encode_64_ms",
        "encode_256_ms",
        "frame_to_latents_ms_p50",
        "frame_windows",
        "frame_find_ms",
        "frame_cut_ms",
        "frame_encode_ms",
    ),
    "review": ("spectrum_first_us", "spectrum_last_us", "spectrum_state_mb", "scan_first_us", "scan_last_us"),
    "faults": (
        "acked_lost",
        "duplicates",
        "crashes",
        "wrong_accepted",
        "strangers_served",
        "bitflips_missed",
        "restart_s",
        "suggestions_differ",
    ),
    "objectives": ("band_integral_ms_400", "composition_ms_400", "novelty_ms_400", "loop_area_ms_400"),
    "find": (
        "precision",
        "recall",
        "crb_ratio",
        "z_rms",
        "finder_ms_p50_1_thread",
        "finder_ms_p50_2_threads",
    ),
    "goals": ("map_points_ratio", "level_missed", "batch_greedy", "batch_thompson", "stall_on", "stall_off"),
    "sample_efficiency": (
        "plasmon_median",
        "plasmon_random_median",
        "ferro_ratio",
        "unseen_ratio",
        "map_points_ratio",
        "travel_ratio",
        "points_ratio_travel",
        "unsafe_let_through",
    ),
    "invariance": (
        "ari_180",
        "knn_180",
        "invariance_180",
        "r_min_180",
        "circular_cover_68",
        "circular_cover_95",
        "train_cpu_s",
    ),
    "loop": (
        "frame_to_latents_ms_p50",
        "frame_to_suggestion_ms_p50",
        "frames_per_s",
        "frames_lost",
        "rss_growth_mb",
        "time_to_first_suggestion_s",
        "points_to_95pct_agent",
        "points_to_95pct_random",
        "drift_error_px",
        "atom_precision",
        "atom_recall",
        "site_ari",
    ),
    "separate_points": (
        "separate_slope_min_4",
        "separate_strain_px_4",
        "separate_distortion_px_4",
        "separate_slope_min_16",
        "separate_false_strain_px",
        "separate_cpu_ms_per_frame",
    ),
    "simulators": (
        "stem_frames_per_s",
        "kmc_frames_per_min",
        "pfm_frames_per_s_256",
        "pfm_frames_per_s_512",
        "patterns_per_s",
        "patterns_per_s_thick",
        "eels_cpu_s",
        "afm_frames_per_s",
        "stem_against_multislice",
        "kinetics_statistics",
        "pfm_circle_shrinks_at_its_rate",
        "centre_of_mass_against_abtem",
        "eels_dimer_eigenvalues",
        "afm_orientations_recovered",
        "same_bytes_on_any_number_of_threads",
    ),
    "travel": ("travel_ratio", "points_ratio_travel"),
    "wire": (
        "ratio_to_raw_zmq_1mb",
        "ratio_to_raw_zmq_1mb_journal",
        "one_way_ms_p99",
        "cpu_s_per_gb",
        "frames_lost",
    ),
    "windows": ("bytes_of_a_window", "frame_told_ms", "answer_ms", "first_fit_ms"),
}
# What needs hardware that a machine may not have: measured, or said not to be.
HARDWARE = {"encode": ("gpu_frame_ms_p50", "gpu_windows_per_s", "gpu_copy_share")}
# What must be 0, however short the run.
NEVER = (
    "frames_lost",
    *FIGURES["adversary"][:2],
    *(name for name in FIGURES["faults"] if name != "restart_s"),
)


def test_every_benchmark_is_listed_here():
    programs = {path.stem for path in BENCHMARKS.glob("*.py") if "def main(" in path.read_text()}
    assert programs == set(FIGURES)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", FIGURES)
def test_benchmark_gives_its_figures_as_json_on_the_last_line(name):
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    figures = json.loads(ran.stdout.splitlines()[-1])
    for figure in FIGURES[name]:
        assert isinstance(figures[figure], int | float), f"{figure}: {figures.get(figure + '_reason')}"
    for figure in HARDWARE.get(name, ()):
        assert isinstance(figures[figure], int | float) or "not measured" in figures["gpu_reason"]
    assert not any(figures.get(name) for name in NEVER), figures
