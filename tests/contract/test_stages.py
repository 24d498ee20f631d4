"""What every stage promises; a new one is tested by being listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from models.encoder import Encoder
from simulators.stem import StemConfig, StemInstrument
from streamer.codec import decode, encode
from streamer.messages import Atoms, Checkpoint, Frame, Latents, Message, Patches, ScanGeometry
from streamer.pipeline import Pipeline, PipelineConfig, PipelineState
from streamer.stage import Rejected, Stage, drive
from streamer.stages.check_frame import CheckFrame
from streamer.stages.correct_distortion import CorrectDistortion
from streamer.stages.cut_windows import CutWindows
from streamer.stages.encode import Encode
from streamer.stages.find_atoms import FindAtoms
from streamer.stages.link_atoms import LinkAtoms

PIXEL_NM = 0.0125
ROWS, COLS = 120, 144


def lattice_frame(number: int = 0, shift_px: float = 0.0) -> Frame:
    """Graphene-like columns through seeded shot noise."""
    rng = np.random.default_rng(21 + number)
    row, col = np.arange(ROWS)[:, None], np.arange(COLS)[None, :]
    image = np.full((ROWS, COLS), 3.0)
    for line in range(-2, 12):
        for place in range(-2, 14):
            y, x = 12 * line + 5, 14 * place + 7 * (line % 2) + shift_px
            height = 250 if (line, place) == (5, 5) else 60
            image += height * np.exp(-((row - y) ** 2 + (col - x) ** 2) / (2 * 3.2**2))
    return Frame(
        session="s",
        number=number,
        acquired_at_s=50.0 + number,
        image=rng.poisson(image).astype(np.float32)[None],
        channels=("HAADF",),
        geometry=ScanGeometry(shape=(ROWS, COLS), field_of_view_nm=(COLS * PIXEL_NM, ROWS * PIXEL_NM)),
        dwell_time_us=1.0,
    )


class Book:
    """A meter that keeps what it is told."""

    def __init__(self) -> None:
        self.took: list[str] = []
        self.rejected: list[tuple[str, str]] = []

    def stage_took(self, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.took.append(stage)

    def stage_rejected(self, stage: str, reason: str) -> None:
        self.rejected.append((stage, reason))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(None)


STAGES: dict[str, Callable[[Encoder], Stage[Any, Any]]] = {
    "check": lambda encoder: CheckFrame(),
    "correct": lambda encoder: CorrectDistortion(),
    "find": lambda encoder: FindAtoms(),
    "windows": lambda encoder: CutWindows(encoder.card.window_nm, encoder.card.window_px),
    "encode": Encode,
    "link": lambda encoder: LinkAtoms(),
}


def items_before(name: str, encoder: Encoder) -> list[Message]:
    """Two successive items as the stage of this name receives them."""
    items: list[Message] = [lattice_frame(0), lattice_frame(1, 0.7)]
    for earlier, make in STAGES.items():
        if earlier == name:
            break
        stage = make(encoder)
        items = [stage.process(item) for item in items]
    return items


def arrays(message: Any) -> dict[str, np.ndarray]:
    """Every array of a message, those of the frame inside it too."""
    found: dict[str, np.ndarray] = {}
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, Frame):
            found |= {f"{name}.{inner}": array for inner, array in arrays(value).items()}
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_named_by_its_verb(name: str, encoder: Encoder) -> None:
    assert STAGES[name](encoder).name == name


@pytest.mark.parametrize("name", STAGES)
def test_the_same_items_make_the_same_results_bit_for_bit(name: str, encoder: Encoder) -> None:
    items = items_before(name, encoder)
    one, other = STAGES[name](encoder), STAGES[name](encoder)
    for item in items:
        first, second = arrays(one.process(item)), arrays(other.process(item))
        assert first.keys() == second.keys()
        for field in first:
            np.testing.assert_array_equal(first[field], second[field], err_msg=field)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_works_on_what_cannot_be_written_to(name: str, encoder: Encoder) -> None:
    """The wire hands out read-only arrays: a stage that changed its item would raise here."""
    stage = STAGES[name](encoder)
    for item in items_before(name, encoder):
        kept = {field: array.copy() for field, array in arrays(item).items()}
        for array in arrays(item).values():
            array.setflags(write=False)
        stage.process(item)
        for field, array in arrays(item).items():
            np.testing.assert_array_equal(array, kept[field], err_msg=field)


@pytest.mark.parametrize("name", STAGES)
def test_session_number_and_time_go_through(name: str, encoder: Encoder) -> None:
    stage = STAGES[name](encoder)
    for item in items_before(name, encoder):
        result = stage.process(item)
        source = getattr(item, "frame", item)
        target = getattr(result, "frame", result)
        assert (target.session, target.number) == (source.session, source.number)
        assert target.acquired_at_s == source.acquired_at_s


@pytest.mark.parametrize("name", STAGES)
def test_results_are_finite(name: str, encoder: Encoder) -> None:
    stage = STAGES[name](encoder)
    for item in items_before(name, encoder):
        for field, array in arrays(stage.process(item)).items():
            assert np.isfinite(array).all(), field


def test_correction_keeps_shape_pixel_size_channels_and_unit(encoder: Encoder) -> None:
    stage = CorrectDistortion()
    for item in items_before("correct", encoder):
        assert isinstance(item, Frame)
        corrected = stage.process(item)
        assert corrected.image.shape == item.image.shape
        assert corrected.image.dtype == np.float32
        assert corrected.geometry.pixel_size_nm == item.geometry.pixel_size_nm
        assert corrected.channels == item.channels
        assert corrected.image.mean() == pytest.approx(item.image.mean(), rel=0.01)


def test_every_atom_stays_in_its_row_from_finding_to_latents(encoder: Encoder) -> None:
    atoms, _ = items_before("windows", encoder)
    patches, _ = items_before("encode", encoder)
    latents, _ = items_before("link", encoder)
    assert isinstance(atoms, Atoms)
    assert isinstance(patches, Patches)
    assert isinstance(latents, Latents)
    found = {tuple(place) for place in atoms.positions_px.tolist()}
    assert 0 < len(patches.windows) < len(atoms.positions_px)
    assert {tuple(place) for place in patches.positions_px.tolist()} <= found
    np.testing.assert_array_equal(latents.positions_px, patches.positions_px)
    np.testing.assert_allclose(
        latents.positions_nm, atoms.frame.geometry.to_nm(latents.positions_px), atol=1e-5
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_never_gets_past_the_first_stage(value: float, encoder: Encoder) -> None:
    image = lattice_frame().image.copy()
    image[0, 30, 40] = value
    book = Book()
    bad = msgspec.structs.replace(lattice_frame(), image=image)
    assert Pipeline(PipelineConfig(), encoder).process(bad, book) is None
    assert book.took == ["check"]
    assert book.rejected == [("check", "not finite")]


def test_a_rejection_is_counted_under_its_stage_and_reason() -> None:
    book = Book()
    blank = lattice_frame()
    blank = msgspec.structs.replace(blank, image=np.ones_like(blank.image))
    assert drive(CheckFrame(), blank, book) is None
    assert book.rejected == [("check", "constant")]
    with pytest.raises(Rejected):
        CheckFrame().process(blank)


def test_the_pipeline_drives_every_stage_once_and_keeps_their_results(encoder: Encoder) -> None:
    book = Book()
    pipeline = Pipeline(PipelineConfig(), encoder)
    processed = pipeline.process(lattice_frame(), book)
    assert processed is not None
    assert book.took == list(STAGES)
    assert not book.rejected
    assert processed.atoms.frame is processed.corrected
    assert (processed.latents.track >= 0).all()


def test_a_rejected_frame_leaves_no_trace_in_those_that_follow(encoder: Encoder) -> None:
    spoilt, untouched = Pipeline(PipelineConfig(), encoder), Pipeline(PipelineConfig(), encoder)
    blank = msgspec.structs.replace(lattice_frame(1), image=np.ones_like(lattice_frame().image))
    for pipeline in (spoilt, untouched):
        pipeline.process(lattice_frame(0), Book())
    assert spoilt.process(blank, Book()) is None
    after = [pipeline.process(lattice_frame(2, 0.7), Book()) for pipeline in (spoilt, untouched)]
    assert after[0] is not None
    assert after[1] is not None
    np.testing.assert_array_equal(after[0].latents.mean, after[1].latents.mean)
    np.testing.assert_array_equal(after[0].latents.track, after[1].latents.track)


def test_a_sub_scan_is_encoded_but_not_linked(encoder: Encoder) -> None:
    pipeline = Pipeline(PipelineConfig(), encoder)
    first = pipeline.process(lattice_frame(0), Book())
    sub_scan = msgspec.structs.replace(lattice_frame(1), request_id="r-1")
    answer = pipeline.process(sub_scan, Book())
    last = pipeline.process(lattice_frame(2), Book())
    assert first is not None
    assert answer is not None
    assert last is not None
    assert (answer.latents.track == -1).all()
    assert len(answer.latents.mean) > 0
    assert np.isin(last.latents.track, first.latents.track).mean() > 0.95


def debris(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Atoms in no order, as bright as those of a lattice."""
    image = np.zeros(shape)
    image[0].flat[rng.choice(image[0].size, 700, replace=False)] = 6000.0
    image[0] = gaussian_filter(image[0], 4.0) + 13.0
    return rng.poisson(image).astype(np.float32)


