"""`python -m tests.differential.at`: random tables and controls of every regime, AT by system-mode QEMU and by the walker.

An image at EL2 sets the controls of a case, does one AT, and notes PAR_EL1 and the last descriptors of both stages afterwards
(which hardware may have updated). The walker answers the same over the same memory.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import mmap
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.differential.translation import EMULATOR, IMAGE, RAM, UART, _set
from trapline.arm64.asm_program import assemble_with_labels
from trapline.arm64.descriptors import EXTERNAL_WALK
from trapline.arm64.features import Features
from trapline.arm64.memory import Region
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.el1 import MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1
from trapline.arm64.regs.el2 import HCR_EL2, MAIR_EL2, SCTLR_EL2, TCR_EL2, TTBR0_EL2, TTBR1_EL2, VTCR_EL2, VTTBR_EL2
from trapline.arm64.state import CpuState
from trapline.arm64.sysreg import Sysreg, generic_name
from trapline.arm64.walk import address_translate

RAM_BYTES = 512 << 20
MACHINE = ["-M", "virt,gic-version=3,virtualization=on", "-cpu", "max,sve=off,sme=off,pauth=off", "-m", "512", "-nodefaults", "-display"]
CASES, RESULTS, TABLES, END = IMAGE + (1 << 20), IMAGE + (3 << 20), RAM + (8 << 20), RAM + (256 << 20)
AT = {
    "s1e1r": (0, 8, 0, 1, 1, 0), "s1e1w": (0, 8, 1, 1, 1, 0), "s1e0r": (0, 8, 2, 1, 0, 0), "s1e0w": (0, 8, 3, 1, 0, 0),
    "s1e1rp": (0, 9, 0, 1, 1, 1), "s1e1wp": (0, 9, 1, 1, 1, 1), "s1e2r": (4, 8, 0, 1, 2, 0), "s1e2w": (4, 8, 1, 1, 2, 0),
    "s12e1r": (4, 8, 4, 2, 1, 0), "s12e1w": (4, 8, 5, 2, 1, 0), "s12e0r": (4, 8, 6, 2, 0, 0), "s12e0w": (4, 8, 7, 2, 0, 0),
}  # fmt: skip
"""op1, CRm, op2; stages, exception level, whether PAN counts. The last letter, p aside, says whether it is a write."""
OF_EL2, OF_EL1 = ("s1e2r", "s1e2w"), tuple(name for name in AT if "e2" not in name)

REGISTERS: tuple[type[Sysreg], ...] = (
    TCR_EL1, SCTLR_EL1, TTBR0_EL1, TTBR1_EL1, MAIR_EL1, VTCR_EL2, VTTBR_EL2, TCR_EL2, TTBR0_EL2, TTBR1_EL2, MAIR_EL2, HCR_EL2, SCTLR_EL2,
)  # fmt: skip
"""In the order in which they are written: HCR_EL2 changes what names mean, SCTLR_EL2 comes last."""
ROW = struct.Struct(f"<{5 + len(REGISTERS)}Q")
NOTE = struct.Struct("<3Q")
SCTLR_EL2_OFF = 0x30C5_0830
RW = HCR_EL2.RW.mask
AF, DBM, PAGE_OR_TABLE, VALID = 1 << 10, 1 << 51, 3, 1
GIB = 1 << 30


def _named(text: str) -> str:
    return re.sub(r"\b([A-Z]\w*_EL[12]|PAN)\b", lambda m: generic_name(TABLE[m[1]].enc), text)


def program() -> tuple[bytes, dict[str, int]]:
    """The image's code and labels. X20: cases, X21: notes."""
    lines = [_set("x20", CASES), _set("x21", RESULTS), _set("x22", SCTLR_EL2_OFF), _set("x23", RW), "next:"]
    lines += ["ldr x9, [x20], #8", "cbz x9, finish", "ldr x1, [x20], #8", "ldr x2, [x20], #8", "ldr x10, [x20], #8", "ldr x11, [x20], #8"]
    lines += ["msr PAN, x2"]
    lines += [f"ldr x3, [x20], #8\nmsr {reg.__name__}, x3" for reg in REGISTERS if reg not in (HCR_EL2, SCTLR_EL2)]
    lines += ["ldr x3, [x20], #8", "ldr x4, [x20], #8"]
    lines += ["sys #4, c8, c7, #0, xzr", "sys #4, c8, c7, #4, xzr", "dsb sy", "isb", "msr HCR_EL2, x3", "isb"]
    lines += ["sys #4, c8, c7, #0, xzr", "sys #4, c8, c7, #4, xzr", "dsb sy", "isb"]
    lines += ["msr SCTLR_EL2, x4", "isb", "blr x9", "isb", "mrs x0, PAR_EL1", "msr SCTLR_EL2, x22", "isb", "msr HCR_EL2, x23", "isb"]
    lines += ["ldr x12, [x10]", "ldr x13, [x11]", "stp x0, x12, [x21], #16", "str x13, [x21], #8", "b next"]
    lines += ["finish:", _set("x0", RESULTS), _set("x1", UART), "print:", "cmp x0, x21", "b.eq off", "ldrb w2, [x0], #1"]
    lines += ["strb w2, [x1]", "b print", "off:", _set("x0", 0x8400_0008), "smc #0", "b off"]
    for name, (op1, crm, op2, *_) in AT.items():
        lines += [f"op_{name}:", f"sys #{op1}, c7, c{crm}, #{op2}, x1", "ret"]
    return assemble_with_labels(_named("\n".join(lines)), IMAGE)


