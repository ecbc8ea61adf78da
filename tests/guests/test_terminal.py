"""The program on a terminal: raw while the guest runs, escape keys, restored whatever happens."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guests import tiny

PATIENCE = 60.0


class Session:
    """`trapline run` of the echoing guest with a pseudo-terminal as its standard input and output."""

    def __init__(self, kernel: Path) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        program = (
            "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "from trapline.ui.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", program, "run", "--backend", "software", "--kernel", str(kernel), "--mem", "16M"]
        self.process = subprocess.Popen(command, stdin=self.slave, stdout=self.slave, stderr=subprocess.PIPE, start_new_session=True)
        self.seen, self.said = bytearray(), bytearray()

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, (bytes(self.seen), self.process.poll())
            time.sleep(0.05)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def expect(self, text: bytes) -> None:
        """Wait for a text on the terminal."""
        self._read_until(text, self.master, self.seen)

    def expect_said(self, text: bytes) -> None:
        """Wait for a text that the program itself says."""
        assert self.process.stderr is not None
        self._read_until(text, self.process.stderr.fileno(), self.said)

    def _read_until(self, text: bytes, fd: int, read: bytearray) -> None:
        os.set_blocking(fd, False)

        def look() -> bool:
            with suppress(BlockingIOError):
                read.extend(os.read(fd, 4096))
            return text in read

        self.wait_for(look)
        os.set_blocking(fd, True)

    def end(self) -> tuple[int, bytes]:
        assert self.process.stderr is not None
        status = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is as it was"
        return status, bytes(self.said) + self.process.stderr.read()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(tiny.build(tiny.ECHO))
    made = Session(kernel)
    made.wait_for(made.is_raw)
    yield made
    made.process.kill()
    made.process.wait()
    for fd in (made.master, made.slave):
        os.close(fd)


def test_keys_reach_the_guest_and_escapes_do_not(session: Session) -> None:
    session.type(b"abc\x03\x01\x01")  # Ctrl-C is the guest's own; Ctrl-A twice sends one
    session.expect(b"abc\x03\x01")
    session.type(b"\x01h\x01s\x01x")
    status, said = session.end()
    assert status == 0
    assert b"Ctrl-A x   quit" in said


def test_state_of_the_cpus(session: Session) -> None:
    session.type(b"z")
    session.expect(b"z")
    session.type(b"\x01s")
    session.expect_said(b"pstate")
    session.type(b"\x01x")
    status, said = session.end()
    assert status == 0 and b"vCPU 0:" in said and b"pstate" in said


def test_power_off_restores_the_terminal(session: Session) -> None:
    session.type(b"q")
    assert session.end() == (0, b"")


def test_a_signal_restores_the_terminal(session: Session) -> None:
    session.process.send_signal(signal.SIGTERM)
    assert session.end()[0] == 128 + signal.SIGTERM
