"""What the state of a session lets in: which frame is due, and when suggestions are heard at all.

What the instrument and the specimen bear is another question, for the envelope.
"""

from __future__ import annotations

from collections.abc import Collection

from streamer.envelope import RefusedError
from streamer.messages import Frame, Patches, Suggestion

# Refusals that follow from the state of the session, not from a limit of the envelope.
OUT_OF_SEASON = ("session ends", "held", "no instrument", "budget", "wrong session", "steered", "waiting")
# Refused by a person, whom no replay can ask again.
DECLINED = "declined"


def why_not_frame(
    frame: Frame | Patches,
    *,
    session: str,
    expected: int,
    is_from_instrument: bool,
    ahead: int,
    window: int,
    pending: Collection[str],
    known: Collection[str] = (),
) -> tuple[str, str] | None:
    """Say why a frame is not taken and what would do; None if it is.

    Parameters
    ----------
    frame
        As it came; or a batch of patches, which takes a number as a frame does.
    session, expected
        Name of the session, and the number of the frame to come.
    is_from_instrument
        Whether its sender is the instrument of the session.
    ahead, window
        How many frames its sender has sent ahead of their acks, and how many it may.
    pending
        Ids of the requests under way.
    known
        Ids of all requests: the patches of a sub-scan may come after its outcome.
    """
    if not is_from_instrument:
        return "hello first", "an instrument says Hello before its first frame"
    if frame.session != session:
        return "wrong session", f"this is {session}; take the name from Welcome"
    if frame.number < expected:
        return "out of order", f"the next number is {expected}; numbers rise and are never reused"
    if ahead >= window:
        return "window full", f"at most {window} frames go ahead of their acks; wait for one"
    asked = known if isinstance(frame, Patches) else pending
    if frame.request_id is not None and frame.request_id not in asked:
        return "unknown id", f"no request {frame.request_id} is under way"
    return None


def refuse_out_of_season(
    suggestion: Suggestion,
    *,
    session: str,
    ends: str | None,
    holds: Collection[str],
    has_instrument: bool,
    is_budget_spent: bool,
    steered_at: int = 0,
    do_enough_wait: bool = False,
) -> None:
    """Refuse what no limit forbids, but the state of the session does.

    Parameters
    ----------
    suggestion
        As it came.
    session
        Name of the session.
    ends
        Why the session ends; None while it does not.
    holds
        What keeps the beam parked.
    has_instrument
        Whether one is connected.
    is_budget_spent
        Whether every measurement of the budget is made or under way.
    steered_at
        Record with which a person last changed what is looked for; 0 for none.
    do_enough_wait
        Whether a person has as many suggestions to decide on as may be under way.

    Raises
    ------
    RefusedError
        With one of ``OUT_OF_SEASON``.
    """
    if ends is not None:
        raise RefusedError("session ends", ends)
    if holds:
        raise RefusedError("held", ", ".join(holds))
    if not has_instrument:
        raise RefusedError("no instrument", "none is connected")
    if is_budget_spent:
        raise RefusedError("budget", "every measurement of the budget is made or under way")
    if suggestion.session != session:
        raise RefusedError("wrong session", suggestion.session)
    if 0 < suggestion.told < steered_at:
        raise RefusedError("steered", "decided before a person changed what is looked for")
    if do_enough_wait:
        raise RefusedError("waiting", "a person has enough suggestions to decide on")
