"""Performance monitors. The registers are declared and absent until FEAT_PMUv3 works."""

from __future__ import annotations

from typing import Any

from trapline.arm64.regs.el2 import MDCR_EL2
from trapline.arm64.sysreg import RW, Encoding, Sysreg, register
from trapline.registers import Field

MONITOR = (RW @ MDCR_EL2.TPM,)


class PMUSERENR_EL0(Sysreg, enc=(3, 3, 9, 14, 0), feature="PMUv3", write_el=1, reset=0, after={"trap"}, traps=MONITOR):
    """Performance Monitors User Enable Register."""

    EN = Field(0)
    SW = Field(1)
    CR = Field(2)
    ER = Field(3)


class PMCR_EL0(Sysreg, enc=(3, 3, 9, 12, 0), feature="PMUv3", reset=0, traps=(RW @ MDCR_EL2.TPMCR, *MONITOR)):
    """Performance Monitors Control Register."""

    E = Field(0)
    P = Field(1)
    C = Field(2)
    D = Field(3)
    X = Field(4)
    DP = Field(5)
    LC = Field(6)
    LP = Field(7)
    N = Field(15, 11)
    IDCODE = Field(23, 16)
    IMP = Field(31, 24)


def _pmu(name: str, enc: Encoding, doc: str, **row: Any) -> type[Sysreg]:
    return register(name, doc, enc, feature="PMUv3", reset=0, traps=MONITOR, **row)


COUNTERS = (
    _pmu("PMCNTENSET_EL0", (3, 3, 9, 12, 1), "Count Enable Set register."),
    _pmu("PMCNTENCLR_EL0", (3, 3, 9, 12, 2), "Count Enable Clear register."),
    _pmu("PMOVSCLR_EL0", (3, 3, 9, 12, 3), "Overflow Flag Status Clear register."),
    _pmu("PMSWINC_EL0", (3, 3, 9, 12, 4), "Software Increment register.", access="WO"),
    _pmu("PMSELR_EL0", (3, 3, 9, 12, 5), "Event Counter Selection Register."),
    _pmu("PMCEID0_EL0", (3, 3, 9, 12, 6), "Common Event Identification register 0.", access="RO"),
    _pmu("PMCEID1_EL0", (3, 3, 9, 12, 7), "Common Event Identification register 1.", access="RO"),
    _pmu("PMCCNTR_EL0", (3, 3, 9, 13, 0), "Cycle Count Register."),
    _pmu("PMXEVTYPER_EL0", (3, 3, 9, 13, 1), "Selected Event Type Register."),
    _pmu("PMXEVCNTR_EL0", (3, 3, 9, 13, 2), "Selected Event Count Register."),
    _pmu("PMINTENSET_EL1", (3, 0, 9, 14, 1), "Interrupt Enable Set register."),
    _pmu("PMINTENCLR_EL1", (3, 0, 9, 14, 2), "Interrupt Enable Clear register."),
    _pmu("PMMIR_EL1", (3, 0, 9, 14, 6), "Machine Identification Register.", access="RO"),
    _pmu("PMOVSSET_EL0", (3, 3, 9, 14, 3), "Overflow Flag Status Set register."),
    _pmu("PMCCFILTR_EL0", (3, 3, 14, 15, 7), "Cycle Count Filter Register."),
)
PMEVCNTR = tuple(_pmu(f"PMEVCNTR{n}_EL0", (3, 3, 14, 8 + n // 8, n % 8), "Event Count Register.") for n in range(31))
PMEVTYPER = tuple(_pmu(f"PMEVTYPER{n}_EL0", (3, 3, 14, 12 + n // 8, n % 8), "Event Type Register.") for n in range(31))
