"""`python -m tests.differential.debug`: self-hosted debug under system-mode QEMU and Trapline.

One image runs short snippets at EL1 and EL0 with random breakpoints, watchpoints and software step. Its exception handler notes
every exception and goes on: a step is followed by the next one, after a breakpoint or watchpoint those are switched off.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from dataclasses import dataclass, field

from tests.differential.translation import DATA, IMAGE, MAGIC, NOTE, RESULTS, UART, _set, on_qemu, on_trapline
from trapline.arm64.asm_program import assemble_program, assemble_with_labels
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.debug import DebugControl, WatchControl
from trapline.arm64.sysreg import generic_name

CASES, STUBS, STACK = IMAGE + (64 << 10), IMAGE + (1 << 20), IMAGE + (1 << 20) - (16 << 10)
WORDS = 16
ROW = struct.Struct(f"<{WORDS}Q")
STUB_BYTES = 128
NOTES = 8
"""Exceptions that are noted of one case; then it ends."""
LAST = 5
"""The breakpoint that can compare contexts."""
END = "svc #0xfff"
EL0, EL1 = 0x3C0, 0x3C5
D, SS = 1 << 9, 1 << 21
STEP, KERNEL, MONITOR = 1, 1 << 13, 1 << 15
"""MDSCR_EL1: SS, KDE, MDE."""

REGISTERS = (
    "DBGBVR0_EL1", "DBGBCR0_EL1", f"DBGBVR{LAST}_EL1", f"DBGBCR{LAST}_EL1", "DBGWVR0_EL1", "DBGWCR0_EL1", "DBGWVR1_EL1",
    "DBGWCR1_EL1", "CONTEXTIDR_EL1",
)  # fmt: skip
"""Set by each case, in this order; the row has the code, SPSR and MDSCR before them, and X1, X2 after."""

PLAIN = (
    "nop\n add x0, x0, #1\n sub x0, x0, #2\n nop", "b skip\n nop\n skip: nop\n add x0, x0, #1", "isb\n dsb sy\n nop",
    "mov x4, #3\n loop: subs x4, x4, #1\n b.ne loop\n nop", "bl f\n b end\n f: ret\n end: nop",
    "adr x4, t\n br x4\n nop\n t: nop", "cbz xzr, t\n nop\n t: tbnz w0, #0, u\n nop\n u: nop", "svc #1\n nop", "brk #2\n nop",
    ".word 0\n nop", "nop\n svc #3\n add x0, x0, #1\n svc #4", "yield\n sevl\n wfe\n nop", "mov x4, #1\n self: cbnz x5, self\n nop",
    "msr s3_3_c4_c2_0, x0\n nop", "ldr x4, [x1]\n nop\n str x0, [x1]",
)  # fmt: skip
KERNEL_ONLY = (
    "msr daifset, #8\n nop\n nop\n msr daifclr, #8\n nop\n nop", "msr daifset, #7\n nop\n msr daifclr, #4\n nop", "eret\n nop",
    "mrs x4, s3_3_c4_c2_1\n and x4, x4, #0xfffffffffffffdff\n msr s3_3_c4_c2_1, x4\n nop\n nop", "mov x4, #1\n msr SPSel, #1\n nop",
)  # fmt: skip
RETURNS = "adr x4, t\n msr {ELR_EL1}, x4\n msr {SPSR_EL1}, x2\n nop\n eret\n nop\n t: nop\n add x0, x0, #1\n nop"
MEMORY = {
    "ldr x0, [x1]": 8, "str x2, [x1]": 8, "ldrb w0, [x1]": 1, "strb w2, [x1]": 1, "ldrh w0, [x1]": 2, "strh w2, [x1]": 2,
    "ldr w0, [x1]": 4, "str w2, [x1]": 4, "ldp x0, x4, [x1]": 8, "stp x2, x2, [x1]": 8, "ldr q0, [x1]": 8, "str q0, [x1]": 8,
    "ldp q0, q1, [x1]": 8, "ldtr x0, [x1]": 8, "sttr x2, [x1]": 8, "ldtrb w0, [x1]": 1, "ldxr x0, [x1]": 8,
    "ldxr x0, [x1]\n stxr w4, x2, [x1]": 8, "ldar x0, [x1]": 8, "stlr x2, [x1]": 8, "stp w2, w2, [x1]": 4, "ldp w0, w4, [x1]": 4,
    "ld1 {v0.16b}, [x1]": 8, "st1 {v0.8b}, [x1]": 8, ".word 0xf9800020": 1, "str x2, [x1]\n str x2, [x1]": 8,
    "mov x4, #0\n str x2, [x1], #8\n ldur x0, [x1, #-8]": 8,
}  # fmt: skip
"""Accesses and their alignment: QEMU makes a misaligned access of larger aligned ones, and then sees watchpoints beside it."""
ATOMICS = ("mov x4, #0\n ldadd x4, x0, [x1]", "swp x2, x0, [x1]", "mov x0, #1\n cas x0, x2, [x1]")
"""QEMU 7.2 does not look for watchpoints in these: only stepped over."""


@dataclass
class Case:
    """A snippet, the state it starts in, and the debug registers."""

    text: str
    el: int
    spsr: int
    mdscr: int
    values: dict[str, int] = field(default_factory=dict)
    x1: int = DATA + 64
    x2: int = 0x0123_4567_89AB_CDEF

    @property
    def several(self) -> bool:
        """Is more than one watchpoint enabled?"""
        return all(self.values.get(f"DBGWCR{n}_EL1", 0) & 1 for n in (0, 1))

    def row(self, at: int) -> bytes:
        return ROW.pack(at, self.spsr, self.mdscr, *(self.values.get(name, 0) for name in REGISTERS), self.x1, self.x2, 0, 0)

    def __str__(self) -> str:
        registers = " ".join(f"{name}={value:#x}" for name, value in self.values.items())
        text = " ".join(self.text.replace("\n", ";").split())
        return f"EL{self.el} [{text}] spsr {self.spsr:#x} mdscr {self.mdscr:#x} x1 {self.x1:#x} x2 {self.x2:#x} {registers}"


def _generic(text: str) -> str:
    for name in sorted({*REGISTERS, *NAMES}, key=len, reverse=True):
        text = text.replace("{" + name + "}", generic_name(TABLE[name].enc))
    return text


NAMES = ("ESR_EL1", "FAR_EL1", "ELR_EL1", "SPSR_EL1", "VBAR_EL1", "OSLAR_EL1", "SP_EL0", "CPACR_EL1", "MDSCR_EL1", "SCTLR_EL1")


def _program() -> bytes:
    """X20: rows, X21: notes, X22: notes left, X23: the next case's notes. Snippets leave X10 to X23 alone."""
    vectors = "".join(".align 7\nb handler\n" for _ in range(16))
    loads = "".join(f"ldr x10, [x20], #8\nmsr {{{name}}}, x10\n" for name in REGISTERS)
    lines = [
        "b begin", ".align 11", "vectors:", vectors, "begin:", _set("x0", IMAGE + 0x800), "msr {VBAR_EL1}, x0",
        _set("x20", CASES), _set("x23", RESULTS), "mov x0, #0", "msr {OSLAR_EL1}, x0", _set("x0", 3 << 20), "msr {CPACR_EL1}, x0",
        "next:", "msr daifset, #15", "msr {MDSCR_EL1}, xzr", "isb", "ldr x9, [x20], #8", "cbz x9, finish",
        "mov x21, x23", f"mov x22, #{NOTES}", f"add x23, x23, #{NOTES * NOTE.size}",
        "ldr x3, [x20], #8", "ldr x4, [x20], #8", loads, "ldr x1, [x20], #8", "ldr x2, [x20], #24",
        _set("x0", STACK), "mov sp, x0", "msr {SP_EL0}, x0", "msr {ELR_EL1}, x9", "msr {SPSR_EL1}, x3", "msr {MDSCR_EL1}, x4",
        "mov x5, #0", _set("x0", MAGIC), "isb", "eret",
        "handler:", "mrs x10, {ESR_EL1}", "mrs x11, {FAR_EL1}", "mrs x12, {ELR_EL1}", "mrs x13, {SPSR_EL1}", "cbz x22, next",
        "sub x22, x22, #1", "stp x10, x11, [x21], #16", "stp x12, x13, [x21], #16", "and x14, x1, #0xfffffffffffffff8", "ldr x14, [x14]",
        "stp x0, x14, [x21], #16", "mov w14, w10", "movz x15, #0x0fff", "movk x15, #0x5600, lsl #16", "cmp x14, x15", "b.eq next",
        "lsr x14, x10, #26", "cmp x14, #0x15", "b.eq back", "cmp x14, #0x32", "b.eq step", "cmp x14, #0x33", "b.eq step",
        "cmp x14, #0x30", "b.eq off", "cmp x14, #0x31", "b.eq off", "cmp x14, #0x34", "b.eq off", "cmp x14, #0x35", "b.eq off",
        "add x12, x12, #4", "msr {ELR_EL1}, x12", "b back",
        "step:", f"mov x14, #{SS}", "orr x13, x13, x14", "msr {SPSR_EL1}, x13", "b back",
        "off:", "mrs x14, {MDSCR_EL1}", f"mov x15, #{MONITOR}", "bic x14, x14, x15", "msr {MDSCR_EL1}, x14",
        "back:", "eret",
        "finish:", _set("x0", RESULTS), _set("x1", UART), "print:", "cmp x0, x23", "b.eq power", "ldrb w2, [x0], #1",
        "strb w2, [x1]", "b print", "power:", _set("x0", 0x8400_0008), "hvc #0", "b power",
    ]  # fmt: skip
    return assemble_with_labels(_generic("\n".join(lines)), IMAGE)[0]


