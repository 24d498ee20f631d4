"""What the latents of a session say, as sections of the report, in the words of what the frames show."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy import latent_figures
from deploy.html_parts import counted, nothing, paragraph, picture, table
from deploy.latent_course import WORDS, Kept, LatentCourse, Seen, Words, percent_text
from deploy.session import Session
from models.read_outs import NOVEL, Order, likely_class, line_direction, order_parameter
from streamer.messages import Latents

if TYPE_CHECKING:
    from models.encoder import Encoder


def read_outs(session: Session, encoder: Encoder | None = None) -> str:
    """Show maps, classes, ways, densities and orders: whatever the session has enough of.

    Parameters
    ----------
    session
        As read.
    encoder
        With the session's last weights, to say where lines run; None where they are not at hand.
    """
    words, course = WORDS[session.kind], session.course
    told = _patterns(session) if course.delivered else ""
    latents = session.latents
    if not course.seen or latents is None or not latents.mean.size:
        return told or nothing(f"No {words.one} was encoded.")
    told += _novelty(course, words)
    lines = _lines(encoder, latents.mean, latents.angle_rad) if words.symmetry == 2 else latents.angle_rad
    turned = msgspec.structs.replace(latents, angle_rad=lines.astype(np.float32))
    told += _titled("Over the field", _field(turned, words))
    for name, seen in session.beside.items():
        told += _titled(f"Over the field, as «{name}» sees it", _field(seen, words) if len(seen.mean) else "")
    told += _titled("Classes", _classes(session, latents, words))
    if words.symmetry == 2:
        told += _titled(f"Order of the {words.many}", _order(session, latents, words, encoder))
    told += _titled("Through time", _through_time(session, words))
    return told


def _titled(title: str, content: str) -> str:
    return f"<h3>{html.escape(title)}</h3>{content}" if content else ""


def _novelty(course: LatentCourse, words: Words) -> str:
    """Say how far the encoder is to be trusted here."""
    windows, novel = (sum(getattr(one, name) for one in course.seen) for name in ("windows", "novel"))
    share = 100 * novel / max(windows, 1)
    verdict = (
        "These weights were hardly trained for such frames: do not trust latents, classes and angles below."
        if share > 20
        else "Where the map of novelty is dark, do not trust them."
        if share > 2
        else "The encoder knows such frames."
    )
    return paragraph(
        f"{words.counted(windows)} in "
        f"{counted(len(course.seen), 'frame')} were encoded with weights {course.model_revision}, "
        f"{percent_text(novel, windows)} of them with a novelty above {NOVEL:g}. {verdict}"
    )


def _field(latents: Latents, words: Words) -> str:
    turns = " Angles are those of lines: half a turn changes nothing." if words.symmetry == 2 else ""
    return picture(
        latent_figures.over_the_field(latents, words),
        f"The {words.counted(len(latents.mean))} of frame {latents.number}. Angles are on the specimen, from "
        f"x towards y, clockwise on the screen; small and grey where the encoder does not know them.{turns}",
    )


def _patterns(session: Session) -> str:
    """Show the patterns that a detector delivered, at the places of the probe."""
    latents = together(session)
    words = WORDS["patterns"]
    share = percent_text(int((latents.novelty > NOVEL).sum()), len(latents.novelty))
    return _titled(
        "Patterns over the scan",
        picture(
            latent_figures.over_the_field(latents, words),
            f"The last {words.counted(len(latents.mean))}, at the places of the probe; {share} have a "
            f"novelty above {NOVEL:g}. The angle is that of the pattern.",
        ),
    )


_ARRAYS = (
    "mean", "sd", "angle_rad", "angle_sd_rad", "offset_nm", "offset_sd_nm",
    "class_probability", "novelty", "confidence", "track", "positions_px", "positions_nm",
)  # fmt: skip


def together(session: Session) -> Latents:
    """Put the batches of patterns together that lie in the raster of the last one."""
    last = session.course.delivered[-1]
    batches = [one for one in session.course.delivered if one.geometry.shape == last.geometry.shape]
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in batches]) for name in _ARRAYS
    }
    return msgspec.structs.replace(last, **joined, position_covariance_nm2=None, gain=None, defocus=None)


def _classes(session: Session, latents: Latents, words: Words) -> str:
    course = session.course
    if not course.classes:
        return nothing(f"This encoder tells no classes of {words.many} apart.")
    class_ = likely_class(latents.class_probability)
    changed = int(course.transitions.sum() - np.trace(course.transitions))
    total = int(course.transitions.sum())
    figure = latent_figures.classes_figure(
        latents, class_, course.seen, course.transitions, course.seen[0].acquired_at_s
    )
    share = f" ({percent_text(changed, total)})" if total else ""
    return picture(
        figure,
        f"Classes as the encoder tells them apart, grey where it cannot. Right: from one frame to the next, "
        f"the same {words.many}, {total:,} pairs, of which {changed:,}{share} changed class; by noise too.",
    )


def _order(session: Session, latents: Latents, words: Words, encoder: Encoder | None) -> str:
    """Show the angles of lines in the last frame, and their order in time."""
    kept = [one for one in session.course.kept if len(one.mean)]
    lines = [_lines(encoder, one.mean, one.angle_rad) for one in kept]
    orders = [order_parameter(one) for one in lines]
    last = _lines(encoder, latents.mean, latents.angle_rad)
    now = order_parameter(last)
    zero = (
        "from x towards y, clockwise on the screen"
        if encoder is not None
        else "counted from the encoder's own zero, for its weights are not at hand"
    )
    told = picture(
        latent_figures.angles_figure(last, lines[0] if len(lines) > 1 else None),
        f"How the angles of {words.many} are spread in frame {latents.number}, {zero}: order parameter "
        f"{now.parameter:.2f}, director {math.degrees(now.director_rad):+.0f}°.",
    )
    if len(kept) < 2:
        return told
    truth = _true_order(session, kept)
    at_s = np.array([one.acquired_at_s for one in kept])
    seen = session.course.seen
    figure = latent_figures.order_figure(at_s, orders, seen, seen[0].acquired_at_s, truth)
    return told + picture(figure, _order_caption(words, orders, truth, has_zero=encoder is not None))


def _order_caption(
    words: Words, orders: list[Order], truth: NDArray[np.float64] | None, *, has_zero: bool
) -> str:
    caption = "The order parameter |⟨exp(2iθ)⟩| and the common angle of each frame."
    if truth is None:
        return caption
    apart = np.array([one.parameter for one in orders]) - truth[:, 0]
    caption += (
        f" The truth is of all {words.many} in the frame; root mean square difference of the order parameter "
        f"{np.sqrt(np.nanmean(apart**2)):.3f}"
    )
    if not has_zero:
        return caption + "."
    turned = 2 * (np.array([one.director_rad for one in orders]) - truth[:, 1])
    turned_deg = np.rad2deg(np.angle(np.exp(1j * turned)) / 2)
    return caption + f", of the director {np.sqrt(np.nanmean(turned_deg**2)):.1f}°."


def _lines(
    encoder: Encoder | None, mean: NDArray[np.float32], angle_rad: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Give the angles of lines: that by which the content is turned, and along which it runs upright."""
    if encoder is None:
        return angle_rad.astype(np.float64)
    # What comes from a journal is read-only, which torch does not take.
    return angle_rad + line_direction(encoder.decode(np.require(mean, requirements="W")))


