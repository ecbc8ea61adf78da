"""A backend that tells of every call: `trapline run --trace-ioctls FILE`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.abi.ioctl import Ioctl
from trapline.abi.text import call_text
from trapline.abi.vcpu import KVM_RUN
from trapline.backends.base import Backend
from trapline.backends.front import Front
from trapline.backends.record.events import DECODERS, arch_of
from trapline.errors import KvmError


class Traced(Front):
    """Passes everything on to another backend, and each call as a line of text to `write`. A KVM_RUN's line ends with its exit."""

    def __init__(self, inner: Backend, write: Callable[[str], object]) -> None:
        super().__init__(inner)
        self._write = write
        self._decode = DECODERS[arch_of(inner)]
        self._runs: dict[int, Any] = {}

    def with_cpu(self, cpu: str) -> Backend:
        """The same for another machine."""
        return Traced(self.inner.with_cpu(cpu), self._write)

    def open(self) -> int:
        """A file of the KVM device."""
        file = self.inner.open()
        self._write(f"open(KVM) = {file}")
        return file

    def ioctl(self, file: int, call: Ioctl, argument: Any = 0) -> int:
        """Make the call, then tell."""
        try:
            result = self.inner.ioctl(file, call, argument)
        except KvmError as error:
            self._write(call_text(call, file, argument, error=error.errno or 0))
            raise
        line = call_text(call, file, argument, result)
        self._write(f"{line} {self._decode(self._runs[file])}" if call is KVM_RUN and file in self._runs else line)
        return result

    def runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN of a vCPU."""
        run = self.inner.runner(file)

        def traced() -> int:
            try:
                result = run()
            except KvmError as error:
                self._write(call_text(KVM_RUN, file, 0, error=error.errno or 0))
                raise
            self._write(f"{call_text(KVM_RUN, file, 0, result)} {self._decode(self._runs[file])}")
            return result

        return traced

    def close(self, file: int) -> None:
        """Close a file."""
        self._runs.pop(file, None)
        self.inner.close(file)
        self._write(f"close({file})")

    def map_run(self, file: int) -> Any:
        """Share a vCPU's kvm_run."""
        self._runs[file] = run = self.inner.map_run(file)
        self._write(f"mmap(kvm_run of {file}) = {len(run):#x} bytes")
        return run

    def map_ring(self, file: int, size: int) -> Any:
        """Share a vCPU's dirty ring."""
        ring = self.inner.map_ring(file, size)
        self._write(f"mmap(dirty ring of {file}) = {size:#x} bytes")
        return ring
