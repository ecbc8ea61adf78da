"""The virtual CPU interface: hand cases, a second implementation of its rules, and CPython against LLVM."""

from __future__ import annotations

import random
from typing import Any

import pytest

from trapline.arm64 import gic_interface as rules
from trapline.arm64 import gic_virtual as gic
from trapline.arm64.regs import ICH_AP0R0_EL2, ICH_AP1R0_EL2, ICH_HCR_EL2, ICH_LR0_EL2, ICH_MISR_EL2, ICH_VMCR_EL2, ICH_VTR_EL2
from trapline.arm64.regs.gic_cpu import ListRegister
from trapline.arm64.state import CpuState

PENDING, ACTIVE, BOTH = 1, 2, 3
EOI = 1 << 41
SLOTS = (ICH_HCR_EL2.slot, ICH_VMCR_EL2.slot, ICH_AP0R0_EL2.slot, ICH_AP1R0_EL2.slot, *(ICH_LR0_EL2.slot + n for n in range(4)))
READERS = [access.read for access in gic.CPU_INTERFACE.values() if access.read]
WRITERS = [access.write for access in gic.CPU_INTERFACE.values() if access.write]
STATUS = [gic.virtual_lines, gic.maintenance_pending,
          gic.ich_misr_read, gic.ich_eisr_read, gic.ich_elrsr_read]  # fmt: skip


def lr(intid: int, priority: int, state: int, group: int = 1, extra: int = 0) -> int:
    return ListRegister(vINTID=intid, Priority=priority, State=state, Group=group) | extra


def interface(*registers: int, **vmcr: int) -> CpuState:
    """A CPU interface that is switched on, with these list registers."""
    cpu = CpuState()
    cpu.sysreg[ICH_HCR_EL2.slot] = ICH_HCR_EL2(En=1)
    cpu.sysreg[ICH_VMCR_EL2.slot] = ICH_VMCR_EL2(**({"VENG0": 1, "VENG1": 1, "VPMR": 0xF8, "VBPR0": 2, "VBPR1": 3} | vmcr))
    for n, value in enumerate(registers):
        cpu.sysreg[ICH_LR0_EL2.slot + n] = value
    return cpu


def state_of(cpu: CpuState, n: int = 0) -> int:
    return cpu.sysreg[ICH_LR0_EL2.slot + n] >> 62


def eoi_count(cpu: CpuState) -> int:
    return ICH_HCR_EL2(cpu.sysreg[ICH_HCR_EL2.slot]).EOIcount


# ---- acknowledging --------------------------------------------------------------------------------------------------------------


def test_acknowledge_and_complete() -> None:
    cpu = interface(lr(40, 0xA0, PENDING))
    assert gic.virtual_lines(cpu) == rules.LINE_IRQ and gic.icv_hppir1_read(cpu) == 40
    assert gic.icv_iar1_read(cpu) == 40
    assert state_of(cpu) == ACTIVE and gic.icv_rpr_read(cpu) == 0xA0 and gic.virtual_lines(cpu) == 0
    assert cpu.sysreg[ICH_AP1R0_EL2.slot] == 1 << (0xA0 >> 3)
    gic.icv_eoir1_write(cpu, 40)
    assert state_of(cpu) == 0 and gic.icv_rpr_read(cpu) == 0xFF and cpu.sysreg[ICH_AP1R0_EL2.slot] == 0


def test_pending_and_active_waits_for_completion() -> None:
    cpu = interface(lr(40, 0xA0, BOTH))
    assert gic.virtual_lines(cpu) == 0 and gic.icv_iar1_read(cpu) == rules.SPURIOUS
    cpu.sysreg[ICH_AP1R0_EL2.slot] = 1 << (0xA0 >> 3)
    gic.icv_eoir1_write(cpu, 40)
    assert state_of(cpu) == PENDING and gic.icv_iar1_read(cpu) == 40