def _true_order(session: Session, kept: list[Kept]) -> NDArray[np.float64] | None:
    numbers = np.array([one.number for one in kept])
    if session.true_order is None or numbers.max() >= len(session.true_order):
        return None
    truth: NDArray[np.float64] = session.true_order[numbers]
    return truth


def _through_time(session: Session, words: Words) -> str:
    kept = [one for one in session.course.kept if len(one.mean)]
    if len(kept) < 2:
        return nothing("Latents of one frame only: nothing to be seen in time.")
    start_s = session.course.seen[0].acquired_at_s
    told = picture(
        latent_figures.densities_figure(kept, start_s),
        f"Kernel density of the latents of all {words.many} at each time, and their mean (white).",
    )
    told += _averages(session.course.seen)
    tracks = latent_figures.liveliest_tracks(kept)
    if not tracks:
        return told + nothing(f"No {words.one} was followed for long enough to show its way.")
    return told + picture(
        latent_figures.trajectories_figure(kept, tracks, start_s),
        f"The {words.counted(len(tracks))} whose latents wandered most from "
        "the first third of their way to the last, on the density of all (grey). Rings: where they began.",
    )


def _averages(seen: list[Seen]) -> str:
    """Write the ensemble's averages at the beginning and at the end."""
    whole = [one for one in seen if one.windows]
    if len(whole) < 2:
        return ""
    few = max(1, len(whole) // 10)
    rows = []
    for number in range(min(len(whole[0].mean), latent_figures.MOST_MAPS)):
        cells = [f"latent {number + 1}"]
        for part in (whole[:few], whole[-few:]):
            mean = np.mean([one.mean[number] for one in part])
            sd = np.mean([one.sd[number] for one in part])
            cells.append(f"{mean:.3f} ± {sd:.3f}")
        rows.append(cells)
    head = (
        "average ± spread over the windows",
        f"first {counted(few, 'frame')}",
        f"last {counted(few, 'frame')}",
    )
    return table(head, rows)
