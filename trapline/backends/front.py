"""What backends have in common that stand in front of another one and tell of its calls."""

from __future__ import annotations

from collections.abc import Callable

from trapline.backends.base import Backend
from trapline.errors import KvmError


class Front:
    """Passes on what there is nothing to tell of. `runner` is the subclass's, and every run goes through it."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name
        self.turns = inner.turns

    def runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN of a vCPU."""
        raise NotImplementedError

    def bare_runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN of a vCPU: there is none with less around it."""
        return self.runner(file)

    def entering(self, file: int) -> None:
        """Each run of `runner` says so itself, where it matters."""

    def run_failure(self) -> KvmError:
        """Failures raise KvmError."""
        return self.inner.run_failure()

    def read(self, file: int, size: int, offset: int) -> bytes:
        """Read a file of statistics. Nobody expects the same of two runs."""
        return self.inner.read(file, size, offset)

    def kick(self, file: int) -> None:
        """Interrupt a vCPU. What tells of it is how KVM_RUN ends."""
        self.inner.kick(file)
