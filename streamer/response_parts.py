"""Amplitude and phase of a response as its real and imaginary part, which alone can be resampled.

Halfway between the phases 3.1 and -3.1 lies π and not 0; and the amplitude between two domains is that of the
sum of what they answer, not the mean of their amplitudes.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from streamer.channel_names import shows_response
from streamer.messages import Frame

_FULL_TURN = 2 * math.pi * 1.01  # in radians, with room for rounding
_REAL, _IMAGINARY = "real part of", "imaginary part of"


def in_parts(frame: Frame) -> Frame:
    """Give a frame of a piezoresponse with real and imaginary part, in the place of the phase and at the end.

    The amplitude stays where it was, in the first channel: it is what frames are registered by. A phase that
    spans more than a full turn of radians is in degrees, as many instruments write it. Other frames are given
    back as they are.
    """
    if not shows_response(frame.channels):
        return frame
    amplitude, phase = frame.image[:2]
    if float(np.ptp(phase)) > _FULL_TURN:
        phase = np.deg2rad(phase)
    real, imaginary = amplitude * np.cos(phase), amplitude * np.sin(phase)
    name = frame.channels[1]
    return msgspec.structs.replace(
        frame,
        image=np.concatenate([frame.image[:1], real[None], frame.image[2:], imaginary[None]]),
        channels=(frame.channels[0], f"{_REAL} {name}", *frame.channels[2:], f"{_IMAGINARY} {name}"),
    )


def as_read(frame: Frame) -> Frame:
    """Give back amplitude and phase of a frame that was given in parts; others as they are."""
    if len(frame.channels) < 3 or not frame.channels[1].startswith(_REAL):
        return frame
    real, imaginary = frame.image[1], frame.image[-1]
    read = np.stack([np.hypot(real, imaginary), np.arctan2(imaginary, real)])
    name = frame.channels[1].removeprefix(f"{_REAL} ")
    return msgspec.structs.replace(
        frame,
        image=np.concatenate([read, frame.image[2:-1]]),
        channels=(frame.channels[0], name, *frame.channels[2:-1]),
    )
