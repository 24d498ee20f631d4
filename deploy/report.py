"""One self-contained page of what a session did: ``make_report`` writes ``report.html``.

Each section is a function from the material to HTML, and says in words when there is nothing to show.
The page refers to nothing outside itself and prints on paper.
"""

from __future__ import annotations

import html
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.config import AgentConfig
from agents.objective import Objective, ObjectiveConfig
from deploy import distortion_figures, figures
from deploy.agent_sections import why
from deploy.distortion import columns_motion, flag_rows, in_words
from deploy.html_parts import counted, facts, folded, nothing, paragraph, picture, table
from deploy.latent_course import WORDS, Words
from deploy.latent_sections import read_outs
from deploy.learning_section import learning
from deploy.live_view import clock_text, in_stage_order, milliseconds_text, number_text, position_text
from deploy.material import NEAR_NM, Material, nearest, true_drift_nm
from deploy.session import Measurement, Session, read_session
from streamer.messages import ScanGeometry
from streamer.weights import kept

if TYPE_CHECKING:
    from models.encoder import Encoder

Float64 = NDArray[np.float64]
GRID = 9
EVENTS_SHOWN = 200


def make_report(session_folder: Path) -> Path:
    """Write ``report.html`` into a session folder.

    Parameters
    ----------
    session_folder
        With the journal; the rest is used if it is there.

    Returns
    -------
    path
        Of the report.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    ValueError
        If a file beside the journal is not what its name claims.
    """
    session = read_session(session_folder)
    tables = _tables(session.configuration)
    agent = _from_table(tables.get("agent", {}), AgentConfig)
    used = kept(session_folder, session.course.model_revision)
    material = Material(session, agent, lambda: _load_encoder(used or _weights(tables)))
    path = session_folder / "report.html"
    part = path.with_suffix(".part")
    part.write_text(page(material), encoding="utf-8")
    part.replace(path)
    return path


def _tables(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config.toml: not TOML: {error}; remove it to report with the defaults") from None


def _from_table(table: Any, kind: type[AgentConfig]) -> AgentConfig:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"config.toml [agent]: {error}; remove it to report with the defaults") from None


def _load_encoder(weights: Path | None) -> Encoder:
    from models.encoder import Encoder  # brings torch, which a report without atoms does not need

    return Encoder.load(weights)


def _weights(tables: dict[str, Any]) -> Path | None:
    """Find the weights that a streamer was told to use that kept none; None for those it ships with."""
    table: Any = tables.get("streamer", {})
    for name in ("pipeline", "encode", "weights"):
        table = table.get(name, {}) if isinstance(table, dict) else {}
    return Path(table) if isinstance(table, str) and table else None


# -- the sections ----------------------------------------------------------------------------------


def overview(material: Material) -> str:
    """Say what happened in one paragraph and two tables."""
    known, latencies = facts(_fact_rows(material)), _latencies(material)
    return f"{paragraph(_story(material))}<div class='columns'>{known}{latencies}</div>"


def _story(material: Material) -> str:
    session, best = material.session, material.best
    ended = session.summary.get("ended")
    told = [
        f"The session lasted {clock_text(session.duration_s)} (m:ss) and "
        + (f"ended: {ended}." if ended else "was not ended in order: there is no summary.json.")
    ]
    told.append(_frames_sentence(session))
    if not session.measurements:
        told.append("Nothing was measured.")
    elif best is None:
        told.append(f"{counted(len(session.measurements), 'request')} had an outcome, and none gave a value.")
    else:
        told.append(
            f"{counted(len(session.measured), 'measurement')} gave a value; "
            f"the {_best_word(material)}, {number_text(best.value)} ({material.objective_name}), "
            f"came as number {best.order} at {position_text(best.position_nm)}."
        )
    told += [f"{e.detail[:1].upper()}{e.detail[1:]}." for e in session.events if e.what == "enough"]
    return " ".join(told)


def _best_word(material: Material) -> str:
    return "best" if material.has_best else "largest"


def _words(session: Session) -> Words:
    """Name what windows are cut around; frames that come beside patterns show columns."""
    return WORDS["columns" if session.kind == "patterns" else session.kind]