@dataclass(frozen=True)
class Format:
    """How tables of one tree look: log2 of the granule, input bits, whether descriptors are those of LPA2, whether stage 2."""

    granule: int
    size: int
    ds: bool = False
    second: bool = False
    start: int = 9
    """The level of the root; 9: what the size says."""
    wide: bool = False
    """Whether outputs have 52 bits: QEMU ignores the upper ones in descriptors otherwise."""

    @property
    def stride(self) -> int:
        return self.granule - 3

    @property
    def first(self) -> int:
        return self.start if self.start != 9 else 3 - (self.size - 1 - self.granule) // self.stride

    def shift(self, level: int) -> int:
        return self.granule + (3 - level) * self.stride

    def bits(self, level: int) -> int:
        return self.size - self.shift(level) if level == self.first else self.stride

    def blocks(self) -> list[int]:
        """Levels of blocks."""
        if self.granule == 12:
            return [0, 1, 2] if self.ds else [1, 2]
        return [1, 2] if self.ds or self.granule == 16 else [2]

    def address(self, output: int) -> int:
        """An address as a descriptor holds it."""
        if self.ds:
            return output & (1 << 50) - 1 | output >> 50 << 8
        return output & (1 << 48) - 1 | (output >> 48 << 12 if self.granule == 16 else 0)


