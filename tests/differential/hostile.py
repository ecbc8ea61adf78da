"""`python -m tests.differential.hostile`: vCPUs run random instructions at EL1 and EL0 between canaries.

Nobody knows what such a guest will do; whatever it is, it stays in its memory, and the process survives. Run as a process of its
own, so that a crash has an exit status.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import random
import sys
import threading
import time
import traceback
from collections import Counter

from trapline.abi.arm64 import DeviceType, VgicAddr, VgicCtrl, VgicGroup
from trapline.abi.caps import Cap
from trapline.abi.exits import IntrExit, MmioExit, NisvExit
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import CPACR_EL1, TABLE, VBAR_EL1
from trapline.backends.objects import System, Vcpu
from trapline.backends.software import Software
from trapline.errors import KvmError

RAM, MB, PAGE = 0x4000_0000, 1 << 20, 4096
DISTRIBUTOR, REDISTRIBUTORS = 0x0800_0000, 0x080A_0000
SIZE, GUARD, CANARY = 2 * MB, 4 * MB, 0xC5
KICK_SECONDS = 0.01
SHAPES = 300
MSR, MRS, SYS = 0xD510_0000, 0xD530_0000, 0xD508_0000
LIVELY = ("SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "VBAR_EL1", "ELR_EL1", "SPSR_EL1", "SP_EL0", "CPACR_EL1",
          "CNTV_CTL_EL0", "CNTV_CVAL_EL0", "ICC_IGRPEN1_EL1", "ICC_PMR_EL1", "ICC_SGI1R_EL1", "ICC_EOIR1_EL1",
          "ICC_CTLR_EL1", "ICC_BPR1_EL1", "ICC_DIR_EL1", "DAIF", "TPIDR_EL1")  # fmt: skip
ERET, ISB, TLBI, IC = 0xD69F_03E0, 0xD503_3FDF, 0xD508_871F, 0xD508_751F


def vocabulary(rng: random.Random, size: int) -> list[tuple[int, int]]:
    """Some shapes of instructions as (word, mask of the operands): each has to be compiled once, so there are not too many."""
    found = []
    for insn in rng.choices(load_a64().insns, k=size):
        operands = sum((1 << f.width) - 1 << f.lo for f in insn.operand_fields)
        found.append((insn.pattern.value | rng.getrandbits(32) & ~insn.pattern.mask, operands))
    return found


WITH_INTERRUPTS = """
    movz x0, #0xf0
    msr S3_0_C4_C6_0, x0
    movz x0, #1
    msr S3_0_C12_C12_7, x0
    movz x1, #0x800, lsl #16
    movz w0, #0x37
    str w0, [x1]
    movn w0, #0
    str w0, [x1, #0x84]
    str w0, [x1, #0x88]
    str w0, [x1, #0x104]
    str w0, [x1, #0x108]
    movz x1, #0x80b, lsl #16
    str w0, [x1, #0x80]
    str w0, [x1, #0x100]
    msr daifclr, #15
    br x30
"""
"""Turns the interrupt controller and the CPU interface on, then goes to X30."""


def random_code(rng: random.Random, words: int, known: list[tuple[int, int]]) -> bytes:
    """Instructions of all kinds, the dangerous ones more often than they occur; some words are just noise."""
    system = [reg.encoding for reg in TABLE]
    lively = [TABLE[name].encoding for name in LIVELY]
    code = []
    for _ in range(words):
        kind = rng.randrange(16)
        if kind == 0:
            code.append(rng.getrandbits(32))
        elif kind == 1:
            code.append(MSR | (rng.choice(system) & 0x7FFF | 0x8000) << 5 & 0x1F_FFE0 | rng.randrange(31))
        elif kind == 2 and rng.randrange(3) == 0:
            code.append(MSR | (rng.choice(lively) & 0x7FFF | 0x8000) << 5 & 0x1F_FFE0 | rng.randrange(31))
        elif kind == 3 and rng.randrange(3) == 0:
            code.append(rng.choice((ERET, ISB, TLBI, IC, SYS | rng.getrandbits(19))))
        else:
            word, operands = rng.choice(known)
            code.append(word ^ rng.getrandbits(32) & operands)
    return b"".join(word.to_bytes(4, "little") for word in code)


class Guest:
    """Random memory between canaries, and vCPUs with random registers."""

    def __init__(self, kvm: System, rng: random.Random, vcpus: int, known: list[tuple[int, int]]) -> None:
        self.rng = rng
        self.mapping = mmap.mmap(-1, SIZE + 2 * GUARD)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        self.view = memoryview(self.mapping)
        self.view[:] = bytes([CANARY]) * len(self.view)
        code = random_code(rng, SIZE // 4 // 8, known)
        self.view[GUARD : GUARD + SIZE] = code * 8
        stub = assemble_program(WITH_INTERRUPTS)
        self.view[GUARD : GUARD + len(stub)] = stub
        self.vm = kvm.create_vm()
        self.vm.enable_cap(Cap.ARM_NISV_TO_USER)
        self.vm.set_user_memory_region(0, 0, RAM, SIZE, self.base + GUARD)
        self.vcpus = [self.vm.create_vcpu() for _ in range(vcpus)]
        gic = self.vm.create_device(DeviceType.ARM_VGIC_V3)
        gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_DIST, DISTRIBUTOR)
        gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_REDIST, REDISTRIBUTORS)
        gic.set_attr(VgicGroup.CTRL, VgicCtrl.INIT)
        self.exits: Counter[str] = Counter()

    def address(self, rng: random.Random) -> int:
        """An address in, around or far from the guest's memory, or the host's."""
        near = (RAM, RAM + SIZE, RAM + SIZE // 2, self.base + GUARD, self.base + GUARD + SIZE, DISTRIBUTOR, REDISTRIBUTORS,
                REDISTRIBUTORS + 0x1_0000, rng.getrandbits(64))  # fmt: skip
        return rng.choice(near) + rng.randrange(-128, 4 * PAGE) & (1 << 64) - 1

    def run(self, vcpu: Vcpu, seed: int, deadline: float) -> None:
        """Run with fresh registers again and again."""
        rng = random.Random(seed)
        while time.monotonic() < deadline:
            for n in range(31):
                setattr(vcpu.regs, f"x{n}", self.address(rng) if rng.randrange(3) else rng.getrandbits(64))
            vcpu.regs.x30 = RAM + rng.randrange(SIZE) & -4
            vcpu.regs.pc = RAM if rng.randrange(2) else vcpu.regs.x30
            vcpu.regs.pstate = rng.choice((0x3C5, 0x3C4, 0x3C0, 0x005))
            vcpu.set_one_reg(VBAR_EL1.one_reg_id, RAM + rng.randrange(SIZE) & -0x800)
            vcpu.set_one_reg(CPACR_EL1.one_reg_id, CPACR_EL1(FPEN=3))
            for _ in range(20):
                try:
                    result = vcpu.run()
                except KvmError as error:
                    self.exits[type(error).__name__] += 1
                    break
                self.exits[type(result).__name__] += 1
                if isinstance(result, IntrExit):
                    break
                if isinstance(result, MmioExit | NisvExit) and rng.randrange(2):
                    vcpu.inject_external_abort()

    def intact(self) -> bool:
        outside = bytes(self.view[:GUARD]) + bytes(self.view[GUARD + SIZE :])
        return outside.count(CANARY) == len(outside)


def kick(guest: Guest, deadline: float) -> None:
    """Let no vCPU run for long, and move interrupt lines meanwhile."""
    rng = random.Random(guest.rng.getrandbits(32))
    while time.monotonic() < deadline + 1:
        time.sleep(KICK_SECONDS)
        guest.vm.set_irq(rng.randrange(32, 96), bool(rng.getrandbits(1)))
        for vcpu in guest.vcpus:
            vcpu.kick()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4, help="guests, one after the other")
    options = parser.parse_args()
    exits: Counter[str] = Counter()
    failed: list[str] = []
    threading.excepthook = lambda args: failed.append("".join(traceback.format_exception(args.exc_value)))
    known = vocabulary(random.Random(options.seed), SHAPES)
    with System(Software()) as kvm:
        for k in range(options.rounds):
            guest = Guest(kvm, random.Random(options.seed + k), 2, known)
            deadline = time.monotonic() + options.seconds / options.rounds
            threads = [threading.Thread(target=kick, args=(guest, deadline))]
            for n, vcpu in enumerate(guest.vcpus):
                threads.append(threading.Thread(target=guest.run, args=(vcpu, options.seed + 100 * k + n, deadline)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            exits += guest.exits
            if failed:
                print(*failed)
                return 1
            if not guest.intact():
                print(f"seed {options.seed + k}: memory outside the guest was written")
                return 1
            guest.vm.close()
    print(f"seed {options.seed}: canaries whole, exits {dict(exits)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
