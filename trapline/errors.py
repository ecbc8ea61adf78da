"""Every exception Trapline raises on purpose.

    TraplineError
    +-- BadInput            the user's command line or file cannot be used         exit status 125
    |   +-- BadSnapshot     a snapshot's file is damaged, or is no snapshot
    +-- SnapshotOrder       saving or restoring steps came in a wrong order
    +-- GuestCrash          the guest brought its machine to a halt                exit status 126
    +-- Timeout             the run took longer than --timeout allows              exit status 124
    +-- NotSupported        asked for something this build or backend lacks        exit status 125
    +-- TableError          a declaration contradicts another one (import time)
    +-- KvmError            an ioctl failed; also an OSError, with its errno

Architectural outcomes (aborts, traps, undefined instructions) are values, never exceptions.
"""

from __future__ import annotations

import os
from typing import ClassVar


class TraplineError(Exception):
    """Base of all errors raised on purpose."""

    exit_status: ClassVar[int] = 1
    """Exit status of the command line when this error ends it."""


class BadInput(TraplineError):
    """A command line or a file of the user's cannot be used; the message is one line that says what to do."""

    exit_status = 125


class BadSnapshot(BadInput):
    """A file that is no snapshot, or is a damaged or foreign one; the message names what is wrong and where."""


class SnapshotOrder(TraplineError):
    """A step of saving or restoring came too early or too late; the message has the order."""


class NotSupported(TraplineError):
    """A feature that this build, machine or backend does not have."""

    exit_status = 125


class Timeout(TraplineError):
    """The guest was still running when its time was up."""

    exit_status = 124


class GuestCrash(TraplineError):
    """The guest crashed its machine; `report` is text a person can act on (registers, syndrome, last exits)."""

    exit_status = 126

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


class TableError(TraplineError):
    """Two declarations contradict each other; raised while the tables are built, never while a guest runs."""


class KvmError(TraplineError, OSError):
    """A KVM call failed with an errno; `cause` says why in words."""

    def __init__(self, errno: int, cause: str = "") -> None:
        OSError.__init__(self, errno, cause or os.strerror(errno))

    @property
    def cause(self) -> str:
        """Why the call failed, in words."""
        return str(self.strerror)