def _frames_sentence(session: Session) -> str:
    if not session.frames:
        return "No frame was kept."
    sentence = f"{counted(session.frames, 'frame')} of the experiment"
    if session.subscans:
        sentence += f" and {counted(session.subscans, 'sub-scan')}"
    were = "was" if session.frames + session.subscans == 1 else "were"
    sentence += f" {were} kept"
    if session.patterns:
        sentence += f" with {counted(session.patterns, 'diffraction pattern')}"
    sentence += f", and {len(session.drift):,} came through the analysis"
    if session.atoms is not None:
        sentence += f", the last with {_words(session).counted(len(session.atoms.positions_px))}"
    return sentence + "."


def _fact_rows(material: Material) -> list[tuple[str, str]]:
    session, summary = material.session, material.session.summary
    rows = [("session", session.folder.resolve().name), ("duration", clock_text(session.duration_s))]
    if session.instrument:
        rows.append(("instrument", session.instrument))
    if session.truth is not None and session.truth.structure:
        told = session.truth.structure
        words = (told.get(name, "") for name in ("formula", "space_group", "name", "history", "source"))
        rows.append(("specimen", "; ".join(word for word in words if word)))
    counts = summary.get("frames")
    if isinstance(counts, dict):
        rows.append(("frames", ", ".join(f"{counts[name]:,} {name}" for name in counts)))
    else:
        rows.append(("frames", f"{session.frames:,} in the journal"))
    statuses = Counter(m.outcome.status for m in session.measurements)
    rows.append(("outcomes", ", ".join(f"{n:,} {status}" for status, n in statuses.items()) or "none"))
    dose_e = summary.get("dose_e")
    if isinstance(dose_e, int | float):
        limit = summary.get("max_dose_e")
        of = f" of {limit:.2e}" if isinstance(limit, int | float) else ""
        rows.append(("dose", f"{dose_e:.2e}{of} electrons" if dose_e else "not known"))
    if session.latents is not None:
        rows.append(("encoder's weights", session.latents.model_revision))
    rows.append(("policy, seed", f"{_policy(session, material.agent)}, {material.agent.seed}"))
    rows.append(("goal, objective", f"{material.agent.goal}, {material.objective_name}"))
    if material.best is not None:
        rows.append(
            (
                _best_word(material),
                f"{number_text(material.best.value)} at {position_text(material.best.position_nm)}",
            )
        )
    return rows


def _policy(session: Session, agent: AgentConfig) -> str:
    used = {m.suggestion.policy for m in session.measurements if m.suggestion is not None}
    return ", ".join(sorted(used)) or agent.policy


def _latencies(material: Material) -> str:
    summary = material.session.summary
    stages = summary.get("stage_ms")
    named = (
        {f"stage {name}": stages[name] for name in in_stage_order(stages)} if isinstance(stages, dict) else {}
    )
    for key in ("frame_to_latents_ms", "frame_to_suggestion_ms"):
        if isinstance(summary.get(key), list):
            named[key.removesuffix("_ms").replace("_to_", " → ")] = summary[key]
    rows = [
        (name, *(milliseconds_text(math.nan if value is None else value) for value in pair))
        for name, pair in named.items()
    ]
    ages = material.session.latents_age_ms
    if ages:
        slow = np.percentile(ages, [50, 99])
        rows.append(("in the journal: frame → latents", *(milliseconds_text(float(v)) for v in slow)))
    if not rows:
        return nothing("No latencies were noted.")
    return table(("latency in ms", "p50", "p99"), rows)


def frames(material: Material) -> str:
    """Show the last frame, raw and corrected, with what was found in it."""
    session = material.session
    if session.atoms is None:
        if session.frames == 0:
            return nothing("No frame came.")
        return nothing(
            f"{counted(session.frames, 'frame')} came, but none is kept in its corrected form: "
            "all were rejected (why stands below, under refusals), or the session did not end in order."
        )
    corrected, raw, latents = session.atoms.frame, session.last_raw, session.latents
    many = _words(session).many
    same = latents is not None and latents.number == corrected.number and latents.mean.shape[1] > 0
    return picture(
        figures.frames_figure(
            None if raw is None else raw.image[0],
            None if raw is None else raw.geometry,
            corrected.image[0],
            corrected.geometry,
            session.atoms.positions_px,
            latents.positions_px if same and latents is not None else np.empty((0, 2)),
            latents.mean[:, 0] if same and latents is not None else None,
            many,
        ),
        f"Frame {corrected.number} ({corrected.channels[0]}). Rings: {many}, coloured by the first "
        f"latent; grey rings are {many} whose window leaves the frame. "
        "The corrected frame is smoothed a little for the eye.",
    )


