"""What the interrupt controller asks of the virtual machine it belongs to.

The vgic knows its VM and vCPUs only through these protocols, so tests can drive it with small fakes and a real `CpuState`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from trapline.arm64.state import CpuState


class HostCpu(Protocol):
    """The software processor under a vCPU; its `state` holds the ICH_* registers."""

    @property
    def state(self) -> CpuState:
        """Architectural state."""


class HostVcpu(Protocol):
    """A vCPU as the vgic sees it."""

    @property
    def index(self) -> int:
        """Position in order of creation, from 0."""

    @property
    def id(self) -> int:
        """The number user space gave to KVM_CREATE_VCPU."""

    @property
    def mpidr(self) -> int:
        """MPIDR_EL1; only the affinity fields are used."""

    @property
    def cpu(self) -> HostCpu:
        """The processor this vCPU runs on."""

    def kick(self) -> None:
        """Wake the vCPU if it sleeps, force an exit if it is in guest mode; otherwise nothing."""


class HostVm(Protocol):
    """A VM as the vgic sees it."""

    @property
    def ipa_bits(self) -> int:
        """Width of guest physical addresses."""

    @property
    def vcpus(self) -> Sequence[HostVcpu]:
        """All vCPUs in order of creation."""

    def stop_vcpus(self) -> AbstractContextManager[None]:
        """Hold every vCPU outside KVM_RUN; KvmError(EBUSY) if one is inside."""
