"""Recordings: what a run got from the outside, and when, so that it can be repeated exactly.

A recorded run is a deterministic one whose virtual time follows the host's clock and whose outside is real. What makes it different
from any other run with the same seed is then this: how far the clock was moved, what came in (input, keys), and what disks returned.
The file has one JSON object per line: a header with the configuration, events in order, and an end. Events let in between two turns
carry the number of that place (`at`) and, to notice a replay that goes astray, the count of retired instructions (`n`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from trapline.devices.virtio.block import SECTOR, Image
from trapline.errors import BadInput, TraplineError
from trapline.turns import Turns
from trapline.vmm.deterministic import Inbox
from trapline.vmm.machine import Config

FORMAT = 1
SLACK_NS = 1_000_000
"""How far the virtual clock may fall behind the host's before it is moved."""
FILES = ("kernel", "initrd", "firmware")
SETTINGS = ("params", "cpus", "cpu", "memory", "machine", "el2", "virtio_console", "pci_testdev", "reboot")
"""What of a configuration a recording keeps as it is."""


class Diverged(TraplineError):
    """A replay did not do what the recording says. The files, or Trapline itself, are not those of the recording."""


@dataclass(frozen=True, slots=True)
class Header:
    """Everything a replay starts from. Files are named with a digest of their contents."""

    format: int
    seed: int
    epoch: float
    settings: dict[str, Any]
    files: dict[str, list[str]]
    disks: list[list[int]]
    """Sectors of each, and whether it is read-only."""

    def config(self) -> Config:
        """The configuration to run again; BadInput if a file has changed."""
        paths: dict[str, Any] = {}
        for name, (path, digest) in self.files.items():
            paths[name] = Path(path)
            if file_digest(paths[name]) != digest:
                raise BadInput(f"{path}: this is not the {name} that the recording was made with")
        return Config(**paths, **self.settings)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error


def header_for(config: Config, disks: Sequence[Image], seed: int) -> Header:
    """What a recording of this configuration starts with."""
    named = {name: path for name in FILES if (path := getattr(config, name)) is not None}
    return Header(
        FORMAT,
        seed,
        time.time(),
        {name: getattr(config, name) for name in SETTINGS},
        {name: [str(path.resolve()), file_digest(path)] for name, path in named.items()},
        [[disk.sectors, int(disk.read_only)] for disk in disks],
    )