def latent_space(material: Material) -> str:
    """Show the latents of the last frame, as a plane and over the field."""
    latents = material.session.latents
    if latents is None or not latents.mean.size:
        return nothing(f"No {_words(material.session).one} was encoded.")
    measured = material.session.measured
    atoms = _atoms_of(measured, material)
    found = atoms >= 0
    values = np.array([m.value for m in measured])[found] if measured else np.empty(0)
    figure = figures.latents_figure(
        latents.mean, latents.positions_px, latents.geometry, atoms[found], values, material.objective_name
    )
    return picture(
        figure,
        f"The {len(latents.mean):,} {_words(material.session).many} of frame {latents.number}. Left: in the "
        "plane of the latents, measured ones coloured by their value. Right: both latents over the field.",
    )


def _atoms_of(measured: Sequence[Measurement], material: Material) -> NDArray[np.intp]:
    """Find the atom of the last frame that each measurement was on; by track, else by position."""
    latents = material.session.latents
    assert latents is not None
    atoms = nearest(latents.positions_nm.astype(np.float64), [m.position_nm for m in measured], NEAR_NM)
    index = {int(track): place for place, track in enumerate(latents.track) if track >= 0}
    for place, measurement in enumerate(measured):
        if atoms[place] < 0 and measurement.suggestion is not None:
            atoms[place] = index.get(measurement.suggestion.track, -1)
    return atoms


def latents_in_all(material: Material) -> str:
    """Show what the latents of all frames come to."""
    return read_outs(material.session, _encoder_of_lines(material))


def _encoder_of_lines(material: Material) -> Encoder | None:
    """Load the encoder where angles of lines are shown; None if it is not the one that was used."""
    if WORDS[material.session.kind].symmetry != 2:
        return None
    try:
        encoder = material.load_encoder()
    except (OSError, ValueError):  # the section of what it has learnt says why
        return None
    return encoder if encoder.revision == material.session.course.model_revision else None


def manifold(material: Material) -> str:
    """Show what the encoder has learnt: its decoder over a grid that spans the latents seen."""
    latents = material.session.latents
    if latents is None or not latents.mean.size:
        one = _words(material.session).one
        return nothing(f"No {one} was encoded, so there is no range of latents to show.")
    try:
        encoder = material.load_encoder()
    except (OSError, ValueError) as error:
        return nothing(f"The weights could not be loaded: {error}")
    if encoder.card.latent_dim != latents.mean.shape[1]:
        return nothing(
            f"The weights at hand have {encoder.card.latent_dim} latents, "
            f"the session has {latents.mean.shape[1]}."
        )
    note = ""
    if encoder.revision != latents.model_revision:
        note = f" (These are weights {encoder.revision}; the session used {latents.model_revision}.)"
    first, second, grid = latent_grid(latents.mean)
    decoded = np.asarray(encoder.decode(grid))[:, 0]
    tiles = decoded.reshape(len(second), len(first), *decoded.shape[1:])
    return picture(
        figures.manifold_figure(tiles, first, second),
        f"Windows of {encoder.card.window_nm:g} nm as the decoder draws them for latents across "
        f"the range seen in frame {latents.number}.{note}",
    )


def latent_grid(mean: NDArray[np.float32]) -> tuple[Float64, Float64, NDArray[np.float32]]:
    """Span the first two latents by a grid, the others at their medians.

    Returns
    -------
    first, second
        Values along the grid; ``second`` is one value where there is one latent.
    latents
        Shape ``(len(second) · len(first), d)``, float32.
    """
    low, high = np.percentile(mean, [0.2, 99.8], axis=0)
    first = np.linspace(low[0], high[0], GRID)
    second = np.linspace(low[1], high[1], GRID) if mean.shape[1] > 1 else np.zeros(1)
    grid = np.tile(np.median(mean, axis=0).astype(np.float32), (len(first) * len(second), 1))
    grid[:, 0] = np.tile(first, len(second))
    if mean.shape[1] > 1:
        grid[:, 1] = np.repeat(second, len(first))
    return first, second, grid


