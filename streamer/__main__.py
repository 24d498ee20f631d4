"""``python -m streamer``: bind, say where, serve one session, write what came of it."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import structlog
import typer

from streamer import weights
from streamer.calibrations import adopt, keep
from streamer.compiled import start_anew_if_compiled
from streamer.config import StreamerConfig
from streamer.config_file import ConfigError, convert, read_tables
from streamer.envelope import Envelope
from streamer.finalise import finalise
from streamer.hub import Hub
from streamer.journal import Journal
from streamer.keys import ServerKeys
from streamer.log import log_to_stderr
from streamer.pipeline import Pipeline
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router


class LostDisk(OSError):
    """The disk failed in the middle of a session; the text says what is kept and what would do."""


def main(
    session_folder: Annotated[Path, typer.Option(help="Where the session is kept; it may be resumed.")],
    config: Annotated[Path | None, typer.Option(help="TOML file; the table [streamer] is read.")] = None,
    bind: Annotated[str | None, typer.Option(help="Address for instruments and agents.")] = None,
    view_bind: Annotated[str | None, typer.Option(help="Address for viewers.")] = None,
    keys: Annotated[
        str | None, typer.Option(help="Folder of keys; only who is allowed there comes in.")
    ] = None,
    max_measurements: Annotated[int | None, typer.Option(help="Budget; 0 is without limit.")] = None,
) -> None:
    """Take frames, keep them, find the atoms, and pass requests on within the envelope."""
    log_to_stderr()
    try:
        settings = _settings(config, {"bind": bind, "view_bind": view_bind, "keys": keys}, max_measurements)
        server_keys = ServerKeys(settings.hub.keys) if settings.hub.keys else None
        calibrating = settings.pipeline.correct.mode == "calibrate"
        pipeline = Pipeline.build(
            settings.pipeline if calibrating else adopt(settings.pipeline, session_folder),
            weights.adopt(settings.pipeline.encode, session_folder),
        )
        pipeline.warm_up()
        start_anew_if_compiled()
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(_complain(f"configuration: {error}"))
    try:
        reason = serve(settings, pipeline, session_folder, server_keys)
    except LostDisk as error:
        _complain(str(error))
        sys.exit(1)
    except OSError as error:
        sys.exit(_complain(str(error)))
    structlog.get_logger().info("ended", reason=reason, folder=str(session_folder))
    calibration = pipeline.correct.calibration()
    if calibration is not None:
        try:
            kept = keep(calibration, settings.pipeline.correct.calibrations, session_folder)
        except OSError as error:
            sys.exit(_complain(f"the calibration could not be kept: {error}"))
        structlog.get_logger().info("calibrated", frames=calibration.frames, file=str(kept))


def serve(settings: StreamerConfig, pipeline: Pipeline, folder: Path, keys: ServerKeys | None = None) -> str:
    """Serve one session in a folder; return why it ended.

    Raises
    ------
    OSError
        If a port is in use or the folder cannot be written.
    LostDisk
        If the disk fails later.
    """
    telemetry = Telemetry()
    metrics_url = telemetry.serve(settings.telemetry)
    router = Router(settings.hub.bind, keys, max_part_bytes=settings.hub.max_message_mb << 20)
    publisher = Publisher(settings.hub.view_bind, keys)
    journal = Journal(folder, settings.journal)
    hub = Hub(
        session=folder.resolve().name,
        router=router,
        publisher=publisher,
        journal=journal,
        envelope=Envelope(settings.envelope),
        telemetry=telemetry,
        processor=pipeline,
        hub_config=settings.hub,
        experiment=settings.experiment,
        keys=keys,
        shelf=weights.Shelf(folder, pipeline.cards()),
    )
    try:
        state = hub.recover()
        if state is not None:
            pipeline.restore(state)
    except ValueError as error:
        raise OSError(
            f"{folder}: its journal cannot be gone on with: {error}; choose another --session-folder"
        ) from None
    # What lives as long as the process need not be looked through whenever memory is tidied up.
    gc.collect()
    gc.freeze()
    endpoints = {
        "address": router.address,
        "view_address": publisher.address,
        "metrics_url": metrics_url,
        "session": hub.session,
        "pid": os.getpid(),
    }
    _write_json(folder / "endpoints.json", endpoints)
    structlog.get_logger().info("serving", **endpoints)
    try:
        reason = _reason_of_unfinished(hub, folder) or hub.run(_stop_on_signal())
    except OSError as error:
        raise LostDisk(
            f"{folder}: the journal could not be written ({error.strerror or error}), and what is not in it "
            "is not done; what was acked is kept: make room, then go on or make the report"
        ) from error
    finally:
        journal.close()
        router.close()
        publisher.close()
        telemetry.close()
        (folder / "endpoints.json").unlink(missing_ok=True)
    try:
        _write_json(folder / "summary.json", _summary(hub, reason))
        written = [path.name for path in finalise(folder)]
        _write_json(folder / "summary.json", _summary(hub, reason) | {"files": written})
    except OSError as error:
        raise LostDisk(
            f"{folder}: what was acked is in the journal, but the files made from it could not be written "
            f"({error.strerror or error}); make room, then: probeloop report {folder}"
        ) from None
    return reason


def _reason_of_unfinished(hub: Hub, folder: Path) -> str:
    """Say why the session ended, if it did and was cut off while it wrote its files; else nothing."""
    summary = folder / "summary.json"
    is_complete = summary.exists() and "files" in json.loads(summary.read_text(encoding="utf-8"))
    summary.unlink(missing_ok=True)
    return "" if is_complete else hub.progress.ended


def _settings(
    config: Path | None, addresses: dict[str, str | None], max_measurements: int | None
) -> StreamerConfig:
    table = dict(read_tables(config).get("streamer", {}))
    said = {name: address for name, address in addresses.items() if address is not None}
    if said:
        table["hub"] = table.get("hub", {}) | said
    if max_measurements is not None:
        table["experiment"] = table.get("experiment", {}) | {"max_measurements": max_measurements}
    settings = convert(table, StreamerConfig, "streamer")
    structlog.get_logger().info("configuration", **msgspec.to_builtins(settings))
    return settings


def _stop_on_signal() -> Any:
    """Make the question that the hub asks in every turn; SIGINT and SIGTERM answer it."""
    received: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: received.append("stopped by the operator"))
    return lambda: received[0] if received else None


def _summary(hub: Hub, reason: str) -> dict[str, Any]:
    status = msgspec.to_builtins(hub.status())
    best = None if hub.progress.best is None else msgspec.to_builtins(hub.progress.best)
    return {
        "ended": reason,
        "measurements": hub.progress.measured,
        "best_score": best,
        **{name: status[name] for name in status if name not in ("at_s", "state", "suggestions")},
        "counts": dict(sorted(hub.telemetry.tally.items())),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all: whoever waits for the file never reads half of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(_without_nan(content), indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _without_nan(value: Any) -> Any:
    """Replace NaN by None, which JSON can say."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _complain(text: str) -> int:
    print(f"probeloop streamer: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    typer.run(main)
