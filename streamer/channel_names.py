"""What the name of a channel says of its image."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Recordings call their channels what they like: "ABF", "bf-stem", "004_ABF_movie_21".
_DARK_COLUMNS = re.compile(r"(?<![A-Z])A?BF(?![A-Z])", re.IGNORECASE)


def shows_dark_columns(channel: str) -> bool:
    """Say whether atom columns are darker than what surrounds them: in bright field, annular or not.

    Parameters
    ----------
    channel
        Name of the channel, in which ``BF`` or ``ABF`` is a word of its own.
    """
    return _DARK_COLUMNS.search(channel) is not None


def shows_response(channels: Sequence[str]) -> bool:
    """Say whether the first two channels are amplitude and phase, as of a piezoresponse, in this order.

    Parameters
    ----------
    channels
        Names of a frame's channels; ``amplitude trace`` is one of amplitudes.
    """
    return len(channels) >= 2 and all(
        channel.lower().startswith(name)
        for channel, name in zip(channels, ("amplitude", "phase"), strict=False)
    )


def shows_height(channel: str) -> bool:
    """Say whether a channel is the height of a face.

    Parameters
    ----------
    channel
        Name of the channel, which begins with ``height`` or ``topography``.
    """
    return channel.lower().startswith(("height", "topography"))
