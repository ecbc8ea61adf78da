"""Invalidation by a hypervisor that is the guest's own: EL2's translations, stage 2 by address and by VM, VMIDs taken in turn and anew.

As in `test_tlb`, each case also runs without its TLBI and must then see the old page.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine_machine import EL1H_MASKED, Bench, Tables
from tests.test_tlb import AGAIN, NEW, OLD, VA, instruction, operand, two_pages
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import (
    ELR_EL2,
    ESR_EL2,
    HCR_EL2,
    MAIR_EL2,
    SCTLR_EL1,
    SCTLR_EL2,
    SPSR_EL2,
    TCR_EL2,
    TTBR0_EL2,
    VBAR_EL2,
    VTCR_EL2,
    VTTBR_EL2,
)
from trapline.arm64.regs.system import TLBI_OPS, Regime, Shareable, Tlbi, TlbiBy
from trapline.arm64.state import EL2_GUEST
from trapline.arm64.sysreg import generic_name
from trapline.engine import Cpu
from trapline.engine.state import BANKS, Exit

OF_EL2 = [op for op in TLBI_OPS if isinstance(op.action, Tlbi) and op.action.regime is Regime.EL2]
OF_STAGE2 = [
    op for op in TLBI_OPS
    if isinstance(op.action, Tlbi) and (op.action.by in (TlbiBy.IPA, TlbiBy.VM) or op.action.regime is Regime.ALL_VMIDS)
]  # fmt: skip
STAGE2 = 0xFC
"""What turns a descriptor of stage 1 into one of stage 2: read, write, Normal memory."""
LOWER_SYNC = 0x400
ESR, ELR, SPSR, VTTBR = (generic_name(reg.enc) for reg in (ESR_EL2, ELR_EL2, SPSR_EL2, VTTBR_EL2))
END = "smc #0"
"""Leaves to the firmware, which here is the test."""


class Bare(Bench):
    """A machine whose EL2 is the guest's."""

    def __init__(self) -> None:
        super().__init__(256)
        self.stage2 = Tables(self.memory)

    def place(self, text: str, stage2: Tables | None = None) -> int:
        """A program at its physical address, which stage 2 maps to itself."""
        at = self.memory.page()
        self.memory.write(at, assemble_program(text, at))
        (stage2 or self.stage2).map(at, at, STAGE2)
        return at

    def hypervisor(self, text: str) -> int:
        """A vector table whose handler for EL1's HVC is `text`."""
        vectors = self.memory.page()
        for offset in range(0, 0x800, 0x80):
            self.memory.write(vectors + offset, assemble_program(END))
        self.memory.write(vectors + LOWER_SYNC, assemble_program(text, vectors + LOWER_SYNC))
        return vectors

    def guest(self, pc: int, vectors: int, cpu: Cpu | None = None, **registers: int) -> Cpu:
        """A PE that is about to enter EL1 at `pc` under stage 2."""
        cpu = self.at_el2(self.place("eret"), cpu, **registers)
        cpu[HCR_EL2] = int(HCR_EL2(RW=1, VM=1))
        cpu[VTCR_EL2], cpu[VTTBR_EL2] = int(VTCR_EL2(T0SZ=16, SL0=2, PS=5)), self.stage2.root | 1 << 48
        cpu[SCTLR_EL1] = SCTLR_EL1.reset_value() & ~1
        cpu[VBAR_EL2], cpu[ELR_EL2], cpu[SPSR_EL2] = vectors, pc, EL1H_MASKED
        return cpu

    def at_el2(self, pc: int, cpu: Cpu | None = None, mmu: bool = False, **registers: int) -> Cpu:
        """A PE at EL2."""
        cpu = cpu if cpu is not None else self.engine.create_cpu()
        cpu.reset()
        state = cpu.state
        state.el2, state.el, state.spsel, state.daif, state.pc = EL2_GUEST, 2, 1, 15, pc
        cpu[MAIR_EL2], cpu[TCR_EL2], cpu[TTBR0_EL2] = 0xFF, int(TCR_EL2.res1) | 16 | 5 << 16, self.tables.root
        cpu[SCTLR_EL2] = SCTLR_EL2.res1 | int(mmu)
        for name, value in registers.items():
            state.x[int(name[1:])] = value
        return cpu


def run(cpu: Cpu) -> None:
    code = cpu.run_here(True)
    while code in (Exit.TIMER, Exit.ATTEND):
        code = cpu.run_here(False)
    assert code == Exit.FIRMWARE, f"exit {code} at {cpu.state.pc:#x}, ESR_EL2 {cpu[ESR_EL2]:#x}"


@pytest.fixture
def bare() -> Iterator[Bare]:
    pytest.importorskip("llvmlite")
    machine = Bare()
    yield machine
    machine.engine.close()


@pytest.mark.parametrize("op", OF_EL2, ids=lambda op: op.mnemonic)
def test_tlbi_of_a_page_of_el2(bare: Bare, op: Any) -> None:
    old, new = two_pages(bare)
    at = bare.tables.entry(VA)
    bare.tables.map(at & ~4095, at & ~4095)
    cpu = None
    for tlbi, expected in ((instruction(op), NEW), ("nop", OLD)):
        code = bare.load("ldr x0, [x1]\nstr x2, [x3]\n" + AGAIN.format(tlbi=tlbi) + "ldr x4, [x1]\n" + END)
        bare.tables.map(VA, old)
        cpu = bare.at_el2(code, cpu, mmu=True, x1=VA, x2=new | 0x703, x3=at, x8=operand(op.action, VA, 0))
        run(cpu)
        assert (cpu.state.x[0], cpu.state.x[4]) == (OLD, expected), tlbi


