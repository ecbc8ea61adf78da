"""What a backend does: open /dev/kvm or its like, pass declared calls to files, and share a vCPU's kvm_run.

Everything above (the public classes, the VMM, the tests) is written once against this protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from trapline.abi.ioctl import Ioctl
from trapline.errors import KvmError
from trapline.turns import Turns


class Backend(Protocol):
    """One way to reach a KVM. Files are small integers, as the kernel's are; they are the backend's own, not the process's."""

    name: str
    turns: Turns | None
    """What makes the backend deterministic: its vCPUs' turns and time. None when it lives in the host's time."""

    def with_cpu(self, cpu: str) -> Backend:
        """A backend like this one, on a machine with another CPU; NotSupported if there can be none."""

    def open(self) -> int:
        """A new file of the KVM device itself."""

    def ioctl(self, file: int, call: Ioctl, argument: Any = 0) -> int:
        """Make a call. `argument` is a number or an instance of the call's structure. Raises KvmError."""

    def runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN of this vCPU as a function: 0, or KvmError. For those who run a vCPU again and again."""

    def bare_runner(self, file: int) -> Callable[[], int]:
        """The same with as little around it as there can be: it may also fail with a negative number, and `run_failure` says why.

        Whoever calls it says in which thread, by `entering`.
        """

    def entering(self, file: int) -> None:
        """This vCPU's next runs are in the calling thread: `kick` has to know."""

    def run_failure(self) -> KvmError:
        """Why the last `bare_runner` of this thread failed."""

    def close(self, file: int) -> None:
        """Close a file; what it stands for goes away with the last file that refers to it."""

    def map_run(self, file: int) -> Any:
        """The writable buffer a vCPU shares with userspace: struct kvm_run first."""

    def map_ring(self, file: int, size: int) -> Any:
        """The writable buffer that is a vCPU's dirty ring, of the VM's ring size."""

    def read(self, file: int, size: int, offset: int) -> bytes:
        """What a file of statistics holds from `offset` on; fewer bytes than `size` at its end."""

    def kick(self, file: int) -> None:
        """Make a KVM_RUN of this vCPU that another thread is in return soon, with EINTR. The caller has set `immediate_exit`."""
