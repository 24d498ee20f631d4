"""What a session has come to: a fold over its journal.

Whatever the hub does it writes to the journal first and then applies here; a restarted hub applies
the same records and stands where the first one stood. So the state after a crash needs no code of its own.
"""

from __future__ import annotations

import math
from collections import Counter

import msgspec

from streamer.codec import Numbered
from streamer.envelope import MOST_IDS, Envelope, EnvelopeState, forget_oldest
from streamer.messages import (
    AnyMessage,
    Bye,
    Checkpoint,
    Command,
    Control,
    EncoderInUse,
    Event,
    Frame,
    Hello,
    Latents,
    ModelRevision,
    Outcome,
    PairNm,
    Patches,
    Request,
    Score,
    StrainMap,
    Suggestion,
)
from streamer.oversight import BY_A_PERSON, Oversight
from streamer.separation import Separation, is_of_separation

INSTRUMENT = "instrument"
ENCODER_REFUSED = "encoder refused"
# Processes that are remembered, of all that ever connected.
MOST_INSTANCES = 1_000
# What an agent must be told of what an earlier process of its name did.
_DECISIONS = (Suggestion, ModelRevision, Score)


class Row(msgspec.Struct):
    """The messages for one peer, which are records of the journal.

    Attributes
    ----------
    instance
        The process that receives it now.
    start
        Record with which the row of this process begins.
    joined
        Record of its Hello, which is in the row as the streamer's Welcome. Those before it are
        history: there the decisions of earlier processes are in the row too.
    last
        The last record of the row.
    checkpoint, told
        Record of the newest Checkpoint of this agent, and the last record that is in it; 0 before the
        first.
    first
        Record at which the first process of this name joined.
    """

    instance: str
    start: int
    joined: int
    last: int
    checkpoint: int
    told: int
    first: int


class ProgressState(msgspec.Struct, frozen=True):
    """Everything in a Progress; see ``Progress.state``."""

    next_number: int
    measured: int
    best: Score | None
    positions: dict[str, PairNm]
    owners: dict[str, str]
    unscored: list[str]
    received: dict[str, int]
    instances: dict[str, str]
    rows: dict[str, Row]
    operator_hold: str
    ended: str
    ending: str
    tried: tuple[int, int]
    tally: dict[str, int]
    separation: Separation
    envelope: EnvelopeState
    encoders: list[EncoderInUse] = []
    wanted: list[Control] = []
    oversight: Oversight = Oversight()
    steered_at: int = 0


