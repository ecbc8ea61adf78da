"""ICC_* at any exception level: the virtual CPU interface where HCR_EL2 gives EL1 virtual interrupts, the physical one elsewhere."""

from __future__ import annotations

from typing import Final

from trapline.arm64 import gic_interface as rules
from trapline.arm64.gic_interface import PHYSICAL, VIRTUAL
from trapline.arm64.gic_virtual import CPU_INTERFACE, Access
from trapline.arm64.regs.el2 import HCR_EL2
from trapline.arm64.state import CpuState
from trapline.bits.native import NativeFunction, Ptr, native, u64

GROUP0, GROUP1 = HCR_EL2.FMO.mask, HCR_EL2.IMO.mask
EITHER = GROUP0 | GROUP1
"""Bits of HCR_EL2 of which one makes EL1's accesses to a register virtual: by the interrupt group it is about."""

VIRTUAL_IF: Final = {"0": GROUP0, "1": GROUP1}


@native
def bank_of(cpu: Ptr[CpuState], virtual_if: u64) -> u64:
    """The bank that an access from here works on."""
    return VIRTUAL if cpu.el == 1 and cpu.sysreg[HCR_EL2.slot] & virtual_if != 0 else u64(PHYSICAL)


def _reader(rule: NativeFunction[..., int], virtual_if: int) -> NativeFunction[..., int]:
    @native(name=f"icc_{rule.name}")
    def read(cpu: Ptr[CpuState]) -> u64:
        return rule(cpu, bank_of(cpu, virtual_if))

    return read


def _writer(rule: NativeFunction[..., None], virtual_if: int) -> NativeFunction[..., None]:
    @native(name=f"icc_{rule.name}")
    def write(cpu: Ptr[CpuState], value: u64) -> None:
        rule(cpu, bank_of(cpu, virtual_if), value)

    return write


def _banked(name: str, virtual: Access) -> Access:
    stem = name.removeprefix("ICC_").removesuffix("_EL1")
    # The group is the register's last digit; in AP0R0 the first of two.
    group = stem[2] if stem.startswith("AP") else stem[-1]
    virtual_if = VIRTUAL_IF.get(group, EITHER)
    lower = stem.lower()
    return Access(
        _reader(getattr(rules, lower + "_read"), virtual_if) if virtual.read else None,
        _writer(getattr(rules, lower + "_write"), virtual_if) if virtual.write else None,
        virtual.signals,
    )


ACCESS: dict[str, Access] = {name: _banked(name, virtual) for name, virtual in CPU_INTERFACE.items()}
"""How the engine serves each ICC_* register."""
