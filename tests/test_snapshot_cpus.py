"""Deterministic VMs with several CPUs that are saved and restored: nothing of what follows is different.

The guest does what makes CPUs depend on each other: a lock whose waiters sleep (WFE), interrupts to others and from timers, WFI, YIELD.
All of it goes over memory that a restored VM maps again, page by page, so that it takes aborts which the first one does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

import trapline
from trapline.abi.arm64 import DeviceType, VgicAddr, VgicCtrl, VgicGroup
from trapline.abi.exits import IntrExit, MmioExit
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import ESR_EL2, VBAR_EL1
from trapline.backends.objects import System, Vm
from trapline.turns import Turns
from trapline.vmm.statehash import state_hash

RAM, SIZE = 0x4000_0000, 1 << 20
VECTORS, LOCK, PAGES = RAM + 0x1000, RAM + 0x2000, RAM + 0x4000
PAGES_OF_A_CPU = 0x4_0000
IRQ_FROM_SPX = 0x280
GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS = 0x0800_0000, 0x080A_0000
CPUS = 3
ABORTS = (0x20, 0x24)
"""Exception classes of aborts from the guest."""

GUEST = """
    mov x0, #0xf0
    msr s3_0_c4_c6_0, x0        // ICC_PMR_EL1
    mov x0, #1
    msr s3_0_c12_c12_7, x0      // ICC_IGRPEN1_EL1
    isb
    msr daifclr, #2
again:
    add x20, x20, #1
take:
    sevl