class Cases:
    """A random list of cases."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def make(self, at: int) -> Case:
        """A case whose code will be at `at`."""
        return self.rng.choice((self._step, self._break, self._watch, self._return))(self.rng, at)

    def _start(self, text: str, el: int, mdscr: int) -> Case:
        rng = self.rng
        spsr = (EL1 if el else EL0) & ~D | rng.choice((0, SS)) | rng.choice((0, 0, 0, 0, 0, D))
        case = Case(text, el, spsr, mdscr | rng.choice((0, KERNEL, KERNEL, KERNEL, KERNEL)))
        if text.startswith("eret"):  # it returns to itself: nothing but stepping ends that
            case.mdscr, case.spsr = mdscr | KERNEL | STEP, spsr & ~D
        return case

    def _text(self, el: int) -> str:
        rng = self.rng
        return rng.choice((*PLAIN, *ATOMICS, *rng.sample(list(MEMORY), 8), *(KERNEL_ONLY if el else ())))

    def _step(self, rng: random.Random, at: int) -> Case:
        el = rng.getrandbits(1)
        return self._start(self._text(el), el, STEP | rng.choice((0, MONITOR)))

    def _condition(self, rng: random.Random) -> dict[str, int]:
        levels = rng.choice((1, 2, 3, 3, 3, 3))
        higher = rng.choice((0, 0, 1)) if levels != 2 else 0
        security = rng.choice((0, 0, 0, 1, 1, 2)) if not higher else rng.choice((0, 1))
        return {"HMC": higher, "SSC": security, "PMC": levels}

    def _break(self, rng: random.Random, at: int) -> Case:
        el = rng.getrandbits(1)
        case = self._start(self._text(el), el, MONITOR | rng.choice((0, 0, STEP)))
        for n in (0, LAST):
            linked = rng.choice((0, 0, 0, 1))
            control = DebugControl(E=rng.choice((0, 1, 1, 1)), BAS=15, BT=linked, LBN=LAST if linked else 0, **self._condition(rng))
            case.values[f"DBGBVR{n}_EL1"] = at + 4 * rng.randrange(4) + rng.choice((0, 0, 0, 0, 0, 0, 1 << 49))
            case.values[f"DBGBCR{n}_EL1"] = int(control)
        self._link(rng, case)
        return case

    def _link(self, rng: random.Random, case: Case) -> None:
        """Perhaps make the last breakpoint one that compares the context, for others to link to."""
        if rng.getrandbits(1):
            case.values["CONTEXTIDR_EL1"] = context = rng.getrandbits(32)
            case.values[f"DBGBVR{LAST}_EL1"] = context ^ rng.choice((0, 0, 1))
            case.values[f"DBGBCR{LAST}_EL1"] = int(DebugControl(E=rng.choice((0, 1, 1)), BAS=15, BT=3, PMC=rng.randrange(1, 4)))

    def _watch(self, rng: random.Random, at: int) -> Case:
        el = rng.getrandbits(1)
        case = self._start(rng.choice(list(MEMORY)), el, MONITOR | rng.choice((0, 0, STEP)))
        case.x1 = DATA + rng.choice((64, 4096, 8192 - 8)) + rng.randrange(-8, 24) & -MEMORY[case.text]
        for n in (0, 1):
            mask = rng.choice((0, 0, 0, rng.randrange(3, 15)))
            first = rng.randrange(8)
            select = 0xFF if mask or rng.getrandbits(1) else ((1 << rng.randrange(1, 9 - first)) - 1) << first
            value = (case.x1 + rng.choice((0, 0, rng.randrange(-12, 16)))) & ~(3 if not mask else (1 << mask) - 1)
            linked = rng.choice((0, 0, 0, 1))
            condition = self._condition(rng)
            condition["PAC"] = condition.pop("PMC")
            lsc, enabled = rng.choice((0, 1, 2, 3, 3, 3)), rng.choice((0, 1, 1, 1, 1, 1))
            control = WatchControl(E=enabled, LSC=lsc, BAS=select, MASK=mask, WT=linked, LBN=LAST, **condition)
            case.values[f"DBGWVR{n}_EL1"], case.values[f"DBGWCR{n}_EL1"] = value, int(control)
        self._link(rng, case)
        return case

    def _return(self, rng: random.Random, at: int) -> Case:
        """An exception return of the snippet's own; debug exceptions are masked until then."""
        case = self._start(RETURNS, 1, rng.choice((STEP, STEP | MONITOR)))
        case.spsr |= D
        mode = rng.choice((EL0, EL1, EL1, 0x3C4, 0x3C9, 0x3C1))
        case.x2 = mode & ~D | rng.choice((0, SS)) | rng.choice((0, 0, D)) | rng.choice((0, 0, 0, 1 << 20))
        return case