class Memory:
    """What the image's memory holds besides code: doublewords by address."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.next = TABLES

    def table(self, size: int, alignment: int = 0) -> int:
        self.next += -self.next % max(size, alignment, 64)
        at, self.next = self.next, self.next + size
        assert self.next <= END
        return at


@dataclass
class Tree:
    """Tables of one format; `trail` of the last path is its last descriptor's address."""

    memory: Memory
    format: Format
    rng: random.Random
    pool: dict[int, list[int]] = field(default_factory=dict)
    root: int = 0

    def __post_init__(self) -> None:
        f = self.format
        self.root = self.memory.table(8 << f.bits(f.first), 64)
        if f.first == -1:  # QEMU 7.2 ends with an assertion when it is to report a fault at level -1
            for at in range(self.root, self.root + (8 << f.bits(-1)), 8):
                self.memory.words[at] = self.memory.table(1 << f.granule) | PAGE_OR_TABLE

    def slot(self, va: int, level: int, flags: Callable[[], int]) -> int:
        """Address of the descriptor of `va` at a level, or of the leaf that stands above it."""
        f, table = self.format, self.root
        for current in range(f.first, level + 1):
            at = table + 8 * (va >> f.shift(current) & (1 << f.bits(current)) - 1)
            value = self.memory.words.get(at, 0)
            if current == level or (value and value & 3 != 3):
                return at
            if not value:
                value = f.address(self.memory.table(1 << f.granule)) | PAGE_OR_TABLE | flags()
                self.memory.words[at] = value
            table = value & ((1 << 48) - 1) >> f.granule << f.granule
        raise AssertionError

    def map(self, va: int, output: int, level: int, attributes: int) -> int:
        """A leaf; the address of its descriptor."""
        f = self.format
        at = self.slot(va, level, lambda: 0)
        output = output >> f.shift(level) << f.shift(level)
        self.memory.words[at] = f.address(output) | attributes | (PAGE_OR_TABLE if level == 3 else VALID)
        return at

    def scatter(self, va: int, outputs: list[int]) -> int:
        """Something random on the path of an address; the address of the last descriptor."""
        f, rng = self.format, self.rng
        levels = [level for level in (*f.blocks(), 3, 3) if level >= f.first]
        at = self.slot(va, rng.choice(levels), lambda: rng.getrandbits(4) << 59 if rng.random() < 0.3 and not f.second else 0)
        if at in self.memory.words:
            return at
        level = next(n for n in range(f.first, 4) if self._holds(va, n, at))
        kind = rng.choice((3, 3, 3, 3, 3, 3, 1, 0) if level == 3 else (1, 1, 1, 1, 1, 0, 2))
        flags = rng.getrandbits(9) << 2 & ~0x3C0 | rng.getrandbits(2) << 6 | rng.getrandbits(1) << 11
        flags |= rng.getrandbits(13) << 51 if rng.random() < 0.7 else 0
        if not f.ds:
            flags |= rng.getrandbits(2) << 8
        if f.second:
            flags &= ~(1 << 5)  # RES0 with HCR_EL2.FWB
            flags |= int(flags >> 2 & 7 == 4) << 2  # that one is reserved
        flags = flags & ~AF | (AF if rng.random() < 0.7 else 0)
        output = rng.choice(outputs) >> f.shift(level) << f.shift(level)
        if rng.random() < 0.08:
            output |= 1 << rng.randrange(32, 52 if f.wide else 48)
        self.memory.words[at] = f.address(output) | flags | kind
        return at

    def _holds(self, va: int, level: int, at: int) -> bool:
        f, table = self.format, self.root
        for current in range(f.first, level + 1):
            here = table + 8 * (va >> f.shift(current) & (1 << f.bits(current)) - 1)
            if current == level:
                return here == at
            value = self.memory.words.get(here, 0)
            if value & 3 != 3:
                return False
            table = value & ((1 << 48) - 1) >> f.granule << f.granule
        return False


@dataclass(frozen=True)
class Case:
    """One AT: its name, address, PSTATE.PAN, registers, and the descriptors to look at afterwards."""

    name: str
    va: int
    pan: int
    registers: tuple[int, ...]
    watch: tuple[int, int]


TG = {12: (0, 2), 14: (2, 1), 16: (1, 3)}
"""TG0 and TG1 by granule."""


