"""The report says what the journal holds, whatever is missing from it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from agents.config import AgentConfig
from agents.objective import ObjectiveConfig
from deploy import distortion_figures, figures, report
from deploy.distortion import columns_motion, flag_rows, in_words
from deploy.learning_curve import (
    best_so_far,
    chance,
    draws_to_find,
    measurements_to_reach,
    reading_order,
)
from deploy.session import Session, gather, read_session, read_truth
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import (
    Atoms,
    Distortion,
    DistortionMode,
    Event,
    Frame,
    Hello,
    Latents,
    Message,
    Outcome,
    Registration,
    ScanGeometry,
    Score,
    StrainMap,
    Suggestion,
)

SESSION = "synthetic"
PIXELS, FIELD_NM = 160, 2.4
GEOMETRY = ScanGeometry(shape=(PIXELS, PIXELS), field_of_view_nm=(FIELD_NM, FIELD_NM))
ENERGY_OFFSET_EV, ENERGY_STEP_EV = 0.0, 1.0
FIRST_DRIFT_NM = np.array([0.3, -0.2])


def lattice() -> tuple[np.ndarray, np.ndarray]:
    """Make graphene's sites in nm, shape (n, 2), and which of them are silicon (1) or not (0)."""
    a = 0.246
    rows, cols = np.mgrid[-8:9, -8:9].reshape(2, -1)
    corner = np.stack([a * (cols + rows / 2), a * np.sqrt(3) / 2 * rows], axis=1)
    sites = np.concatenate([corner, corner + np.array([0.0, 0.142])])
    sites = sites[(np.abs(sites) < FIELD_NM / 2 - 0.15).all(axis=1)]
    silicon = np.zeros(len(sites), dtype=np.int64)
    silicon[[20, 77]] = 1
    return sites, silicon


def spectrum(weight: float) -> np.ndarray:
    """Make a spectrum with an edge at 99 eV of this weight on a power law, float32."""
    energy = ENERGY_OFFSET_EV + ENERGY_STEP_EV * np.arange(256)
    counts = 3e6 * np.maximum(energy, 5.0) ** -1.8 + weight * 200 * (energy >= 99) * np.exp(
        -(energy - 99) / 40
    )
    return counts.astype(np.float32)