@pytest.mark.parametrize("group", [0, 1])
def test_groups_have_their_own_registers(group: int) -> None:
    reads, writes = (gic.icv_iar0_read, gic.icv_iar1_read), (gic.icv_eoir0_write, gic.icv_eoir1_write)
    cpu = interface(lr(40, 0xA0, PENDING, group))
    assert gic.virtual_lines(cpu) == (rules.LINE_FIQ, rules.LINE_IRQ)[group]
    assert reads[1 - group](cpu) == rules.SPURIOUS and reads[group](cpu) == 40
    assert cpu.sysreg[(ICH_AP0R0_EL2, ICH_AP1R0_EL2)[group].slot] == 1 << 20
    writes[1 - group](cpu, 40)
    assert state_of(cpu) == ACTIVE, "the wrong group's register deactivates nothing"


def test_most_urgent_of_an_enabled_group() -> None:
    registers = (lr(40, 0x50, PENDING), lr(41, 0x20, PENDING, 0), lr(42, 0x30, PENDING), lr(43, 0x10, ACTIVE))
    cpu = interface(*registers)
    assert gic.icv_hppir0_read(cpu) == 41 and gic.icv_hppir1_read(cpu) == rules.SPURIOUS
    assert gic.icv_iar1_read(cpu) == rules.SPURIOUS, "one of group 0 is more urgent"
    cpu = interface(*registers, VENG0=0)
    assert gic.icv_hppir0_read(cpu) == rules.SPURIOUS and gic.icv_iar1_read(cpu) == 42
    assert gic.virtual_lines(interface(*registers, VENG0=0, VENG1=0)) == 0


@pytest.mark.parametrize(("mask", "passes"), [(0x00, False), (0xA0, False), (0xA8, True), (0xF8, True)])
def test_priority_mask(mask: int, passes: bool) -> None:
    cpu = interface(lr(40, 0xA0, PENDING), VPMR=mask)
    assert (gic.signalled_group(cpu) == rules.LINE_IRQ) == passes and gic.icv_hppir1_read(cpu) == 40
    assert gic.icv_iar1_read(cpu) == (40 if passes else rules.SPURIOUS)


def test_nothing_is_signalled_while_switched_off() -> None:
    cpu = interface(lr(40, 0xA0, PENDING), lr(41, 0, 0, extra=EOI))
    cpu.sysreg[ICH_HCR_EL2.slot] = 0
    assert gic.virtual_lines(cpu) == 0 and gic.icv_iar1_read(cpu) == rules.SPURIOUS


@pytest.mark.parametrize(("point", "preempts"), [(3, True), (4, True), (5, False), (7, False)])
def test_preemption_compares_group_priorities(point: int, preempts: bool) -> None:
    cpu = interface(lr(40, 0x98, ACTIVE), lr(41, 0x80, PENDING), VBPR1=point)
    cpu.sysreg[ICH_AP1R0_EL2.slot] = 1 << ((0x98 & 0xFF << point) >> 3)
    assert (gic.signalled_group(cpu) == rules.LINE_IRQ) == preempts


def test_common_binary_point() -> None:
    cpu = interface(VBPR0=4, VBPR1=3)
    gic.icv_ctlr_write(cpu, 1)
    assert gic.icv_bpr1_read(cpu) == 5
    gic.icv_bpr1_write(cpu, 7)
    gic.icv_ctlr_write(cpu, 0)
    assert gic.icv_bpr1_read(cpu) == 3, "the write was ignored"
    vmcr = int(ICH_VMCR_EL2(VCBPR=1, VBPR0=4))
    assert rules.group_priority_mask(vmcr, 1) == rules.group_priority_mask(vmcr, 0) == 0xE0
    assert rules.group_priority_mask(int(ICH_VMCR_EL2(VBPR0=7)), 0) == 0
    assert rules.group_priority_mask(0, 0) == rules.group_priority_mask(0, 1) == 0xF8


