"""Identification registers of a VM: what its guest believes the processor to be, and what of that userspace can change.

A feature can be hidden and not invented: a field can be lowered from what the machine does, where lowering means doing less. The
registers that userspace may change, and their fields, are those of Linux (arch/arm64/kvm/sys_regs.c), as far as the machine has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from errno import EBUSY, EINVAL
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64 import Feature
from trapline.arm64.regs import (
    AIDR_EL1,
    ID_AA64DFR0_EL1,
    ID_AA64ISAR0_EL1,
    ID_AA64ISAR1_EL1,
    ID_AA64ISAR2_EL1,
    ID_AA64MMFR0_EL1,
    ID_AA64MMFR1_EL1,
    ID_AA64MMFR2_EL1,
    ID_AA64MMFR3_EL1,
    ID_AA64PFR0_EL1,
    ID_AA64PFR1_EL1,
    MIDR_EL1,
    REVIDR_EL1,
    TABLE,
)
from trapline.arm64.sysreg import Sysreg
from trapline.errors import KvmError
from trapline.kvm.arm64 import flags
from trapline.kvm.arm64.pmu import VERSION as PMU_VERSION
from trapline.registers import Field

if TYPE_CHECKING:
    from trapline.kvm.arm64.vm import Arm64Vm

FIELD_BITS: Final = 4
SIGNED: Final = frozenset({ID_AA64DFR0_EL1.DoubleLock, ID_AA64MMFR0_EL1.TGran4, ID_AA64MMFR0_EL1.TGran64})
"""Fields in which 0b1111 means that the thing is missing."""

DEBUG_V8: Final = 6


def _fields(reg: type[Sysreg]) -> list[Field]:
    return [field for field in vars(reg).values() if isinstance(field, Field)]


def _all_but(reg: type[Sysreg], *fixed: Field) -> int:
    return sum(field.mask for field in _fields(reg) if field not in fixed)


def _only(*fields: Field) -> int:
    return sum(field.mask for field in fields)


_P0, _P1, _D0, _I1, _I2 = ID_AA64PFR0_EL1, ID_AA64PFR1_EL1, ID_AA64DFR0_EL1, ID_AA64ISAR1_EL1, ID_AA64ISAR2_EL1
_M0, _M1, _M2, _M3 = ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1, ID_AA64MMFR3_EL1

WRITABLE: Final[Mapping[int, int]] = MappingProxyType(
    {
        _P0.encoding: _only(_P0.SEL2, _P0.DIT, _P0.RME, _P0.CSV2, _P0.CSV3),
        _P1.encoding: _only(_P1.BT, _P1.SSBS, _P1.CSV2_frac),
        _D0.encoding: _only(_D0.DoubleLock, _D0.WRPs, _D0.DebugVer),
        ID_AA64ISAR0_EL1.encoding: _all_but(ID_AA64ISAR0_EL1),
        _I1.encoding: _all_but(_I1, _I1.APA, _I1.API, _I1.GPA, _I1.GPI),
        _I2.encoding: _all_but(_I2, _I2.APA3, _I2.GPA3),
        _M0.encoding: _all_but(_M0, _M0.ASIDBits, _M0.TGran4_2, _M0.TGran16_2, _M0.TGran64_2),
        _M1.encoding: _all_but(_M1, _M1.HCX, _M1.TWED, _M1.XNX, _M1.VH, _M1.VMIDBits),
        _M2.encoding: _all_but(_M2, _M2.EVT, _M2.FWB, _M2.IDS, _M2.NV, _M2.CCIDX),
        _M3.encoding: _only(_M3.TCRX, _M3.S1PIE, _M3.S1POE),
    }
)
"""Bits that KVM_SET_ONE_REG may change, by encoding."""

IMPLEMENTATION: Final[Mapping[int, int]] = MappingProxyType(
    {MIDR_EL1.encoding: (1 << 32) - 1, REVIDR_EL1.encoding: (1 << 64) - 1, AIDR_EL1.encoding: (1 << 64) - 1}
)
"""What names the implementation: any value within the mask, once KVM_CAP_ARM_WRITABLE_IMP_ID_REGS is on."""


class IdRegisters:
    """The ID registers of one VM. `config_lock` of the VM protects changes."""

    def __init__(self, vm: Arm64Vm) -> None:
        self.vm = vm
        self.written: dict[int, int] = {}
        """Values that userspace set."""
        self._offered: dict[int, int] = {}
        self._values: dict[int, int] = {}
        self._offered_for: tuple[int | None, bool] | None = None

    @property
    def values(self) -> dict[int, int]:
        """What the guest sees, by encoding; registers that are not here read as zero."""
        self._update()
        return self._values

    @property
    def offered(self) -> dict[int, int]:
        """What the guest would see if userspace had changed nothing: the most that it can be told."""
        self._update()
        return self._offered

    def _update(self) -> None:
        vm = self.vm
        configuration = (vm.vcpu_features, vm.has_gic_registers)
        if self._offered_for != configuration and not (self._offered_for and vm.has_run):
            self._offered_for = configuration
            self._offered = self._offer()
            self._overlay()

    def _offer(self) -> dict[int, int]:
        """What the machine does, less what guests do not get and what this VM was not given."""
        vm = self.vm
        hidden = ["VHE", "VMID16", "CSV2_2"]  # a guest has no SCXTNUM_EL1: it traps, and is UNDEFINED
        if not vm.has_feature(Feature.PTRAUTH_ADDRESS):
            hidden.append("PAuth")
        if not vm.has_gic_registers:
            hidden.append("GICv3")
        values = vm.machine.id_values_without(*hidden)
        values[_P0] = _P0(values[_P0]).replace(EL2=0)
        values[_D0] = _D0(values[_D0]).replace(CTX_CMPs=0)
        if vm.has_feature(Feature.PMU_V3):
            values[_D0] = _D0(values[_D0]).replace(PMUVer=PMU_VERSION)
        values[_M1] = _M1(values.get(_M1, 0)).replace(HCX=0, VMIDBits=0)
        return {reg.encoding: int(value) for reg, value in values.items()}

    def _overlay(self) -> None:
        values = dict(self._offered)
        for encoding, value in self.written.items():
            mask = WRITABLE.get(encoding, -1)
            values[encoding] = values.get(encoding, 0) & ~mask | value & mask
        self._values = values

    def set(self, encoding: int, value: int) -> None:
        """KVM_SET_ONE_REG: EBUSY for a change after the VM ran, EINVAL for one that cannot be made."""
        vm = self.vm
        with vm.config_lock:
            if value == self.values.get(encoding, 0):
                return
            if encoding in IMPLEMENTATION:
                self._check_implementation(encoding, value)
            else:
                if vm.has_run:
                    raise KvmError(EBUSY)
                self._check_features(encoding, value)
            self.written[encoding] = value
            self._overlay()

    def _check_implementation(self, encoding: int, value: int) -> None:
        if not self.vm.flags.any() & flags.WRITABLE_IMP_ID_REGS:
            raise KvmError(EINVAL)
        if self.vm.has_run:
            raise KvmError(EBUSY)
        if value & ~IMPLEMENTATION[encoding]:
            raise KvmError(EINVAL)

    def _check_features(self, encoding: int, value: int) -> None:
        limit = self.offered.get(encoding, 0)
        mask = WRITABLE.get(encoding, 0)
        if (value ^ limit) & ~mask or not all(_within(field, value, limit) for field in _fields(TABLE[encoding])):
            raise KvmError(EINVAL)
        if encoding == _D0.encoding and _D0(value).DebugVer < DEBUG_V8:
            raise KvmError(EINVAL)


def _within(field: Field, value: int, limit: int) -> bool:
    """Whether a field says at most what the limit says."""
    wanted, most = field.extract(value), field.extract(limit)
    if field in SIGNED:
        wanted, most = (number - 16 if number >> FIELD_BITS - 1 else number for number in (wanted, most))
    return wanted <= most


RANGE_ROWS: Final = {0: 0, 1: 1, 3: 2}
"""Row of the mask array by op1."""
MASK_COUNT: Final = 3 * 8 * 8


def writable_masks(implementation: bool) -> Iterable[int]:
    """The array of KVM_ARM_GET_REG_WRITABLE_MASKS: op0=3, op1 0, 1 and 3, CRn=0, CRm 0 to 7, op2 0 to 7."""
    masks = [0] * MASK_COUNT
    for encoding, mask in (*WRITABLE.items(), *(IMPLEMENTATION.items() if implementation else ())):
        masks[RANGE_ROWS[encoding >> 11 & 7] << 6 | encoding & 0x3F] = mask
    return masks