def contents(cases: list[Case]) -> bytes:
    """Memory from IMAGE on."""
    code = _program()
    data = bytearray(STUBS - IMAGE + STUB_BYTES * len(cases))
    data[: len(code)] = code
    for k, case in enumerate(cases):
        at = STUBS + STUB_BYTES * k
        stub = assemble_program(_generic(case.text) + f"\n {END}", at)
        data[at - IMAGE : at - IMAGE + len(stub)] = stub
        data[CASES - IMAGE + ROW.size * k : CASES - IMAGE + ROW.size * (k + 1)] = case.row(at)
    assert CASES + ROW.size * (len(cases) + 1) < STACK - 4096
    assert STUBS + STUB_BYTES * len(cases) < RESULTS
    assert RESULTS + NOTES * NOTE.size * len(cases) < DATA
    return bytes(data)


FAR_VALID = (0x20, 0x21, 0x22, 0x24, 0x25, 0x34, 0x35)
SPSR_IGNORED = 1 << 25 | 1 << 24 | 1 << 23 | 1 << 22 | 1 << 12 | 3 << 10
IN_PARTS = ("stp", "str q", "st1")
"""Stores that may be partly done when a watchpoint matches: QEMU stores the first part, we none."""
FIELDS = ("esr", "far", "elr", "spsr", "x0", "memory")


