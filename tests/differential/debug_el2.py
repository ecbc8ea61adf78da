"""`python -m tests.differential.debug_el2`: debug exceptions of a machine with EL2, under QEMU and on the bare machine.

The cases of `debug`, at EL2, EL1 and EL0, with MDCR_EL2.TDE and HCR_EL2.TGE and E2H at random. EL1 has a handler that calls EL2's,
which notes exceptions of either and goes on.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from dataclasses import dataclass

from tests.differential import debug
from tests.differential.debug import (
    EL0,
    EL1,
    END,
    KERNEL,
    MONITOR,
    NOTES,
    PLAIN,
    REGISTERS,
    SS,
    STEP,
    D,
)
from tests.differential.exceptions_el2 import on_qemu, on_trapline
from tests.differential.translation import IMAGE, MAGIC, RAM, UART, _set
from trapline.arm64.asm_program import assemble_program, assemble_with_labels
from trapline.arm64.regs import HCR_EL2, MDCR_EL2, TABLE
from trapline.arm64.regs.debug import DebugControl
from trapline.arm64.sysreg import generic_name

CASES, STUBS, RESULTS, DATA = IMAGE + (64 << 10), IMAGE + (2 << 20), RAM + (8 << 20), debug.DATA
STACK = STUBS - (16 << 10)
ROW = struct.Struct("<18Q")
NOTE = struct.Struct("<8Q")
STUB_BYTES = 128
EL2 = 0x3C9
CALLS = ("hvc #3\n nop\n add x0, x0, #1", "nop\n hvc #4\n hvc #5")
RETURNS = "adr x4, t\n msr {ELR_EL2}, x4\n msr {SPSR_EL2}, x2\n nop\n eret\n nop\n t: nop\n add x0, x0, #1\n nop"
NAMES = (
    "ESR_EL1", "FAR_EL1", "ELR_EL1", "SPSR_EL1", "VBAR_EL1", "OSLAR_EL1", "SP_EL0", "SP_EL1", "CPACR_EL1", "MDSCR_EL1", "ESR_EL2",
    "FAR_EL2", "ELR_EL2", "SPSR_EL2", "VBAR_EL2", "HCR_EL2", "MDCR_EL2", "CPTR_EL2", "CONTEXTIDR_EL2", *REGISTERS,
)  # fmt: skip


@dataclass
class Case(debug.Case):
    """With the controls of EL2."""

    hcr: int = 1 << 31
    mdcr: int = 0

    def row(self, at: int) -> bytes:
        values = (self.values.get(name, 0) for name in REGISTERS)
        return ROW.pack(at, self.hcr, self.mdcr, self.spsr, self.mdscr, *values, self.x1, self.x2, 0, 0)

    def __str__(self) -> str:
        return f"{super().__str__()} hcr {self.hcr:#x} mdcr {self.mdcr:#x}"


def _generic(text: str) -> str:
    for name in sorted(set(NAMES), key=len, reverse=True):
        text = text.replace("{" + name + "}", generic_name(TABLE[name].enc))
    return text


def _program() -> bytes:
    """X20: rows, X21: notes, X22: notes left, X23: the next case's notes, X19: HCR_EL2. Snippets leave X10 to X23 alone."""
    kernel = "".join(".align 7\nhvc #0xe1\n" for _ in range(16))
    upper = "".join(f".align 7\nmov x17, #{k}\nb upper\n" for k in range(16))
    loads = "".join(f"ldr x10, [x20], #8\nmsr {{{name}}}, x10\n" for name in REGISTERS)
    lines = [
        "b begin", ".align 11", kernel, ".align 11", upper,
        "begin:", _set("x0", IMAGE + 0x800), "msr {VBAR_EL1}, x0", _set("x0", IMAGE + 0x1000), "msr {VBAR_EL2}, x0",
        _set("x20", CASES), _set("x23", RESULTS), "mov x0, #0", "msr {OSLAR_EL1}, x0", "msr {CPTR_EL2}, x0",
        _set("x0", 3 << 20), "msr {CPACR_EL1}, x0",
        "next:", "msr daifset, #15", _set("x0", 1 << 31), "msr {HCR_EL2}, x0", "msr {MDSCR_EL1}, xzr", "isb",
        "ldr x9, [x20], #8", "cbz x9, finish", "mov x21, x23", f"mov x22, #{NOTES}", f"add x23, x23, #{NOTES * NOTE.size}",
        "ldr x19, [x20], #8", "ldr x4, [x20], #8", "msr {MDCR_EL2}, x4", "ldr x3, [x20], #8", "ldr x4, [x20], #8",
        loads, "mrs x10, {CONTEXTIDR_EL1}", "msr {CONTEXTIDR_EL2}, x10", "ldr x1, [x20], #8", "ldr x2, [x20], #24",
        _set("x0", STACK), "mov sp, x0", "msr {SP_EL1}, x0", "msr {SP_EL0}, x0", "msr {ELR_EL2}, x9", "msr {SPSR_EL2}, x3",
        "msr {MDSCR_EL1}, x4", "mov x5, #0", _set("x0", MAGIC), "b leave",
        "upper:", _set("x10", 1 << 31), "msr {HCR_EL2}, x10", "isb",
        "mrs x10, {ESR_EL2}", "mrs x11, {FAR_EL2}", "mrs x12, {ELR_EL2}", "mrs x13, {SPSR_EL2}", "mov x16, #2",
        _set("x18", 0x5A00_00E1), "cmp x10, x18", "b.ne note",
        "mrs x10, {ESR_EL1}", "mrs x11, {FAR_EL1}", "mrs x12, {ELR_EL1}", "mrs x13, {SPSR_EL1}", "mov x16, #1",
        "msr {ELR_EL2}, x12", "msr {SPSR_EL2}, x13",
        "note:", "cbz x22, next", "sub x22, x22, #1", "stp x10, x11, [x21], #16", "stp x12, x13, [x21], #16",
        "and x14, x1, #0xfffffffffffffff8", "ldr x14, [x14]", "stp x0, x14, [x21], #16", "stp x16, x17, [x21], #16",
        "mov w14, w10", _set("x15", 0x5600_0FFF), "cmp x14, x15", "b.eq next",
        "lsr x14, x10, #26", "cmp x14, #0x15", "b.eq leave", "cmp x14, #0x16", "b.eq leave", "cmp x14, #0x32", "b.eq step",
        "cmp x14, #0x33", "b.eq step", "cmp x14, #0x30", "b.eq off", "cmp x14, #0x31", "b.eq off", "cmp x14, #0x34", "b.eq off",
        "cmp x14, #0x35", "b.eq off", "add x12, x12, #4", "msr {ELR_EL2}, x12", "b leave",
        "step:", f"mov x14, #{SS}", "orr x13, x13, x14", "msr {SPSR_EL2}, x13", "b leave",
        "off:", "mrs x14, {MDSCR_EL1}", f"mov x15, #{MONITOR}", "bic x14, x14, x15", "msr {MDSCR_EL1}, x14",
        "leave:", "msr {HCR_EL2}, x19", "isb", "eret",
        "finish:", _set("x0", RESULTS), _set("x1", UART), "print:", "cmp x0, x23", "b.eq power", "ldrb w2, [x0], #1",
        "strb w2, [x1]", "b print", "power:", _set("x0", 0x8400_0008), "smc #0", "b power",
    ]  # fmt: skip
    return assemble_with_labels(_generic("\n".join(lines)), IMAGE)[0]


