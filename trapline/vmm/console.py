"""The host's side of the guest's console: stdout, stdin, the raw terminal and its escape keys."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress

from trapline.devices.state import Stateful

STDIN, STDOUT = 0, 1

ESCAPE = 0x01
"""Ctrl-A starts a command to Trapline instead of a character for the guest."""

HELP = """
Ctrl-A h   this help
Ctrl-A x   quit: stop the machine at once
Ctrl-A p   press the power key (a guest that listens shuts down)
Ctrl-A s   show the state of the CPUs
Ctrl-A a   send Ctrl-A to the guest
"""

STATUS_LINE = re.compile(rb"EXIT: STATUS=(\d+)")
"""How kvm-unit-tests announce their result; the number is the exit status shifted left by one, plus one."""

LONGEST_LINE = 4096

READ_BYTES = 4096
"""How much of stdin is read at once."""


class Output(Stateful):
    """Writes the console to a file descriptor, and reads along for an announced exit status.

    `write` is called for every character that a UART sends, so it does one system call and little else.
    """

    kept = ("line", "found")

    def __init__(self, fd: int = STDOUT) -> None:
        self.fd = fd
        self.line = bytearray()
        self.found = -1
        """The status that was announced; -1 if none was."""
        self.broken = False
        self.awaited = b""
        self.on_awaited: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        """Pass guest output on, at once. Output that nobody reads any more is dropped."""
        if not self.broken:
            self._put(data)
        self.line += data
        if self.awaited and self.awaited in self.line:
            self.awaited = b""
            self.on_awaited()
        if b"\n" in data:
            self._end_of_line()
        elif len(self.line) > LONGEST_LINE:
            del self.line[:-LONGEST_LINE]

    @property
    def status(self) -> int | None:
        """The exit status that the guest announced."""
        return None if self.found < 0 else self.found

    def wait_for(self, text: bytes, then: Callable[[], None]) -> None:
        """Call a function once, when a line with this text, or its beginning, has been written."""
        self.awaited, self.on_awaited = text, then

    def _put(self, data: bytes) -> None:
        try:
            done = os.write(self.fd, data)
        except BlockingIOError:
            select.select([], [self.fd], [])
            done = 0
        except OSError:
            self.broken = True
            return
        if done < len(data):
            self._put(data[done:])

    def _end_of_line(self) -> None:
        for number in STATUS_LINE.findall(self.line):
            self.found = int(number) >> 1
        del self.line[: self.line.rfind(b"\n") + 1]


class RawTerminal:
    """Puts a terminal into raw mode for as long as the context lasts. Output processing stays on: guests may send a bare newline."""

    def __init__(self, fd: int = STDIN) -> None:
        self.fd = fd
        self.saved: list[object] | None = None

    def __enter__(self) -> RawTerminal:
        if os.isatty(self.fd) and self._in_foreground():
            self.saved = termios.tcgetattr(self.fd)
            mode = termios.tcgetattr(self.fd)
            mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
            mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
            mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)
        return self

    def _in_foreground(self) -> bool:
        """Whether the terminal is ours to change: as a background job it is not."""
        try:
            return os.tcgetpgrp(self.fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal, so it has no jobs of ours

    def __exit__(self, *_: object) -> None:
        if self.saved is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self.saved)  # type: ignore[arg-type]
            self.saved = None


class Keyboard:
    """Splits what is typed into characters for the guest and commands after Ctrl-A.

    `commands` maps a key to what it does. On a pipe (`escapes=False`) every byte is the guest's.
    """

    def __init__(self, feed: Callable[[bytes], None], commands: dict[str, Callable[[], None]], escapes: bool) -> None:
        self.feed = feed
        self.commands = commands | {"h": show_help, "?": show_help}
        self.escapes = escapes
        self.escaped = False

    def typed(self, data: bytes) -> None:
        """Handle some input."""
        if not self.escapes:
            self.feed(data)
            return
        for byte in data:
            if self.escaped:
                self.escaped = False
                if byte in (ESCAPE, ord("a")):
                    self.feed(bytes([ESCAPE]))
                elif command := self.commands.get(chr(byte)):
                    command()
            elif byte == ESCAPE:
                self.escaped = True
            else:
                self.feed(bytes([byte]))


def show_help() -> None:
    """The escape keys, on stderr."""
    sys.stderr.write(HELP.replace("\n", "\r\n"))
    sys.stderr.flush()


class InputThread:
    """Reads stdin in a thread until it ends or `stop` is called."""

    def __init__(self, keyboard: Keyboard, fd: int = STDIN, at_end: Callable[[], None] = lambda: None) -> None:
        self.keyboard = keyboard
        self.fd = fd
        self.at_end = at_end
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        os.write(self._wake_write, b"x")
        self._thread.join(timeout=1)
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)

    def _read(self) -> None:
        while True:
            with suppress(OSError, ValueError):
                ready, _, _ = select.select([self.fd, self._wake_read], [], [])
                if self._wake_read in ready:
                    return
                if data := os.read(self.fd, READ_BYTES):
                    self.keyboard.typed(data)
                    continue
            self.at_end()
            return
