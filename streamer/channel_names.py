"""What the name of a channel says of its image."""

from __future__ import annotations

import re

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
