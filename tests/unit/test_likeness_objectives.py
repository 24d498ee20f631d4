"""Similarity and novelty against cosines known by hand, differences, and the scatter of noisy spectra."""

from pathlib import Path

import numpy as np
import pytest

from agents.likeness_objectives import MAX_KINDS, read_target
from agents.objective import Objective, ObjectiveConfig, UnreadableSpectrum

AXIS_EV = np.arange(200.0)


def peak(at_ev: float, height: float = 400.0, base: float = 40.0) -> np.ndarray:
    return height * np.exp(-0.5 * ((AXIS_EV - at_ev) / 12.0) ** 2) + base


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "target.csv"
    rows = "\n".join(f"{energy},{counts}" for energy, counts in zip(AXIS_EV, peak(90.0), strict=True))
    path.write_text(f"energy loss (eV),counts\n{rows}\n")
    return str(path)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def test_similarity_is_the_cosine_once_the_noise_is_taken_off(target):
    objective = Objective(ObjectiveConfig(kind="similarity", target=target))
    clean = 5 * peak(100.0)
    noisy = np.random.default_rng(1).poisson(clean, (400, clean.size))
    values = np.array([objective.read(one).value for one in noisy])
    assert values.mean() == pytest.approx(cosine(clean, peak(90.0)), abs=3 * values.std() / 20)


def test_the_same_shape_at_any_exposure_is_similar_by_one(target):
    objective = Objective(ObjectiveConfig(kind="similarity", target=target))
    for exposure in (1.0, 50.0):
        noisy = np.random.default_rng(3).poisson(exposure * peak(90.0), (300, 200))
        readings = [objective.read(one) for one in noisy]
        values = np.array([one.value for one in readings])
        assert values.mean() == pytest.approx(1.0, abs=4 * values.std() / np.sqrt(300))


@pytest.mark.parametrize("at_ev", [90.0, 93.0, 120.0])
def test_the_variance_of_a_similarity_is_the_scatter_of_noisy_spectra(target, at_ev):
    objective = Objective(ObjectiveConfig(kind="similarity", target=target))
    truth = cosine(peak(at_ev), peak(90.0))
    noisy = np.random.default_rng(5).poisson(peak(at_ev), (800, 200))
    readings = [objective.read(one) for one in noisy]
    z = np.array([(one.value - truth) / one.variance**0.5 for one in readings])
    assert 0.9 < np.sqrt((z**2).mean()) < 1.1


def test_the_gradient_of_a_similarity_is_that_of_finite_differences(target):
    objective = Objective(ObjectiveConfig(kind="similarity", target=target, window_ev=(50.0, 150.0)))
    one = peak(110.0)
    gradient = objective._reader.estimate(one, AXIS_EV).gradient
    assert (gradient[:50] == 0).all()
    for channel in (50, 77, 93, 110, 149):
        step = np.zeros_like(one)
        step[channel] = 1e-3
        up, down = (objective.read(one + sign * step).value for sign in (1, -1))
        assert gradient[channel] == pytest.approx((up - down) / 2e-3, rel=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".npy", ".msa"])
