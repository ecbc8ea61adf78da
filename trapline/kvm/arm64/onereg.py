"""ONE_REG: every register of a vCPU under its id.

System registers come from the machine's register table; the others are few and listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EINVAL, ENOENT
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from trapline.abi import arm64 as abi
from trapline.arm64.features import CACHE_SIZES, Features
from trapline.arm64.regs import (
    CNTP_CTL_EL0,
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    ELR_EL1,
    ELR_EL2,
    FPCR,
    FPSR,
    MDCCINT_EL1,
    MDSCR_EL1,
    MPIDR_EL1,
    OSLSR_EL1,
    SPSR_EL1,
    SPSR_EL2,
    TABLE,
    VMPIDR_EL2,
)
from trapline.arm64.regs.debug import DBGBCR, DBGBVR, DBGWCR, DBGWVR
from trapline.arm64.sysreg import Sysreg
from trapline.errors import KvmError
from trapline.kvm.arm64 import pmu_registers, psci, smccc, timer

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

WORD: Final = (1 << 64) - 1
LEGAL_MODES: Final = frozenset({0b0000, 0b0100, 0b0101})
"""EL0t, EL1t, EL1h."""
MODE_MASK: Final = 0x1F
TIMER_ENABLE_AND_MASK: Final = 3
CORE_STRUCT_WORDS: Final = 864 // 4
AARCH32_SPSR: Final = range(1, 5)
NOT_FOR_GUESTS: Final = "CSV2_2"
"""The feature of SCXTNUM_EL0 and SCXTNUM_EL1, which trap."""

Get = Callable[["Arm64Vcpu"], int]
Set = Callable[["Arm64Vcpu", int], Any]


@dataclass(frozen=True, slots=True)
class Access:
    """How one register is read and written."""

    get: Get
    set: Set


def _general(number: int) -> Access:
    def put(vcpu: Arm64Vcpu, value: int) -> None:
        vcpu.x[number] = value

    return Access(lambda vcpu: vcpu.x[number], put)


def _vector(number: int) -> Access:
    def get(vcpu: Arm64Vcpu) -> int:
        vector = vcpu.state.v[number]
        return int(vector.hi << 64 | vector.lo)

    def put(vcpu: Arm64Vcpu, value: int) -> None:
        vector = vcpu.state.v[number]
        vector.lo, vector.hi = value & WORD, value >> 64

    return Access(get, put)


def _stack_pointer(el: int) -> Access:
    def put(vcpu: Arm64Vcpu, value: int) -> None:
        vcpu.state.sp_el[el] = value

    return Access(lambda vcpu: vcpu.state.sp_el[el], put)


def _stored(reg: type[Sysreg]) -> Access:
    slot = reg.slot

    def put(vcpu: Arm64Vcpu, value: int) -> None:
        vcpu.sysreg[slot] = value

    return Access(lambda vcpu: vcpu.sysreg[slot], put)


def _set_pstate(vcpu: Arm64Vcpu, value: int) -> None:
    if value & MODE_MASK not in LEGAL_MODES:
        raise KvmError(EINVAL)
    vcpu.sysreg[SPSR_EL2.slot] = value & 0xFFFF_FFFF


def _zero_only(value: int) -> Access:
    """A register of a state that this machine lacks: it reads as `value` and takes nothing else."""
    return Access(lambda vcpu: value, _refuse_other(lambda vcpu: value))


def _refuse_other(get: Get) -> Set:
    def put(vcpu: Arm64Vcpu, value: int) -> None:
        if value != get(vcpu):
            raise KvmError(EINVAL)

    return put


def _set_psci_version(vcpu: Arm64Vcpu, value: int) -> None:
    if not vcpu.vm.has_feature(abi.Feature.PSCI_0_2) or value not in psci.VERSIONS:
        raise KvmError(EINVAL)
    vcpu.psci_version = value


def _timer_control(reg: type[Sysreg]) -> Access:
    slot = reg.slot

    def put(vcpu: Arm64Vcpu, value: int) -> None:
        vcpu.sysreg[slot] = value & TIMER_ENABLE_AND_MASK

    return Access(lambda vcpu: vcpu.sysreg[slot], put)


def _identification(reg: type[Sysreg]) -> Access:
    """An ID register: the VM's value, of which some fields can be changed until the VM runs (idregs.py)."""
    encoding = reg.encoding
    return Access(lambda vcpu: vcpu.vm.id_values().get(encoding, 0), lambda vcpu, value: vcpu.vm.ids.set(encoding, value))


