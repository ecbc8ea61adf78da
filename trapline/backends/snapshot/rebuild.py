"""A VM like the saved one: the steps that made that, repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from trapline.abi.caps import Cap
from trapline.backends.made import Made
from trapline.backends.objects import System
from trapline.backends.snapshot.architectures import ARCHITECTURES
from trapline.backends.snapshot.format import Snapshot
from trapline.errors import BadSnapshot, KvmError


class Rebuild:
    """Repeats the steps on a new VM, whose memory is the snapshot's."""

    def __init__(self, vm: Any, snapshot: Snapshot) -> None:
        self.vm = vm
        self.snapshot = snapshot

    def repeat(self, step: Made) -> None:
        """One step; BadSnapshot if this KVM refuses it."""
        do = STEPS.get(step.what)
        if do is None:
            raise BadSnapshot(f"{self.snapshot.path}: this version of Trapline does not know how to make {step.what!r}")
        try:
            do(self, *step.arguments)
        except KvmError as error:
            raise BadSnapshot(f"{self.snapshot.path}: this KVM refuses {step.what} {step.arguments}: {error.cause}") from error

    def capability(self, cap: int, *args: int) -> None:
        """A capability that is off until asked for."""
        if cap in (Cap.DIRTY_LOG_RING, Cap.DIRTY_LOG_RING_ACQ_REL):
            self.vm.enable_dirty_rings(*args)
        else:
            self.vm.enable_cap(cap, *args)

    def memory(self, slot: int) -> None:
        """A memory slot; nothing for one that was deleted later."""
        if any(part.slot == slot for part in self.snapshot.parts):
            part = self.snapshot.part(slot)
            self.vm.add_memory(part.guest_phys_addr, part.size, slot=slot, flags=part.flags, stored=self.snapshot.stored(slot))

    def vcpu_attribute(self, vcpu_id: int, group: int, attr: int, value: int | str, width: int) -> None:
        """An attribute of a vCPU."""
        self._vcpu(vcpu_id).set_attr(group, attr, _value(value), width)

    def features(self, vcpu_id: int, features: list[int], target: int) -> None:
        """KVM_ARM_VCPU_INIT."""
        self._vcpu(vcpu_id).init(features, target)

    def device_attribute(self, index: int, group: int, attr: int, value: int | str, width: int) -> None:
        """What a device is to be."""
        self.vm.devices[index].set_attr(group, attr, _value(value), width)

    def identity(self, midr: int | None, revidr: int | None, aidr: int | None, others: list[list[int]]) -> None:
        """The processors' names."""
        self.vm.identify(midr, revidr, aidr, [(each[0], each[1], each[2]) for each in others])

    def msr_filter(self, default: int, ranges: list[list[Any]]) -> None:
        """Which MSRs the guest may access."""
        from trapline.backends.x86.msr_filter import Range

        self.vm.set_msr_filter(*(Range(*each) for each in ranges), default=default)

    def _vcpu(self, vcpu_id: int) -> Any:
        return next(vcpu for vcpu in self.vm.vcpus if vcpu.id == vcpu_id)


def _value(value: int | str) -> int | bytes:
    return bytes.fromhex(value) if isinstance(value, str) else value


STEPS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "capability": Rebuild.capability,
        "memory": Rebuild.memory,
        "vCPU": lambda made, vcpu_id: made.vm.create_vcpu(vcpu_id, features=None),
        "features": Rebuild.features,
        "vCPU attribute": Rebuild.vcpu_attribute,
        "device": lambda made, kind: made.vm.create_device(kind),
        "device attribute": Rebuild.device_attribute,
        "identity": Rebuild.identity,
        "SMCCC filter": lambda made, base, count, action: made.vm.set_smccc_filter(base, count, action),
        "counter offset": lambda made: None,  # restored with the counters
        "irqchip": lambda made: made.vm.create_irqchip(),
        "interval timer": lambda made, speaker: made.vm.create_pit(speaker=speaker),
        "missed ticks": lambda made, reinject: made.vm.reinject_ticks(reinject),
        "TSS address": lambda made, address: made.vm.set_tss_addr(address),
        "identity map address": lambda made, address: made.vm.set_identity_map_addr(address),
        "MSR filter": Rebuild.msr_filter,
    }
)
"""By the names that `Made` steps have."""


def restore(system: System, snapshot: Snapshot) -> Any:
    """A new VM in the state of a snapshot, ready to run."""
    state = snapshot.document["vm"]
    architecture = state.get("architecture", "arm64")
    if architecture != system.architecture:
        raise BadSnapshot(f"{snapshot.path}: it is of an {architecture} VM, and this KVM makes {system.architecture} ones")
    vm = system.create_vm(state["type"])
    try:
        made = Rebuild(vm, snapshot)
        for row in state["made"]:
            made.repeat(Made.from_plain(row))
        if system.turns is not None and snapshot.document.get("turns") is not None:
            system.turns.load(snapshot.document["turns"])
        ARCHITECTURES[architecture].restore(vm, snapshot, state).everything()
    except BaseException:
        vm.close()
        raise
    return vm