# ---- completing -----------------------------------------------------------------------------------------------------------------


def test_priority_drop_takes_the_most_urgent_of_both_groups() -> None:
    cpu = interface()
    cpu.sysreg[ICH_AP0R0_EL2.slot], cpu.sysreg[ICH_AP1R0_EL2.slot] = 0b1010, 0b0101
    running = []
    while gic.icv_rpr_read(cpu) != rules.IDLE:
        running.append(gic.icv_rpr_read(cpu) >> 3)
        gic.icv_eoir1_write(cpu, 40)
    assert running == [0, 1, 2, 3] and eoi_count(cpu) == 4


def test_split_completion() -> None:
    cpu = interface(lr(40, 0xA0, PENDING), VEOIM=1)
    assert gic.icv_iar1_read(cpu) == 40
    gic.icv_eoir1_write(cpu, 40)
    assert gic.icv_rpr_read(cpu) == rules.IDLE and state_of(cpu) == ACTIVE
    gic.icv_dir_write(cpu, 40)
    assert state_of(cpu) == 0 and eoi_count(cpu) == 0
    gic.icv_dir_write(cpu, 40)
    assert eoi_count(cpu) == 1


def test_deactivation_does_nothing_while_completion_includes_it() -> None:
    cpu = interface(lr(40, 0xA0, ACTIVE))
    gic.icv_dir_write(cpu, 40)
    assert state_of(cpu) == ACTIVE and eoi_count(cpu) == 0


@pytest.mark.parametrize("intid", [1020, 1021, 1022, 1023])
def test_special_numbers_complete_nothing(intid: int) -> None:
    cpu = interface(VEOIM=1)
    cpu.sysreg[ICH_AP1R0_EL2.slot] = 1
    gic.icv_eoir1_write(cpu, intid)
    gic.icv_dir_write(cpu, intid)
    assert cpu.sysreg[ICH_AP1R0_EL2.slot] == 1 and eoi_count(cpu) == 0


def test_completion_without_list_register_is_counted() -> None:
    cpu = interface()
    for n in range(3):
        cpu.sysreg[ICH_AP1R0_EL2.slot] = 1
        gic.icv_eoir1_write(cpu, 40)
        assert eoi_count(cpu) == n + 1
    gic.icv_eoir1_write(cpu, 40)
    assert eoi_count(cpu) == 3, "no priority was active"
    cpu.sysreg[ICH_AP1R0_EL2.slot] = 1
    gic.icv_eoir1_write(cpu, 8200)
    assert eoi_count(cpu) == 3, "LPIs have no active state"


def test_lpis_are_never_active() -> None:
    cpu = interface(lr(8192, 0xA0, PENDING))
    assert gic.icv_iar1_read(cpu) == 8192 and state_of(cpu) == 0 and gic.icv_rpr_read(cpu) == 0xA0
    gic.icv_eoir1_write(cpu, 8192)
    assert gic.icv_rpr_read(cpu) == rules.IDLE and eoi_count(cpu) == 0


# ---- maintenance ----------------------------------------------------------------------------------------------------------------


def test_completion_asks_for_maintenance() -> None:
    cpu = interface(lr(40, 0xA0, PENDING, extra=EOI), lr(41, 0xB0, PENDING))
    for intid, eisr, elrsr in ((40, 0b01, 0b1100), (41, 0b01, 0b1110)):
        assert gic.icv_iar1_read(cpu) == intid
        gic.icv_eoir1_write(cpu, intid)
        assert gic.ich_eisr_read(cpu) == eisr and gic.ich_elrsr_read(cpu) == elrsr
    assert gic.virtual_lines(cpu) == rules.LINE_MAINTENANCE and gic.ich_misr_read(cpu) == ICH_MISR_EL2.EOI.mask