class Cases(debug.Cases):
    """A random list of cases."""

    def make(self, at: int) -> Case:
        rng = self.rng
        choice = rng.choice((self._step, self._break, self._watch, self._return))
        case = choice(rng, at)
        made = Case(case.text, case.el, case.spsr, case.mdscr, case.values, case.x1, case.x2)
        if case.text.startswith("eret"):
            made.text = PLAIN[0]  # ELR_EL1 is not the handler's here
        if choice != self._return and rng.randrange(3) == 0:
            made.el, made.spsr = 2, case.spsr & ~0xF | 9
        if choice != self._return and made.el and rng.randrange(6) == 0:
            made.text = rng.choice(CALLS)
        tge = int(made.el != 1 and rng.randrange(4) == 0)
        made.hcr = int(HCR_EL2(RW=1, TGE=tge, E2H=int(rng.randrange(3) == 0)))
        made.mdcr = int(MDCR_EL2(TDE=rng.choice((0, 1, 1))))
        return made

    def _condition(self, rng: random.Random) -> dict[str, int]:
        levels = rng.choice((1, 3, 3, 3, 2))
        return {"HMC": int(levels != 2 and rng.randrange(4) > 0), "SSC": rng.choice((0, 0, 0, 1)), "PMC": levels}

    def _return(self, rng: random.Random, at: int) -> debug.Case:
        """From EL2 to anywhere below, or to itself."""
        mdscr = rng.choice((STEP, STEP | MONITOR)) | rng.choice((0, KERNEL, KERNEL))
        case = debug.Case(RETURNS, 2, EL2 | rng.choice((0, SS)), mdscr)
        mode = rng.choice((EL0, EL1, EL1, EL2, 0x3C8, 0x3C4))
        case.x2 = mode & ~D | rng.choice((0, SS)) | rng.choice((0, 0, D))
        case.values["DBGBCR0_EL1"] = int(DebugControl(E=rng.getrandbits(1), BAS=15, PMC=3, HMC=1))
        case.values["DBGBVR0_EL1"] = at + 4 * rng.randrange(4, 8)
        return case


