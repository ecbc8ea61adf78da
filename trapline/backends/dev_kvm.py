"""The /dev/kvm backend: the declared calls through the host's own KVM.

Nothing here knows a particular call: number, argument and errno causes come from the declarations. Files are real file descriptors
of this process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import threading
from typing import Any

from trapline.abi.exits import IMMEDIATE_EXIT_OFFSET
from trapline.abi.ioctl import Ioctl
from trapline.abi.system import KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE
from trapline.abi.vcpu import KVM_RUN
from trapline.backends.base import Backend
from trapline.errors import KvmError, NotSupported
from trapline.turns import Turns

KICK_SIGNAL = signal.SIGUSR1
"""Interrupts a thread that is in KVM_RUN. Its handler does nothing."""

O_FLAGS = os.O_RDWR | os.O_CLOEXEC


class _Running:
    """Which thread is in KVM_RUN of a vCPU, and its mapping."""

    __slots__ = ("run", "thread")

    def __init__(self, run: mmap.mmap) -> None:
        self.run = run
        self.thread = 0


class DevKvm:
    """The host's KVM."""

    name = "kvm"
    turns: Turns | None = None

    def __init__(self, path: str = "/dev/kvm") -> None:
        self._path = path
        self._device = -1
        self._ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        self._ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        self._vcpus: dict[int, _Running] = {}
        self._signal_ready = False
        if threading.current_thread() is threading.main_thread():
            self._install_handler()

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
        if call is KVM_RUN:
            return self._run(file, call)
        result = self._ioctl(file, call.number, pointer)
        if result < 0:
            raise _failure(call)
        return int(result)

    def _run(self, file: int, call: Ioctl) -> int:
        running = self._vcpus[file]
        running.thread = threading.get_ident()
        try:
            result = self._ioctl(file, call.number, 0)
        finally:
            running.thread = 0
        if result < 0:
            raise _failure(call)
        return int(result)

    def close(self, file: int) -> None:
        """Close a descriptor."""
        self._vcpus.pop(file, None)
        os.close(file)

    def map_run(self, file: int) -> Any:
        """Map kvm_run of a vCPU."""
        size = self.ioctl(self._device, KVM_GET_VCPU_MMAP_SIZE, 0)
        run = mmap.mmap(file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._vcpus[file] = _Running(run)
        return run

    def kick(self, file: int) -> None:
        """Set immediate_exit, then interrupt the thread if it is in KVM_RUN already."""
        self._install_handler()
        running = self._vcpus[file]
        running.run[IMMEDIATE_EXIT_OFFSET] = 1
        if running.thread:
            signal.pthread_kill(running.thread, KICK_SIGNAL)

    def _install_handler(self) -> None:
        """A handler that does nothing, so that the signal only interrupts. Python allows this in the main thread alone."""
        if self._signal_ready:
            return
        if threading.current_thread() is threading.main_thread():
            signal.signal(KICK_SIGNAL, lambda number, frame: None)
            signal.siginterrupt(KICK_SIGNAL, True)
            self._signal_ready = True
        elif signal.getsignal(KICK_SIGNAL) in (signal.SIG_DFL, None):
            raise NotSupported("open the kvm backend in the main thread: it has to install a signal handler")


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