CONDITIONS = {
    "U": (dict(UIE=1), (lr(40, 0, PENDING), lr(41, 0, ACTIVE)), (lr(40, 0, PENDING),), {}, {}),
    "LRENP": (dict(LRENPIE=1), (), (), {}, {"EOIcount": 1}),
    "NP": (dict(NPIE=1), (lr(40, 0, PENDING),), (lr(40, 0, BOTH),), {}, {}),
    "VGrp0E": (dict(VGrp0EIE=1), (), (), {"VENG0": 0}, {}),
    "VGrp0D": (dict(VGrp0DIE=1), (), (), {"VENG0": 1}, {}),
    "VGrp1E": (dict(VGrp1EIE=1), (), (), {"VENG1": 0}, {}),
    "VGrp1D": (dict(VGrp1DIE=1), (), (), {"VENG1": 1}, {}),
}
"""Enable bit; list registers, interface and control with which it is quiet; list registers (or the opposite) with which it is not."""


@pytest.mark.parametrize("name", CONDITIONS)
def test_maintenance_conditions(name: str) -> None:
    enable, quiet, loud, vmcr, extra = CONDITIONS[name]
    cpu = interface(*quiet, **vmcr)
    cpu.sysreg[ICH_HCR_EL2.slot] = ICH_HCR_EL2(En=1, **enable)
    assert gic.ich_misr_read(cpu) == 0 and not gic.maintenance_pending(cpu)
    cpu = interface(*loud, **{field: 1 - value for field, value in vmcr.items()})
    cpu.sysreg[ICH_HCR_EL2.slot] = ICH_HCR_EL2(En=1, **enable, **extra)
    assert gic.ich_misr_read(cpu) == getattr(ICH_MISR_EL2, name).mask and gic.maintenance_pending(cpu)
    cpu.sysreg[ICH_HCR_EL2.slot] = ICH_HCR_EL2(En=1, **extra)
    assert gic.ich_misr_read(cpu) == 0 and not gic.maintenance_pending(cpu)


# ---- controls -------------------------------------------------------------------------------------------------------------------


def test_controls_keep_what_is_implemented() -> None:
    cpu = interface()
    cases: tuple[tuple[Any, Any, int, int], ...] = (
        (gic.icv_pmr_write, gic.icv_pmr_read, 0xFFFF, 0xF8),
        (gic.icv_bpr0_write, gic.icv_bpr0_read, 0, 2),
        (gic.icv_bpr0_write, gic.icv_bpr0_read, 15, 7),
        (gic.icv_bpr1_write, gic.icv_bpr1_read, 0, 3),
        (gic.icv_igrpen0_write, gic.icv_igrpen0_read, 2, 0),
        (gic.icv_igrpen1_write, gic.icv_igrpen1_read, 3, 1),
        (gic.icv_ctlr_write, gic.icv_ctlr_read, ~0, rules.CTLR_CONSTANT | 3),
        (gic.icv_ap0r0_write, gic.icv_ap0r0_read, 1 << 40 | 5, 5),
        (gic.icv_ap1r0_write, gic.icv_ap1r0_read, 1 << 40 | 6, 6),
    )
    for write, read, value, kept in cases:
        write(cpu, value & (1 << 64) - 1)
        assert read(cpu) == kept, write.__name__
    assert ICH_VMCR_EL2(cpu.sysreg[ICH_VMCR_EL2.slot]).VENG0 == 0


def test_what_is_implemented_agrees_with_vtr() -> None:
    vtr = ICH_VTR_EL2(ICH_VTR_EL2.reset_value())
    assert vtr.ListRegs + 1 == rules.LIST_REGISTERS
    assert vtr.PRIbits == vtr.PREbits == rules.CTLR_CONSTANT >> 8 & 7 == (rules.PRIORITY_BITS).bit_count() - 1
    assert vtr.IDbits == rules.CTLR_CONSTANT >> 11 & 7 and vtr.A3V == rules.CTLR_CONSTANT >> 15 & 1


