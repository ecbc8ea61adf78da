"""Logs of KVM calls: a header, then an event a line, in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from trapline.backends.base import Backend
from trapline.backends.record.difference import Difference
from trapline.backends.record.events import Event, arch_of
from trapline.backends.record.recorder import Recorder
from trapline.backends.record.replayer import PATIENCE, Replayer
from trapline.errors import BadInput

FORMAT, VERSION = "ioctls of trapline", 1


class Log:
    """Writes events to a file, one whole line at a time."""

    def __init__(self, file: TextIO, backend: Backend, cpu: str = "") -> None:
        self._file = file
        self._lock = Lock()
        self.write(
            {
                "format": FORMAT,
                "version": VERSION,
                "backend": backend.name,
                "arch": arch_of(backend),
                "cpu": cpu,
                "seed": backend.turns.seed if backend.turns is not None else None,
            }
        )

    def write(self, event: Event) -> None:
        """Add an event."""
        line = json.dumps(event, separators=(",", ":")) + "\n"
        with self._lock:
            self._file.write(line)


def recorded(backend: Backend, file: TextIO, cpu: str = "", *, state: bool = False) -> Recorder:
    """The backend, with a log of its calls."""
    return Recorder(backend, Log(file, backend, cpu).write, state=state)


def read_log(path: Path) -> tuple[dict[str, Any], Iterator[Event]]:
    """A log's header, and its events as they are read. BadInput for a file that is no log, or one of another version."""
    try:
        lines = path.open(encoding="ascii")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    header = _parse(path, 1, lines.readline())
    if header.get("format") != FORMAT:
        lines.close()
        raise BadInput(f"{path} is no log of KVM calls")
    if header.get("version") != VERSION:
        lines.close()
        raise BadInput(f"{path} has version {header.get('version')} of the format; this is for version {VERSION}")

    def events() -> Iterator[Event]:
        with lines:
            for number, line in enumerate(lines, 2):
                yield _parse(path, number, line)

    return header, events()


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, UnicodeError):
        event = None
    if not isinstance(event, dict):
        raise BadInput(f"{path}, line {number}: not a line of such a log (was its writer killed?)")
    return event


def replay(
    header: dict[str, Any], events: Iterator[Event], backend: Backend, patience: float = PATIENCE, memory: bool = True
) -> Iterator[Difference | None]:
    """Make the calls of a log again on a backend: for each whether it went otherwise. Close the generator to end it early."""
    names = (f"{header['backend']} (log)", backend.name)
    replayer = Replayer(backend, header["arch"], names, patience=patience, memory=memory)
    try:
        for event in events:
            difference = replayer.step(event)
            if "call" in event:
                yield difference
    finally:
        replayer.close()