CORE: Final[dict[int, Access]] = {
    **{abi.reg_x(number): _general(number) for number in range(31)},
    abi.REG_SP: _stack_pointer(0),
    abi.REG_PC: _stored(ELR_EL2),
    abi.REG_PSTATE: Access(lambda vcpu: vcpu.sysreg[SPSR_EL2.slot], _set_pstate),
    abi.REG_SP_EL1: _stack_pointer(1),
    abi.REG_ELR_EL1: _stored(ELR_EL1),
    abi.reg_spsr(0): _stored(SPSR_EL1),
    **{abi.reg_spsr(index): _zero_only(0) for index in AARCH32_SPSR},
    **{abi.reg_v(number): _vector(number) for number in range(32)},
    abi.REG_FPSR: _stored(FPSR),
    abi.REG_FPCR: _stored(FPCR),
}

def _service_bitmap(reg_id: int) -> Access:
    return Access(lambda vcpu: vcpu.vm.smccc.bitmaps[reg_id], lambda vcpu, value: vcpu.vm.smccc.set_bitmap(reg_id, value))


FIRMWARE: Final[dict[int, Access]] = {
    abi.REG_PSCI_VERSION: Access(lambda vcpu: vcpu.psci_version, _set_psci_version),
    **{reg_id: Access(lambda vcpu, level=level: level, smccc.level_setter(reg_id)) for reg_id, level in smccc.WORKAROUNDS.items()},  # type: ignore[misc]
    **{reg_id: _service_bitmap(reg_id) for reg_id in smccc.SERVICE_BITMAPS},
}

TIMERS: Final[dict[int, Access]] = {
    abi.REG_TIMER_CTL: _timer_control(CNTV_CTL_EL0),
    abi.REG_TIMER_CVAL: _stored(CNTV_CVAL_EL0),
    abi.REG_TIMER_CNT: Access(lambda vcpu: vcpu.vm.timer.count(), lambda vcpu, value: vcpu.vm.timer.set_count(value)),
    abi.REG_PTIMER_CTL: _timer_control(CNTP_CTL_EL0),
    abi.REG_PTIMER_CVAL: Access(timer.compare_value, timer.set_compare_value),
    abi.REG_PTIMER_CNT: Access(lambda vcpu: vcpu.vm.timer.physical_count(), lambda vcpu, value: None),
}
"""The physical counter cannot be moved on a machine without FEAT_ECV: its id accepts what it is given and keeps counting."""

PMU: Final[dict[int, Access]] = {abi.reg_sysreg(*enc): Access(*access) for enc, access in pmu_registers.SAVED.items()}
"""Of vCPUs with a PMU."""

CACHES: Final[dict[int, Access]] = {abi.reg_ccsidr(index): _zero_only(int(size)) for index, size in enumerate(CACHE_SIZES)}


def _set_os_lock(vcpu: Arm64Vcpu, value: int) -> None:
    if (value ^ vcpu.sysreg[OSLSR_EL1.slot]) & ~OSLSR_EL1.OSLK.mask:
        raise KvmError(EINVAL)
    vcpu.sysreg[OSLSR_EL1.slot] = value


_DEBUG_STORAGE = (MDCCINT_EL1, MDSCR_EL1, *DBGBVR, *DBGBCR, *DBGWVR, *DBGWCR)

DEBUG: Final[dict[int, Access]] = {
    **{reg.one_reg_id: _stored(reg) for reg in sorted(_DEBUG_STORAGE, key=lambda reg: reg.encoding)},
    OSLSR_EL1.one_reg_id: Access(lambda vcpu: vcpu.sysreg[OSLSR_EL1.slot], _set_os_lock),
}
"""All sixteen breakpoints and watchpoints have ids, however many the machine has."""