# ---- CPython against LLVM -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    from trapline.bits.native import compile_functions

    return compile_functions([*READERS, *WRITERS, *STATUS])


def random_interface(numbers: random.Random) -> list[int]:
    """Values for SLOTS, crowded so that list registers meet and interrupts pass."""
    control = numbers.choice((1, 1, 1, 0)) | (numbers.getrandbits(8) & numbers.getrandbits(8)) << 1 | numbers.getrandbits(5) << 27
    vmcr = numbers.getrandbits(32) | numbers.choice((0, 3)) | numbers.choice((0, 0xF8 << 24))
    levels = [
        numbers.getrandbits(32) & numbers.getrandbits(32) & numbers.getrandbits(32) if numbers.random() < 0.5 else 0 for _ in range(2)
    ]
    registers = [
        lr(numbers.choice((27, 40, 41, 1019, 8192, 70000)), numbers.randrange(0, 256, 8), numbers.randrange(4), numbers.randrange(2))
        | numbers.choice((0, EOI, 1 << 61))
        for _ in range(4)
    ]
    return [control, vmcr, *levels, *registers]


def snapshot(cpu: CpuState) -> list[int]:
    return [int(cpu.sysreg[slot]) for slot in SLOTS]


def test_compiled_functions_agree(compiled: dict[str, Any]) -> None:
    numbers = random.Random(5)
    ours, theirs = CpuState(), CpuState()
    for _ in range(1500):
        for slot, value in zip(SLOTS, random_interface(numbers), strict=True):
            ours.sysreg[slot] = theirs.sysreg[slot] = value
        for _ in range(4):
            value = numbers.choice((27, 40, 41, 1019, 1021, 8192, 70000, numbers.getrandbits(8), numbers.getrandbits(64)))
            if numbers.random() < 0.5:
                function = numbers.choice(WRITERS)
                function(ours, value)
                compiled[function.name](theirs, value)
            else:
                function = numbers.choice(READERS)
                assert function(ours) == compiled[function.name](theirs), function.name
            assert snapshot(ours) == snapshot(theirs), function.name
        for status in STATUS:
            assert status(ours) == compiled[status.name](theirs), status.name


def expected_acknowledge(values: list[int], group: int) -> int:
    """The rules in another form: sort the candidates."""
    control, vmcr, *_ = values
    vmcr = ICH_VMCR_EL2(vmcr)
    candidates = [
        (register.Priority, n, register)
        for n, register in enumerate(map(ListRegister, values[4:]))
        if register.State == PENDING and (vmcr.VENG0, vmcr.VENG1)[register.Group]
    ]
    if not candidates or not control & 1:
        return rules.SPURIOUS
    priority, _, register = min(candidates)
    point = max(vmcr.VBPR0, 2) + 1 if register.Group == 0 or vmcr.VCBPR else max(vmcr.VBPR1, 3)
    levels = values[2] | values[3]
    running = next((8 * level for level in range(32) if levels >> level & 1), 0x100)
    passes = priority < vmcr.VPMR and priority >> point < running >> point
    return register.vINTID & 0xFF_FFFF if passes and register.Group == group else rules.SPURIOUS


@pytest.mark.parametrize("group", [0, 1])
def test_acknowledge_against_the_rules(group: int) -> None:
    numbers, cpu, taken = random.Random(group), CpuState(), 0
    for _ in range(3000):
        values = random_interface(numbers)
        for slot, value in zip(SLOTS, values, strict=True):
            cpu.sysreg[slot] = value
        expected = expected_acknowledge(values, group)
        assert (gic.signalled_group(cpu) == 2 - group) == (expected != rules.SPURIOUS)
        assert (gic.icv_iar0_read, gic.icv_iar1_read)[group](cpu) == expected
        if expected == rules.SPURIOUS:
            assert snapshot(cpu) == values
        taken += expected != rules.SPURIOUS
    assert taken > 100
