"""Choosing a backend: /dev/kvm where it can run arm64 guests, else the software machine, and loudly."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TextIO

from trapline.backends.base import Backend
from trapline.backends.objects import System
from trapline.errors import BadInput, NotSupported
from trapline.turns import Turns

if TYPE_CHECKING:
    from trapline.backends.x86.system import X86System

DEVICE = "/dev/kvm"
NAMES = ("auto", "software", "kvm")
X86_MACHINES = ("x86_64", "AMD64")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which backend, and the reason in words: `trapline doctor` prints it."""

    name: str
    reason: str


def choose() -> Choice:
    """What "auto" means on this host."""
    machine = platform.machine()
    if machine not in ("aarch64", "arm64"):
        return Choice("software", f"this host is {machine}: its KVM cannot run arm64 guests")
    if not os.path.exists(DEVICE):
        return Choice("software", f"there is no {DEVICE}")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Choice("software", f"{DEVICE} is there but may not be opened: join the group that owns it")
    return Choice("kvm", f"{DEVICE} can be opened on an arm64 host")


@cache
def warn_once(reason: str) -> None:
    """Say on stderr that the software machine stands in for the hardware: a hundred times slower should not be a riddle."""
    print(f"trapline: using the software machine, not {DEVICE}: {reason}", file=sys.stderr)


def make_backend(name: str, cpu: str = "", turns: Turns | None = None) -> Backend:
    """A backend by name. The software machine's libraries are imported only here, when one is asked for."""
    if name == "kvm":
        if cpu:
            raise BadInput(f"a VM of {DEVICE} has the host's CPU: choose another only for the software machine")
        from trapline.backends.dev_kvm import DevKvm

        return DevKvm(DEVICE)
    from trapline.backends.software import Software

    return Software(cpu=cpu, turns=turns)


def open_system(
    backend: str = "auto",
    cpu: str = "",
    *,
    deterministic: bool = False,
    seed: int = 0,
    trace: Callable[[str], object] | None = None,
    record: TextIO | None = None,
) -> System:
    """Open a KVM. "auto" prefers /dev/kvm and says on stderr when an arm64 host has to do without it.

    `cpu` says which features the software machine has (`arm64/models.py`): "-lse,-pauth" or "armv8.0,+bti".
    A `deterministic` one is always the software machine. Its time is made of instructions and its randomness of the `seed`
    (`System.turns`), so that the same program does the same again. `trace` gets a line of text for each KVM call, and `record` is a
    file for a log that `trapline ioctls replay` repeats.
    """
    if backend not in NAMES:
        raise BadInput(f"no backend {backend!r}: choose one of {', '.join(NAMES)}")
    if deterministic:
        if backend == "kvm":
            raise NotSupported("only the software backend can be deterministic")
        return System(_watched(make_backend("software", cpu, Turns(seed)), cpu, trace, record))
    if backend == "auto":
        choice = choose()
        if choice.name == "software":
            warn_once(choice.reason)
        backend = choice.name
    if backend == "kvm" and platform.machine() in X86_MACHINES:
        return open_x86(trace, record)
    return System(_watched(make_backend(backend, cpu), cpu, trace, record))


def _watched(backend: Backend, cpu: str, trace: Callable[[str], object] | None, record: TextIO | None) -> Backend:
    """The backend, and around it what tells of its calls."""
    if record is not None:
        from trapline.backends.record.log import recorded

        backend = recorded(backend, record, cpu)
    if trace is not None:
        from trapline.backends.traced import Traced

        backend = Traced(backend, trace)
    return backend


def open_x86(trace: Callable[[str], object] | None = None, record: TextIO | None = None) -> X86System:
    """The host's /dev/kvm, where that makes x86 machines."""
    from trapline.backends.x86.system import X86System

    if platform.machine() not in X86_MACHINES:
        raise NotSupported(f"this host is {platform.machine()}: only the KVM of an x86-64 host runs x86 guests")
    return X86System(_watched(make_backend("kvm"), "", trace, record))
