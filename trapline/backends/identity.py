"""Pretending to be another processor: who made it, which features it shows, and which others the guest may find itself on.

A feature can be hidden and not invented. What would lead a guest to believe in something that is not there is refused, with a line
that says which field of which register.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trapline.abi import arm64
from trapline.abi.arm64_vm import (
    FEATURE_ID_MASKS,
    FEATURE_ID_RANGE,
    KVM_ARM_GET_REG_WRITABLE_MASKS,
    SMCCC_FILTER,
    RegMaskRange,
    SmcccAction,
    SmcccFilter,
    VmGroup,
)
from trapline.abi.caps import Cap
from trapline.abi.exits import HypercallExit
from trapline.errors import KvmError, NotSupported

if TYPE_CHECKING:
    from trapline.backends.objects import Vm
    from trapline.backends.vcpu import Vcpu

MIDR, REVIDR, AIDR = (arm64.reg_sysreg(3, op1, 0, 0, op2) for op1, op2 in ((0, 0), (0, 6), (1, 7)))
DISCOVER_VERSION, DISCOVER_CPUS = 0xC600_0040, 0xC600_0041
VERSION_1_0: Final = 0x1_0000
INVALID_PARAMETER: Final = -3
ID_SCHEME: Final = 0xF
"""MIDR_EL1.Architecture of every processor whose features are told by ID registers."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One processor: MIDR_EL1, REVIDR_EL1 and AIDR_EL1."""

    midr: int
    revidr: int = 0
    aidr: int = 0


class Identity:
    """What a VM's guest is told about the implementation."""

    def __init__(self, vm: Vm, own: dict[int, int], others: Iterable[Implementation]) -> None:
        self.own = own
        """Values by register id, for every vCPU."""
        self.others = tuple(others)
        _check_midr([own.get(MIDR), *(other.midr for other in self.others)])
        if own:
            if not vm.check_extension(Cap.ARM_WRITABLE_IMP_ID_REGS):
                raise NotSupported(f"the {vm.backend.name} backend's processors cannot be renamed (ARM_WRITABLE_IMP_ID_REGS is 0)")
            if vm.vcpus:
                raise NotSupported("a VM's processors can be renamed only before there are vCPUs")
            vm.enable_cap(Cap.ARM_WRITABLE_IMP_ID_REGS)
        if self.others:
            vm.set_smccc_filter(DISCOVER_VERSION, 2, SmcccAction.FWD_TO_USER)

    def apply(self, vcpu: Vcpu) -> None:
        """Tell a vCPU that was just initialised."""
        for reg_id, value in self.own.items():
            vcpu.set_one_reg(reg_id, value)
        if self.others:
            vcpu.set_one_reg(arm64.REG_VENDOR_HYP_BMAP_2, arm64.VENDOR_HYP_DISCOVER_VER | arm64.VENDOR_HYP_DISCOVER_CPUS)

    def answer(self, call: HypercallExit, vcpu: Vcpu) -> bool:
        """Answer a guest that asks which implementations it may run on; False if it asked for something else."""
        if call.nr not in (DISCOVER_VERSION, DISCOVER_CPUS) or not self.others:
            return False
        if call.nr == DISCOVER_VERSION:
            results = (0, VERSION_1_0, len(self.others), 0)
        elif (index := vcpu.regs.x1) < len(self.others):
            found = self.others[index]
            results = (0, found.midr, found.revidr, found.aidr)
        else:
            results = (INVALID_PARAMETER, 0, 0, 0)
        for number, value in enumerate(results):
            setattr(vcpu.regs, f"x{number}", value)
        return True


def _check_midr(values: Iterable[int | None]) -> None:
    for midr in values:
        if midr is not None and (midr >> 32 or midr >> 16 & 0xF != ID_SCHEME):
            raise NotSupported(
                f"MIDR_EL1 {midr:#x}: bits 63:32 are zero and Architecture (19:16) is 0xf in every processor that has ID registers"
            )


def smccc_filter(base: int, count: int, action: int) -> tuple[int, int, bytes]:
    """Group, attribute and value of the VM attribute that decides about a range of functions."""
    wanted: Any = SmcccFilter(base, count, action)  # type: ignore[call-arg]
    return VmGroup.SMCCC_CTRL, SMCCC_FILTER, bytes(wanted)


def writable_masks(ask: Callable[..., int], file: int) -> list[int]:
    """KVM_ARM_GET_REG_WRITABLE_MASKS: a mask for each of 192 registers."""
    masks = (ctypes.c_uint64 * FEATURE_ID_MASKS)()
    request: Any = RegMaskRange(ctypes.addressof(masks), FEATURE_ID_RANGE)  # type: ignore[call-arg]
    ask(file, KVM_ARM_GET_REG_WRITABLE_MASKS, request)
    return list(masks)


def set_id_register(vcpu: Vcpu, name: str, value: int | None, fields: dict[str, int]) -> None:
    """Set an ID register as a whole, or some of its fields; NotSupported, naming the field, for what would be a lie."""
    from trapline.arm64.regs import TABLE  # the tables of the whole architecture: only for those who come here

    register = TABLE.by_name.get(name)
    if register is None:
        raise NotSupported(f"no system register is called {name}")
    current = register(vcpu.get_one_reg(register.one_reg_id))
    wanted = register(current if value is None else value).replace(**fields)
    try:
        vcpu.set_one_reg(register.one_reg_id, int(wanted))
    except KvmError as error:
        if error.errno == errno.EBUSY:
            raise NotSupported(f"{name} is fixed: the VM has run") from error
        if error.errno != errno.EINVAL:
            raise
        changes = [f"{key} {current.decode()[key]:#x} -> {new:#x}" for key, new in wanted.decode().items() if new != current.decode()[key]]
        raise NotSupported(f"{name}: {', '.join(changes) or hex(wanted)} would be a lie: this machine does not do that") from error