TWICE = "ldr x0, [x1]\nhvc #0\nldr x4, [x1]\nhvc #1"


def changing(tlbi: str) -> str:
    """A hypervisor that answers the first call of its guest by exchanging a page."""
    return f"mrs x10, {ESR}\nand x10, x10, #0xffff\ncbnz x10, done\nstr x2, [x3]\n{AGAIN.format(tlbi=tlbi)}eret\ndone: {END}"


@pytest.mark.parametrize("op", OF_STAGE2, ids=lambda op: op.mnemonic)
def test_tlbi_of_a_page_of_stage_2(bare: Bare, op: Any) -> None:
    old, new = two_pages(bare)
    code = bare.place(TWICE)
    cpu = None
    for tlbi, expected in ((instruction(op), NEW), ("nop", OLD)):
        bare.stage2.map(VA, old, STAGE2)
        registers = {"x1": VA, "x2": new | 0x703 | STAGE2, "x3": bare.stage2.entry(VA), "x8": operand(op.action, VA, 0)}
        cpu = bare.guest(code, bare.hypervisor(changing(tlbi)), cpu, **registers)
        run(cpu)
        assert (cpu.state.x[0], cpu.state.x[4]) == (OLD, expected), tlbi


@pytest.mark.parametrize("op", [op for op in OF_STAGE2 if op.action.shareable is not Shareable.LOCAL], ids=lambda op: op.mnemonic)
def test_a_broadcast_of_stage_2_reaches_a_running_vcpu(bare: Bare, op: Any) -> None:
    """A guest reads a page while a hypervisor on another PE takes it away; who has seen the flag sees the new page."""
    old, new = two_pages(bare)
    flag = bare.memory.page()
    bare.stage2.map(flag, flag, STAGE2)
    bare.stage2.map(VA, old, STAGE2)
    reader = bare.place("again: ldr x0, [x1]\nldar x2, [x3]\ncbz x2, again\nldr x0, [x1]\nhvc #1")
    writer = bare.place(f"str x4, [x5]\ndsb ishst\n{instruction(op)}\ndsb ish\nmov x7, #1\nstlr x7, [x3]\n{END}")
    reading = bare.guest(reader, bare.hypervisor(END), x1=VA, x3=flag)
    registers = {"x3": flag, "x4": new | 0x703 | STAGE2, "x5": bare.stage2.entry(VA), "x8": operand(op.action, VA, 0)}
    writing = bare.guest(writer, 0, **registers)
    writing.state.pc = writer
    thread = threading.Thread(target=run, args=(reading,), daemon=True)
    thread.start()
    while not reading.state.x[0]:
        pass
    run(writing)
    thread.join(30)
    assert not thread.is_alive() and reading.state.x[0] == NEW


@pytest.mark.parametrize("load", ["ldr", "ldtr"])
def test_more_vms_than_banks(bare: Bare, load: str) -> None:
    """Each VM has its own page at one address, and all take turns without any invalidation."""
    count = BANKS + 3
    code = bare.place(f"{load} x4, [x1]\nhvc #0")
    roots = []
    for k in range(count):
        stage2 = Tables(bare.memory)
        page = bare.memory.page()
        bare.memory.put(page, 100 + k)
        stage2.map(VA, page, STAGE2)
        stage2.map(code, code, STAGE2)
        roots.append(stage2.root | k + 1 << 48)
    order = [k * 7 % count for k in range(3 * count)] + [0, 1, 0, 1]
    table, out = bare.memory.page(), bare.memory.page()
    for n, k in enumerate(order):
        bare.memory.put(table + 8 * n, roots[k])
    turn = f"next: ldr x9, [x7], #8\ncbz x9, done\nmsr {VTTBR}, x9\nisb\nmsr {ELR}, x20\nmsr {SPSR}, x21\neret\ndone: {END}"
    vectors = bare.hypervisor(f"str x4, [x6], #8\n{turn}")
    cpu = bare.guest(code, vectors, x1=VA, x6=out, x7=table, x20=code, x21=EL1H_MASKED)
    cpu.state.pc = vectors + LOWER_SYNC + 4
    run(cpu)
    assert [bare.memory.get(out + 8 * n) for n in range(len(order))] == [100 + k for k in order]


def test_a_vmid_that_serves_another_vm(bare: Bare) -> None:
    """A VM is gone, its VMID is invalidated and given to the next one, which has other tables."""
    old, new = two_pages(bare)
    code = bare.place(TWICE)
    other = Tables(bare.memory)
    other.map(VA, new, STAGE2)
    other.map(code, code, STAGE2)
    bare.stage2.map(VA, old, STAGE2)
    vmalls12e1 = next(op for op in OF_STAGE2 if op.mnemonic == "TLBI VMALLS12E1")
    exchange = f"mrs x10, {ESR}\nand x10, x10, #0xffff\ncbnz x10, done\nmsr {VTTBR}, x9\nisb\n"
    vectors = bare.hypervisor(f"{exchange}{AGAIN.format(tlbi=instruction(vmalls12e1))}eret\ndone: {END}")
    cpu = bare.guest(code, vectors, x1=VA, x9=other.root | 1 << 48)
    run(cpu)
    assert (cpu.state.x[0], cpu.state.x[4]) == (OLD, NEW)