class Image:
    """Memory contents and cases."""

    def __init__(self, rng: random.Random, groups: int, per_group: int) -> None:
        self.rng, self.memory, self.cases = rng, Memory(), list[Case]()
        self.code, self.labels = program()
        for _ in range(groups):
            self._group(per_group)

    def _format(self, second: bool = False) -> Format:
        rng = self.rng
        granule = rng.choice((12, 12, 14, 16))
        ds = granule != 16 and rng.random() < 0.4
        largest = 52 if ds or granule == 16 else 48
        return Format(granule, rng.choice((largest, rng.randrange(25, largest + 1), rng.randrange(17, 26))), ds, second)

    def _stage2(self) -> tuple[Tree, int]:
        """Tables that lead every address of the tables to itself, with random company; and VTCR_EL2."""
        rng = self.rng
        while True:
            f = self._format(second=True)
            size = max(f.size, 33)
            starts = [level for level in range(-1, 4) if 0 < size - f.shift(level) <= f.stride + 4]
            starts = [s for s in starts if s >= 0 or (f.ds and size == 52)]  # nor level -1 below 52 bits; see test_walk
            starts = [s for s in starts if s >= 1 or f.granule == 12]  # QEMU 7.2 has no level 0 for 16 KiB here
            starts = [s for s in starts if s < 3]
            if starts:
                break
        start = rng.choice(starts)
        # An input that is larger than the output is CONSTRAINED UNPREDICTABLE, and so is level 0 for a small one.
        ps = next(k for k, bits in ((2, 40), (4, 44), (5, 48), (6, 52)) if bits >= size and (start > 0 or bits > 44))
        vtcr = 64 - size | TG[f.granule][0] << 14 | ps << 16 | 1 << 19 | 1 << 31 | rng.getrandbits(2) << 21
        vtcr |= int(f.ds) << 32 | rng.getrandbits(2) << 12
        f = Format(f.granule, size, f.ds, True, start, ps == 6)
        tree = Tree(self.memory, f, rng)
        if start == -1:
            vtcr |= 1 << 33
        else:
            vtcr |= {12: {2: 0, 1: 1, 0: 2, 3: 3}, 14: {3: 0, 2: 1, 1: 2, 0: 3}, 16: {3: 0, 2: 1, 1: 2}}[f.granule][start] << 6
        step = 1 << f.shift(2)
        for at in range(RAM & -step, END, step):
            attributes = 0xC0 | 0x1C | AF | rng.getrandbits(2) << 8 * int(not f.ds)
            if rng.random() < 0.15:
                attributes ^= rng.choice((AF, 0x40, 0x80, 0x80 | DBM))
            tree.map(at, at, 2, attributes)
        return tree, vtcr

    def _group(self, count: int) -> None:
        """One set of controls and its cases."""
        rng = self.rng
        kind = rng.choice(("el1", "el1", "staged", "staged", "el2", "host", "host"))
        ds, ips = rng.random() < 0.4, rng.choice((2, 5, 5, 6, 6))
        halves = [self._format(), self._format()]
        # QEMU 7.2 ends with an assertion when stage 2 refuses a descriptor of level -1.
        largest = [48 if kind == "staged" and f.granule == 12 else 52 if ds or f.granule == 16 else 48 for f in halves]
        sizes = [min(f.size, size) for f, size in zip(halves, largest)]
        halves = [
            Format(f.granule, size, ds and f.granule != 16, wide=ips == 6 and (ds or f.granule == 16)) for f, size in zip(halves, sizes)
        ]
        trees = [Tree(self.memory, f, rng) for f in halves]
        mair = rng.choice((0x0044_FF04_00BB_FF00, rng.getrandbits(64)))
        low, high = halves
        tcr = 64 - low.size | (64 - high.size) << 16 | TG[low.granule][0] << 14 | TG[high.granule][1] << 30
        tcr |= ips << 32 | int(ds) << 59 | rng.getrandbits(2) << 12 | rng.getrandbits(2) << 28 | rng.getrandbits(2) << 37
        tcr |= rng.getrandbits(2) << 39 | rng.getrandbits(2) << 41 | rng.getrandbits(1) << 22 | 1 << 36
        if rng.random() < 0.2:
            tcr |= rng.getrandbits(2) << 55
        if rng.random() < 0.1:
            tcr |= 1 << 23
        alone = 64 - halves[0].size | TG[halves[0].granule][0] << 14 | ips << 16 | rng.getrandbits(1) << 20 | rng.getrandbits(2) << 21
        alone |= rng.getrandbits(1) << 24 | int(ds) << 32 | 1 << 31 | 1 << 23 | rng.getrandbits(2) << 12
        rules = int(rng.random() < 0.3) << 19
        sctlr = 0x30D0_0800 | int(kind not in ("el1", "staged") or rng.random() < 0.95) | rules
        values = dict.fromkeys(REGISTERS, 0)
        roots = [self._root(tree, ips) for tree in trees]
        values |= {SCTLR_EL2: SCTLR_EL2_OFF, HCR_EL2: RW, VTCR_EL2: 1 << 31 | 24 | 1 << 6, MAIR_EL1: mair, MAIR_EL2: mair}
        outputs = [rng.getrandbits(32), rng.getrandbits(47), RAM + rng.getrandbits(28), rng.getrandbits(40)]
        second: Tree | None = None
        if kind in ("el1", "staged"):
            values |= {TCR_EL1: tcr, SCTLR_EL1: sctlr, TTBR0_EL1: roots[0], TTBR1_EL1: roots[1]}
            if kind == "staged":
                second, vtcr = self._stage2()
                root2 = self._root(second, vtcr >> 16 & 7)
                values |= {HCR_EL2: RW | 1 | int(rng.random() < 0.2) << 2 | int(rng.random() < 0.1) << 12, VTCR_EL2: vtcr, VTTBR_EL2: root2}
                if rng.random() < 0.3:
                    values[HCR_EL2] |= HCR_EL2.FWB.mask
                outputs += [RAM + rng.getrandbits(28) for _ in range(4)]
                for _ in range(10):
                    second.scatter(rng.getrandbits(second.format.size), [rng.getrandbits(40), RAM])
        else:
            host = kind == "host"
            values |= {TCR_EL2: tcr & ~(1 << 7) if host else alone, SCTLR_EL2: SCTLR_EL2_OFF | 1 | rules & -1 << 32 | (rules & 1 << 19)}
            values |= {TTBR0_EL2: roots[0], TTBR1_EL2: roots[1] if host else 0}
            values[HCR_EL2] = RW | (HCR_EL2.E2H.mask | rng.getrandbits(1) * HCR_EL2.TGE.mask if host else 0)
            if halves[0].size < 31:
                return  # the image itself would not be mapped
            leaf = self._code(trees[0])
            self.memory.words[leaf] &= ~0  # stays as it is
        for _ in range(count):
            self._case(kind, values, trees[: 1 if kind == "el2" else 2], second, outputs)

    def _root(self, tree: Tree, ps: int) -> int:
        wide = ps == 6 and (tree.format.ds or tree.format.granule == 16)
        return tree.root if not wide else tree.root & ~63

    def _code(self, tree: Tree) -> int:
        """The image's code for EL2: read-only, and executable there alone."""
        return tree.map(IMAGE, IMAGE, 3, AF | 1 << 7 | 3 << 8 * int(not tree.format.ds))

    def _case(self, kind: str, values: dict[type[Sysreg], int], trees: list[Tree], second: Tree | None, outputs: list[int]) -> None:
        rng = self.rng
        half = rng.randrange(len(trees))
        tree = trees[half]
        va = rng.getrandbits(tree.format.size)
        if rng.random() < 0.8:  # neighbours share tables
            keep = tree.format.shift(3) if rng.random() < 0.5 else tree.format.shift(2)
            base = tree.pool.setdefault(keep, [rng.getrandbits(tree.format.size) >> keep for _ in range(2)])
            va = (rng.choice(base) << keep | rng.getrandbits(keep)) & (1 << tree.format.size) - 1
        if kind in ("el2", "host") and half == 0 and va >> 20 == IMAGE >> 20:
            return
        leaf = tree.scatter(va, outputs)
        if half:
            va |= (1 << 64) - (1 << tree.format.size)
        change = rng.randrange(12)
        if change == 0:
            va ^= rng.getrandbits(8) << 56
        elif change == 1:
            va ^= 1 << rng.randrange(48, 64)
        if kind == "host" and values[HCR_EL2] & HCR_EL2.TGE.mask:
            name = rng.choice(tuple(AT))
        else:
            name = rng.choice(OF_EL2 if kind in ("el2", "host") else OF_EL1)
        at2 = leaf
        if second is not None:
            at2 = second.slot(rng.choice(outputs) & (1 << second.format.size) - 1, 2, lambda: 0)
        registers = tuple(values[reg] for reg in REGISTERS)
        self.cases.append(Case(name, va & (1 << 64) - 1, rng.getrandbits(1) << 22, registers, (leaf, at2)))

    def contents(self) -> bytes:
        """Memory from IMAGE on."""
        data = bytearray(self.memory.next - IMAGE)
        data[: len(self.code)] = self.code
        rows = b"".join(ROW.pack(self.labels[f"op_{c.name}"], c.va, c.pan, *c.watch, *c.registers) for c in self.cases)
        assert len(rows) < RESULTS - CASES and NOTE.size * len(self.cases) < TABLES - RESULTS
        data[CASES - IMAGE : CASES - IMAGE + len(rows)] = rows
        for at, value in self.memory.words.items():
            data[at - IMAGE : at - IMAGE + 8] = value.to_bytes(8, "little")
        return bytes(data)