def path(material: Material) -> str:
    """Show where it was measured, and the best spectrum."""
    session = material.session
    if not session.measurements:
        return nothing("No measurement was asked for, or none came to an outcome.")
    return _path_picture(material) + _best_spectrum(material)


def _path_picture(material: Material) -> str:
    session = material.session
    if session.atoms is None:
        return nothing("There is no corrected frame to draw the path on.")
    geometry = session.atoms.frame.geometry
    placed = [m for m in session.measurements if m.position_nm is not None]
    done = [m for m in placed if m.outcome.status == "ok"]
    visited = [m for m in done if m.outcome.action == "spectrum"]
    scanned = [m for m in done if m.outcome.action == "scan"]
    refused = [m for m in placed if m.outcome.status != "ok"]
    figure = figures.path_figure(
        figures.smoothed(session.atoms.frame.image[0], session.atoms.positions_px),
        geometry,
        _pixels(geometry, visited),
        np.array([m.value for m in visited]),
        [m.order for m in visited],
        _pixels(geometry, refused),
        material.objective_name,
        [(m.order, corners) for m in scanned if len(corners := _corners_px(geometry, m))],
    )
    again = f" squares are {counted(len(scanned), 'sub-scan')};" if scanned else ""
    return picture(
        figure,
        f"{counted(len(visited), 'measurement')} in the order of the numbers, on the last corrected frame;"
        f"{again} {counted(len(refused), 'request')} came to nothing.",
    )


def _corners_px(geometry: ScanGeometry, measurement: Measurement) -> Float64:
    """Find the corners of a sub-scan, in turn, shape ``(4, 2)``; none where nobody says how large it was."""
    said = measurement.suggestion
    if said is None or said.field_of_view_nm is None or measurement.position_nm is None:
        return np.zeros((0, 2))
    turned_rad = geometry.rotation_rad if said.rotation_rad is None else said.rotation_rad
    scan = ScanGeometry(
        shape=(2, 2),
        field_of_view_nm=said.field_of_view_nm,
        center_nm=measurement.position_nm,
        rotation_rad=turned_rad,
    )
    return geometry.to_px(scan.to_nm(np.array([(-0.5, -0.5), (-0.5, 1.5), (1.5, 1.5), (1.5, -0.5)])))


def _pixels(geometry: ScanGeometry, measurements: Sequence[Measurement]) -> Float64:
    return geometry.to_px(np.array([m.position_nm for m in measurements], dtype=np.float64).reshape(-1, 2))


def _best_spectrum(material: Material) -> str:
    best = material.best
    if best is None or best.outcome.spectrum is None:
        return nothing("No measurement brought a spectrum.")
    outcome = best.outcome
    assert outcome.spectrum is not None
    counts = outcome.spectrum
    energy = outcome.energy_offset_ev + outcome.energy_step_ev * np.arange(len(counts))
    others = [
        m.outcome.spectrum
        for m in material.session.measured
        if m is not best and m.outcome.spectrum is not None and len(m.outcome.spectrum) == len(counts)
    ]
    typical = np.median(others, axis=0) if others else None
    if outcome.bias_v is not None:
        unit = material.agent.objective.response_unit
        return picture(
            figures.loop_figure(outcome.bias_v, counts, typical, unit),
            f"The loop of measurement {best.order}, the best, with {number_text(best.value)}; "
            f"{outcome.dwell_time_us / 1000:g} ms.",
        )
    return picture(
        figures.spectrum_figure(energy, counts, typical, objective_windows(material.agent.objective)),
        f"The spectrum of measurement {best.order}, the {_best_word(material)}, "
        f"with {number_text(best.value)}; exposure {outcome.dwell_time_us / 1000:g} ms.",
    )


def objective_windows(config: ObjectiveConfig) -> list[tuple[str, float, float, str]]:
    """List the energy windows that an objective reads, as ``(name, from_ev, to_ev, colour)``."""
    try:
        windows = Objective(config).windows
    except ValueError:  # a file of it is gone
        return []
    colours = {"background": figures.GREEN, "reference": figures.GREY}
    bands = [what for what, _, _ in windows if what not in colours]
    colours |= dict(zip(bands, cycle((figures.ORANGE, figures.RED, figures.BLUE)), strict=False))
    return [(what, low, high, colours[what]) for what, low, high in windows]


