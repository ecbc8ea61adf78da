"""Trapped system instructions: the registers that the hypervisor answers for, one row each.

What the guest reads or writes without a trap is the machine's business. What traps and is not in the table is userspace's if it is
implementation defined and userspace asked for that (sysreg_exits.py); else the guest gets an undefined instruction exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.arm64.regs import ACTLR_EL1, AIDR_EL1, ICC_ASGI1R_EL1, ICC_DIR_EL1, ICC_SGI0R_EL1, ICC_SGI1R_EL1, REVIDR_EL1
from trapline.arm64.sysreg import Sysreg, encode
from trapline.kvm.arm64 import debug, inject, pmu_registers, timer
from trapline.kvm.arm64.syndrome import sysreg_encoding
from trapline.kvm.arm64.sysreg_exits import handle_unknown

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

READ: Final = 1
"""Direction bit of the syndrome."""

Read = Callable[["Arm64Vcpu"], int | None]
Write = Callable[["Arm64Vcpu", int], bool]

ID_MASK: Final = 0b11_111_1111_0000_000
ID_SPACE: Final = encode((3, 0, 0, 0, 0))
"""The feature identification space is op0=3, op1=0, CRn=0; CRm 1 to 7 read as zero where nothing is defined."""


def _ignored(vcpu: Arm64Vcpu, value: int) -> bool:
    return True


def _sgi(group: int) -> Write:
    """A write that sends software generated interrupts."""

    def write(vcpu: Arm64Vcpu, value: int) -> bool:
        if not vcpu.vm.has_gic_registers:
            return False
        vcpu.vm.vgic.write_sgi1r(vcpu, value, group)
        return True

    return write


def _deactivate(vcpu: Arm64Vcpu, value: int) -> bool:
    if not vcpu.vm.has_gic_registers:
        return False
    vcpu.vm.vgic.write_dir(vcpu, value)
    return True


def _zero(vcpu: Arm64Vcpu) -> int:
    return 0


def _identity(reg: type[Sysreg]) -> Read:
    """What names the implementation traps only when it is not the machine's own."""
    return lambda vcpu: vcpu.vm.id_values().get(reg.encoding, 0)


READS: Mapping[int, Read] = MappingProxyType(
    {
        ACTLR_EL1.encoding: _zero,
        REVIDR_EL1.encoding: _identity(REVIDR_EL1),
        AIDR_EL1.encoding: _identity(AIDR_EL1),
        **debug.READS,
        **timer.READS,
        **pmu_registers.READS,
    }
)

DC_ISW, DC_CSW, DC_CISW = encode((1, 0, 7, 6, 2)), encode((1, 0, 7, 10, 2)), encode((1, 0, 7, 14, 2))

WRITES: Mapping[int, Write] = MappingProxyType(
    {
        ACTLR_EL1.encoding: _ignored,
        # Caches of this machine hold nothing that memory does not: maintenance by set and way has no work to do.
        DC_ISW: _ignored,
        DC_CSW: _ignored,
        DC_CISW: _ignored,
        ICC_SGI1R_EL1.encoding: _sgi(1),
        ICC_ASGI1R_EL1.encoding: _sgi(0),
        ICC_SGI0R_EL1.encoding: _sgi(0),
        ICC_DIR_EL1.encoding: _deactivate,
        **debug.WRITES,
        **timer.WRITES,
        **pmu_registers.WRITES,
    }
)


def handle_sysreg(vcpu: Arm64Vcpu, esr: int) -> bool:
    """EC 0x18: a trapped MRS, MSR or SYS. True to go on in the guest, False when kvm_run holds an exit."""
    encoding = sysreg_encoding(esr)
    register = esr >> 5 & 31
    if esr & READ:
        value = _read(vcpu, encoding)
        if value is None:
            return handle_unknown(vcpu, esr)
        if register != 31:
            vcpu.x[register] = value
    else:
        write = WRITES.get(encoding)
        if write is None:
            return handle_unknown(vcpu, esr)
        if not write(vcpu, vcpu.x[register]):
            inject.undefined(vcpu)
            return True
    inject.skip_instruction(vcpu)
    return True


def _read(vcpu: Arm64Vcpu, encoding: int) -> int | None:
    read = READS.get(encoding)
    if read is not None:
        return read(vcpu)
    value = vcpu.vm.id_values().get(encoding)
    if value is None and encoding & ID_MASK == ID_SPACE and encoding >> 3 & 15:
        return 0
    return value