def on_qemu(contents: bytes, size: int) -> bytes:
    """The notes that the image leaves."""
    with tempfile.TemporaryDirectory(prefix="trapline-at-") as directory:
        image, serial = Path(directory, "image"), Path(directory, "serial")
        header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 2, 183, 1, IMAGE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, IMAGE, IMAGE, len(contents), len(contents), 4096)
        image.write_bytes((header + segment).ljust(4096, b"\0") + contents)
        command = [EMULATOR, *MACHINE, "none", "-serial", f"file:{serial}", "-kernel", str(image)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
        notes = serial.read_bytes()
    assert len(notes) == size, f"{len(notes)} bytes of notes instead of {size}"
    return notes


@functools.cache
def walker() -> Callable[..., int]:
    """`address_translate`, compiled."""
    from trapline.bits.native import compile_functions

    return compile_functions([address_translate])["address_translate"]


def on_walker(image: Image, contents: bytes, features: Features) -> bytes:
    """The notes by the walker."""
    translate = walker()
    memory = mmap.mmap(-1, RAM + RAM_BYTES - IMAGE)
    memory[: len(contents)] = contents
    regions = (Region * 2)(Region(IMAGE, len(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory)), 1), Region())
    cpu = CpuState(el=2, regions=ctypes.addressof(regions))
    for register, value in features.id_values().items():
        cpu.sysreg[register.slot] = value
    notes = b""
    for case in image.cases:
        for register, value in zip(REGISTERS, case.registers, strict=True):
            cpu.sysreg[register.slot] = value
        cpu.pan = case.pan >> 22
        _, _, _, stages, el, pan = AT[case.name]
        par = translate(cpu, case.va, stages, el, case.name.rstrip("p")[-1] == "w", bool(pan))
        watched = (ctypes.c_uint64.from_buffer(memory, at - IMAGE).value for at in case.watch)
        notes += NOTE.pack(par, *watched)
    return notes


