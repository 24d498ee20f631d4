"""Who decides: the agent alone, the agent with a person's word on each suggestion, or the person alone."""

from __future__ import annotations

import math

import msgspec

from streamer.messages import Control, EncoderInUse, Mode, Outcome, Request, Suggestion
from streamer.separation import is_of_separation

Said = Control | EncoderInUse | Outcome | Request | Suggestion
# Policy of the suggestions that a person makes: they wait for nobody.
BY_A_PERSON = "operator"
NOT_WAITING = "not waiting: no suggestion of this id waits; see the live view"


class Oversight(msgspec.Struct, frozen=True):
    """What waits for a person, and what that person can have seen; a fold over the journal.

    Attributes
    ----------
    mode
        As in ``Control``.
    revision
        Counts the changes of how it is decided: the mode, what the agent looks for, the weights.
    waiting
        Suggestions that the envelope lets through and a person has not decided on, oldest first.
    """

    mode: Mode = "auto"
    revision: int = 0
    waiting: tuple[Suggestion, ...] = ()

    def apply(self, message: Said) -> Oversight:
        """Take in a record of the journal."""
        match message:
            case Control(action="mode", mode=mode) if mode is not None:
                return msgspec.structs.replace(self, mode=mode, revision=self.revision + 1)
            case Control(action="steer") | EncoderInUse():
                return msgspec.structs.replace(self, revision=self.revision + 1)
            case Suggestion() if self.holds_back(message):
                return msgspec.structs.replace(self, waiting=(*self.waiting, message))
            case Request(id=identifier) | Outcome(id=identifier):
                rest = tuple(one for one in self.waiting if one.id != identifier)
                return self if len(rest) == len(self.waiting) else msgspec.structs.replace(self, waiting=rest)
            case _:
                return self

    def holds_back(self, suggestion: Suggestion) -> bool:
        """Say whether a suggestion that the envelope lets through is not measured at once."""
        is_agents = suggestion.policy != BY_A_PERSON and not is_of_separation(suggestion.id)
        return self.mode != "auto" and is_agents

    def find(self, identifier: str) -> Suggestion | None:
        """Give the suggestion of this id that waits; None if none does."""
        return next((one for one in self.waiting if one.id == identifier), None)

    def why_not(self, control: Control) -> str:
        """Say why a decision does not hold; empty if it does."""
        if 0 <= control.seen != self.revision:
            return (
                f"seen too early: you saw revision {control.seen} of how it is decided and it is now "
                f"{self.revision}; look again"
            )
        if control.action not in ("approve", "decline"):
            return ""
        if self.find(control.id) is None:
            return NOT_WAITING
        if control.action == "approve" and self.mode == "advise":
            return "only advice: nothing the agent suggests is measured in this mode; set the mode 'confirm'"
        return ""

    def in_words(self) -> dict[str, str]:
        """Say of each suggestion that waits what is known of it, by its id."""
        return {one.id: _in_words(one) for one in self.waiting}


def _in_words(suggestion: Suggestion) -> str:
    x_nm, y_nm = suggestion.position_nm
    words = [f"({x_nm:.2f}, {y_nm:.2f}) nm, {suggestion.dwell_time_us * 1e-3:g} ms"]
    if math.isfinite(suggestion.predicted_mean):
        words.append(f"expected {suggestion.predicted_mean:.3g} ± {suggestion.predicted_sd:.2g}")
    if suggestion.reason:
        words.append(suggestion.reason)
    return ": ".join((words[0], ", ".join(words[1:]))) if words[1:] else words[0]