def drift(material: Material) -> str:
    """Show the drift that was found, against the truth where it is known."""
    session = material.session
    if len(session.drift) < 2:
        return nothing("Fewer than two frames came through, so there is no drift to show.")
    revision = session.drift[-1][2].revision
    shown = [entry for entry in session.drift if entry[2].revision == revision]
    numbers = np.array([number for number, _, _ in shown])
    at_s = np.array([at for _, at, _ in shown])
    found = np.array([r.drift_nm for _, _, r in shown])
    truth = true_drift_nm(session, numbers)
    figure = figures.drift_figure(at_s - at_s[0], found, np.array([r.sd_nm for _, _, r in shown]), truth)
    caption = f"Drift since the reference frame {numbers[0]}; bands are one standard deviation."
    if any(one.mode == "separate" for one in session.distortions):
        caption += " Where the stage moved the specimen for the scans of «separate», that is in it."
    if truth is not None and session.atoms is not None:
        error_nm = float(np.sqrt(((found - truth) ** 2).sum(axis=1).mean()))
        error_px = error_nm / session.atoms.frame.geometry.pixel_size_nm[1]
        caption += f" Root mean square error {error_nm * 1000:.1f} pm, {error_px:.2f} pixels."
    return picture(figure, caption)


def distortion(material: Material) -> str:
    """Show what the scan did to the frames, what of it was corrected, and the specimen's own strain."""
    frames = material.session.distortions
    if not frames:
        return nothing("No distortion was estimated: frames were put back as a whole, or not at all.")
    told = "".join(paragraph(sentence) for sentence in in_words(frames))
    flags = flag_rows(frames)
    met = table(("flag", "meaning", "frames"), flags) if flags else nothing("No frame was flagged.")
    session = material.session
    pictures = _distortion_pictures(session) + _motion_picture(session) + _strain_picture(session)
    return told + met + _positions_known(session) + pictures


def _positions_known(session: Session) -> str:
    """Say how well the atoms of the last frame are placed; nothing for a journal that does not say it."""
    latents = session.latents
    if latents is None or latents.position_covariance_nm2 is None or not len(latents.track):
        return ""
    worst_nm2 = np.linalg.eigvalsh(latents.position_covariance_nm2.astype(np.float64))[:, -1]
    median_pm, tenth_pm = 1000 * np.sqrt(np.percentile(worst_nm2, (50, 90)))
    return paragraph(
        f"Positions of {_words(session).many} in frame {latents.number} have a standard deviation "
        f"of {median_pm:.1f} pm in the median, of more than {tenth_pm:.1f} pm for one in ten: from noise and "
        "neighbours in finding them, and from what the correction leaves unknown. What the mode leaves in "
        "the images is not in it."
    )


def _distortion_pictures(session: Session) -> str:
    last, raster, frames = session.last_distortion, session.distorted_raster, session.distortions
    assert last is not None
    assert raster is not None
    field = picture(
        distortion_figures.distortion_figure(last, raster),
        f"Distortion of frame {frames[-1].number}, found from {counted(last.observations, 'observation')}: "
        "how far from its place in the raster each pixel was recorded. The offsets of single rows, right, "
        "are not in the maps.",
    )
    left = [one.residual_px for one in frames if math.isfinite(one.residual_px)]
    known = f" Median of what is left: {np.median(left):.3f} px." if left else " No places were held out."
    course = picture(
        distortion_figures.course_figure(frames),
        "Left: root mean square over the frame. Right: what the correction leaves at places that it was not "
        f"fitted to, their own noise taken off, and what it says of itself.{known}",
    )
    return field + course


def _motion_picture(session: Session) -> str:
    summary = columns_motion(session)
    if summary is None:
        return nothing("Too few columns were followed for long enough to tell common motion from local.")
    before, after = (math.sqrt(one.common_px2) for one in (summary.before, summary.after))
    return picture(
        distortion_figures.motion_figure(summary),
        f"Trajectories of {counted(summary.columns, 'column')} through the last "
        f"{counted(summary.frames, 'frame')}, before and after the correction, without the drift of whole "
        f"frames. Motion that many columns share, which is the scan's: {before:.3f} px before, "
        f"{after:.3f} px after. What single ones do is noise, jitter of their rows, and motion of their own.",
    )


