"""`python -m tests.differential.exceptions`: short snippets that trap, fault or return, under system-mode QEMU and Trapline.

Register accesses at EL1 and EL0 under random controls, exception returns to random states, misaligned PC, SP and data, FP traps.
Translation is off. What is compared is the exception that a snippet takes, and X0 where its value is architectural.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from dataclasses import dataclass, replace

from tests.differential.translation import IMAGE, MAGIC, NOTE, RAM, RESULTS, UART, _named, _set, on_qemu, on_trapline
from trapline.arm64.asm_program import assemble_program, assemble_with_labels
from trapline.arm64.features import Features
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.el1 import CPACR_EL1, SCTLR_EL1

CASES, STUBS, STACK = IMAGE + (64 << 10), IMAGE + (1 << 20), IMAGE + (1 << 20) - (16 << 10)
ROW = struct.Struct("<8Q")
STUB_WORDS = 8
RET = 0xD65F_03C0
SPSR_BITS = 0xF060_03CD
"""SPSR bits that mean the same on both: flags, PAN, DAIF, IL excepted (it is compared separately), AArch64 modes below EL3."""

CONTROLS = ("UMA", "SA", "SA0", "nTWI", "nTWE", "UCT", "DZE", "UCI", "A")
"""SCTLR_EL1 fields that are set at random."""

PLAIN_FAULTS = (
    "ldr x0, [x1]", "ldrh w0, [x1]", "str x2, [x1]", "ldp x0, x2, [x1]", "stp x2, x2, [x1]", "ldr q0, [x1]", "ldp q0, q1, [x1]",
    "ldar x0, [x1]", "stlr x2, [x1]", "ldxr x0, [x1]", "ldur w0, [x1, #-3]", "st1 {v0.8h}, [x1]", "ld1 {v0.16b}, [x1]",
)  # fmt: skip
ALIGNED_ONLY = ("ldar", "stlr", "ldxr")
"""QEMU has no FEAT_LSE2: for these the misaligned case differs without SCTLR_EL1.A."""

OTHERS = (
    "svc #0x1234", "brk #0x42", "hlt #7", "fmov x0, d0", "fadd d0, d0, d0", "wfi", "wfe", "sevl\n wfe",
    "msr s3_3_c4_c2_1, x2", "mrs x0, s3_3_c4_c2_1", "sys #3, c7, c11, #1, x1", "sys #3, c7, c14, #1, x1", "sys #3, c7, c5, #1, x1",
    "sys #3, c7, c10, #1, x1", "sys #0, c7, c6, #1, x1", "sys #0, c8, c7, #0, xzr", "sys #0, c7, c5, #0, xzr", "msr daifset, #15",
    "msr daifclr, #8", ".word 0", ".word 0xd69f03e0",
)  # fmt: skip

DANGEROUS = ("SCTLR_EL1", "VBAR_EL1", "SPSR_EL1", "ELR_EL1", "TTBR0_EL1", "TCR_EL1", "DAIF", "SP_EL0", "PAN", "UAO")
NOT_IN_QEMU = (
    "CNTFRQ", "CNTVCTSS", "CNTPCTSS", "ICC_", "OSECCR", "OSDTR", "DBGPRCR", "DBGDTR", "DBGCLAIM", "DBGAUTHSTATUS",
    "SCXTNUM", "MDCCINT")  # fmt: skip
"""Registers that QEMU lacks, or whose absence a hypervisor decides."""


@dataclass(frozen=True)
class Snippet:
    """Code at an exception level, with controls; `value` says whether X0 is compared."""

    what: str
    words: tuple[int, ...]
    el: int
    sctlr: int
    cpacr: int
    kernel_timers: int
    x1: int
    x2: int
    value: bool = False


def _program() -> bytes:
    """X20: rows, X21: notes."""
    handler = "mrs x10, ESR_EL1\nmrs x11, FAR_EL1\nmrs x12, ELR_EL1\nmrs x13, SPSR_EL1\nb note"
    vectors = "".join(f".align 7\n{handler}\n" for _ in range(16))
    lines = [
        "b begin", ".align 11", "vectors:", vectors, "begin:", _set("x0", IMAGE + 0x800), "msr VBAR_EL1, x0",
        _set("x20", CASES), _set("x21", RESULTS), "mov x0, #0", "msr OSLAR_EL1, x0",
        "next:", "ldr x9, [x20], #8", "cbz x9, finish", "ldr x14, [x20], #8", "ldr x3, [x20], #8", "ldr x4, [x20], #8",
        "ldr x5, [x20], #8", "ldr x1, [x20], #8", "ldr x2, [x20], #8", "ldr x6, [x20], #8",
        "msr SPSel, #1", _set("x0", STACK), "mov sp, x0", "msr SP_EL0, x6",
        "msr SCTLR_EL1, x3", "msr CPACR_EL1, x4", "msr CNTKCTL_EL1, x5", "msr NZCV, xzr", "msr daifset, #15",
        "mov x0, #0", "msr PAN, x0", "isb", _set("x0", MAGIC),
        "cbz x14, user", "mov sp, x6", "adr x30, back", "br x9",
        "back:", "mov x10, #0", "mov x11, #0", "mov x12, #0", "mov x13, #0", "b note",
        "user:", "msr ELR_EL1, x9", "mov x7, #0x3c0", "msr SPSR_EL1, x7", "adr x30, user_back", "isb", "eret",
        "user_back:", "svc #0xfff",
        "note:", "stp x10, x11, [x21], #16", "stp x12, x13, [x21], #16", "stp x0, x9, [x21], #16", "b next",
        "finish:", "mrs x0, SCTLR_EL1", "isb", _set("x0", RESULTS), _set("x1", UART), "print:", "cmp x0, x21", "b.eq off",
        "ldrb w2, [x0], #1", "strb w2, [x1]", "b print", "off:", _set("x0", 0x8400_0008), "hvc #0", "b off",
    ]  # fmt: skip
    text = "\n".join(lines).replace("msr SPSel, #1", ".word 0xd50041bf")
    for name in ("OSLAR_EL1", "SP_EL0", "CNTKCTL_EL1"):
        text = text.replace(name, "{" + name + "}")
    text = text.format(**{name: _named_register(name) for name in ("OSLAR_EL1", "SP_EL0", "CNTKCTL_EL1")})
    return assemble_with_labels(_named(text), IMAGE)[0]


def _named_register(name: str) -> str:
    from trapline.arm64.sysreg import generic_name

    return generic_name(TABLE[name].enc)


def _words(text: str) -> tuple[int, ...]:
    code = assemble_program(text)
    return struct.unpack(f"<{len(code) // 4}I", code)


class Snippets:
    """A random list of snippets."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        features = Features()
        self.registers = [r for r in TABLE if r.exists(features) and r.enc[0] >= 2 and r.enc[1] not in (4, 5, 6, 7)]
        self.registers = [r for r in self.registers if not r.name.startswith(NOT_IN_QEMU)]

    def make(self) -> Snippet:
        rng = self.rng
        return rng.choice((self._register, self._register, self._return, self._alignment, self._other, self._branch))(rng)

    def _snippet(self, what: str, words: tuple[int, ...], x1: int = STACK, x2: int = 0x55, *, value: bool = False,
                 el: int | None = None, a: bool | None = None) -> Snippet:  # fmt: skip
        rng = self.rng
        sctlr = SCTLR_EL1.res1 | SCTLR_EL1(SPAN=1)
        for name in CONTROLS:
            wanted = rng.getrandbits(1) if name != "A" or a is None else a
            sctlr |= SCTLR_EL1(**{name: int(wanted)})
        cpacr = CPACR_EL1(FPEN=rng.choice((0, 1, 2, 3, 3, 3)))
        level = rng.getrandbits(1) if el is None else el
        return Snippet(what, words, level, int(sctlr), int(cpacr), rng.getrandbits(10) & 0x303, x1, x2, value)

    def _register(self, rng: random.Random) -> Snippet:
        reg = rng.choice(self.registers)
        level = 1 if reg.enc[0] == 3 and reg.enc[2] == 0 and reg.enc[1] < 3 else None  # QEMU has FEAT_IDST
        encoding = reg.encoding & 0x7FFF
        word = 0xD510_0000 | (encoding | 0x8000) << 5 & 0x1F_FFE0
        read = word | 1 << 21
        if rng.randrange(2) or reg.name in DANGEROUS:
            return self._snippet(f"mrs x0, {reg.name}", (read,), el=level)
        writes = (read | 3, word | 3)
        return self._snippet(f"mrs x3, {reg.name}; msr {reg.name}, x3", writes, el=level)

    def _return(self, rng: random.Random) -> Snippet:
        mode = rng.choice((0, 4, 5, 5, 8, 9, 0xC, 0xD, 1, 2, 3, 6, 7))
        spsr = rng.getrandbits(32) & SPSR_BITS & ~0x1F | mode | rng.choice((0, 0, 0, 1 << 20))
        code = ("msr SPSR_EL1, x1", "adr x3, target", "msr ELR_EL1, x3", "eret", "target:", "svc #1")
        return self._snippet(f"eret to {spsr:#x}", _words(_named("\n".join(code))), x1=spsr, el=1)

    def _alignment(self, rng: random.Random) -> Snippet:
        text = rng.choice(PLAIN_FAULTS)
        offset = rng.choice((0, 1, 2, 4, 8, 12, 16))
        strict = text.startswith(ALIGNED_ONLY)
        return self._snippet(f"{text} at +{offset}", _words(text), x1=STACK - 64 + offset, a=True if strict else None)

    def _other(self, rng: random.Random) -> Snippet:
        text = rng.choice(OTHERS)
        if text == "wfi":  # only where it is trapped: nothing would wake it
            s = self._snippet(text, _words(text), el=0)
            return replace(s, sctlr=s.sctlr & ~SCTLR_EL1.nTWI.mask)
        return self._snippet(text.replace("\n", ";"), _words(text), el=0 if "0xd69f03e0" in text else None)

    def _branch(self, rng: random.Random) -> Snippet:
        offset = rng.randrange(4)
        return self._snippet(f"br +{offset}", _words("br x1"), x1=RAM + (3 << 20) + offset if offset else IMAGE + 4)


