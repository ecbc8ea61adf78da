"""FEAT_BTI: what calls and jumps into guarded pages may land on."""

from __future__ import annotations

import pytest

from tests.engine_machine import EL0, EL1H_MASKED, PTE_USER, Bench, hvc_number
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import ELR_EL1, ESR_EL1, HCR_EL2, SCTLR_EL1, SPSR_EL1
from trapline.engine import Cpu

GUARDED = 1 << 50
CODE, OTHER = 0x12_3456_7000, 0x12_3457_0000
EC_BTI = 0x0D
FROM_SPX, FROM_EL0 = 0x104, 0x108
LANDINGS = {
    "nop": (),
    "bti": (),
    "bti c": (1, 2),
    "bti j": (1, 3),
    "bti jc": (1, 2, 3),
    "paciasp": (1, 2, 3),
    "pacibsp": (1, 2, 3),
    "autiasp": (),
}
"""The values of BTYPE that each instruction accepts, while SCTLR_EL1.BT1 is 0."""


def arrive(text: str, landing: str, *, source: int = GUARDED, target: int = GUARDED, el: int = 1, **controls: int) -> Cpu:
    """Run a branch in one page to `landing` in another; X0 and X16 hold the target."""
    bench = Bench()
    for va, code, flags in ((CODE, text + "\nhvc #2", source), (OTHER, landing + "\nhvc #1" if el else landing + "\nsvc #1", target)):
        page = bench.memory.page()
        bench.memory.write(page, assemble_program(code, va))
        bench.tables.map(va, page, flags | (PTE_USER if not el else 0))
    cpu = bench.cpu(CODE, pstate=EL1H_MASKED if el else EL0, x0=OTHER, x16=OTHER, x30=OTHER)
    cpu[HCR_EL2] = int(HCR_EL2(RW=1, API=1, APK=1))
    cpu[SCTLR_EL1] |= int(SCTLR_EL1(**controls))
    cpu.enter()
    return cpu


def refused(cpu: Cpu) -> int | None:
    """BTYPE of the branch target exception, None if the landing ran."""
    if hvc_number(cpu) == 1:
        return None
    assert cpu[ESR_EL1] >> 26 == EC_BTI and cpu[ELR_EL1] == OTHER
    btype = int(cpu[ESR_EL1] & 3)
    assert cpu[SPSR_EL1] >> 10 & 3 == btype
    return btype


@pytest.mark.parametrize(("branch", "btype"), [("br x0", 3), ("br x16", 1), ("blr x0", 2), ("braaz x0", 3), ("blraaz x0", 2)])
@pytest.mark.parametrize("landing", LANDINGS)
def test_landing(branch: str, btype: int, landing: str) -> None:
    accepted = btype in LANDINGS[landing]
    assert refused(arrive(branch, landing)) == (None if accepted else btype)


def test_a_jump_from_an_unguarded_page_is_like_a_veneer() -> None:
    assert refused(arrive("br x0", "nop", source=0)) == 1
    assert refused(arrive("br x0", "bti c", source=0)) is None
    assert refused(arrive("blr x0", "bti j", source=0)) == 2


@pytest.mark.parametrize("branch", ["ret x0", "retaa", f"b {OTHER:#x}"])
def test_returns_and_direct_branches_land_anywhere(branch: str) -> None:
    assert refused(arrive(branch, "nop")) is None


@pytest.mark.parametrize("branch", ["br x0", "blr x0"])
def test_unguarded_pages_do_not_care(branch: str) -> None:
    assert refused(arrive(branch, "nop", target=0)) is None


def test_strict_landing_on_paciasp() -> None:
    assert refused(arrive("br x0", "paciasp", BT1=1)) == 3
    assert refused(arrive("blr x0", "paciasp", BT1=1)) is None
    assert refused(arrive("br x0", "paciasp", BT0=1)) is None


def test_at_el0() -> None:
    cpu = arrive("br x0", "paciasp", el=0, BT0=1)
    assert (hvc_number(cpu), cpu[ESR_EL1] >> 26, cpu[ESR_EL1] & 3) == (FROM_EL0, EC_BTI, 3)
    cpu = arrive("br x0", "paciasp", el=0, BT1=1)
    assert (hvc_number(cpu), cpu[ESR_EL1] >> 26) == (FROM_EL0, 0x15)


def test_breakpoint_instruction_keeps_the_branch_type() -> None:
    cpu = arrive("blr x0", "brk #5")
    assert (cpu[ESR_EL1] >> 26, cpu[SPSR_EL1] >> 10 & 3) == (0x3C, 2)


def test_same_page_and_a_second_visit() -> None:
    """The instruction TLB knows the page by then."""
    text = f"adr x1, {CODE + 16:#x}\nblr x1\nbr x1\nnop\nbti c\nadd x2, x2, #1\nret"
    cpu = arrive(text, "nop")
    assert (cpu[ESR_EL1] >> 26, cpu[ESR_EL1] & 3, cpu[ELR_EL1], cpu.state.x[2]) == (EC_BTI, 3, CODE + 16, 1)


def test_exception_return_restores_the_branch_type() -> None:
    for btype, expected in ((0, None), (1, 1), (2, 2), (3, 3)):
        text = f"mov x2, #{0x3C5 | btype << 10}\nmsr s3_0_c4_c0_0, x2\nmsr s3_0_c4_c0_1, x0\neret"
        assert refused(arrive(text, "nop")) == expected


def test_the_branch_type_shows_when_the_target_cannot_be_fetched() -> None:
    bench = Bench()
    cpu = bench.cpu(bench.load("blr x0"), x0=OTHER)
    cpu.enter()
    assert (cpu[ESR_EL1] >> 26, cpu[SPSR_EL1] >> 10 & 3) == (0x21, 2)
