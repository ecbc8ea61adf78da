"""Talking to a machine that runs in another process: a unix socket that takes a line of JSON and answers with one.

    {"do": "snapshot", "path": "/tmp/a"}            saves the machine and lets it go on; "end": true ends it
    {"do": "migrate", "to": "tcp:there:4444"}       sends it away; "downtime": seconds
    {"ok": true, "text": "..."} or {"ok": false, "text": "why not"}
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trapline.errors import BadInput, TraplineError
from trapline.vmm.channel import connect, listen
from trapline.vmm.migration import DOWNTIME_SECONDS, Emigration
from trapline.vmm.runloop import Ending, Outcome
from trapline.vmm.session import Session

LONGEST_LINE = 1 << 16


class Control:
    """Answers at a socket on behalf of a session, from a thread of its own, while a context lasts."""

    def __init__(self, path: Path, session: Session) -> None:
        self.path = path
        self.session = session

    def __enter__(self) -> Control:
        self._socket = listen(f"unix:{self.path}")
        threading.Thread(target=self._serve, name="control", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with closing(connection), suppress(OSError):
                    connection.sendall(json.dumps(self._answer(_line(connection))).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            wish = json.loads(line)
            do = COMMANDS[wish.pop("do")]
        except (ValueError, KeyError, AttributeError):
            return {"ok": False, "text": f"not understood: there are {', '.join(COMMANDS)}"}
        answer: dict[str, Any] = {}
        done = threading.Event()

        def work() -> None:
            try:
                answer.update(ok=True, text=do(self.session, **wish))
            except TraplineError as error:
                answer.update(ok=False, text=str(error))
            except TypeError as error:
                answer.update(ok=False, text=f"not understood: {error}")
            finally:
                done.set()

        runner = self.session.runner
        if runner is None:
            return {"ok": False, "text": "the machine does not run yet"}
        runner.request(work)
        while not done.wait(1):
            if runner.ending is not None and not done.is_set():
                return {"ok": False, "text": "the machine has ended"}
        return answer


def snapshot(session: Session, path: str, end: bool = False) -> str:
    """Save the machine."""
    runner = session.runner
    assert runner is not None
    with runner.paused():
        text = session.save(Path(path))
        if end:
            runner.end(Ending(Outcome.SAVED))
    return text


def migrate(session: Session, to: str, downtime: float = DOWNTIME_SECONDS) -> str:
    """Send the machine away."""
    assert session.runner is not None
    with connect(to) as channel:
        return Emigration(session.runner, session.disks, channel, downtime).run(session.more_state)


COMMANDS: Mapping[str, Callable[..., str]] = MappingProxyType({"snapshot": snapshot, "migrate": migrate})


def ask(control: Path, **wish: Any) -> str:
    """Ask the machine behind a socket, and wait for its answer; BadInput with its reason if it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(control))
            connection.sendall(json.dumps(wish).encode() + b"\n")
            answer = json.loads(_line(connection))
        except (OSError, ValueError) as error:
            raise BadInput(f"{control}: {getattr(error, 'strerror', None) or 'no answer'}: is a machine with --control there?") from error
    if not answer["ok"]:
        raise BadInput(answer["text"])
    return str(answer["text"])


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
        piece = connection.recv(LONGEST_LINE)
        if not piece:
            break
        line += piece
    return line