class Progress:
    """Where a session stands.

    Parameters
    ----------
    envelope
        Holds the doses, the requests under way and the registration.

    Attributes
    ----------
    next_number
        Of the frame to come.
    measured
        Outcomes that count against the budget.
    best
        The best Score; None before the first.
    positions
        Specimen position ``(x, y)`` of each request by id, in the present registration.
    owners
        Who suggested each id: the name of a row.
    unscored
        Ids whose Score is still to come.
    received
        Sequence through which the messages of each instance are in the journal.
    instances
        Whose process each instance is: the name of a row.
    rows
        The messages for each peer, by its name.
    operator_hold
        Why a person has the loop paused; empty while it is not.
    ended, ending
        Why the session ended, and why it was asked to end; empty while it has not, or was not.
    tried
        The frame with which the analysis last began after a restart, and how often it did.
    tally
        Counts that a restart must not lose.
    separation
        How far the four scans are that tell strain from distortion.
    encoders
        Weights that were put in the place of others, in order.
    wanted
        Requests for weights that have neither been put in place nor refused.
    oversight
        Who decides, and what waits for a person.
    steered_at
        Record with which a person last changed what the agent looks for; 0 while nobody has.
    """

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.next_number = 0
        self.measured = 0
        self.best: Score | None = None
        self.positions: dict[str, PairNm] = {}
        self.owners: dict[str, str] = {}
        self.unscored: set[str] = set()
        self.received: dict[str, int] = {}
        self.instances: dict[str, str] = {}
        self.rows: dict[str, Row] = {}
        self.operator_hold = ""
        self.ended = ""
        self.ending = ""
        self.tried = (-1, 0)
        self.tally: Counter[str] = Counter()
        self.separation = Separation()
        self.encoders: list[EncoderInUse] = []
        self.wanted: list[Control] = []
        self.oversight = Oversight()
        self.steered_at = 0

    def state(self) -> ProgressState:
        """Give all of it, to go on from."""
        return ProgressState(
            next_number=self.next_number,
            measured=self.measured,
            best=self.best,
            positions=dict(self.positions),
            owners=dict(self.owners),
            unscored=sorted(self.unscored),
            received=dict(self.received),
            instances=dict(self.instances),
            rows={name: msgspec.structs.replace(row) for name, row in self.rows.items()},
            operator_hold=self.operator_hold,
            ended=self.ended,
            ending=self.ending,
            tried=self.tried,
            tally=dict(self.tally),
            separation=self.separation,
            envelope=self.envelope.state(),
            encoders=list(self.encoders),
            wanted=list(self.wanted),
            oversight=self.oversight,
            steered_at=self.steered_at,
        )

    def restore(self, state: ProgressState) -> None:
        """Go on from what another Progress had come to."""
        self.next_number = state.next_number
        self.measured = state.measured
        self.best = state.best
        self.positions = dict(state.positions)
        self.owners = dict(state.owners)
        self.unscored = set(state.unscored)
        self.received = dict(state.received)
        self.instances = dict(state.instances)
        self.rows = {name: msgspec.structs.replace(row) for name, row in state.rows.items()}
        self.operator_hold = state.operator_hold
        self.ended = state.ended
        self.ending = state.ending
        self.tried = state.tried
        self.tally = Counter(state.tally)
        self.separation = state.separation
        self.encoders = list(state.encoders)
        self.wanted = list(state.wanted)
        self.oversight = state.oversight
        self.steered_at = state.steered_at
        self.envelope.restore(state.envelope)

    # -- learn ---------------------------------------------------------------------------------

    def apply(self, record: int, numbered: Numbered, owner: str = "", now_s: float | None = None) -> None:
        """Take in one record of the journal.

        Parameters
        ----------
        record
            Its number.
        numbered
            The message and whose it is.
        owner
            Name of the row of whoever sent it, where no instance tells.
        now_s
            Monotonic clock, for the rate of requests; None for a record of an earlier process.
        """
        sender = numbered.sender
        if sender and numbered.sequence:
            self.received[sender] = max(self.received.get(sender, 0), numbered.sequence)
            forget_oldest(self.received, MOST_INSTANCES)
        owner = self.instances.get(sender, owner or sender)
        if isinstance(numbered.message, Control | Suggestion | Request | Outcome | StrainMap):
            self.separation = self.separation.apply(numbered.message)
        if isinstance(numbered.message, Control | EncoderInUse | Suggestion | Request | Outcome):
            self.oversight = self.oversight.apply(numbered.message)
        match numbered.message:
            case Frame() as frame:
                self.envelope.observe_frame(frame, self._next(frame.number))
            case Patches() as patches:
                self.envelope.observe_patches(patches, self._next(patches.number))
            case Latents() as latents:
                if latents.request_id is None and not latents.is_delivered:
                    self._move_positions(self.envelope.observe_registration(latents.registration))
                self.tally["published"] += not latents.is_beside
            case Hello() as hello:
                self._join(record, hello)
            case Suggestion() as suggestion:
                self.envelope.note(suggestion.id)
                self.owners[suggestion.id] = owner
                forget_oldest(self.owners, MOST_IDS)
            case Request() as request:
                self.envelope.grant(request, now_s)
                self.positions[request.id] = request.position_nm
                forget_oldest(self.positions, MOST_IDS)
                self.tally["suggestions granted"] += 1
            case Outcome() as outcome:
                self._settle(outcome)
            case Score() as score:
                self._score(score)
            case Control() as control:
                self._control(record, control)
            case EncoderInUse() as change:
                self.encoders.append(change)
                del self.wanted[:1]  # they are tried in the order in which they were asked for
            case Bye() as bye if owner == INSTRUMENT:
                self.ending = bye.reason or "the instrument left"
            case Checkpoint() as checkpoint if owner in self.rows:
                if checkpoint.of != "streamer":
                    self.rows[owner].checkpoint, self.rows[owner].told = record, checkpoint.told
            case Event() as event:
                self._note_event(event)
            case _:
                pass
        for name in self.recipients(numbered.message):
            self.rows[name].last = record

    def _next(self, number: int) -> int:
        """Count a frame, or a batch of patches; say how many numbers are empty before it."""
        missed = max(0, number - self.next_number)
        self.tally["missed"] += missed
        self.next_number = max(self.next_number, number + 1)
        self.tally["received"] += 1
        return missed

    def _move_positions(self, moved_nm: PairNm) -> None:
        """Let positions of requests speak of the present registration; NaN once the specimen was lost."""
        dx, dy = moved_nm
        if dx or dy:
            self.positions = {name: (x + dx, y + dy) for name, (x, y) in self.positions.items()}

    def place_of(self, identifier: str) -> PairNm | None:
        """Say where something suggested lies in the present registration; None where it is not known."""
        waiting = self.oversight.find(identifier)
        if waiting is None:
            place = self.positions.get(identifier, (math.nan, math.nan))
            return place if all(map(math.isfinite, place)) else None
        is_present = waiting.registration_revision == self.envelope.registration.revision
        return waiting.position_nm if is_present else None

    def _join(self, record: int, hello: Hello) -> None:
        """Begin the row of a process; an agent that comes back under its name is given its history."""
        name = row_name(hello)
        before = self.rows.get(name)
        if before is not None and before.instance == hello.instance and hello.instance:
            return
        if hello.instance:
            self.instances[hello.instance] = name
            forget_oldest(self.instances, MOST_INSTANCES)
        row = Row(hello.instance, record, record, record, 0, 0, record)
        if hello.role == "agent" and hello.instance and before is not None:
            start = before.told + 1 if before.checkpoint else before.first
            row = msgspec.structs.replace(
                before, instance=hello.instance, start=start, joined=record, last=record
            )
        self.rows[name] = row

    def _settle(self, outcome: Outcome) -> None:
        if outcome.id not in self.envelope.pending:
            self.tally["suggestions refused"] += outcome.status == "refused"
            return
        self.envelope.release(outcome)
        if is_of_separation(outcome.id):  # asked for by nobody, and no measurement
            return
        self.tally[f"outcomes {outcome.status}"] += 1
        if outcome.status in ("ok", "failed", "aborted"):
            self.measured += 1
        if outcome.status == "ok":
            self.unscored.add(outcome.id)

    def _score(self, score: Score) -> None:
        self.unscored.discard(score.id)
        if score.goal == "neither":
            return
        sign = 1.0 if score.goal == "maximise" else -1.0
        if self.best is None or sign * score.value > sign * self.best.value:
            self.best = score

    def _control(self, record: int, control: Control) -> None:
        match control.action:
            case "pause":
                self.operator_hold = "paused by the operator"
            case "abort":
                self.operator_hold = "aborted by the operator"
            case "resume":
                self.operator_hold = ""
            case "stop":
                self.ending = "stopped by the operator"
            case "encoder":
                self.wanted.append(control)
            case "steer":
                self.steered_at = record
                if {"goal", "objective"} & set(control.settings):
                    self.best = None  # of what is not looked for any more
            case "veto":
                known = self.place_of(control.id)
                corners_nm = control.corners_nm or (() if known is None else (known,))
                if corners_nm:
                    self.envelope.veto(corners_nm, control.radius_nm)
            case "place" if control.shift_nm is not None:
                self.envelope.forbidden.place(control.shift_nm, control.radius_nm)
            case "forget":
                self.envelope.forbidden.forget()

    def _note_event(self, event: Event) -> None:
        """Count the frames that are in the journal only as an event; note the end."""
        if event.what.startswith("session_"):
            if self.ended:  # it is gone on with
                self.ending = ""
            self.ended = event.detail if event.what == "session_ended" else ""
        if event.what == "analysis begun":
            times = self.tried[1] if event.number == self.tried[0] else 0
            self.tried = (event.number, times + 1)
        elif event.what == ENCODER_REFUSED:
            del self.wanted[:1]
        elif event.what == "frame refused":
            self.tally["received"] += 1
            self.tally["rejected"] += 1
        elif event.what == "frame rejected":
            self.tally["rejected"] += 1
        elif event.what == "frame dropped":
            self.tally["dropped"] += 1

    # -- answer --------------------------------------------------------------------------------

    def recipients(self, message: AnyMessage) -> list[str]:
        """Name the rows that a record belongs to, history apart."""
        match message:
            case Request() | Command():
                names = [INSTRUMENT]
            case Latents() | StrainMap():
                names = self._agents()
            case Control(action="steer"):
                names = self._agents()
            case Suggestion(policy=policy) if policy == BY_A_PERSON:
                names = self._agents()
            case Outcome():
                owner = self.owners.get(message.id, "")
                # What a person measures teaches the agents, too.
                names = [owner, *(self._agents() if owner.startswith("operator ") else ())]
            case _:
                names = []
        return [name for name in names if name in self.rows]

    def _agents(self) -> list[str]:
        return [name for name in self.rows if name.startswith("agent ")]

    def is_for(self, name: str, record: int, numbered: Numbered) -> bool:
        """Say whether a record of the journal is in the row of this name."""
        row = self.rows[name]
        message = numbered.message
        if record < row.start:
            return False
        if record == row.joined or name in self.recipients(message):
            return True
        if record > row.joined:
            return False
        if isinstance(message, Checkpoint):
            return record == row.checkpoint
        # What it decided before its checkpoint is in the checkpoint.
        is_own = self.instances.get(numbered.sender) == name and record > row.checkpoint
        return is_own and isinstance(message, _DECISIONS)


def row_name(hello: Hello) -> str:
    """Name the row of a peer: there is one instrument, and one agent of a name."""
    return INSTRUMENT if hello.role == "instrument" else f"{hello.role} {hello.name}"