def contents(snippets: list[Snippet]) -> bytes:
    """Memory from IMAGE on."""
    code = _program()
    data = bytearray(STUBS - IMAGE + 4 * STUB_WORDS * len(snippets))
    data[: len(code)] = code
    for k, s in enumerate(snippets):
        at = STUBS + 4 * STUB_WORDS * k
        words = [*s.words, RET][:STUB_WORDS]
        data[at - IMAGE : at - IMAGE + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)
        row = ROW.pack(at, s.el, s.sctlr, s.cpacr, s.kernel_timers, s.x1, s.x2, STACK - 128)
        data[CASES - IMAGE + ROW.size * k : CASES - IMAGE + ROW.size * (k + 1)] = row
    assert CASES + ROW.size * (len(snippets) + 1) < STACK - 4096
    assert STUBS + 4 * STUB_WORDS * len(snippets) < RESULTS
    return bytes(data)


PAN, ILLEGAL = 1 << 22, 1 << 20
FAR_VALID = (0x20, 0x21, 0x22, 0x24, 0x25)
SPSR_IGNORED = 1 << 25 | 1 << 24 | 1 << 23 | 1 << 12 | 3 << 10


def meaning(snippet: Snippet, note: bytes) -> tuple[int, ...]:
    """What of a note has to agree."""
    esr, far, elr, spsr, x0, _ = NOTE.unpack(note)
    if snippet.what.startswith("msr daif") and esr >> 26 == 0x18:
        esr = 0x18 << 26  # QEMU swaps op1 and op2 in this syndrome
    if spsr & ILLEGAL:
        spsr &= ~PAN  # SetPSTATEFromSPSR() takes it from SPSR even then; QEMU doesn't
    return esr, far if esr >> 26 in FAR_VALID else 0, elr, spsr & ~SPSR_IGNORED, x0 if snippet.value else 0


def compare(seed: int, count: int = 3000) -> tuple[int, list[str]]:
    """Run `count` snippets on both; differences as text."""
    maker = Snippets(seed)
    snippets = [maker.make() for _ in range(count)]
    image, size = contents(snippets), NOTE.size * count
    theirs, ours = on_qemu(image, size), on_trapline(image, size)
    found = []
    for k, s in enumerate(snippets):
        a, b = (meaning(s, notes[NOTE.size * k : NOTE.size * (k + 1)]) for notes in (ours, theirs))
        if a != b:
            rows = " ".join(f"{n}={x:x}/{y:x}" for n, x, y in zip(("esr", "far", "elr", "spsr", "x0"), a, b, strict=True) if x != y)
            found.append(f"{s.what} at EL{s.el} sctlr {s.sctlr:#x} cpacr {s.cpacr:#x} cntkctl {s.kernel_timers:#x}: {rows}")
    return count, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.exceptions", description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    total, bad = 0, set()
    for seed in range(options.seed, options.seed + options.images):
        count, found = compare(seed)
        total += count
        bad |= set(found)
    print("".join(line + "\n" for line in sorted(bad)), end="")
    print(f"seeds {options.seed} on: {total} snippets (trapline/qemu), {len(bad)} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
