"""The program with a conversation: wait for what the guest prints, answer, and know when it was printed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from types import TracebackType

PATIENCE = 120.0


class Conversation:
    """`trapline run` (or another `command`) of a guest, with a pipe or (`terminal`) a pseudo-terminal as its standard input."""

    def __init__(self, *options: str, terminal: bool = False, command: str = "run") -> None:
        words = [sys.executable, "-m", "trapline.ui.cli", command, "--backend", "software", *options]
        self.seen = bytearray()
        self._at = 0
        if terminal:
            self._input, theirs = pty.openpty()
        else:
            theirs, self._input = os.pipe()
        self.process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.close(theirs)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self._input)

    def say(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._input, keys)

    def expect(self, text: bytes, patience: float = PATIENCE) -> float:
        """Wait until the guest prints `text` (after what was expected before); the host's monotonic time at which it was read."""
        end = time.monotonic() + patience
        while (found := self.seen.find(text, self._at)) < 0:
            left = end - time.monotonic()
            assert left > 0 and self._read(left), f"no {text!r} in {bytes(self.seen[-3000:])!r}"
        self._at = found + len(text)
        return time.monotonic()

    def end(self, patience: float = PATIENCE) -> int:
        """Read to the end; the exit status."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0 and self._read(left):
            pass
        return self.process.wait(max(1.0, end - time.monotonic()))

    def _read(self, patience: float) -> bool:
        """Read what there is, waiting for it. False when there will be no more, or patience is at its end."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
        self.seen += data
        return bool(data)