def pack(data: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(zlib.compress(data, 1)).decode()


def unpack(text: str) -> bytes:
    """The inverse of `pack`."""
    return zlib.decompress(base64.b64decode(text))


# ---- recording -------------------------------------------------------------------------------------------------------------------


class Recorder(Inbox):
    """The outside of a recorded run: the host's clock and whatever is posted, written down."""

    def __init__(self, turns: Turns, file: IO[str], header: Header) -> None:
        super().__init__(turns)
        self.file = file
        self.place = 0
        self.started = 0
        """When the first turn began, by the host's monotonic clock."""
        turns.epoch = header.epoch
        self._put(asdict(header))

    def _put(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def _event(self, **what: Any) -> None:
        self._put({"at": self.place, "n": self.turns.retired, **what})

    def real_now(self) -> int:
        """Nanoseconds of the host's since the run began."""
        return time.monotonic_ns() - self.started

    def between_turns(self) -> None:
        """Keep up with the host's clock and deliver what was posted."""
        self.place += 1
        self.started = self.started or time.monotonic_ns()
        real = self.real_now()
        if real - self.turns.now > SLACK_NS:
            self.turns.advance_to(real)
            self._event(time=real)
        super().between_turns()

    def deliver_posted(self, kind: str, data: bytes) -> None:
        """Write down what comes in."""
        self._event(post=kind, data=data.decode("latin-1"))
        super().deliver_posted(kind, data)

    def idle(self, until: int | None) -> None:
        """Sleep in the host's time, until something is due or posted."""
        self.place += 1
        if until is None:
            super().idle(None)
        else:
            self.wait(max(0, until - self.real_now()) / 1e9)
        real = self.real_now()
        if until is not None and (not self.posted or real > until):
            real = max(real, until)  # a wait may end a little early
        self.turns.advance_to(real)
        self._event(time=self.turns.now)

    def disk_read(self, disk: int, data: bytes | None) -> None:
        """Write down what a disk returned; None for an error."""
        self._put({"disk": disk, "data": None if data is None else pack(data)})

    def end(self, natural: bool, state: str) -> None:
        """The last line: whether the guest ended by itself, and a hash of its state to compare a replay with."""
        self._event(end=natural, state=state)


class RecordedImage(Image):
    """A disk image whose reads are written down."""

    recorder: Recorder | None = None
    number = 0

    def transfer(self, parts: list[memoryview], offset: int, write: bool) -> None:
        """As of any image."""
        assert self.recorder is not None
        kept = list(parts)
        try:
            super().transfer(list(parts), offset, write)
        except OSError:
            self.recorder.disk_read(self.number, None)
            raise
        if not write:
            self.recorder.disk_read(self.number, b"".join(kept))


# ---- replaying -------------------------------------------------------------------------------------------------------------------


class Replayer(Inbox):
    """The outside of a repeated run: nothing but what the recording holds."""

    def __init__(self, turns: Turns, events: deque[dict[str, Any]]) -> None:
        super().__init__(turns)
        self.events = events
        self.place = 0

    def _due(self) -> bool:
        at = self.events[0].get("at", self.place + 1) if self.events else self.place + 1
        if at < self.place:
            raise Diverged(f"the replay goes on after {self.turns.retired} instructions, unlike the recording")
        return bool(at == self.place)

    def _next(self) -> dict[str, Any]:
        event = self.events.popleft()
        if event["n"] != self.turns.retired:
            raise Diverged(f"the replay has retired {self.turns.retired} instructions where the recording had {event['n']}")
        return event

    def between_turns(self) -> None:
        """Repeat what happened at this place."""
        self.place += 1
        self.check_time()
        while self._due() and "end" not in self.events[0]:
            event = self._next()
            if "time" in event:
                self.turns.advance_to(event["time"])
            else:
                self.posted.append((event["post"], event["data"].encode("latin-1")))
        while self.posted:
            self.deliver(*self.posted.popleft())
        if not self.events:
            self.deliver("quit", b"")

    def idle(self, until: int | None) -> None:
        """Let the time pass that passed then."""
        self.place += 1
        if not self.events:
            self.deliver("quit", b"")
            return
        if not self._due() or "time" not in self.events[0]:
            raise Diverged(f"every CPU sleeps after {self.turns.retired} instructions, which is not in the recording")
        self.turns.advance_to(self._next()["time"])

    def disk_read(self, disk: int) -> bytes | None:
        """What a disk returned then."""
        if not self.events or self.events[0].get("disk") != disk:
            raise Diverged(f"the guest reads disk {disk} after {self.turns.retired} instructions, which is not in the recording")
        data = self.events.popleft()["data"]
        return None if data is None else unpack(data)


class ReplayedImage(Image):
    """A disk whose reads come from a recording; what is written goes nowhere."""

    def __init__(self, number: int, sectors: int, read_only: bool) -> None:
        self.path = Path(f"disk {number}")
        self.number, self.sectors, self.read_only = number, sectors, read_only
        self.replayer: Replayer | None = None

    def close(self) -> None:
        """There is no file."""

    def transfer(self, parts: list[memoryview], offset: int, write: bool) -> None:
        """Give what was read then."""
        assert self.replayer is not None
        if write and not self._failed_then():
            return
        data = self.replayer.disk_read(self.number)
        if data is None:
            raise OSError("as in the recording")
        if len(data) != sum(map(len, parts)):
            raise Diverged(f"the guest reads {sum(map(len, parts)) // SECTOR} sectors where it read {len(data) // SECTOR}")
        for part in parts:
            part[:], data = data[: len(part)], data[len(part) :]

    def _failed_then(self) -> bool:
        assert self.replayer is not None
        events = self.replayer.events
        return bool(events) and events[0].get("disk") == self.number and events[0]["data"] is None

    def flush(self) -> None:
        """Nothing was written."""


def load(path: Path) -> tuple[Header, deque[dict[str, Any]]]:
    """Read a recording. One that was cut off lacks its end, and is complete as far as it goes."""
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or 'not a recording'}") from error
    try:
        header = Header(**json.loads(lines[0]))
        if header.format != FORMAT:
            raise BadInput(f"{path}: this version of Trapline cannot replay format {header.format}")
        return header, deque(json.loads(line) for line in lines[1:-1])
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path}: not a recording") from error
