"""What an agent is: one verb that learns, one that answers, one that thinks when nobody waits.

Three more let its process die: what it decided can be recalled, and what it knows kept and restored.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from streamer.messages import Latents, ModelRevision, Outcome, Score, StrainMap, Suggestion

Input = Latents | StrainMap | Outcome | Suggestion  # a Suggestion is a person's
Decision = Suggestion | ModelRevision


class UnknownOutcome(ValueError):
    """An outcome that nobody waits for: its id was never suggested, or has its outcome already."""


class Agent(Protocol):
    """Decides where to measure next. Knows no sockets, clocks or logs.

    The same messages in the same order, with the same seed, give the same suggestions, bit for bit. What
    it suggests follows from what it was told, what it decided before, and how many fits its model has had.
    """

    @property
    def policy(self) -> str:
        """The name that its suggestions carry: ``explorer``, ``strain``, ``raster``, ``random``."""
        ...

    @property
    def stopped(self) -> str:
        """Why it suggests no more: enough was measured; empty while it goes on."""
        ...

    @property
    def last_unreadable(self) -> str:
        """Why the last spectrum gave no score, in words for a person; empty if it gave one."""
        ...

    def tell(self, message: Input, /) -> Score | None:
        """Take in a frame's candidates, a map of the strain, a person's point, or an outcome.

        Returns
        -------
        score
            What the spectrum was worth; None for Latents, a map, and an outcome without a readable spectrum.

        Raises
        ------
        UnknownOutcome
            For an id that is not open; the agent is as it was before.
        """
        ...

    def ask(self) -> Suggestion | None:
        """Answer where to measure next; None when there is nothing to suggest now. Never learns."""
        ...

    def think(self) -> None:
        """Begin to compute, beside the work, the fit that ``refit`` will adopt; call it after answering.

        Only for speed: left out, ``refit`` computes it itself, with the same result.
        """
        ...

    def refit(self) -> ModelRevision | None:
        """Go on with the oldest fit of the model whose time has come; call it after telling. None: none is.

        On which observations a fit is made, and from which on it is used, was decided when the last of them
        was told; so the messages told and the revision fix the state, however long a fit took.
        """
        ...

    def recall(self, decision: Suggestion | ModelRevision, /) -> None:
        """Take in a decision of an earlier process, from the journal, as if it had just been made here.

        The agent must have been told what the earlier one had been told when it decided.
        """
        ...

    def checkpoint(self) -> tuple[bytes, dict[str, NDArray[Any]]]:
        """Say everything that it knows: MessagePack facts, and a few arrays of the wire's dtypes."""
        ...

    def restore(self, facts: bytes, arrays: dict[str, NDArray[Any]], /) -> None:
        """Be as the agent was that said this: what follows is bit-equal.

        Raises
        ------
        ValueError
            If it cannot be used, with the reason; the agent is as it was before.
        """
        ...

    def statistics(self) -> dict[str, int]:
        """Count what happened: suggested, and how each suggestion ended."""
        ...