def test_a_target_is_read_from_the_formats_of_the_field(tmp_path, suffix):
    path, counts = tmp_path / f"target{suffix}", peak(90.0)
    if suffix == ".npy":
        np.save(path, np.stack([AXIS_EV[::-1], counts[::-1]], axis=1))
    elif suffix == ".msa":
        head = "#FORMAT : EMSA/MAS Spectral Data File\n#VERSION : 1.0\n#NPOINTS : 200\n#NCOLUMNS : 1\n"
        head += (
            "#XUNITS : eV\n#YUNITS : counts\n#DATATYPE : Y\n#XPERCHAN : 1.0\n#OFFSET : 0.0\n#SPECTRUM : x\n"
        )
        path.write_text(head + "\n".join(f"{one}," for one in counts) + "\n#ENDOFDATA :\n")
    else:
        separator = "; " if suffix == ".csv" else "\t"
        rows = [f"{energy}{separator}{one}" for energy, one in zip(AXIS_EV, counts, strict=True)]
        path.write_text("# energy counts\n\n" + "\n".join(rows))
    energy_ev, read = read_target(path)
    np.testing.assert_array_equal(energy_ev, AXIS_EV)
    np.testing.assert_allclose(read, counts, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "none.csv: there is no such file"),
        (
            "words.csv",
            "energy,counts\n1.0,2.0\n2.0,many\n",
            "words.csv, line 3: '2.0,many'; it takes two numbers",
        ),
        ("short.txt", "1.0 2.0\n", r"holds numbers of shape \(1, 2\); it takes two columns"),
        ("twice.txt", "1 2\n1 3\n2 3\n", "twice.txt has an energy twice"),
        ("text.npy", "not an array", "text.npy: not an array of numbers"),
        ("text.msa", "not a spectrum", "text.msa: cannot be read as an EMSA/MAS spectrum"),
    ],
)
def test_a_target_that_cannot_be_read_is_told_by_file_and_line(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Objective(ObjectiveConfig(kind="similarity", target=str(tmp_path / name)))


def test_axes_that_do_not_overlap_are_told_with_both(target):
    objective = Objective(ObjectiveConfig(kind="similarity", target=target))
    with pytest.raises(UnreadableSpectrum, match="from 0 to 199 eV and the spectrum is 500 to 599 eV"):
        objective.read(np.ones(100), energy_offset_ev=500.0)
    narrow = Objective(ObjectiveConfig(kind="similarity", target=target, window_ev=(150.0, 250.0)))
    with pytest.raises(UnreadableSpectrum, match="150 to 250 eV is not within the target, 0 to 199 eV"):
        narrow.read(np.ones(300))


def test_the_name_changes_with_the_contents_of_the_target(target):
    config = ObjectiveConfig(kind="similarity", target=target)
    before = Objective(config).name
    assert before.startswith("similarity (cosine, target.csv ")
    Path(target).write_text("1 2\n2 3\n")
    assert Objective(config).name != before


# -- novelty -----------------------------------------------------------------------------------


def read_in_turn(objective: Objective, spectra: np.ndarray) -> list[float | None]:
    values: list[float | None] = []
    for one in spectra:
        try:
            values.append(objective.read(one).value)
        except UnreadableSpectrum:
            values.append(None)
        objective.remember(one)
    return values


def test_what_was_seen_is_not_new_and_what_was_not_is():
    rng = np.random.default_rng(1)
    order = [90.0, 90.0, 90.0, 120.0, 90.0, 120.0, 120.0]
    values = read_in_turn(
        Objective(ObjectiveConfig(kind="novelty")), np.stack([rng.poisson(9 * peak(at)) for at in order])
    )
    assert values[0] is None  # nothing came before it
    assert values[3] == pytest.approx(1 - cosine(peak(120.0), peak(90.0)), rel=0.05)
    assert max(abs(values[place]) for place in (1, 2, 4, 5, 6)) < 0.01 * values[3]


def test_reading_does_not_remember():
    objective = Objective(ObjectiveConfig(kind="novelty"))
    objective.remember(peak(90.0))
    once, again = (objective.read(peak(120.0)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("at_ev", [90.0, 92.0, 120.0])
def test_the_variance_of_a_novelty_is_the_scatter_of_noisy_spectra(at_ev):
    rng, z = np.random.default_rng(3), []
    truth = 1 - cosine(peak(at_ev), peak(90.0))
    for _ in range(600):
        objective = Objective(ObjectiveConfig(kind="novelty"))
        for _ in range(2):
            objective.remember(rng.poisson(peak(90.0)))
        reading = objective.read(rng.poisson(peak(at_ev)))
        z.append((reading.value - truth) / reading.variance**0.5)
    assert 0.9 < np.sqrt(np.mean(np.square(z))) < 1.1


def test_the_same_spectra_in_the_same_order_give_the_same_bits():
    rng = np.random.default_rng(7)
    spectra = rng.poisson(np.stack([peak(at) for at in rng.uniform(60, 140, 60)])).astype(np.float32)
    one, other = (read_in_turn(Objective(ObjectiveConfig(kind="novelty")), spectra) for _ in range(2))
    assert one == other


def test_kinds_are_bounded_however_varied_the_spectra_are():
    objective = Objective(ObjectiveConfig(kind="novelty"))
    for at_ev in np.linspace(0, 199, 3 * MAX_KINDS):
        objective.remember(1e4 * peak(at_ev, base=0.0) + 1)
    assert len(objective._reader._kinds) == MAX_KINDS


def test_another_energy_range_begins_anew():
    objective = Objective(ObjectiveConfig(kind="novelty"))
    objective.remember(peak(90.0))
    with pytest.raises(UnreadableSpectrum, match="no spectrum of this energy range came before"):
        objective.read(peak(90.0), energy_offset_ev=10.0)
