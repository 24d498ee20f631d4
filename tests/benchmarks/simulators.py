"""How fast the simulated instruments are, and whether their physics is as it should be.

Speeds are CPU time on one thread, from the instrument's own ``acquire`` where there is one: specimen, scan
chain and noise included. The best of a few repeats is told, because what else runs on the machine only adds.
A check is true where every test of it passes, false where one does not, and null, with its reason beside it,
where it has no test; the tests say their tolerance and its source. ``--json`` prints one object on the last
line, ``--quick`` measures fewer frames, ``--only speed`` or ``--only checks`` one half.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import pytest

from simulators.afm import AfmConfig, AfmInstrument
from simulators.diffraction import DiffractionConfig, DiffractionSimulator, count
from simulators.eels import EelsConfig, EelsInstrument
from simulators.kinetics import KineticsConfig
from simulators.pfm import FilmConfig, PfmConfig, PfmInstrument
from simulators.scan_distortion import ScanDistortionConfig
from simulators.scanning import ScanningInstrument
from simulators.stem import StemConfig, StemInstrument

Figures = dict[str, Any]

GRAPHENE_PER_NM2 = 38.2
PFM_STEPS = 10  # of the film in the time of a frame
SHAKEN = ScanDistortionConfig(hum_px=0.3)  # drift, wander, jitter and fly-back are there by default


# -- speed -------------------------------------------------------------------------------------------


def cpu_s(do: Callable[[], object], times: int) -> float:
    """The least CPU time that something took, in seconds; once before, so that it is compiled."""
    do()
    took = []
    for _ in range(times):
        started = time.process_time()
        do()
        took.append(time.process_time() - started)
    return min(took)


def field_nm(atoms: int) -> float:
    """Edge of a square of graphene with so many atoms."""
    return float(np.sqrt(atoms / GRAPHENE_PER_NM2))


def stem_speed(times: int) -> Figures:
    """512 x 512 pixels, 3,000 atoms, scan chain and Poisson included, with both kinds of probe."""
    figures: Figures = {}
    for name, probe in (("stem_frames_per_s", "gaussian"), ("stem_frames_per_s_physical", "physical")):
        config = StemConfig(field_of_view_nm=field_nm(3000), distortion=SHAKEN, probe=probe)  # type: ignore[arg-type]
        figures[name] = 1 / cpu_s(StemInstrument(config).acquire, times)
    return figures


def kmc_speed(times: int) -> Figures:
    """2,000 atoms under a beam that acts on them, 256 x 256 images of them included.

    2e6 electrons for each square ångström in a frame: one or two events in each of them.
    """
    edge_nm = field_nm(2000)
    dwell_us = 2e8 * edge_nm**2 / 256**2 / StemConfig().electrons(1.0)
    config = StemConfig(
        rows=256,
        cols=256,
        field_of_view_nm=edge_nm,
        dwell_time_us=min(dwell_us, 1e5),
        kinetics=KineticsConfig(is_on=True, rate_factor=1.0),
    )
    instrument = StemInstrument(config)
    instrument.acquire()
    frames, started = 5 * times, time.process_time()
    for _ in range(frames):
        instrument.acquire()
    took = time.process_time() - started
    events = len(instrument.truth().get("event_dose_e_per_a2", ()))
    return {"kmc_frames_per_min": 60 * frames / took, "kmc_events": events}


def pfm_speed(edge: int, times: int) -> float:
    """Frames a second of a film with as many cells as pixels that takes ten steps in a frame."""
    fields = {"rows": edge, "cols": edge, "field_of_view_nm": 1000.0 * edge / 256}
    step = PfmInstrument(
        PfmConfig(film=FilmConfig(cells=edge, growth=1.0), **fields)
    ).simulator.film.field.time_step
    frame_s = edge * edge * PfmConfig().dwell_time_us * 1e-6
    # A hair more than ten steps, so that no rounding makes nine of them.
    film = FilmConfig(cells=edge, growth=20.0, relaxation_s=frame_s / (PFM_STEPS * 1.0001 * step))
    return 1 / cpu_s(PfmInstrument(PfmConfig(film=film, **fields)).acquire, times)  # type: ignore[arg-type]


def pattern_speed(times: int) -> Figures:
    """128 x 128 patterns a second of one layer, with and without counting, and of 48 layers."""
    thin = DiffractionConfig(camera_px=128)
    thick = DiffractionConfig.for_zincblende(camera_px=128)
    electrons = thin.electrons(thin.dwell_time_us)
    rng = np.random.default_rng(0)
    figures = {}
    for name, config, patterns in (("", thin, 64), ("_thick", thick, 32)):
        diffraction = DiffractionSimulator(config)._diffraction
        places = rng.uniform(-0.4, 0.4, (patterns, 2))
        figures[f"patterns_per_s{name}"] = patterns / cpu_s(
            lambda d=diffraction, p=places: d.patterns(p), times
        )  # type: ignore[misc]
        if not name:
            counted = cpu_s(lambda d=diffraction, p=places: count(d.patterns(p), electrons, rng), times)  # type: ignore[misc]
            figures["patterns_per_s_poisson"] = patterns / counted
    return figures


def eels_speed() -> Figures:
    """A spectrum image of 64 x 64 x 256 over a hundred particles, from their places to counts."""
    config = EelsConfig(rows=64, cols=64, channels=256, field_of_view_nm=92.0)
    EelsInstrument(EelsConfig(rows=8, cols=8, field_of_view_nm=30.0)).acquire_spectrum_image()  # compiled
    started = time.process_time()
    instrument = EelsInstrument(config)
    _, spectra = instrument.acquire_spectrum_image()
    took = time.process_time() - started
    particles = len(instrument.truth()["radii_nm"])
    assert spectra.shape == (64, 64, 256)
    return {"eels_cpu_s": took, "eels_particles": particles}


def afm_speed(times: int) -> float:
    instrument: ScanningInstrument[Any] = AfmInstrument(AfmConfig(rows=256, cols=256))
    return 1 / cpu_s(instrument.acquire, times)


def speeds(times: int) -> Figures:
    """Measure all of them."""
    return {
        **stem_speed(times),
        **kmc_speed(times),
        "pfm_frames_per_s_256": pfm_speed(256, times),
        "pfm_frames_per_s_512": pfm_speed(512, max(2, times // 4)),
        **pattern_speed(times),
        **eels_speed(),
        "afm_frames_per_s": afm_speed(times),
    }


# -- physics -----------------------------------------------------------------------------------------

UNIT = "tests/unit/test_"
# Which tests hold each check, file by file: the beginnings of their names.
CHECKS: dict[str, dict[str, tuple[str, ...]]] = {
    "structures_keep_their_atoms": {"structures": ("test_",)},
    "stem_against_multislice": {
        "stem_kernels": (
            "test_an_atom_is_as_bright_as_by_multislice",
            "test_a_sheet_is_imaged_as_by_multislice",
        )
    },
    "stem_contrast_by_detector": {"stem_kernels": ("test_how_much_brighter_a_heavy_atom",)},
    "stem_poisson": {
        "stem_image": ("test_counts_have_the_mean_and_the_variance", "test_poisson_draws_the_distribution"),
    },
    "stem_shows_where_the_beam_was": {
        "stem_image": ("test_each_pixel_is_the_sum_of_the_columns",),
        "stem_kernels": ("test_each_pixel_is_the_sum_of_the_kernels",),
    },
    "kinetics_statistics": {
        "kinetics": (
            "test_the_dose_until_something_happens_is_exponential",
            "test_the_number_of_exchanges_in_a_dose",
            "test_atoms_are_hit_as_often",
        )
    },
    "kinetics_bond_lengths": {"kinetics": ("test_after_hundreds_of_events_all_bonds",)},
    "kinetics_atom_count": {"kinetics": ("test_the_number_of_atoms_is_that_of_the_log",)},
    "kinetics_local_dose": {
        "kinetics": ("test_the_dose_counts_where_the_beam_was", "test_an_event_happens_when_the_beam"),
    },
    "scan_is_what_the_truth_says": {"scan_distortion": ("test_",)},
    "pfm_wall_is_a_tanh": {"landau": ("test_a_wall_of_one_order_is_the_exact",)},
    "pfm_bright_wall_is_exact": {"landau": ("test_a_bright_wall_is_the_exact",)},
    "pfm_walls_bright_and_dark": {
        "landau": (
            "test_ferrielectric_walls_of_the_antipolar_order_are_bright",
            "test_an_antipolar_wall_near_polar",
        ),
        "pfm": ("test_antipolar_walls_are_bright",),
    },
    "pfm_energy_never_rises": {"landau": ("test_the_energy_never_rises",)},
    "pfm_circle_shrinks_at_its_rate": {"landau": ("test_a_round_domain_shrinks",)},
    "pfm_noise_spectrum": {"landau": ("test_thermal_noise_has_the_spectrum",)},
    "pfm_loop_shift_is_the_imprint": {
        "landau": ("test_a_loop_is_shifted_by_the_imprint",),
        "pfm": ("test_a_loop_is_shifted_against_the_imprint",),
    },
    "pfm_writing_is_monotone": {
        "landau": ("test_a_written_domain_grows",),
        "pfm": ("test_a_pulse_writes_more",),
    },
    "patterns_sum_thin": {"multislice": ("test_in_vacuum_a_pattern_is_the_disc",)},
    "patterns_sum_thick": {
        "multislice": ("test_no_electron_is_lost", "test_a_hundredth_of_the_electrons"),
    },
    "centre_of_mass_against_abtem": {
        "multislice": ("test_deflections_over_a_vacancy", "test_deflections_of_48_layers"),
    },
    "centre_of_mass_zero_by_symmetry": {"multislice": ("test_the_deflection_is_zero",)},
    "centre_of_mass_is_the_convolution": {"multislice": ("test_the_centre_of_mass_of_patterns",)},
    "centre_of_mass_noise": {"diffraction": ("test_the_noise_of_a_centre_of_mass",)},
    "site_symmetry_variants_distinct": {
        "diffraction": ("test_the_sites_of_zincblende", "test_a_vacancys_neighbours"),
    },
    "eels_sphere_boundary_elements": {
        "surface_modes": ("test_a_sphere_has_the_eigenvalues", "test_the_loss_beside_a_sphere"),
    },
    "eels_dipole": {"plasmons": ("test_the_dipole_is_the_first_multipole",)},
    "eels_dimer_eigenvalues": {"plasmons": ("test_the_coupling_of_two_spheres",)},
    "eels_loss_never_negative": {
        "plasmons": ("test_loss_is_never_negative",),
        "surface_modes": ("test_the_loss_in_a_gap",),
    },
    "eels_modal_is_direct": {"plasmons": ("test_modes_give_what_the_equations",)},
    "eels_peak_and_doping": {"plasmons": ("test_one_sphere_has_its_plasmon", "test_the_peak_moves_with")},
    "eels_far_field": {"plasmons": ("test_far_away_the_loss_falls",)},
    "eels_cube_modes": {"surface_modes": ("test_a_cube_has_corner_edge_and_face",)},
    "afm_rods_obey_their_rates": {"rods": ("test_",)},
    "afm_orientations_recovered": {
        "afm": ("test_orientations_measured_in_the_image", "test_a_movie_shows_the_rods_order")
    },
}
CHECKS["same_bytes_on_any_number_of_threads"] = {
    "../contract/test_instruments": (
        "test_it_gives_the_same_bytes_on_any",
        "test_made_anew_it_gives_the_same_frames",
    )
}


def path_of(file: str) -> Path:
    """Where the tests of a check are."""
    return (ROOT / "tests/unit" / f"{file}.py").resolve() if "/" in file else ROOT / f"{UNIT}{file}.py"


class Results:
    """Notes of each test whether it passed, and leaves out what no check asks for.

    ``is_quick`` takes one test for each name that is asked for.
    """

    def __init__(self, wanted: dict[Path, set[str]], *, is_quick: bool) -> None:
        self._wanted = wanted
        self._is_quick = is_quick
        self.passed: dict[tuple[Path, str], bool] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.name.startswith(tuple(self._wanted[item.path]))]
        if self._is_quick:
            first: dict[tuple[Path, str], Any] = {}
            for item in items:
                for name in self._wanted[item.path]:
                    if item.name.startswith(name):
                        first.setdefault((item.path, name), item)
            items[:] = [item for item in items if any(item is one for one in first.values())]

    def pytest_runtest_logreport(self, report: Any) -> None:
        key = (Path(ROOT / report.nodeid.partition("::")[0]).resolve(), report.nodeid.rpartition("::")[2])
        if report.when == "call" and not report.skipped:
            self.passed[key] = self.passed.get(key, True) and report.passed
        elif report.failed:
            self.passed[key] = False


def checks(*, is_quick: bool = False) -> Figures:
    """Run the tests of every check, each once; of a quick run one test for each name."""
    wanted: dict[Path, set[str]] = {}
    for files in CHECKS.values():
        for file, names in files.items():
            if path_of(file).exists():
                wanted.setdefault(path_of(file), set()).update(names)
    results = Results(wanted, is_quick=is_quick)
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main(["-q", "-p", "no:cacheprovider", *map(str, wanted)], plugins=[results])
    figures: Figures = {}
    for check, files in CHECKS.items():
        said = [
            passed
            for file, names in files.items()
            for (path, test), passed in results.passed.items()
            if path == path_of(file) and test.startswith(names)
        ]
        figures[check] = all(said) if said else None
        if not said:
            figures[f"{check}_reason"] = "there is no test of it"
    return figures


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("speed", "checks"))
    options = parser.parse_args()
    figures: Figures = {}
    if options.only != "checks":
        figures |= speeds(4 if options.quick else 20)
    if options.only != "speed":
        figures |= checks(is_quick=options.quick)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:40} {figure:.4g}" if isinstance(figure, float) else f"{name:40} {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
