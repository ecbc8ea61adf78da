"""The /dev/kvm backend: the declared calls through the host's own KVM.

Nothing here knows a particular call but KVM_RUN: number, argument and errno causes come from the declarations. Files are real file
descriptors of this process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
from collections.abc import Callable
from functools import partial
from threading import get_native_id
from typing import Any

from trapline.abi.ioctl import Ioctl
from trapline.abi.memory import DIRTY_LOG_PAGE_OFFSET
from trapline.abi.system import KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE
from trapline.abi.vcpu import KVM_RUN
from trapline.backends.base import Backend
from trapline.errors import KvmError, NotSupported
from trapline.turns import Turns

KICK_SIGNAL = signal.SIGRTMIN + 3
"""Interrupts a thread that is in KVM_RUN. Its handler does nothing."""

O_FLAGS = os.O_RDWR | os.O_CLOEXEC


class DevKvm:
    """The host's KVM."""

    name = "kvm"
    turns: Turns | None = None

    def __init__(self, path: str = "/dev/kvm") -> None:
        self._path = path
        self._device = -1
        self._libc = libc = ctypes.CDLL(None, use_errno=True)
        self._ioctl = libc.ioctl
        self._ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        self._threads: dict[int, int] = {}
        """Which thread ran a vCPU last, by the vCPU's file."""
        _ignore_kicks(libc)

    def with_cpu(self, cpu: str) -> Backend:
        """There is one CPU: the host's."""
        raise NotSupported(f"a VM of {self.name} has the host's CPU; there is no choosing {cpu!r}")

    def open(self) -> int:
        """Open the device."""
        try:
            self._device = os.open(self._path, O_FLAGS)
        except OSError as error:
            raise NotSupported(f"{self._path} cannot be opened: {error.strerror}") from error
        return self._device

    def ioctl(self, file: int, call: Ioctl, argument: Any = 0) -> int:
        """The system call. ctypes lets other threads run meanwhile, and passes structures by address as the kernel wants them."""
        pointer = argument if isinstance(argument, int) else ctypes.addressof(argument)
        result = self._ioctl(file, call.number, pointer)
        if result < 0:
            raise _failure(call)
        return int(result)

    def runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN of a vCPU."""
        enter = self.bare_runner(file)

        def run() -> int:
            self.entering(file)
            if enter() < 0:
                raise self.run_failure()
            return 0

        return run

    def bare_runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN with arguments that are converted once: half of what the call costs in Python."""
        # A function of its own: without declared types it takes what is converted already.
        ioctl = self._libc["ioctl"]
        return partial(ioctl, ctypes.c_int(file), ctypes.c_ulong(KVM_RUN.number), ctypes.c_void_p(0))

    def entering(self, file: int) -> None:
        """Remember the thread."""
        self._threads[file] = get_native_id()

    def run_failure(self) -> KvmError:
        """The errno of the last call of this thread."""
        return _failure(KVM_RUN)

    def close(self, file: int) -> None:
        """Close a descriptor."""
        self._threads.pop(file, None)
        os.close(file)

    def map_run(self, file: int) -> Any:
        """Map kvm_run of a vCPU."""
        size = self.ioctl(self._device, KVM_GET_VCPU_MMAP_SIZE, 0)
        return mmap.mmap(file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def map_ring(self, file: int, size: int) -> Any:
        """Map a vCPU's dirty ring."""
        place = DIRTY_LOG_PAGE_OFFSET * mmap.PAGESIZE
        return mmap.mmap(file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=place)

    def read(self, file: int, size: int, offset: int) -> bytes:
        """Read a file of statistics."""
        try:
            return os.pread(file, size, offset)
        except OSError as error:
            raise KvmError(error.errno or errno.EINVAL) from error

    def kick(self, file: int) -> None:
        """Interrupt the thread that ran the vCPU last; `immediate_exit`, which the caller has set, stops one that is about to.

        It may be elsewhere, or gone: then nothing happens.
        """
        if thread := self._threads.get(file):
            self._libc.tgkill(os.getpid(), thread, KICK_SIGNAL)


def _ignore_kicks(libc: ctypes.CDLL) -> None:
    """Give the signal a handler that does nothing, so that it only interrupts.

    A handler of Python's could be installed in the main thread alone, and would run there. This one is C's `abs`, which takes the
    signal's number and leaves no trace; an ignored signal would interrupt nothing.
    """
    handler = libc.signal
    handler.argtypes, handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handler(KICK_SIGNAL, ctypes.cast(libc.abs, ctypes.c_void_p))


def _failure(call: Ioctl) -> KvmError:
    """The errno of the call that just failed, with the declared cause if it has one."""
    code = ctypes.get_errno()
    cause = call.causes.get(code)
    return KvmError(code, f"{call.name}: {cause}" if cause else f"{call.name}: {os.strerror(code)} ({errno.errorcode.get(code, code)})")


def probe(path: str = "/dev/kvm") -> str:
    """One line about the host's KVM for `trapline doctor`."""
    try:
        with open(path, "rb+", buffering=0) as device:
            version = fcntl.ioctl(device, KVM_GET_API_VERSION.number, 0)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"{path}: API version {version}"
