"""What the envelope's review of one suggestion costs, early and late in a night.

Visits are to be kept apart in time and space, areas are forbidden, and some requests are under way: all
that a review looks through. CPU time of one thread, medians of the first and of the last hundred.

``--json`` prints one object on the last line; ``--quick`` makes a tenth of the visits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import deque
from pathlib import Path

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import msgspec
import numpy as np

from streamer.codec import pack
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.messages import Frame, Outcome, PairNm, Request, ScanGeometry, Suggestion

FIELD_NM = 100.0
AREAS = 200
UNDER_WAY = 12
COUNTED = 100
STEP_NM = 0.75  # of one visit to the next: further than they keep each other away


def a_hook(index: int) -> tuple[PairNm, ...]:
    """Draw a ring that is almost closed: all of them lie around every place in the middle of the field."""
    angles, radius_nm = np.linspace(0.2, 2 * math.pi - 0.2, 12), 60.0 + 0.5 * index
    out = [(radius_nm * math.cos(a), radius_nm * math.sin(a)) for a in angles]
    back = [((radius_nm + 0.3) * math.cos(a), (radius_nm + 0.3) * math.sin(a)) for a in angles[::-1]]
    return (*out, *back)


def an_envelope(distance_nm: float) -> Envelope:
    """Make one in which nothing that is visited may be visited again in this session."""
    config = EnvelopeConfig(
        max_rate_per_s=1e9,
        max_dose_e=1e30,
        max_dose_e_per_cell=1e30,
        min_revisit_s=1e6,
        revisit_distance_nm=distance_nm,
        forbidden_areas_nm=tuple(a_hook(index) for index in range(AREAS)),
    )
    made = Envelope(config)
    made.observe_frame(
        Frame(
            session="s",
            number=0,
            acquired_at_s=1000.0,
            image=np.zeros((1, 64, 64), np.float32),
            channels=("HAADF",),
            geometry=ScanGeometry(shape=(64, 64), field_of_view_nm=(FIELD_NM, FIELD_NM)),
            dwell_time_us=1.0,
        )
    )
    return made


def a_suggestion(number: int, position_nm: PairNm, *, is_scan: bool) -> Suggestion:
    """Make the next one, a spectrum or a turned sub-scan of 0.2 nm."""
    point = Suggestion(
        session="s",
        number=0,
        acquired_at_s=1000.0,
        id=str(number),
        position_nm=position_nm,
        dwell_time_us=10.0,
        policy="benchmark",
    )
    if not is_scan:
        return point
    return msgspec.structs.replace(
        point, action="scan", field_of_view_nm=(0.2, 0.2), shape=(8, 8), rotation_rad=0.3
    )


def of_a_night(visits: int, *, distance_nm: float = 0.4, is_scan: bool = False) -> dict[str, float]:
    """Visit so many places one after the other; give what the reviews took, and what a checkpoint weighs."""
    envelope, side = an_envelope(distance_nm), math.ceil(math.sqrt(visits))
    took_us: list[float] = []
    under_way: deque[Request] = deque()
    for number in range(visits):
        row, col = divmod(number, side)
        place = ((col - side / 2) * STEP_NM, (row - side / 2) * STEP_NM)
        suggestion = a_suggestion(number, place, is_scan=is_scan)
        begun_ns = time.thread_time_ns()
        request = envelope.review(suggestion, 0.0)
        took_us.append((time.thread_time_ns() - begun_ns) / 1e3)
        envelope.grant(request, 0.0)
        under_way.append(request)
        if len(under_way) > UNDER_WAY:
            done = under_way.popleft()
            where = done.scan_position_nm
            outcome = Outcome(session="s", id=done.id, status="ok", scan_position_nm=where, ended_at_s=1001.0)
            envelope.release(envelope.settle(outcome))
    return {
        "first_us": float(np.median(took_us[UNDER_WAY : UNDER_WAY + COUNTED])),
        "last_us": float(np.median(took_us[-COUNTED:])),
        "state_mb": len(pack(envelope.state())) / 1e6,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="1,000 visits instead of 10,000")
    chosen = parser.parse_args()
    visits = 1_000 if chosen.quick else 10_000
    spectra, scans = of_a_night(visits), of_a_night(visits, is_scan=True)
    figures = {f"spectrum_{name}": value for name, value in spectra.items()}
    figures |= {f"scan_{name}": value for name, value in scans.items()}
    if not chosen.json:
        for name, value in figures.items():
            print(f"{name:20} {value:.3g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
