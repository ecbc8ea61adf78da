"""Putting a saved state into an arm64 VM, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from trapline.abi.arm64 import KVM_SET_VCPU_EVENTS, REG_PTIMER_CNT, REG_TIMER_CNT, DeviceType, VcpuEvents
from trapline.abi.vcpu import MpState
from trapline.backends.snapshot import gic
from trapline.backends.snapshot.order import Ordered
from trapline.backends.vcpu import Vcpu
from trapline.errors import KvmError

COUNTERS: Final = (REG_PTIMER_CNT, REG_TIMER_CNT)
WORD: Final = (1 << 64) - 1

WHY: Mapping[str, str] = MappingProxyType(
    {
        "memory": "the ITS reads its tables there",
        "vcpus": "ID registers and hypercall services are fixed by the first run, and attributes of a GIC name vCPUs by MPIDR",
        "gic": "the ITS's interrupts need redistributors that know their LPI tables",
        "its": "reading its tables takes time, and counters run on from the moment they are set",
        "clock": "the guest goes on at the time it was stopped",
    }
)
"""The steps in order, and why each comes before those after it."""


class Restore(Ordered):
    """Restores an arm64 VM."""

    why = WHY

    def vcpus(self) -> None:
        """Registers, but for the counters, and what is pending and on."""
        self._step("vcpus")
        self._check_vcpus()
        for vcpu, each in zip(self.vm.vcpus, self.state["vcpus"], strict=True):
            self._registers(vcpu, {int(reg_id, 16): int(value, 16) for reg_id, value in each["registers"].items()})
            if each["serror"] is not None:
                events = VcpuEvents()  # type: ignore[call-arg]
                events.serror_pending, (events.serror_has_esr, events.serror_esr) = 1, each["serror"]
                vcpu.ioctl(KVM_SET_VCPU_EVENTS, events)
            vcpu.mp_state = MpState(each["power"])
        if self.state["sysregs"] is not None and self.vm.has_sysregs:
            self.vm.sysregs.load_state(self.state["sysregs"])

    def gic(self) -> None:
        """Every in-kernel device but ITSs."""
        self._step("gic")
        self._devices(lambda kind: kind != DeviceType.ARM_VGIC_ITS)

    def its(self) -> None:
        """ITSs, whose tables are in memory."""
        self._step("its")
        self._devices(lambda kind: kind == DeviceType.ARM_VGIC_ITS)

    def clock(self) -> None:
        """The guest's counters. They run on from here, so this comes last."""
        self._step("clock")
        if not self.vm.vcpus:
            return
        vcpu, registers = self.vm.vcpus[0], self.state["vcpus"][0]["registers"]
        saved = {reg_id: int(registers[f"{reg_id:x}"], 16) for reg_id in COUNTERS if f"{reg_id:x}" in registers}
        if any(step[0] == "counter offset" for step in self.state["made"]):
            # What was set cannot be read back; but what the counter showed can, and what it shows without an offset.
            self.vm.set_counter_offset(vcpu.get_one_reg(REG_PTIMER_CNT) - saved[REG_PTIMER_CNT] & WORD)
            return
        for reg_id, value in saved.items():
            vcpu.set_one_reg(reg_id, value)

    def _registers(self, vcpu: Vcpu, registers: dict[int, int]) -> None:
        for reg_id, value in registers.items():
            if reg_id in COUNTERS:
                continue
            try:
                vcpu.set_one_reg(reg_id, value)
            except KvmError as error:
                if self._holds(vcpu, reg_id, value):
                    continue  # one that cannot be set, and has this value anyway
                raise self._bad(f"vCPU {vcpu.id} {self._difference(vcpu, reg_id, value)}: {error.cause}") from error

    @staticmethod
    def _holds(vcpu: Vcpu, reg_id: int, value: int) -> bool:
        try:
            return vcpu.get_one_reg(reg_id) == value
        except KvmError:
            return False

    @staticmethod
    def _difference(vcpu: Vcpu, reg_id: int, value: int) -> str:
        try:
            here = f"{vcpu.get_one_reg(reg_id):#x}"
        except KvmError:
            here = "not there"
        return f"has {name_of(reg_id)} {value:#x} in the snapshot, which this KVM does not take (its own is {here})"

    def _devices(self, chosen: Callable[[int], bool]) -> None:
        saved = self.state["devices"]
        there, here = [each["kind"] for each in saved], [device.kind for device in self.vm.devices]
        if there != here:
            raise self._bad(f"it has in-kernel devices of types {there}, this VM {here}")
        for device, each in zip(self.vm.devices, saved, strict=True):
            if chosen(device.kind):
                for write in each["writes"]:
                    try:
                        gic.restore(device, [write])
                    except KvmError as error:
                        group, attr, _, value = write
                        what = f"attribute {attr:#x} of group {group} of the in-kernel device of type {device.kind} = {value:#x}"
                        raise self._bad(f"this KVM refuses {what}: {error.cause}") from error


def name_of(reg_id: int) -> str:
    """A register's name, or its id if it has none here."""
    from trapline.arm64.regs import TABLE  # the tables of the whole architecture: only for an error

    return next((name for name, register in TABLE.by_name.items() if register.one_reg_id == reg_id), f"register {reg_id:#x}")
