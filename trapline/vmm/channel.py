"""How two processes talk about a machine that moves from one to the other: frames with checksums over a socket."""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, Final, Self

from trapline.errors import BadInput, BadSnapshot, TraplineError

HEADER: Final = Struct("<4sIQ")
"""Kind, CRC-32 of the contents, their length."""
LONGEST: Final = 1 << 30
PATIENCE_SECONDS: Final = 30
"""How long the other side may say nothing."""


class Lost(TraplineError):
    """The other side is gone, or reports a failure."""


class Channel:
    """One end of a connection. All methods raise Lost when the other end is gone, BadSnapshot for what does not arrive as it was sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(PATIENCE_SECONDS)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def send(self, kind: bytes, *parts: bytes | memoryview) -> None:
        """Send a frame whose contents are these parts."""
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        try:
            self.connection.sendall(HEADER.pack(kind, checksum, sum(map(len, parts))))
            for part in parts:
                self.connection.sendall(part)
        except OSError as error:
            self._report(error)

    def send_document(self, kind: bytes, document: dict[str, Any]) -> None:
        """Send a frame of JSON."""
        self.send(kind, json.dumps(document, separators=(",", ":")).encode("ascii"))

    def receive(self, *kinds: bytes) -> tuple[bytes, bytearray]:
        """The next frame, which has to be of one of these kinds. Lost if it is a report of failure."""
        kind, checksum, length = HEADER.unpack(self._exactly(HEADER.size))
        if length > LONGEST:
            raise BadSnapshot(f"the other side sends a frame of {length} bytes: it is no Trapline, or speaks another version's language")
        contents = self._exactly(length)
        if zlib.crc32(contents) != checksum:
            raise BadSnapshot(f"a frame {kind!r} of {length} bytes was damaged on its way: its checksum does not match")
        if kind == b"FAIL":
            raise Lost(f"the other side says: {contents.decode(errors='replace')}")
        if kind not in kinds:
            raise BadSnapshot(f"the other side sends {kind!r} where {b' or '.join(kinds)!r} is due")
        return kind, contents

    def receive_document(self, kind: bytes) -> dict[str, Any]:
        """The next frame, of JSON."""
        return parse(self.receive(kind)[1])

    def fail(self, why: str) -> None:
        """Tell the other side that nothing will come of it."""
        with suppress(TraplineError):
            self.send(b"FAIL", why.encode())

    def _exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        view, at = memoryview(data), 0
        while at < length:
            try:
                count = self.connection.recv_into(view[at:])
            except OSError as error:
                self._report(error)
            if not count:
                raise Lost("the other side has closed the connection")
            at += count
        return data

    @staticmethod
    def _report(error: OSError) -> None:
        raise Lost(f"the connection broke: {error.strerror or error}") from error


def parse(data: bytes | bytearray) -> dict[str, Any]:
    """JSON from the other side; BadSnapshot if it is none."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise BadSnapshot("the other side sends a description that is no JSON") from error
    if not isinstance(document, dict):
        raise BadSnapshot("the other side sends a description that is none")
    return document


# ---- addresses, as QEMU writes them -------------------------------------------------------------------------------------------------


def connect(address: str) -> Channel:
    """Call whoever waits at `tcp:HOST:PORT` or `unix:PATH`."""

    def call(made: socket.socket, place: Any) -> None:
        made.settimeout(PATIENCE_SECONDS)
        made.connect(place)

    return Channel(_open(address, call))


def listen(address: str) -> socket.socket:
    """Wait for a call there. A unix socket that is left from an earlier run is replaced."""

    def wait(made: socket.socket, place: Any) -> None:
        if made.family == socket.AF_UNIX:
            _remove_stale(Path(place))
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        if made.family == socket.AF_UNIX:
            os.chmod(place, 0o600)
        made.listen(1)

    return _open(address, wait)


def _open(address: str, use: Callable[[socket.socket, Any], None]) -> socket.socket:
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    if kind == "unix" and rest:
        places: list[tuple[int, Any]] = [(socket.AF_UNIX, rest)]
    elif kind == "tcp" and port.isdecimal():
        try:
            found = socket.getaddrinfo(host.strip("[]") or "localhost", int(port), type=socket.SOCK_STREAM)
        except (OSError, OverflowError) as error:
            raise BadInput(f"{address}: {error}") from error
        places = [(family, place) for family, _, _, _, place in found]
    else:
        raise BadInput(f"{address!r} is no address: give tcp:HOST:PORT or unix:PATH")
    failure: OSError | None = None
    for family, place in places:
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            use(made, place)
            return made
        except OSError as error:
            made.close()
            failure = error
    raise BadInput(f"{address}: {failure.strerror or failure if failure else 'nothing is there'}")


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens to."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()