def night(count: int = 22) -> list[Frame]:
    """Frames with all that may happen to them; seed 71 and 72.

    Drift, a sub-scan (9), a blanked beam (4, 13), debris in which the reference is lost (15), nothing but
    noise (11), another field of view (18).
    """
    config = StemConfig(seed=71, rows=256, cols=256, field_of_view_nm=4.0)
    instrument = StemInstrument(config, started_at_s=1000.0)
    rng = np.random.default_rng(72)
    frames = []
    for number in range(count):
        frame = msgspec.structs.replace(instrument.acquire(), number=number)
        if number in (4, 13):
            frame = msgspec.structs.replace(frame, image=np.ones_like(frame.image))
        if number == 9:
            frame = msgspec.structs.replace(frame, request_id="r-9")
        if number == 11:
            frame = msgspec.structs.replace(frame, image=rng.poisson(20, frame.image.shape).astype("f4"))
        if number == 15:
            frame = msgspec.structs.replace(frame, image=debris(frame.image.shape, rng))
        if number >= 18:
            wide = msgspec.structs.replace(frame.geometry, field_of_view_nm=(3.9, 4.0))
            frame = msgspec.structs.replace(frame, geometry=wide)
        frames.append(frame)
    return frames


def results(pipeline: Pipeline, frames: list[Frame]) -> list[list[bytes] | None]:
    """Every latent of every frame, bit for bit as it goes over the wire."""
    done = [pipeline.process(frame, Book()) for frame in frames]
    return [None if one is None else [bytes(part) for part in encode(one.latents)] for one in done]


