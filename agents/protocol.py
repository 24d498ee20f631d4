"""What an agent is: one verb that learns, one that answers, one that thinks when nobody waits."""

from __future__ import annotations

from typing import Protocol

from streamer.messages import Latents, Outcome, Score, Suggestion


class UnknownOutcome(ValueError):
    """An outcome that nobody waits for: its id was never suggested, or has its outcome already."""


class Agent(Protocol):
    """Decides where to measure next. Knows no sockets, clocks or logs.

    The same messages in the same order, with the same seed, give the same suggestions, bit for bit.
    """

    @property
    def policy(self) -> str:
        """The name that its suggestions carry: ``explorer``, ``raster``, ``random``."""
        ...

    def tell(self, message: Latents | Outcome, /) -> Score | None:
        """Take in a frame's candidates or the outcome of a suggestion.

        Returns
        -------
        score
            What the spectrum was worth; None for Latents and for an outcome without a readable spectrum.

        Raises
        ------
        UnknownOutcome
            For an id that is not open; the agent is as it was before.
        """
        ...

    def ask(self) -> Suggestion | None:
        """Answer where to measure next; None when there is nothing to suggest now. Never learns."""
        ...

    def refit(self) -> bool:
        """Think at length, where that is due; call it after answering. False: nothing was due."""
        ...

    def statistics(self) -> dict[str, int]:
        """Count what happened: suggested, and how each suggestion ended."""
        ...
