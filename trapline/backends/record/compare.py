"""One program on two backends side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.backends.base import Backend
from trapline.backends.objects import System
from trapline.backends.record.difference import Difference, Differs
from trapline.backends.record.events import Event, arch_of
from trapline.backends.record.recorder import Recorder
from trapline.backends.record.replayer import Replayer

Program = Callable[[Any], object]
"""A VMM in Python: what it does with a `System`."""

Ignore = Callable[[Difference], bool]


class Compared(Recorder):
    """A backend that makes every call on a second one as well, and raises `Differs` at the first that is answered otherwise.

    The program has to do with the first one only: its files, its kvm_run, its memory. Before a call the second one's memory is made the
    same; after it, result, errno, what was filled in, exit, guest memory and, with `state`, the vCPU's registers are compared.
    """

    def __init__(self, first: Backend, second: Backend, *, state: bool = True, ignore: Ignore = lambda difference: False) -> None:
        """`ignore`: which differences are known."""
        super().__init__(first, self._told, state=state)
        names = (first.name, second.name) if first.name != second.name else (f"{first.name} 1", f"{second.name} 2")
        self.replayer = Replayer(second, arch_of(first), names, state=state)
        self.found: Difference | None = None
        """The first difference. After it the first backend goes on alone, so that the program can close what it has."""

        self.ignored: list[Difference] = []
        self._ignore = ignore

    def _told(self, event: Event) -> None:
        difference = self.replayer.step(event) if self.found is None else None
        if difference is None:
            return
        if "state" not in event and event["kind"] == "vcpu" and event["fd"] in self.files:
            difference.states = self.state(event["fd"]), difference.states[1]
        if self._ignore(difference):
            self.ignored.append(difference)
            return
        self.found = difference
        raise Differs(difference)


def compare(program: Program, first: Backend, second: Backend, **options: Any) -> Difference | None:
    """Run a program on two backends: the first difference, or None. What the program itself raises is passed on."""
    backend = Compared(first, second, **options)
    try:
        with open_on(backend) as kvm:
            program(kvm)
    except Differs:
        pass
    finally:
        backend.replayer.close()
    return backend.found


def open_on(backend: Backend) -> System:
    """The public classes for a backend's guests."""
    if (backend.arch if isinstance(backend, Recorder) else arch_of(backend)) == "x86":
        from trapline.backends.x86.system import X86System

        return X86System(backend)
    return System(backend)
