"""What becomes of suggestions: refused, held back for a person, asked for, withdrawn; and what of them came.

Everything that happens is written by the hub; here it is decided. What is asked for goes to the instrument as
a Request, everything else back to who suggested it as an Outcome.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from streamer.admission import refuse_out_of_season
from streamer.codec import Numbered, Parts
from streamer.config import ExperimentConfig
from streamer.envelope import RefusedError
from streamer.holds import DISK, Holds
from streamer.messages import Control, Frame, Outcome, Request, Suggestion
from streamer.oversight import BY_A_PERSON
from streamer.peers import Peer
from streamer.progress import Progress
from streamer.separation import is_of_separation, next_scan
from streamer.telemetry import Telemetry

# So many of the last ones are told to viewers.
SAID = 8
# A frame that nobody decided on while so many others came is not waited for any more.
MOST_UNDECIDED = 256


class Record(Protocol):
    """Writes to the journal, applies, and sends to whom it concerns; gives the number of the record."""

    def __call__(
        self, numbered: Numbered, parts: Parts | None = None, owner: str = "", now_s: float | None = None
    ) -> int: ...


class Tell(Protocol):
    """Notes an event for the journal and the operator; maybe of a frame."""

    def __call__(self, what: str, detail: str, number: int = -1) -> None: ...


class Suggestions:
    """Decides on every suggestion, with the envelope and the state of the session.

    Parameters
    ----------
    session
        Name of the session.
    progress, telemetry, holds, experiment
        Where it stands, what is counted, what keeps the beam parked, and how much may be measured.
    record, event, show
        The hub's: to write down, to tell a person, and to publish the Status.
    ends
        Says why the session ends; None while it does not.
    has_instrument
        Says whether one is connected.
    """

    def __init__(
        self,
        session: str,
        *,
        progress: Progress,
        telemetry: Telemetry,
        holds: Holds,
        experiment: ExperimentConfig,
        record: Record,
        event: Tell,
        show: Callable[[], None],
        ends: Callable[[], str | None],
        has_instrument: Callable[[], bool],
    ) -> None:
        self._session = session
        self._progress = progress
        self._envelope = progress.envelope
        self._telemetry = telemetry
        self._holds = holds
        self._experiment = experiment
        self._record = record
        self._event = event
        self._show = show
        self._ends = ends
        self._has_instrument = has_instrument
        self._undecided_s: dict[int, float] = {}
        self._said: deque[str] = deque(maxlen=SAID)
        self._owed: dict[str, Outcome] = {}  # answers that the disk did not take yet
        self._log = structlog.get_logger()

    @property
    def said(self) -> tuple[str, ...]:
        """The last ones in words, newest first."""
        return tuple(self._said)

    def is_owed(self, identifier: str) -> bool:
        """Say whether one that seems to wait has its answer, and only the disk has not taken it."""
        return identifier in self._owed

    # -- verdicts ------------------------------------------------------------------------------

    def take(self, known: Peer, numbered: Numbered, parts: Parts) -> str:
        """Grant or refuse a suggestion; returns why it is no suggestion at all, else nothing."""
        suggestion = numbered.message
        assert isinstance(suggestion, Suggestion)
        age_s = self._age_of(suggestion)
        now_s = time.monotonic()
        if is_of_separation(suggestion.id):
            self._telemetry.suggestion_came("reserved id", age_s)
            return f"reserved id: {suggestion.id} belongs to the streamer's own scans"
        if suggestion.policy == BY_A_PERSON and known.hello.role != "operator":
            self._telemetry.suggestion_came("not its part", age_s)
            return f"not its part: the policy {BY_A_PERSON} is a person's"
        if suggestion.id in self._progress.owners:
            self._telemetry.suggestion_came("duplicate id", age_s)
            return f"duplicate id: {suggestion.id} was suggested before"
        verdict = self.review(suggestion, now_s)
        self._record(numbered, parts, known.name, now_s)
        if isinstance(verdict, RefusedError) or not self._progress.oversight.holds_back(suggestion):
            self.carry_out(suggestion, verdict, now_s, age_s)
            return ""
        self._telemetry.suggestion_came("waiting", age_s)
        self._say(suggestion, "waits for you" if self._progress.oversight.mode == "confirm" else "advice")
        self._show()
        return ""

    def review(
        self, suggestion: Suggestion, now_s: float, *, has_waited: bool = False
    ) -> Request | RefusedError:
        """Say what the instrument is to be asked for, or why nothing; nothing is done yet."""
        try:
            self._refuse_out_of_season(suggestion, has_waited=has_waited)
            return self._envelope.review(suggestion, now_s, has_waited=has_waited)
        except RefusedError as refusal:
            return refusal

    def carry_out(
        self, suggestion: Suggestion, verdict: Request | RefusedError, now_s: float, age_s: float | None
    ) -> None:
        """Ask the instrument for what was suggested, or tell who suggested it why not."""
        if isinstance(verdict, RefusedError):
            self._refuse(suggestion, verdict, age_s)
            return
        self._record(Numbered(verdict), now_s=now_s)
        self._telemetry.suggestion_came("granted", age_s)
        self._say(suggestion, "granted")

    def _refuse(self, suggestion: Suggestion, refusal: RefusedError, age_s: float | None) -> None:
        self._telemetry.suggestion_came(refusal.reason, age_s)
        self._say(suggestion, f"refused, {refusal.reason}")
        outcome = Outcome(
            session=self._session,
            id=suggestion.id,
            status="refused",
            reason=str(refusal),
            action=suggestion.action,
        )
        self._answer(outcome)

    def _refuse_out_of_season(self, suggestion: Suggestion, *, has_waited: bool) -> None:
        budget, oversight = self._experiment.max_measurements, self._progress.oversight
        waits = not has_waited and oversight.holds_back(suggestion)
        refuse_out_of_season(
            suggestion,
            session=self._session,
            ends=self._ends(),
            holds=tuple(self._holds),
            has_instrument=self._has_instrument(),
            is_budget_spent=0 < budget <= self._progress.measured + len(self._envelope.pending),
            steered_at=self._progress.steered_at,
            do_enough_wait=waits and len(oversight.waiting) >= self._envelope.config.max_pending,
        )

    def wait_for(self, number: int, arrived_s: float) -> None:
        """Take note of a frame that is to be decided on, and when it came."""
        self._undecided_s[number] = arrived_s
        for old in [one for one in self._undecided_s if one < number - MOST_UNDECIDED]:
            del self._undecided_s[old]

    def _age_of(self, suggestion: Suggestion) -> float | None:
        """Age of the frame decided on, for the first suggestion on it."""
        arrived_s = self._undecided_s.pop(suggestion.number, None)
        return None if arrived_s is None else time.monotonic() - arrived_s

    def _say(self, suggestion: Suggestion, verdict: str) -> None:
        x, y = suggestion.position_nm
        self._said.appendleft(f"{suggestion.id} ({x:.2f}, {y:.2f}) nm, {verdict}: {suggestion.reason}")

    # -- without a measurement --------------------------------------------------------------------

    def withdraw_waiting(self, reason: str) -> None:
        """Give back to the agent what nobody will decide on any more."""
        for suggestion in self._progress.oversight.waiting:
            outcome = Outcome(session=self._session, id=suggestion.id, status="withdrawn", reason=reason)
            self._answer(outcome)

    def skip_pending(self, reason: str) -> None:
        """Give back what is under way and will not be done, and what waits."""
        for identifier in list(self._envelope.pending):
            outcome = Outcome(session=self._session, id=identifier, status="skipped", reason=reason)
            self._settle(Numbered(outcome))
        self.withdraw_waiting(reason)

    def _answer(self, outcome: Outcome) -> None:
        """Tell an agent that nothing is measured; later, where the disk does not take it now.

        What a person decided meanwhile is done all the same: nothing is lost but the agent's time.
        """
        if outcome.id in self._owed:
            return
        try:
            self._record(Numbered(outcome))
        except OSError as error:
            self._log.warning("answer not kept yet", id=outcome.id, reason=error.strerror)
            self._owed[outcome.id] = outcome

    def give_owed(self) -> None:
        """Give the answers for which the disk had no room; a disk that fails for good ends us elsewhere."""
        if DISK in self._holds:
            return
        for outcome in list(self._owed.values()):
            try:
                self._record(Numbered(outcome))
            except OSError:
                return
            del self._owed[outcome.id]

    # -- what came of them -------------------------------------------------------------------------

    def take_outcome(self, numbered: Numbered) -> str:
        """Take in what came of a request; returns why it is no outcome of this session, else nothing."""
        outcome = numbered.message
        assert isinstance(outcome, Outcome)
        if outcome.session != self._session:
            return f"wrong session: {outcome.session}"
        return self._settle(numbered)

    def _settle(self, numbered: Numbered) -> str:
        """Record what came of a request, with where it was on the specimen."""
        assert isinstance(numbered.message, Outcome)
        try:
            settled = self._envelope.settle(numbered.message)
        except RefusedError as refusal:
            return str(refusal)
        self._telemetry.outcome_came(settled.status)
        was_on = self._progress.separation.is_on
        self._record(msgspec.structs.replace(numbered, message=settled))
        if was_on and not self._progress.separation.is_on:
            self._event("separation ended", self._progress.separation.ended or "all scans were made")
        return ""

    # -- the scans that tell strain from distortion --------------------------------------------------

    def separate(self, frame: Frame) -> None:
        """Ask for the scan that is due of those that tell strain from distortion."""
        if not self.is_separating or self._ends() is not None:
            return
        if self._progress.separation.round == 0:
            self._record(Numbered(Control(action="separate", reason="as configured")))
        if not self._progress.separation.next_id or self._holds or not self._has_instrument():
            return
        suggestion = next_scan(
            self._progress.separation,
            session=self._session,
            number=frame.number,
            acquired_at_s=frame.acquired_at_s,
            dwell_time_us=frame.dwell_time_us,
            geometry=frame.geometry,
            registration=self._envelope.registration,
            clock_s=self._envelope.clock_s,
        )
        now_s = time.monotonic()
        try:
            request = self._envelope.review(suggestion, now_s)
        except RefusedError as refusal:
            self._record(Numbered(suggestion), now_s=now_s)
            self._refuse(suggestion, refusal, None)
            self._event("separation ended", str(refusal), frame.number)
            return
        self._record(Numbered(suggestion), now_s=now_s)
        self._say(suggestion, "granted")
        self._record(Numbered(request), now_s=now_s)

    @property
    def is_separating(self) -> bool:
        """Is strain told from distortion in this session?"""
        distortion = self._envelope.registration.distortion
        return distortion is not None and distortion.mode == "separate"
