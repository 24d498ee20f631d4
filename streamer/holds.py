"""Holds: what keeps the beam parked, and why.

While there is any hold the beam is parked and nothing is requested. Those that the streamer sets itself end
when their cause does; those of an operator end with ``resume``. Time is an argument, in seconds of a
clock that never steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from streamer.config import HubConfig
from streamer.peers import Peer

SILENT = "instrument silent"
STUCK = "instrument stuck"
AGENT = "agent silent"
SLOW = "analysis stuck"
MODEL = "model not finite"
DISK = "disk full"

Instruct = Callable[[Literal["park", "go"], str], bool]
Tell = Callable[[Literal["held", "released"], str, str], None]


class Holds:
    """The reasons for which the beam is parked now.

    Parameters
    ----------
    config
        How long silence, frames and analysis may last.
    instruct
        Tells the instrument to park or to go, and why; False where no instrument ever was.
    tell
        Told of each hold that begins or ends, with its reason and a detail, before the beam is.
    show
        Called when that is done.
    """

    def __init__(
        self, config: HubConfig, *, instruct: Instruct, tell: Tell, show: Callable[[], None]
    ) -> None:
        self._config = config
        self._instruct = instruct
        self._tell = tell
        self._show = show
        self._reasons: list[str] = []
        self._is_parked = False
        self._retry_model_s = 0.0

    def __contains__(self, reason: str) -> bool:
        return reason in self._reasons

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._reasons))

    def __len__(self) -> int:
        return len(self._reasons)

    def hold(self, reason: str, detail: str = "") -> None:
        """Park the beam and request nothing, until ``release``."""
        is_new = reason not in self._reasons
        if is_new:
            self._reasons.append(reason)
            self._tell("held", reason, detail)
        if not self._is_parked:
            self.park(reason)
        if is_new:
            self._show()

    def release(self, reason: str) -> None:
        """End a hold; the beam goes on when it was the last one."""
        if reason not in self._reasons:
            return
        self._reasons.remove(reason)
        self._tell("released", reason, "")
        if not self._reasons:
            self.go(f"no more {reason}")
        self._show()

    def set(self, reason: str, is_due: bool) -> None:
        """Hold or release."""
        if is_due:
            self.hold(reason)
        else:
            self.release(reason)

    def park(self, why: str) -> None:
        """Tell the instrument to park, whatever it was told before."""
        if self._instruct("park", why):
            self._is_parked = True

    def go(self, why: str) -> None:
        """Tell the instrument to go on, whatever it was told before."""
        if self._instruct("go", why):
            self._is_parked = False

    # -- causes --------------------------------------------------------------------------------

    def watch_instrument(
        self, instrument: Peer | None, now_s: float, frame_s: float, request_s: float
    ) -> None:
        """Hold while the instrument gives no sign of life, or lives and does nothing.

        Parameters
        ----------
        instrument
            None where there is none.
        now_s
            The time.
        frame_s
            How long a frame takes it; 0 before the first.
        request_s
            How long the longest request takes that is under way.
        """
        if instrument is None or not instrument.hello.beats:  # of one that does not beat silence says nothing
            self.release(SILENT)
            self.release(STUCK)
            return
        self.set(SILENT, instrument.is_silent)
        allowed_s = self._config.silent_after_s + 2 * frame_s + request_s
        is_idle = frame_s > 0 and now_s - instrument.used_s > allowed_s  # how long its frames take is known
        self.set(STUCK, is_idle and not instrument.is_silent)

    def watch_agents(self, agents: Iterable[Peer], now_s: float) -> None:
        """Hold while no agent that beats gives a sign of life; where none is connected all stays as it is."""
        heard_s = [agent.heard_s for agent in agents if agent.hello.beats]
        if heard_s:
            self.set(AGENT, now_s - max(heard_s) > self._config.agent_silent_after_s)

    def watch_analysis(self, busy_s: float) -> None:
        """Hold while one frame keeps the analysis busy for too long."""
        self.set(SLOW, busy_s > self._config.stuck_after_s)

    def doubt_model(self, detail: str, now_s: float) -> None:
        """Hold because the model gave what is no number."""
        self._retry_model_s = now_s + self._config.retry_model_s
        self.hold(MODEL, detail)

    def give_model_a_try(self, now_s: float) -> None:
        """Let frames come from time to time while the model is in doubt.

        A new frame must come before the model can prove itself; nothing is requested meanwhile.
        """
        if MODEL not in self or now_s < self._retry_model_s:
            return
        self._retry_model_s = now_s + self._config.retry_model_s
        if len(self) == 1:
            self.go("one more try")