def image(sites_nm: np.ndarray, silicon: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a frame of these sites with Poisson noise, float32 (1, row, col)."""
    row, col = np.mgrid[:PIXELS, :PIXELS]
    clean = np.full((PIXELS, PIXELS), 4.0)
    for (r, c), is_silicon in zip(GEOMETRY.to_px(sites_nm), silicon, strict=True):
        clean += (150 if is_silicon else 60) * np.exp(-((row - r) ** 2 + (col - c) ** 2) / (2 * 3.0**2))
    return rng.poisson(clean).astype(np.float32)[None]


def frame(number: int, pixels: np.ndarray, registration: Registration | None = None) -> Frame:
    return Frame(
        session=SESSION,
        number=number,
        acquired_at_s=1000.0 + number,
        image=pixels,
        channels=("HAADF",),
        geometry=GEOMETRY,
        dwell_time_us=4.0,
        registration=registration,
    )


def latents(number: int, sites_nm: np.ndarray, silicon: np.ndarray, registration: Registration) -> Latents:
    rng = np.random.default_rng(number)
    n = len(sites_nm)
    mean = rng.normal(size=(n, 2)) * 0.3 + 2.5 * silicon[:, None]
    flat = np.zeros(n, dtype=np.float32)
    pair = np.zeros((n, 2), dtype=np.float32)
    return Latents(
        session=SESSION,
        number=number,
        acquired_at_s=1000.0 + number,
        mean=mean.astype(np.float32),
        sd=np.full((n, 2), 0.1, dtype=np.float32),
        angle_rad=flat,
        angle_sd_rad=flat,
        offset_nm=pair,
        offset_sd_nm=pair,
        class_probability=np.zeros((n, 0), dtype=np.float32),
        novelty=flat,
        confidence=flat + 1,
        track=np.arange(n),
        positions_px=GEOMETRY.to_px(sites_nm).astype(np.float32),
        positions_nm=sites_nm.astype(np.float32),
        model_revision="0123456789ab",
        geometry=GEOMETRY,
        registration=registration,
    )


def measurement(order: int, position_nm: np.ndarray, weight: float, value: float) -> list[Message]:
    """Make the suggestion, the outcome and the score of one measurement."""
    x, y = (float(v) for v in position_nm)
    return [
        Suggestion(
            session=SESSION,
            number=0,
            acquired_at_s=1000.0,
            id=f"explorer-{order}",
            position_nm=(x, y),
            dwell_time_us=1e5,
            policy="explorer",
        ),
        Outcome(
            session=SESSION,
            id=f"explorer-{order}",
            status="ok",
            scan_position_nm=(x, y),
            position_nm=(x, y),
            dwell_time_us=1e5,
            spectrum=spectrum(weight),
            energy_offset_ev=ENERGY_OFFSET_EV,
            energy_step_ev=ENERGY_STEP_EV,
        ),
        Score(session=SESSION, id=f"explorer-{order}", objective="Si", value=value, variance=1e-6),
    ]


def refusal(order: int) -> list[Message]:
    return [
        Suggestion(
            session=SESSION,
            number=0,
            acquired_at_s=1000.0,
            id=f"explorer-{order}",
            position_nm=(0.4, 0.4),
            dwell_time_us=1e5,
            policy="explorer",
        ),
        Outcome(session=SESSION, id=f"explorer-{order}", status="refused", reason="dose of a cell <used up>"),
    ]


def messages(*, frames: int = 6, measured: int = 25, refused: int = 2) -> list[Message]:
    """Make a whole session: frames with their latents, measurements, and the last atoms."""
    sites, silicon = lattice()
    rng = np.random.default_rng(7)
    told: list[Message] = [Event(at_s=1000.0, what="session_started", detail="a <synthetic> one")]
    registration = Registration()
    corrected = None
    for number in range(frames):
        registration = Registration(
            drift_nm=(0.02 * number, -0.01 * number), sd_nm=0.002, at_s=1000.0 + number
        )
        told.append(frame(number, image(sites + registration.drift_nm, silicon, rng)))
        told.append(latents(number, sites, silicon, registration))
        corrected = frame(number, image(sites, silicon, rng), registration)
    order = rng.permutation(np.flatnonzero(silicon == 0))[:measured]
    order[22:23] = 77  # the best comes as number 23
    for count, site in enumerate(order):
        told += measurement(count, sites[site], float(silicon[site]), 0.001 + 0.02 * float(silicon[site]))
    for count in range(refused):
        told += refusal(measured + count)
    if corrected is not None:
        n = len(sites)
        ones = np.ones(n, dtype=np.float32)
        told.append(
            Atoms(
                frame=corrected,
                positions_px=GEOMETRY.to_px(sites).astype(np.float32),
                confidence=ones,
                amplitude=60 * ones,
                background=4.0,
                contrast=60.0,
            )
        )
    return told


def write_session(folder: Path, told: list[Message], *, truth: bool = False, summary: bool = True) -> Path:
    """Write a session folder as the streamer and the simulated instrument would."""
    journal = Journal(folder, JournalConfig())
    for place, message in enumerate(told):
        journal.append(
            encode(message), 1000.0 + 0.05 * place, kind=kind_of(message), monotonic_s=0.05 * place
        )
    journal.close()
    if summary:
        content = {
            "ended": "budget reached",
            "frames": {"received": 6, "published": 6, "rejected": 0, "dropped": 0, "waiting": 0},
            "stage_ms": {"encode": [12.0, 31.5], "correct": [8.0, None]},
            "frame_to_latents_ms": [70.0, 120.0],
            "dose_e": 1.5e9,
            "max_dose_e": 1e12,
        }
        (folder / "summary.json").write_text(json.dumps(content))
    if truth:
        write_truth(folder / "truth.npz")
    return folder


def write_truth(path: Path) -> None:
    sites, silicon = lattice()
    numbers = np.arange(6)[:, None]
    np.savez(
        path,
        positions_nm=sites - FIRST_DRIFT_NM,
        site_class=silicon,
        drift_nm=FIRST_DRIFT_NM + numbers * [0.02, -0.01],
        spectra=np.stack([spectrum(float(s)) for s in silicon]),
        energy_offset_ev=ENERGY_OFFSET_EV,
        energy_step_ev=ENERGY_STEP_EV,
    )


SWAY_PX, NOISE_PX = 0.5, 0.05


def distortion(number: int, mode: DistortionMode = "drift-only", flags: tuple[str, ...] = ()) -> Distortion:
    """Make one that sways along the rows, more at the right than at the left: 0 to 2 times SWAY_PX."""
    sway = np.float32(SWAY_PX * np.sqrt(2) * np.sin(2 * np.pi * number / 8))
    nothing = np.zeros((2, PIXELS), dtype=np.float32)
    grid = np.zeros((2, 3, 5), dtype=np.float32)
    grid[1] = sway * np.linspace(0, 2, 5)
    return Distortion(
        mode=mode,
        observer="registration",
        grid_px=grid,
        rows_px=nothing,
        cols_px=nothing,
        row_offset_px=nothing + np.float32(0.3),
        sd_px=np.full_like(grid, 0.04),
        observations=512,
        residual_px=0.06,
        flags=flags,
    )


def distorted(frames: int = 16, mode: DistortionMode = "drift-only") -> list[Message]:
    """Make a session of frames whose atoms are at rest on the specimen but for noise."""
    sites, silicon = lattice()
    rng = np.random.default_rng(21)
    told: list[Message] = []
    for number in range(frames):
        registration = Registration(
            drift_nm=(0.0, 0.01 * number),
            distortion=distortion(number, mode, ("jump", "<odd>") if number == 3 else ()),
        )
        noise_nm = NOISE_PX * FIELD_NM / PIXELS * rng.normal(size=sites.shape)
        told += [
            frame(number, np.zeros((1, PIXELS, PIXELS), dtype=np.float32)),
            latents(number, sites + noise_nm, silicon, registration),
        ]
    return told


def strain_map() -> StrainMap:
    nodes = (12, 12)
    return StrainMap(
        session=SESSION,
        number=15,
        acquired_at_s=1015.0,
        geometry=ScanGeometry(shape=nodes, field_of_view_nm=(FIELD_NM, FIELD_NM)),
        displacement_nm=np.zeros((2, *nodes), dtype=np.float32),
        strain=np.full((3, *nodes), 0.01, dtype=np.float32),
        rotation_rad=np.zeros(nodes, dtype=np.float32),
        strain_sd=np.full((3, *nodes), 0.001, dtype=np.float32),
        rotation_sd_rad=np.full(nodes, 0.001, dtype=np.float32),
        frames=8,
    )


def gathered(told: list[Message]) -> Session:
    return gather(Path("nowhere"), [(float(at), message) for at, message in enumerate(told)])  # type: ignore[misc]


def material(session: Session) -> report.Material:
    def no_weights() -> None:
        raise FileNotFoundError("there are no weights in this test")

    return report.Material(session, AgentConfig(), no_weights)  # type: ignore[arg-type]


def sections(text: str) -> dict[str, str]:
    return dict(re.findall(r"<section><h2>(.*?)</h2>(.*?)</section>", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_session(tmp_path_factory.mktemp("full"), messages(), truth=True)


def test_the_report_is_one_file_that_refers_to_nothing_else(full: Path) -> None:
    text = report.make_report(full).read_text()
    assert re.findall(r"<(?:link|script|iframe)", text) == []
    addresses = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "http" not in text.replace("data:image", "")


def test_the_report_has_every_section_and_no_missing_word_in_a_full_session(full: Path) -> None:
    found = sections(report.page(material(read_session(full))))
    assert list(found) == [title for title, _ in report.SECTIONS]
    for title in ("The last frame", "What the encoder saw", "Where it was measured", "Drift"):
        assert "data:image/png" in found[title], title


def test_text_from_the_session_cannot_become_markup(full: Path) -> None:
    text = report.page(material(read_session(full)))
    assert "a &lt;synthetic&gt; one" in text
    assert "dose of a cell &lt;used up&gt;" in text
    assert "<synthetic>" not in text


def test_the_story_names_the_best_measurement_and_why_the_session_ended(full: Path) -> None:
    story = report.overview(material(read_session(full)))
    assert "ended: budget reached" in story
    assert "the best, 0.021" in story
    assert "came as number 23" in story
    assert "25 ok, 2 refused" in story


def test_latencies_without_a_number_are_shown_by_a_dash(full: Path) -> None:
    found = report.overview(material(read_session(full)))
    assert "<td>stage correct</td><td>8.0</td><td>–</td>" in found


def test_true_sites_are_found_where_the_reference_frame_puts_them(full: Path) -> None:
    sites = material(read_session(full)).sites
    assert sites is not None
    expected, silicon = lattice()
    np.testing.assert_allclose(sites.positions_nm, expected, atol=1e-12)
    assert set(np.argsort(sites.values)[-2:]) == set(np.flatnonzero(silicon))


def test_the_learning_section_counts_the_measurements_to_the_best(full: Path) -> None:
    told = report.learning(material(read_session(full)))
    assert "within 5% of the best possible after 23 measurements" in told
    n = len(lattice()[0])
    assert f"There are 2 sites as good as that; random order finds the first after {(n + 1) / 3:,.0f}" in told


def test_the_drift_section_states_the_error_against_the_truth(full: Path) -> None:
    assert "Root mean square error 0.0 pm, 0.00 pixels." in report.drift(material(read_session(full)))


def test_without_truth_the_learning_section_says_that_there_are_no_baselines(tmp_path: Path) -> None:
    session = read_session(write_session(tmp_path, messages()))
    assert "there are no baselines" in report.learning(material(session))


def test_truth_without_spectra_gives_no_baselines_but_still_the_true_drift(tmp_path: Path) -> None:
    folder = write_session(tmp_path, messages())
    sites, _ = lattice()
    np.savez(folder / "truth.npz", positions_nm=sites, drift_nm=np.arange(6)[:, None] * [0.02, -0.01])
    session = read_session(folder)
    assert material(session).sites is None
    assert "Root mean square error" in report.drift(material(session))


def test_the_report_names_the_instrument_and_the_structure_that_was_its_specimen(tmp_path: Path) -> None:
    hello: Message = Hello(role="instrument", name="simulated STEM of MoS2 (JVASP-664)")
    folder = write_session(tmp_path / "s", [hello, *messages()])
    told = {"structure_formula": "MoS2", "structure_space_group": "P-6m2", "structure_name": "JVASP-664"}
    texts = {name: np.array(text) for name, text in told.items()}
    np.savez(folder / "truth.npz", positions_nm=lattice()[0], **texts)
    text = report.overview(material(read_session(folder)))

    assert "simulated STEM of MoS2 (JVASP-664)" in text
    assert "MoS2; P-6m2; JVASP-664" in text


def test_a_session_without_frames_is_told_in_words(tmp_path: Path) -> None:
    text = report.make_report(write_session(tmp_path, messages(frames=0, measured=0, refused=0)))
    found = sections(text.read_text())
    assert "No frame came." in found["The last frame"]
    assert "No atom was encoded." in found["What the encoder saw"]
    assert "No measurement was asked for" in found["Where it was measured"]
    assert "data:image" not in text.read_text()


def test_an_empty_journal_gives_a_report(tmp_path: Path) -> None:
    text = report.make_report(write_session(tmp_path, [], summary=False)).read_text()
    assert "was not ended in order" in text


def test_frames_without_a_distortion_have_none_to_show(full: Path) -> None:
    assert "No distortion was estimated" in report.distortion(material(read_session(full)))


def test_the_distortion_section_says_what_was_corrected_and_shows_it() -> None:
    told = report.distortion(material(gathered(distorted())))
    assert "Mode «drift-only» (16 frames from 0 to 15)." in told
    assert "it cannot be told from strain" in told
    assert "Frames were compared with those before" in told
    assert "found from 512 observations" in told
    assert "Median of what is left: 0.060 px." in told
    assert "There is no map of strain" in told
    assert told.count("data:image/png") == 3
    assert "<td>jump</td><td>the specimen was suddenly elsewhere</td><td>1</td>" in told
    assert "<td>&lt;odd&gt;</td>" in told


def test_the_distortion_section_says_how_well_positions_are_known() -> None:
    session = gathered(distorted())
    told = [message for message in distorted() if isinstance(message, Latents)][-1]
    session.latents = told
    assert "standard deviation of" not in report.distortion(material(session))
    known = np.tile(np.diag([4e-6, 9e-6]).astype(np.float32), (len(told.track), 1, 1))
    known[0] *= 100
    session.latents = replace(told, position_covariance_nm2=known)
    said = "Positions of atoms in frame 15 have a standard deviation of 3.0 pm in the median"
    assert said in report.distortion(material(session))


def test_the_columns_motion_is_the_distortion_before_and_noise_after() -> None:
    session = gathered(distorted(frames=32))
    summary = columns_motion(session)
    assert summary is not None
    assert (summary.columns, summary.frames) == (len(lattice()[0]), 32)
    # Over 0 to 2 times the sway; the offsets of the rows are the same in all frames.
    places = GEOMETRY.to_px(lattice()[0])[:, 1] / (PIXELS - 1)
    expected = SWAY_PX**2 * np.mean((2 * places) ** 2)
    assert summary.before.common_px2 == pytest.approx(expected * 32 / 31, rel=0.03)
    assert summary.before.common_components == 1
    assert summary.after.common_px2 == 0
    assert summary.after.local_px2 == pytest.approx(2 * NOISE_PX**2, rel=0.1)


def test_trajectories_do_not_go_on_over_a_new_registration() -> None:
    told = distorted(frames=32)
    old, new = told[:40], told[40:]
    anew = [
        replace(message, registration=replace(message.registration, revision=1))
        if isinstance(message, Latents)
        else message
        for message in new
    ]
    summary = columns_motion(gathered(old + anew))
    assert summary is not None
    assert summary.frames == 12


def scan(order: int, **said: Any) -> list[Message]:
    """Ask for a sub-scan of 0.4 x 0.2 nm, and make it."""
    suggestion, outcome = refusal(order)
    asked = {"action": "scan", "field_of_view_nm": (0.4, 0.2), "shape": (8, 8)} | said
    made = {"status": "ok", "action": "scan", "scan_position_nm": (0.4, 0.4), "position_nm": (0.4, 0.4)}
    return [replace(suggestion, **asked), replace(outcome, **made)]


def test_sub_scans_are_squares_on_the_path_and_no_measurements_of_a_point() -> None:
    told = [*messages(measured=3, refused=1), *scan(90)]
    text = report.path(material(gathered(told)))
    assert "3 measurements in the order of the numbers" in text
    assert "squares are 1 sub-scan; 1 request came to nothing" in text
    assert "squares" not in report.path(material(gathered(messages(measured=3))))


def test_the_corners_of_a_sub_scan_are_where_it_was_turned_to() -> None:
    session = gathered(scan(1))
    geometry = ScanGeometry(shape=(100, 100), field_of_view_nm=(1.0, 1.0))
    corners = geometry.to_nm(report._corners_px(geometry, session.measurements[0]))
    assert corners == pytest.approx(np.array([(0.2, 0.3), (0.6, 0.3), (0.6, 0.5), (0.2, 0.5)]))
    turned = gathered(scan(1, rotation_rad=np.pi / 2)).measurements[0]
    corners = geometry.to_nm(report._corners_px(geometry, turned))
    assert np.ptp(corners, axis=0) == pytest.approx((0.2, 0.4))


def test_too_few_frames_to_follow_columns_are_told_in_words() -> None:
    assert "Too few columns were followed" in report.distortion(material(gathered(distorted(frames=4))))


def test_each_mode_that_was_in_use_is_explained_once() -> None:
    told = distorted(frames=2) + distorted(frames=3, mode="frozen")
    words = in_words(gathered(told).distortions)
    assert len(words) == 2
    assert words[0].startswith("Mode «drift-only» (2 frames from 0 to 1).")
    assert words[1].startswith("Mode «frozen» (3 frames from 0 to 2). Corrected were the static distortion")


def test_no_flag_is_said_to_have_been_met_where_there_was_none() -> None:
    told = distorted(frames=2)
    assert flag_rows(gathered(told).distortions) == []
    assert "No frame was flagged." in report.distortion(material(gathered(told)))


def test_a_map_of_strain_is_shown_with_what_it_is_relative_to() -> None:
    told = report.distortion(material(gathered([*distorted(), strain_map()])))
    assert "mean strain and rotation of the field are not in it" in told
    assert "by 8 frames up to number 15" in told
    assert told.count("data:image/png") == 4


def test_a_long_session_keeps_figures_of_each_distortion_and_arrays_of_the_last() -> None:
    session = gathered(distorted(frames=70))
    assert len(session.distortions) == 70
    assert len(session.places) == 64
    assert all(registration.distortion is None for _, _, registration in session.drift)
    figures_of = session.distortions[2]  # a quarter of the sway's period
    sway_px2 = (
        2
        * SWAY_PX**2
        * np.mean(np.linspace(0, 2, 64) ** 2 + 2 * 0.3 * np.linspace(0, 2, 64) / (SWAY_PX * np.sqrt(2)))
    )
    assert figures_of.rms_px == pytest.approx(np.sqrt(sway_px2 + 2 * 0.3**2), rel=0.01)
    assert figures_of.row_offset_px == pytest.approx(0.3 * np.sqrt(2), rel=1e-6)
    assert figures_of.sd_px == pytest.approx(0.04)


def test_the_maps_show_what_was_displaced_without_the_offsets_of_single_rows() -> None:
    figure = distortion_figures.distortion_figure(distortion(2), GEOMETRY)
    along, across = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert along.shape == (PIXELS, PIXELS)
    np.testing.assert_allclose(along[0], SWAY_PX * np.sqrt(2) * np.linspace(0, 2, PIXELS), atol=1e-6)
    np.testing.assert_allclose(across, 0, atol=1e-6)


def test_a_session_that_refused_everything_says_so_and_why(tmp_path: Path) -> None:
    found = sections(
        report.page(material(read_session(write_session(tmp_path, messages(measured=0, refused=3)))))
    )
    assert "3 requests had an outcome, and none gave a value." in found["What happened"]
    assert "No measurement brought a spectrum." in found["Where it was measured"]
    assert "<td>refused</td><td>dose of a cell &lt;used up&gt;</td><td>3</td>" in found["Refusals and events"]


def test_rejected_frames_are_listed_with_their_reason_and_how_many_they_were(tmp_path: Path) -> None:
    rejected = [
        Event(at_s=1e9, what="frame rejected", detail="no calibration (correct)", number=number)
        for number in range(7)
    ]
    told = messages(measured=0) + rejected
    found = sections(report.page(material(read_session(write_session(tmp_path, told)))))
    row = "<td>frame rejected</td><td>no calibration (correct)</td><td>7</td>"
    assert row in found["Refusals and events"]
    assert "Nothing was refused" not in found["Refusals and events"]


def test_a_session_cut_off_before_its_atoms_says_so(tmp_path: Path) -> None:
    told = [message for message in messages() if not isinstance(message, Atoms)]
    found = sections(report.page(material(read_session(write_session(tmp_path, told, summary=False)))))
    assert "none is kept in its corrected form" in found["The last frame"]
    assert "data:image" in found["What the encoder saw"]


def test_missing_weights_are_told_in_the_section_that_needs_them(full: Path) -> None:
    assert "there are no weights in this test" in report.manifold(material(read_session(full)))


class TwoLatentEncoder:
    """Draws a window as bright as its first latent."""

    revision = "0123456789ab"
    card = SimpleNamespace(window_nm=0.6, latent_dim=2)

    def decode(self, latents_NZ: np.ndarray) -> np.ndarray:
        return np.broadcast_to(latents_NZ[:, 0, None, None, None], (len(latents_NZ), 1, 4, 4))


def told_by(encoder: object, session: Session) -> str:
    return report.manifold(report.Material(session, AgentConfig(), lambda: encoder))  # type: ignore[arg-type]


def test_the_manifold_is_drawn_from_the_decoder(full: Path) -> None:
    told = told_by(TwoLatentEncoder(), read_session(full))
    assert "data:image/png" in told
    assert "These are weights" not in told


def test_the_weights_that_the_session_kept_are_the_ones_that_are_drawn(full: Path, tmp_path: Path) -> None:
    folder = tmp_path / "session"
    shutil.copytree(full, folder)
    (folder / "encoders").mkdir()
    (folder / "encoders" / "0123456789ab.safetensors").write_bytes(b"half a file")
    told = report.make_report(folder).read_text(encoding="utf-8")
    assert "0123456789ab.safetensors: not a whole safetensors file" in told


def test_other_weights_than_the_session_used_are_named(full: Path) -> None:
    encoder = TwoLatentEncoder()
    encoder.revision = "another"
    told = told_by(encoder, read_session(full))
    assert "These are weights another; the session used 0123456789ab." in told


def test_weights_with_other_latents_draw_nothing(full: Path) -> None:
    encoder = TwoLatentEncoder()
    encoder.card = SimpleNamespace(window_nm=0.6, latent_dim=5)
    told = told_by(encoder, read_session(full))
    assert "have 5 latents, the session has 2" in told
    assert "data:image" not in told


def test_tiles_lie_side_by_side_with_a_gap() -> None:
    tiles = np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1)
    np.testing.assert_array_equal(
        figures.mosaic(tiles), [[0, np.nan, 1], [np.nan, np.nan, np.nan], [2, np.nan, 3]]
    )


@pytest.mark.parametrize(
    ("width_nm", "length_nm"), [(6.3, 1.0), (2.0, 0.5), (1000.0, 200.0), (0.8, 0.2), (0.039, 0.005)]
)
def test_a_scale_bar_has_a_round_length_of_at_most_a_quarter(width_nm: float, length_nm: float) -> None:
    assert figures.scale_bar_nm(width_nm) == pytest.approx(length_nm)


def test_the_smallest_value_is_the_best_where_it_is_looked_for(full: Path) -> None:
    session = read_session(full)
    agent = AgentConfig(goal="minimise")
    best = report.Material(session, agent, TwoLatentEncoder).best  # type: ignore[arg-type]
    assert best is not None
    assert best.value == min(m.value for m in session.measured)


def test_the_grid_of_latents_spans_what_was_seen_with_the_rest_at_its_median() -> None:
    mean = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    first, second, grid = report.latent_grid(mean)
    assert grid.shape == (len(first) * len(second), 3)
    np.testing.assert_allclose(grid[: len(first), 0], first, rtol=1e-6)
    assert np.all(grid[: len(first), 1] == grid[0, 1])
    assert np.all(grid[:, 2] == np.median(mean[:, 2]))


def test_one_latent_gives_a_row() -> None:
    first, second, grid = report.latent_grid(np.linspace(-1, 1, 50, dtype=np.float32)[:, None])
    assert (len(second), grid.shape) == (1, (len(first), 1))


def test_the_windows_shown_are_those_that_the_objective_reads() -> None:
    plain = ObjectiveConfig(background_model="none", normalise="none")
    assert [w[:3] for w in report.objective_windows(plain)] == [("band", 99.0, 120.0)]
    rich = ObjectiveConfig(normalise="reference")
    assert [w[0] for w in report.objective_windows(rich)] == ["band", "background", "reference"]
    peak = ObjectiveConfig(kind="peak_position")
    assert [w[0] for w in report.objective_windows(peak)] == ["search for the peak"]


def test_a_folder_without_a_journal_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no journal"):
        report.make_report(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"])
def test_a_truth_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "truth.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"truth\.npz: not the truth of a simulation"):
        read_truth(path)


def test_a_truth_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "truth.npz"
    np.savez(path, positions_nm=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"truth\.npz"):
        read_truth(path)


def test_a_summary_that_is_not_json_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_session(tmp_path, [], summary=False)
    (folder / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: not JSON"):
        read_session(folder)


def test_latents_of_a_sub_scan_are_not_taken_for_those_of_the_field() -> None:
    sites, silicon = lattice()
    raw = frame(0, image(sites, silicon, np.random.default_rng(0)))
    seen = latents(0, sites, silicon, Registration())
    told = [raw, seen, *(replace(message, number=1, request_id="a") for message in (raw, seen))]
    session = gather(Path("nowhere"), [(float(at), message) for at, message in enumerate(told)])
    assert (session.frames, session.subscans, len(session.drift)) == (1, 1, 1)
    assert session.latents is not None
    assert session.latents.number == 0


def test_best_so_far_passes_over_what_gave_no_value() -> None:
    np.testing.assert_array_equal(best_so_far(np.array([np.nan, 2, 1, np.nan, 3])), [np.nan, 2, 2, 2, 3])


def test_chance_agrees_with_every_order_of_a_small_set() -> None:
    expected = chance(np.array([1.0, 2.0, 4.0]), 3)
    # Single: (1+2+4)/3; pairs have maxima 2, 4, 4; all three give 4.
    np.testing.assert_allclose(expected.mean, [7 / 3, 10 / 3, 4.0])
    np.testing.assert_array_equal(expected.low, [1.0, 2.0, 4.0])
    np.testing.assert_array_equal(expected.high, [4.0, 4.0, 4.0])


def test_chance_agrees_with_shuffles_of_a_field_with_rare_sites() -> None:
    rng = np.random.default_rng(3)
    values = np.where(rng.random(1500) < 0.01, 1.0, 0.0) + 0.01 * rng.normal(size=1500)
    shuffled = np.stack([np.maximum.accumulate(rng.permutation(values)[:60]) for _ in range(4000)])
    np.testing.assert_allclose(chance(values, 60).mean, shuffled.mean(axis=0), atol=0.03)


def test_chance_never_asks_for_more_sites_than_there_are() -> None:
    assert len(chance(np.array([1.0, 2.0]), 10).mean) == 2


def test_draws_to_find_one_of_one_is_the_middle() -> None:
    assert draws_to_find(9, 1) == 5.0


def test_reading_order_goes_along_rows_from_the_top() -> None:
    positions = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.02], [0.0, 1.02]])
    np.testing.assert_array_equal(reading_order(positions, 4), [1, 2, 3, 0])


def test_measurements_to_reach_a_level_counts_from_one() -> None:
    assert measurements_to_reach(np.array([np.nan, 1.0, 3.0]), 2.0) == 3
    assert measurements_to_reach(np.array([1.0]), 2.0) is None
