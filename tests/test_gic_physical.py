"""The physical CPU interface: which accesses reach it, and how a virtual interrupt's completion does."""

from __future__ import annotations

import pytest

from trapline.arm64 import gic_interface as rules
from trapline.arm64.exceptions import NO_EXCEPTION, Vector, pending_physical_exception, pending_virtual_exception
from trapline.arm64.gic_access import ACCESS
from trapline.arm64.gic_interface import PHYSICAL
from trapline.arm64.regs import HCR_EL2, ICH_HCR_EL2, ICH_LR0_EL2, ICH_VMCR_EL2
from trapline.arm64.regs.gic_cpu import ListRegister
from trapline.arm64.state import CpuState
from trapline.arm64.sysreg_functions import isr_read
from trapline.gic.state import bank_view

PENDING, ACTIVE = 1, 2
IMO, FMO = HCR_EL2.IMO.mask, HCR_EL2.FMO.mask


def lr(intid: int, state: int, group: int = 1, **fields: int) -> int:
    return ListRegister(vINTID=intid, Priority=0xA0, State=state, Group=group, **fields)


def machine(el: int, hcr: int, *, virtual: int = 0, physical: int = 0) -> CpuState:
    """Both interfaces on, with one list register each."""
    cpu = CpuState()
    cpu.el = el
    cpu.sysreg[HCR_EL2.slot] = hcr
    for bank, value in ((0, virtual), (PHYSICAL, physical)):
        cpu.sysreg[bank + ICH_HCR_EL2.slot] = 1
        cpu.sysreg[bank + ICH_VMCR_EL2.slot] = ICH_VMCR_EL2(VENG0=1, VENG1=1, VPMR=0xF8, VBPR0=2, VBPR1=3)
        cpu.sysreg[bank + ICH_LR0_EL2.slot] = value
    return cpu


def read(cpu: CpuState, name: str) -> int:
    function = ACCESS[f"ICC_{name}_EL1"].read
    assert function is not None
    return int(function(cpu))


def write(cpu: CpuState, name: str, value: int) -> None:
    function = ACCESS[f"ICC_{name}_EL1"].write
    assert function is not None
    function(cpu, value)


@pytest.mark.parametrize(("name", "bits"), [("IAR1", IMO), ("HPPIR1", IMO), ("IAR0", FMO), ("HPPIR0", FMO)])
def test_el1_reaches_the_interface_that_hcr_gives_it(name: str, bits: int) -> None:
    group = int(name[-1])
    for el, hcr, wanted in ((1, 0, 50), (1, bits, 40), (1, (IMO | FMO) ^ bits, 50), (2, 0, 50), (2, IMO | FMO, 50)):
        cpu = machine(el, hcr, virtual=lr(40, PENDING, group), physical=lr(50, PENDING, group))
        assert read(cpu, name) == wanted, (el, hcr)


@pytest.mark.parametrize(("hcr", "virtual"), [(0, False), (IMO, True), (FMO, True), (IMO | FMO, True)])
def test_what_both_groups_share_is_virtual_with_either(hcr: int, virtual: bool) -> None:
    cpu = machine(1, hcr)
    write(cpu, "PMR", 0x80)
    assert ICH_VMCR_EL2(cpu.sysreg[ICH_VMCR_EL2.slot]).VPMR == (0x80 if virtual else 0xF8)
    assert ICH_VMCR_EL2(cpu.sysreg[PHYSICAL + ICH_VMCR_EL2.slot]).VPMR == (0xF8 if virtual else 0x80)


def test_the_banks_do_not_touch_each_other() -> None:
    cpu = machine(2, 0, virtual=lr(40, PENDING), physical=lr(50, PENDING))
    assert read(cpu, "IAR1") == 50 and read(cpu, "RPR") == 0xA0
    assert rules.running_priority(cpu, rules.VIRTUAL) == rules.IDLE
    view = bank_view(cpu, PHYSICAL)
    assert view[ICH_LR0_EL2.slot] >> 62 == ACTIVE and cpu.sysreg[ICH_LR0_EL2.slot] >> 62 == PENDING
    write(cpu, "EOIR1", 50)
    assert view[ICH_LR0_EL2.slot] >> 62 == 0 and read(cpu, "RPR") == rules.IDLE


def test_signals_and_isr() -> None:
    """A physical interrupt interrupts EL1 or EL2 as routed; a virtual one EL1 only. ISR_EL1 shows what can interrupt here."""
    cpu = machine(1, 0, physical=lr(50, PENDING))
    assert pending_physical_exception(cpu) == Vector.IRQ and pending_virtual_exception(cpu) == NO_EXCEPTION
    assert isr_read(cpu) == 1 << 7
    cpu = machine(1, IMO | FMO, virtual=lr(40, PENDING, 0))
    assert pending_physical_exception(cpu) == NO_EXCEPTION and pending_virtual_exception(cpu) == Vector.FIQ
    assert isr_read(cpu) == 1 << 6
    cpu.el = 2
    assert pending_virtual_exception(cpu) == NO_EXCEPTION and isr_read(cpu) == 0


@pytest.mark.parametrize("eoi_mode", [0, 1])
def test_completing_a_hardware_interrupt_deactivates_the_physical_one(eoi_mode: int) -> None:
    cpu = machine(1, IMO, virtual=lr(27, PENDING, HW=1, pINTID=26), physical=lr(26, ACTIVE))
    write(cpu, "CTLR", eoi_mode << 1)
    assert read(cpu, "IAR1") == 27
    write(cpu, "EOIR1", 27)
    if eoi_mode:
        assert cpu.sysreg[PHYSICAL + ICH_LR0_EL2.slot] >> 62 == ACTIVE
        write(cpu, "DIR", 27)
    assert cpu.sysreg[PHYSICAL + ICH_LR0_EL2.slot] >> 62 == 0


def test_a_hardware_interrupt_that_is_not_listed_is_counted() -> None:
    cpu = machine(1, IMO, virtual=lr(27, PENDING, HW=1, pINTID=26))
    assert read(cpu, "IAR1") == 27
    write(cpu, "EOIR1", 27)
    assert ICH_HCR_EL2(cpu.sysreg[PHYSICAL + ICH_HCR_EL2.slot]).EOIcount == 1
    assert ICH_HCR_EL2(cpu.sysreg[ICH_HCR_EL2.slot]).EOIcount == 0