wait:
    wfe
    ldaxr w0, [x26]
    cbnz w0, wait
    mov w1, #1
    stxr w2, w1, [x26]
    cbnz w2, take
    ldr x3, [x26, #64]
    ror x3, x3, #7
    add x3, x3, x20
    eor x3, x3, x28
    str x3, [x26, #64]
    and x4, x3, #0xff
hold:
    sub x4, x4, #1
    cbnz x4, more
    b held
more:
    tbz x4, #63, hold
held:
    stlr wzr, [x26]
    and x5, x20, #31
    lsl x5, x5, #12
    ldr x6, [x27, x5]
    add x6, x6, x3
    str x6, [x27, x5]
    and x7, x3, #0x70
    cbnz x7, silent
    and x8, x3, #7
    orr x8, x8, #0x3000000
    msr s3_0_c12_c11_5, x8      // ICC_SGI1R_EL1: interrupt 3 to some of CPUs 0 to 2
silent:
    and x7, x3, #0x3f00
    cbnz x7, awake
    and x10, x3, #0xfff
    msr s3_3_c14_c3_0, x10      // CNTV_TVAL_EL0
    mov x10, #1
    msr s3_3_c14_c3_1, x10      // CNTV_CTL_EL0
    wfi
awake:
    tbz w3, #15, again
    yield
    b again
"""
HANDLER = """
    mrs x14, s3_0_c12_c12_0     // ICC_IAR1_EL1
    add x22, x22, x14
    ror x22, x22, #3
    cmp w14, #27
    b.ne other
    msr s3_3_c14_c3_1, xzr
    isb
other:
    msr s3_0_c12_c12_1, x14     // ICC_EOIR1_EL1
    eret
"""


def make(system: System) -> Vm:
    vm = system.create_vm()
    ram = vm.add_memory(RAM, SIZE)
    for at, text in ((RAM, GUEST), (VECTORS + IRQ_FROM_SPX, HANDLER)):
        code = assemble_program(text, at)
        ram[at - RAM : at - RAM + len(code)] = code
    for number in range(CPUS):
        vcpu = vm.create_vcpu(number)
        vcpu.regs.pc, vcpu.regs.x20, vcpu.regs.x26 = RAM, 1000 * number, LOCK
        vcpu.regs.x27, vcpu.regs.x28 = PAGES + number * PAGES_OF_A_CPU, number
        vcpu.set_one_reg(VBAR_EL1.one_reg_id, VECTORS)
    gic = vm.create_device(DeviceType.ARM_VGIC_V3)
    gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_DIST, GIC_DISTRIBUTOR)
    gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_REDIST, GIC_REDISTRIBUTORS)
    gic.set_attr(VgicGroup.CTRL, VgicCtrl.INIT)
    gic.set_attr(VgicGroup.DIST_REGS, 0, 2, width=4)
    for number in range(CPUS):
        gic.set_attr(VgicGroup.REDIST_REGS, number << 32 | 0x10100, 1 << 27 | 1 << 3, width=4)
    return vm


class Machine:
    """A deterministic VM that runs in turns, and what it did."""

    def __init__(self, saved: Path | None = None) -> None:
        self.system = trapline.open(deterministic=True)
        assert self.system.turns is not None
        self.turns: Turns = self.system.turns
        self.vm = make(self.system) if saved is None else self.system.restore(saved)
        self.exits: list[tuple[Any, ...]] = []
        self.turns.trace = self._trace
        self.stopped = False

    def _trace(self, cpu: Any, kind: str) -> None:
        reason = cpu[ESR_EL2] >> 26 if kind == "sync" else None
        self.exits.append((self.turns.retired, cpu.index, kind, reason))

    def run(self, end: int | None = None, freeze: int | None = None) -> None:
        self.turns.on_stop, self.turns.stop_at, self.turns.freeze_at = self._stop, end, freeze

        def body(number: int) -> None:
            while not (isinstance(self.vm.vcpus[number].run(), IntrExit) and self.stopped):
                pass

        self.turns.run([lambda number=number: body(number) for number in range(CPUS)])  # type: ignore[misc]

    def _stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            for vcpu in self.vm.vcpus:
                vcpu.kick()

    def close(self) -> None:
        self.vm.close()
        self.system.close()


@contextmanager
def machine(saved: Path | None = None) -> Iterator[Machine]:
    made = Machine(saved)
    try:
        yield made
    finally:
        made.close()


def more_aborts(parts: list[tuple[Any, ...]], whole: list[tuple[Any, ...]]) -> int:
    """How many aborts `parts` has in addition; AssertionError if they differ in anything else."""
    extra = at = 0
    for exit in parts:
        if at < len(whole) and exit == whole[at]:
            at += 1
        else:
            assert exit[3] in ABORTS, f"exit {at} was {whole[at : at + 2]}, and is {exit}"
            extra += 1
    assert at == len(whole)
    return extra


END = 6_000_000


@pytest.mark.parametrize("seed", [1, 2])
def test_cpus_that_wait_for_each_other_do_not_notice_that_they_were_saved(tmp_path: Path, seed: int) -> None:
    with machine() as one:
        one.run(END)
        reference = one.turns.now, state_hash(one.vm), [vcpu.regs.dump() for vcpu in one.vm.vcpus]
        whole = one.exits
    kinds = {exit[2:] for exit in whole}
    assert ("irq", None) in kinds and ("sync", 0x01) in kinds and ("sync", 0x18) in kinds, "turns end; WFI; SGIs"
    points = sorted(Random(seed).sample(range(END), 25))
    parts: list[tuple[Any, ...]] = []
    saved: Path | None = None
    for number, point in enumerate(points):
        with machine(saved) as each:
            each.run(freeze=point)
            saved = tmp_path / f"{number}"
            each.vm.snapshot(saved)
            parts += each.exits
    with machine(saved) as last:
        last.run(END)
        found = last.turns.now, state_hash(last.vm), [vcpu.regs.dump() for vcpu in last.vm.vcpus]
        assert more_aborts(parts + last.exits, whole) > 25 * CPUS
        assert found == reference


def lone_guest(system: System, text: str, **registers: int) -> Vm:
    """A VM of a page of code, without an interrupt controller."""
    vm = system.create_vm()
    code = assemble_program(text, RAM)
    vm.add_memory(RAM, SIZE)[0 : len(code)] = code
    vcpu = vm.create_vcpu()
    vcpu.regs.pc = RAM
    for name, value in registers.items():
        setattr(vcpu.regs, name, value)
    return vm


def test_an_abort_that_only_a_restored_machine_takes_leaves_the_exclusive_monitor_alone() -> None:
    text = "ldxr w0, [x1]\nldr x2, [x3]\nstxr w4, w5, [x1]\nstr w4, [x6]"
    with trapline.open(deterministic=True) as system, lone_guest(system, text, x1=LOCK, x3=PAGES, x4=7, x6=0x0900_0000) as vm:
        exit = vm.vcpus[0].run()
        assert isinstance(exit, MmioExit) and exit.value == 0, "the store took place"


def test_an_input_that_was_saved_high_falls_if_the_timer_does_not_hold_it(tmp_path: Path) -> None:
    """Saved before the hypervisor had noticed that the guest had done with its timer."""
    with trapline.open("software") as system:
        vm = make(system)
        gic = vm.devices[0]
        gic.set_attr(VgicGroup.LEVEL_INFO, 0, 1 << 27, width=4)
        vm.snapshot(tmp_path / "high")
        vm.close()
        with system.restore(tmp_path / "high") as vm:
            assert vm.devices[0].get_attr(VgicGroup.LEVEL_INFO, 0, 4) == 1 << 27
            vm.vcpus[0].kick()
            vm.vcpus[0].run()
            assert vm.devices[0].get_attr(VgicGroup.LEVEL_INFO, 0, 4) == 0
