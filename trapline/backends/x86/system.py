"""The public KVM device of an x86 host."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trapline.abi.system import KVM_CREATE_VM
from trapline.abi.x86_msr import (
    KVM_GET_EMULATED_CPUID,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_SUPPORTED_CPUID,
    MsrList,
)
from trapline.backends.objects import System
from trapline.backends.x86.lists import fetch_cpuid, fetch_indices
from trapline.backends.x86.registers import read_msrs
from trapline.backends.x86.vm import X86Vm
from trapline.errors import NotSupported
from trapline.x86_64.cpuid import Cpuid

if TYPE_CHECKING:
    from trapline.backends.snapshot.format import Snapshot


class X86System(System):
    """KVM of an x86 host: makes x86 virtual machines."""

    architecture = "x86_64"

    def create_vm(self, type: int = 0, *, cpu: str | None = None, **features: bool) -> X86Vm:  # type: ignore[override]
        """Make a VM. There are no features to ask for by name, and CPUs differ by CPUID, which each vCPU is given."""
        if cpu is not None or any(features.values()):
            raise NotSupported("x86 VMs have no CPU or features by name: give `create_vcpu` another CPUID")
        vm = X86Vm(self, self.backend.ioctl(self.file, KVM_CREATE_VM, type), type)
        self._vms.add(vm)
        return vm

    def restore(self, snapshot: Snapshot | str | os.PathLike[str]) -> X86Vm:  # type: ignore[override]
        """A new VM in the state that `X86Vm.snapshot` wrote."""
        vm: Any = super().restore(snapshot)
        assert isinstance(vm, X86Vm)
        return vm

    @cached_property
    def supported_cpuid(self) -> Cpuid:
        """All that a guest can be given here."""
        return fetch_cpuid(self.backend, self.file, KVM_GET_SUPPORTED_CPUID)

    @cached_property
    def emulated_cpuid(self) -> Cpuid:
        """What KVM emulates although the host's processor lacks it."""
        return fetch_cpuid(self.backend, self.file, KVM_GET_EMULATED_CPUID)

    @cached_property
    def msr_indices(self) -> list[int]:
        """The MSRs that make up a guest's state."""
        return fetch_indices(self.backend, self.file, KVM_GET_MSR_INDEX_LIST, MsrList)

    @cached_property
    def feature_msr_indices(self) -> list[int]:
        """The MSRs by which processors announce features."""
        return fetch_indices(self.backend, self.file, KVM_GET_MSR_FEATURE_INDEX_LIST, MsrList)

    def feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The host's values of feature MSRs."""
        return read_msrs(self.backend, self.file, indices)