def _strain_picture(session: Session) -> str:
    strain = session.strain
    if strain is None:
        return nothing(
            "There is no map of strain: that takes scans turned by a quarter and with the specimen moved "
            "(mode «separate»)."
        )
    return picture(
        distortion_figures.strain_figure(strain),
        f"Strain of the specimen, told from distortion by {counted(strain.frames, 'frame')} up to "
        f"number {strain.number}. The mean strain and rotation of the field are not in it: they cannot be "
        "told from a wrong pixel size and rotation of the scan.",
    )


def events(material: Material) -> str:
    """List what was refused and why, and the events."""
    session = material.session
    reasons: Counter[tuple[str, str]] = Counter(
        (m.outcome.status, m.outcome.reason or "no reason given")
        for m in session.measurements
        if m.outcome.status != "ok"
    )
    reasons.update((one.what, one.detail) for one in session.events if one.what == "frame rejected")
    told = (
        table(
            ("what", "reason", "times"),
            [(status, reason, f"{n:,}") for (status, reason), n in reasons.most_common()],
        )
        if reasons
        else nothing("Nothing was refused, and nothing failed.")
    )
    if not session.events:
        return told + nothing("No events were noted.")
    rows = [
        (
            clock_text(event.at_s - session.first_received_s),
            event.what if event.number < 0 else f"{event.what} ({event.number})",
            event.detail,
        )
        for event in session.events[:EVENTS_SHOWN]
    ]
    left_out = len(session.events) - len(rows)
    more = paragraph(f"{left_out:,} later events are in the journal.") if left_out > 0 else ""
    listed = table(("time", "what", "detail"), rows)
    return told + folded(counted(len(session.events), "event"), listed + more)


def configuration(material: Material) -> str:
    """Show the configuration and the streamer's own summary."""
    session = material.session
    told = ""
    for name, text in (
        ("config.toml", session.configuration),
        ("summary.json", _pretty(session.summary) if session.summary else ""),
    ):
        told += folded(name, f"<pre>{html.escape(text)}</pre>") if text else nothing(f"There is no {name}.")
    return told


def _pretty(content: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()


# -- the page --------------------------------------------------------------------------------------

SECTIONS: tuple[tuple[str, Callable[[Material], str]], ...] = (
    ("What happened", overview),
    ("The last frame", frames),
    ("What the encoder saw", latent_space),
    ("What the encoder has learnt", manifold),
    ("What the latents say", latents_in_all),
    ("Where it was measured", path),
    ("How fast the best was found", learning),
    ("Why there", why),
    ("Drift", drift),
    ("Distortion", distortion),
    ("Refusals and events", events),
    ("Configuration and summary", configuration),
)

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1120px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h1 small { font-weight: normal; color: #555; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
h2 { font-size: 1.15rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .88rem; margin-top: .3rem; max-width: 60rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .18rem .9rem .18rem 0; border-bottom: 1px solid #e4e4e4;
         vertical-align: top; }
.facts th { font-weight: normal; color: #555; white-space: nowrap; }
.columns { display: grid; grid-template-columns: 3fr 2fr; gap: 2.5rem; align-items: start; }
.columns table:not(.facts) td + td, .columns table:not(.facts) th + th { text-align: right; }
.nothing { color: #555; font-style: italic; }
pre { font-size: .8rem; background: #f6f6f6; padding: .8rem; overflow-x: auto; white-space: pre-wrap; }
details { margin: .6rem 0; } summary { cursor: pointer; }
details details { margin: .15rem 0 .15rem 1.2rem; }
@media (max-width: 800px) { .columns { grid-template-columns: 1fr; } }
@media print { body { margin: 0; max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; }
               h2 { break-after: avoid; } }
"""


def page(material: Material) -> str:
    """Write the whole page."""
    name = html.escape(material.session.folder.resolve().name)
    body = "".join(
        f"<section><h2>{html.escape(title)}</h2>{section(material)}</section>" for title, section in SECTIONS
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>probeloop: {name}</title><style>{STYLE}</style></head>"
        f"<body><h1>probeloop <small>session {name}</small></h1>{body}</body></html>\n"
    )