def _is_guest_state(reg: type[Sysreg]) -> bool:
    """Plain storage of EL0 and EL1, not reached by another id: not the interrupt controller's, the timers' or PSTATE's."""
    op0, op1, crn, _, _ = reg.enc
    own = reg.alias is None and reg.read is None and reg.write is None and reg.access == "RW"
    elsewhere = reg.feature == "GICv3" or crn == 4 or reg.name.startswith(("CNTV_", "CNTP_", "CNTFRQ"))
    return own and op0 == 3 and op1 not in (4, 5, 6, 7) and not elsewhere


def _is_identification(reg: type[Sysreg]) -> bool:
    """ID registers: op0=3, CRn=0, read-only, and constant in a VM."""
    op0, _, crn, _, _ = reg.enc
    return op0 == 3 and crn == 0 and reg.access == "RO" and reg.name not in ("MPIDR_EL1", "CCSIDR_EL1", "DCZID_EL0")


def _sysregs(features: Features, pauth: bool) -> Iterator[tuple[int, Access]]:
    for reg in TABLE:
        if not reg.exists(features) or reg.enc[1] == 4 or reg.feature == NOT_FOR_GUESTS or (reg.feature == "PAuth" and not pauth):
            continue
        if reg is MPIDR_EL1:
            yield reg.one_reg_id, _stored(VMPIDR_EL2)
        elif _is_identification(reg):
            yield reg.one_reg_id, _identification(reg)
        elif _is_guest_state(reg):
            yield reg.one_reg_id, _stored(reg)


def _spare(reg_id: int) -> Access:
    """A register of a state or extension that this machine lacks, which KVM saves and restores all the same."""

    def put(vcpu: Arm64Vcpu, value: int) -> None:
        vcpu.spare_registers[reg_id] = value

    return Access(lambda vcpu: vcpu.spare_registers.get(reg_id, SPARE[reg_id]), put)


SPARE: Final[dict[int, int]] = {
    abi.reg_sysreg(2, 4, 0, 7, 0): 0,  # DBGVCR32_EL2
    abi.reg_sysreg(3, 0, 12, 1, 1): 0,  # DISR_EL1
    abi.reg_sysreg(3, 4, 3, 0, 0): 0,  # DACR32_EL2
    abi.reg_sysreg(3, 4, 5, 0, 1): 0,  # IFSR32_EL2
    abi.reg_sysreg(3, 4, 5, 3, 0): 0x700,  # FPEXC32_EL2
}
"""Values after reset. The guest has none of these."""


@cache
def registers(features: Features, pmu: bool, pauth: bool) -> dict[int, Access]:
    """The registers of a vCPU in the order of KVM_GET_REG_LIST: core, firmware, system registers by number, caches."""
    system = {**DEBUG, **dict(_sysregs(features, pauth)), **TIMERS, **{reg_id: _spare(reg_id) for reg_id in SPARE}, **(PMU if pmu else {})}
    return {**CORE, **FIRMWARE, **dict(sorted(system.items())), **CACHES}


def check_id(reg_id: int) -> None:
    """EINVAL for an id that is not an arm64 register's or has the wrong size for its group."""
    if reg_id & abi.REG_ARCH_MASK != abi.REG_ARCH:
        raise KvmError(EINVAL)


def _find(vcpu: Arm64Vcpu, reg_id: int) -> Access:
    access = vcpu.registers.get(reg_id)
    if access is not None:
        return access
    check_id(reg_id)
    in_core_struct = reg_id & abi.REG_GROUP_MASK == abi.GROUP_CORE and reg_id & 0xFFFF < CORE_STRUCT_WORDS
    raise KvmError(EINVAL if in_core_struct else ENOENT)  # inside the structure: misaligned, or of another size


def read(vcpu: Arm64Vcpu, reg_id: int) -> int:
    """The value of a register."""
    return _find(vcpu, reg_id).get(vcpu)


def write(vcpu: Arm64Vcpu, reg_id: int, value: int) -> None:
    """Set a register."""
    _find(vcpu, reg_id).set(vcpu, value)


def list_ids(vcpu: Arm64Vcpu) -> list[int]:
    """Every id."""
    return list(vcpu.registers)
