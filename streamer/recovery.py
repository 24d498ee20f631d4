"""A restart: what the streamer keeps of itself, and how another one stands where it stood.

The streamer's Checkpoint holds what the session has come to and what the pipeline has learnt. What the
journal has after it is applied again, and the frames that the pipeline does not know are analysed again; to
most of them the journal has an answer already, which the new one must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from streamer.codec import encode, pack, unpack
from streamer.journal import Journal
from streamer.messages import Checkpoint, EncoderInUse, Event, Frame, Latents, Patches
from streamer.pipeline import PipelineState
from streamer.progress import Progress, ProgressState


class StreamerFacts(msgspec.Struct, frozen=True):
    """The numbers of a streamer's checkpoint.

    Attributes
    ----------
    progress
        What the session had come to.
    pipeline_number, pipeline
        Of the state of the pipeline: its last frame, and its facts.
    replay_from
        The record of the first frame that the state of the pipeline does not know.
    """

    progress: ProgressState
    pipeline_number: int
    pipeline: bytes
    replay_from: int


def make_checkpoint(
    session: str, told: int, progress: ProgressState, state: PipelineState, replay_from: int
) -> Checkpoint:
    """Put into one message all that a restart needs, so that it need not read what lies before.

    Parameters
    ----------
    session
        Name of the session.
    told
        Number of the last journal record that is in ``progress``.
    progress, state
        Of the session, and of the pipeline, which may be some frames behind.
    replay_from
        The record of the first frame that ``state`` does not know.
    """
    facts = StreamerFacts(progress, state.number, state.facts, replay_from)
    return Checkpoint(session=session, of="streamer", told=told, facts=pack(facts), arrays=dict(state.arrays))


def facts_of(checkpoint: Checkpoint) -> StreamerFacts:
    """Read the numbers of a streamer's checkpoint.

    Raises
    ------
    ValueError
        If it has no such numbers.
    """
    return unpack(checkpoint.facts, StreamerFacts)


def pipeline_state_of(checkpoint: Checkpoint) -> PipelineState:
    """Give what the pipeline must be restored to."""
    facts = facts_of(checkpoint)
    arrays = dict(checkpoint.arrays)
    return PipelineState(number=facts.pipeline_number, facts=facts.pipeline, arrays=arrays)


@dataclass
class Recovery:
    """What an earlier process of this session left to do.

    Attributes
    ----------
    state
        What the pipeline must be restored to; None for one that is new.
    frames
        Those that this state does not know, in order; batches of patches among them.
    records
        Their records in the journal, by the number of the frame.
    answers
        What the journal has of them, by the number of the frame: latents, or None for a rejected one.
    beside
        What it has of them from other encoders than the main one, by number and name.
    """

    state: PipelineState | None = None
    frames: list[Frame | Patches] = field(default_factory=list)
    records: dict[int, int] = field(default_factory=dict)
    answers: dict[int, Latents | None] = field(default_factory=dict)
    beside: dict[tuple[int, str], Latents] = field(default_factory=dict)

    @property
    def first_unanswered(self) -> int | None:
        """Number of the frame with which the earlier process ended; None if all have their answer."""
        return next((frame.number for frame in self.frames if frame.number not in self.answers), None)

    @property
    def first_number(self) -> int:
        """Number of the first frame that the state of the pipeline does not know."""
        return 0 if self.state is None else self.state.number + 1

    def leave_out(self, number: int) -> None:
        """Analyse a frame no more."""
        self.frames = [frame for frame in self.frames if frame.number != number]
        del self.records[number]


def recover(journal: Journal, progress: Progress) -> Recovery:
    """Bring ``progress`` to where an earlier process of this session stood, and say what it left."""
    found = Recovery()
    first = known = 0
    kept = journal.last_checkpoint("streamer")
    if kept is not None:
        checkpoint = kept.message()
        assert isinstance(checkpoint, Checkpoint)
        facts = facts_of(checkpoint)
        progress.restore(facts.progress)
        found.state = pipeline_state_of(checkpoint)
        first, known = facts.replay_from, kept.number
    last_number = -1 if found.state is None else found.state.number
    for record in journal.records_from(first):
        numbered = record.numbered()
        if record.number > known:
            progress.apply(record.number, numbered)
        match numbered.message:
            case Frame() | Patches() as frame if frame.number > last_number:
                found.frames.append(frame)
                found.records[frame.number] = record.number
            case Latents(is_beside=True) as latents if latents.number > last_number:
                found.beside[latents.number, latents.encoder] = latents
            case Latents() as latents if latents.number > last_number:
                found.answers[latents.number] = latents
            case Event(what="frame rejected") as event if event.number > last_number:
                found.answers[event.number] = None
            case _:
                pass
    return found


def latest_before(changes: Sequence[EncoderInUse], number: int) -> list[EncoderInUse]:
    """Leave out the changes of encoders that others followed before a frame."""
    newest = {change.encoder: change for change in changes if change.number <= number}
    return [change for change in changes if change.number > number or newest[change.encoder] is change]


def is_same_answer(before: Latents | None, again: Latents | None) -> bool:
    """Compare what came of a frame before and after a restart; None: it was rejected.

    All arrays are compared, bit for bit: positions, latents and what corrected them.
    """
    if before is None or again is None:
        return before is again
    return encode(again)[1:] == encode(before)[1:]