def meaning(case: Case, notes: bytes) -> list[tuple[int, ...]]:
    """What of a case's notes has to agree."""
    found = []
    for esr, far, elr, spsr, x0, memory in NOTE.iter_unpack(notes):
        if case.text.startswith(IN_PARTS):
            memory = 0
        if case.several and esr >> 26 in (0x34, 0x35) and 0 <= far - case.x1 + 8 < 40:
            far = case.x1  # either watchpoint's byte will do
        found.append((esr, far if esr >> 26 in FAR_VALID else 0, elr, spsr & ~SPSR_IGNORED, x0, memory))
    return found


def known(case: Case) -> bool:
    """Cases in which QEMU 7.2 departs from the manual.

    It takes the step exception after an instruction that masked debug exceptions, and clears PSTATE.SS on an illegal return. And
    where there is a choice: its store-exclusive without a reservation makes no access that a watchpoint could match.
    """
    if case.mdscr & STEP and "stxr" in case.text:
        return True
    if case.mdscr & STEP and case.text.startswith("msr daifset, #8"):
        return True
    return case.text == RETURNS and case.x2 & 0xF not in (0, 4, 5) and bool(case.x2 & SS)


def compare(seed: int, count: int = 2000) -> tuple[int, list[str]]:
    """Run `count` cases on both; differences as text."""
    maker = Cases(seed)
    cases = [maker.make(STUBS + STUB_BYTES * k) for k in range(count)]
    image, each = contents(cases), NOTES * NOTE.size
    theirs, ours = on_qemu(image, each * count), on_trapline(image, each * count)
    found = []
    for k, case in enumerate(cases):
        a, b = (meaning(case, notes[each * k : each * (k + 1)]) for notes in (ours, theirs))
        if known(case):
            continue
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                differ = " ".join(f"{n}={p:x}/{q:x}" for n, p, q in zip(FIELDS, x, y, strict=True) if p != q)
                found.append(f"{case} at {STUBS + STUB_BYTES * k:#x}: exception {number} (ec {x[0] >> 26:#x}/{y[0] >> 26:#x}): {differ}")
                break
    return count, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.debug", description=__doc__)
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
