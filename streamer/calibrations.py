"""Calibrations of the scan in the folder of a session: what it begins with, and what it leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streamer.pipeline import PipelineConfig

if TYPE_CHECKING:  # torch takes seconds to import
    from models.calibration import Calibration

FOLDER = "calibrations"


def adopt(config: PipelineConfig, session_folder: Path) -> PipelineConfig:
    """Copy the calibrations that the configuration names into the session, and take them from there.

    So a session that is gone on with, or decided again, corrects by the same ones whatever was calibrated
    since. What lies in the session already stays.

    Raises
    ------
    ValueError
        If the configuration names a folder that is none, or a calibration in it is damaged.
    OSError
        If they cannot be copied.
    """
    if not config.correct.calibrations:
        return config
    from models.calibration import read

    source, own = Path(config.correct.calibrations), session_folder / FOLDER
    if not own.exists():
        if not source.is_dir():
            raise ValueError(
                f"correct.calibrations is {str(source)!r}, where there is no folder; a session with "
                "correct.mode = 'calibrate' makes one"
            )
        part = own.with_name(f"{FOLDER}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for path in sorted(source.glob("*.safetensors")):
            read(path)
            shutil.copy2(path, part)
        part.replace(own)
    return of_session(config, session_folder)


def of_session(config: PipelineConfig, session_folder: Path) -> PipelineConfig:
    """Take calibrations from the session, if it has adopted any."""
    own = session_folder / FOLDER
    if not config.correct.calibrations or not own.is_dir():
        return config
    correct = msgspec.structs.replace(config.correct, calibrations=str(own))
    return msgspec.structs.replace(config, correct=correct)


def keep(calibration: Calibration, named: str, session_folder: Path) -> Path:
    """Write what a session calibrated to the folder that its configuration names, or into the session.

    Returns
    -------
    path
        Of the file.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    from models.calibration import save

    return save(Path(named) if named else session_folder / FOLDER, calibration)