def contents(cases: list[Case]) -> bytes:
    """Memory from IMAGE on."""
    code = _program()
    data = bytearray(STUBS - IMAGE + STUB_BYTES * len(cases))
    data[: len(code)] = code
    for k, case in enumerate(cases):
        at = STUBS + STUB_BYTES * k
        end = END if case.el < 2 else "hvc #0xfff"
        stub = assemble_program(_generic(case.text) + f"\n {end}\n {END}", at)
        data[at - IMAGE : at - IMAGE + len(stub)] = stub
        data[CASES - IMAGE + ROW.size * k : CASES - IMAGE + ROW.size * (k + 1)] = case.row(at)
    assert CASES + ROW.size * (len(cases) + 1) < STACK - 4096
    assert STUBS + STUB_BYTES * len(cases) < DATA
    assert DATA + (1 << 20) < RESULTS
    return bytes(data)


VECTORS, NZCV = IMAGE + 0x800, 0xF << 28
FIELDS = (*debug.FIELDS, "level", "vector")


def meaning(case: Case, notes: bytes) -> list[tuple[int, ...]]:
    """What of a case's notes has to agree."""
    found = []
    for note in NOTE.iter_unpack(notes):
        if VECTORS <= note[2] < VECTORS + 0x800:
            note = (*note[:3], note[3] & ~NZCV, *note[4:])  # QEMU clears the flags on exception entry
        (plain,) = debug.meaning(case, struct.pack("<6Q", *note[:6]))
        found.append((*plain, *note[6:]))
    return found


def is_illegal(case: Case) -> bool:
    """A return to EL1 where there is none: as in `debug.known`, QEMU clears PSTATE.SS then."""
    return case.text == RETURNS and case.hcr & HCR_EL2.TGE.mask != 0 and case.x2 & 0xC == 4


def compare(seed: int, count: int = 1500) -> tuple[int, list[str]]:
    """Run `count` cases on both; differences as text."""
    maker = Cases(seed)
    cases = [maker.make(STUBS + STUB_BYTES * k) for k in range(count)]
    image, each = contents(cases), NOTES * NOTE.size
    theirs, ours = on_qemu(image, each * count), on_trapline(image, each * count)
    found = []
    for k, case in enumerate(cases):
        a, b = (meaning(case, notes[each * k : each * (k + 1)]) for notes in (ours, theirs))
        if debug.known(case) or is_illegal(case):
            continue
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                differ = " ".join(f"{n}={p:x}/{q:x}" for n, p, q in zip(FIELDS, x, y, strict=True) if p != q)
                found.append(f"{case} at {STUBS + STUB_BYTES * k:#x}: exception {number} (ec {x[0] >> 26:#x}/{y[0] >> 26:#x}): {differ}")
                break
    return count, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.debug_el2", description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    total, bad = 0, 0
    for seed in range(options.seed, options.seed + options.images):
        count, found = compare(seed)
        total, bad = total + count, bad + len(found)
        print("".join(line + "\n" for line in found), end="")
    print(f"seeds {options.seed} on: {total} cases (trapline/qemu), {bad} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