def test_a_restored_pipeline_goes_on_bit_for_bit_from_any_frame(encoder: Encoder) -> None:
    frames = night()
    uninterrupted = Pipeline(PipelineConfig(), encoder)
    expected, states = [], [uninterrupted.state()]
    for frame in frames:
        expected += results(uninterrupted, [frame])
        states.append(uninterrupted.state())
    assert [number for number, result in enumerate(expected) if result is None] == [4, 11, 13]
    # Lost in the debris, which then is no reference for what follows; another field.
    assert uninterrupted.correct.state()[0].revision == 3
    for number, state in enumerate(states):
        heir = Pipeline(PipelineConfig(), encoder)
        heir.restore(over_the_wire(state))
        assert heir.state().number == number - 1
        assert results(heir, frames[number : number + 4]) == expected[number : number + 4]


def over_the_wire(state: PipelineState) -> PipelineState:
    """Write a state as a checkpoint and read it back."""
    checkpoint = Checkpoint(session="s", of="streamer", told=1, facts=state.facts, arrays=state.arrays)
    kept = decode([bytes(part) for part in encode(checkpoint)])
    assert isinstance(kept, Checkpoint)
    return PipelineState(number=state.number, facts=kept.facts, arrays=kept.arrays)


@pytest.mark.parametrize("spoil", ["version", "bytes", "array"])
def test_a_state_of_another_version_is_refused_and_changes_nothing(spoil: str, encoder: Encoder) -> None:
    pipeline, other = Pipeline(PipelineConfig(), encoder), Pipeline(PipelineConfig(), encoder)
    frames = [lattice_frame(number) for number in range(3)]
    results(pipeline, frames[:2])
    results(other, frames[:1])
    state = other.state()
    facts, arrays = msgspec.msgpack.decode(state.facts), dict(state.arrays)
    if spoil == "array":
        del arrays["link.track"]
    facts["version"] += spoil == "version"
    bad = b"?" if spoil == "bytes" else msgspec.msgpack.encode(facts)
    with pytest.raises(ValueError, match=r"the pipeline's state .*; start without it"):
        pipeline.restore(PipelineState(number=0, facts=bad, arrays=arrays))
    untouched = Pipeline(PipelineConfig(), encoder)
    assert results(pipeline, frames[2:]) == results(untouched, frames)[2:]