def meaning(note: bytes) -> tuple[int, int, int]:
    """What of a note has to agree.

    QEMU lets AT of a write make a page dirty, which the manual does not, and reports a fault of stage 2 on stage 1's tables with
    the level of the table.
    """
    par, *descriptors = NOTE.unpack(note)
    first, second = (value & ~(0x80 if value & DBM else 0) for value in descriptors)
    if par & 1:
        return par & (0x379 if par & 0x100 else 0x37F), first, second
    if par >> 56 & 0xF0 == 0 or par >> 56 == 0x44:
        par = par & ~(3 << 7) | 2 << 7  # QEMU shows the descriptor's shareability where it counts for nothing
    return par & ~(0xFF << 56 if par >> 56 & 0xF0 == 0 else 0) & ~0xC00, first, second


def _explained(image: Image, case: Case, ours: int, theirs: int) -> bool:
    """A walk that leaves the image ends here, QEMU's board may have something there; and QEMU makes pages dirty for AT of a write."""
    left = ours & 1 and ours >> 1 & 0x3C == EXTERNAL_WALK
    refused = theirs & 0x179 == 0x119 and case.name.rstrip("p")[-1] == "w" and image.memory.words.get(case.watch[0], 0) & DBM
    return bool(left or refused)


def compare(seed: int, groups: int = 40, per_group: int = 40) -> tuple[int, list[str]]:
    """Run one image on both; the number of cases and the differences as text."""
    rng = random.Random(seed)
    image = Image(rng, groups, per_group)
    contents, size = image.contents(), NOTE.size * len(image.cases)
    theirs = on_qemu(contents, size)
    ours = on_walker(image, contents, Features())
    found, kinds = [], Counter[str]()
    for k, case in enumerate(image.cases):
        a, b = (meaning(notes[NOTE.size * k : NOTE.size * (k + 1)]) for notes in (ours, theirs))
        if a != b and not _explained(image, case, a[0], b[0]):
            registers = " ".join(f"{r.__name__}={v:#x}" for r, v in zip(REGISTERS, case.registers, strict=True) if v)
            descriptors = " ".join(f"{at:x}:{image.memory.words.get(at, 0):016x}" for at in case.watch)
            found.append(f"#{k} {case.name} {case.va:#x} pan {case.pan >> 22} {descriptors} {registers}")
            found.append("    trapline/qemu: " + " ".join(f"{x:x}/{y:x}" for x, y in zip(a, b, strict=True)))
            kinds[f"{case.name} {a[0] & 0xFFF:x}/{b[0] & 0xFFF:x}"] += 1
    if found:
        found[:0] = [f"seed {seed}", *(f"{count} x {what}" for what, count in kinds.most_common(20))]
    return len(image.cases), found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.at", description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    total = bad = 0
    for seed in range(options.seed, options.seed + options.images):
        count, found = compare(seed)
        total, bad = total + count, bad + bool(found)
        print("".join(line + "\n" for line in found[:60]), end="")
    print(f"seeds {options.seed} on: {total} translations, {bad} images with differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
