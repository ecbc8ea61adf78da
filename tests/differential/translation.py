"""`python -m tests.differential.translation`: random page tables under system-mode QEMU and under Trapline's KVM.

One bare-metal image makes every access of a list through its own path of random descriptors, at EL1 or EL0, and notes the
exception that it took or PAR_EL1. The image is the same for both machines; so must be the notes.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trapline.abi.exits import MmioExit
from trapline.arm64.asm_program import assemble_with_labels
from trapline.arm64.regs import TABLE
from trapline.arm64.sysreg import generic_name
from trapline.backends.objects import System
from trapline.backends.software import Software

EMULATOR = "qemu-system-aarch64"
MACHINE = ["-M", "virt,gic-version=3", "-cpu", "max,sve=off,sme=off,pauth=off,lpa2=off", "-m", "128", "-nodefaults", "-display", "none"]
RAM, RAM_BYTES, UART = 0x4000_0000, 128 << 20, 0x0900_0000
IMAGE, CASES, RESULTS, DATA, TABLES = RAM + (2 << 20), RAM + (3 << 20), RAM + (4 << 20), RAM + (6 << 20), RAM + (8 << 20)
PAGE, DATA_BYTES = 4096, 2 << 20
USER_ALIAS = 0x8000_0000
"""Where EL0 sees the image: the same memory, executable at EL0 and therefore not at EL1."""
ROW = struct.Struct("<8Q")
NOTE = struct.Struct("<6Q")
MAGIC = 0x1122_3344_5566_7788
RET = 0xD65F_03C0
"""Every doubleword of the data begins with this instruction; its page number follows."""

OPERATIONS = {
    "ldr": (1, "ldr x0, [x1]"), "str": (1, "str x2, [x1]"), "ldrb": (1, "ldrb w0, [x1]"), "stp": (1, "stp x2, x2, [x1]"),
    "ldtr": (1, "ldtr x0, [x1]"), "sttr": (1, "sttr x2, [x1]"), "ldxr": (1, "ldxr x0, [x1]\n clrex"),
    "stxr": (1, "ldxr x3, [x1]\n stxr w0, x2, [x1]"), "ldadd": (1, "mov x3, #0\n ldadd x3, x0, [x1]"),
    "cas": (1, "mov x0, #1\n cas x0, x2, [x1]"), "swp": (1, "swp x2, x0, [x1]"), "ldar": (1, "ldar x0, [x1]"),
    "zva": (1, "sys #3, c7, c4, #1, x1"), "ldq": (1, "ldr q0, [x1]\n fmov x0, d0"), "prfm": (1, ".word 0xf9800020"),
    "at_s1e1r": (1, "sys #0, c7, c8, #0, x1\n isb\n mrs x0, PAR_EL1"),
    "at_s1e1w": (1, "sys #0, c7, c8, #1, x1\n isb\n mrs x0, PAR_EL1"),
    "at_s1e0r": (1, "sys #0, c7, c8, #2, x1\n isb\n mrs x0, PAR_EL1"),
    "at_s1e0w": (1, "sys #0, c7, c8, #3, x1\n isb\n mrs x0, PAR_EL1"),
    "at_s1e1rp": (1, "sys #0, c7, c9, #0, x1\n isb\n mrs x0, PAR_EL1"),
    "at_s1e1wp": (1, "sys #0, c7, c9, #1, x1\n isb\n mrs x0, PAR_EL1"),
    "exec": (1, "blr x1"),
    "user_ldr": (0, "ldr x0, [x1]"), "user_str": (0, "str x2, [x1]"), "user_exec": (0, "blr x1"),
    "user_ldadd": (0, "mov x3, #0\n ldadd x3, x0, [x1]"), "user_ldtr": (0, "ldtr x0, [x1]"),
    "user_stxr": (0, "ldxr x3, [x1]\n stxr w0, x2, [x1]"),
}  # fmt: skip
"""What is done with the address in X1, at which exception level; X2 is what is stored, X0 what is noted."""

NAMES = tuple(OPERATIONS)

MEMORY_STAYS = tuple(name for name in NAMES if name != "zva")
"""DC ZVA clears another number of bytes on QEMU's CPU: it is tried only where it must fault."""
READ_ONLY, NOT_GLOBAL = 1 << 7, 1 << 11

BEYOND = {2: (1 << 40, 1 << 45, 1 << 47), 3: (1 << 42, 1 << 47), 5: (0,)}
"""Output address bits that are out of range, by TCR_EL1.IPS."""


_CHANGE = "str x6, [x5]\n dsb sy\n"
PREPARATIONS = {
    "nothing": "",
    "switch": "msr TTBR0_EL1, x8\n isb",
    "vae1": _CHANGE + "sys #0, c8, c7, #1, x8\n dsb sy\n isb", "vae1is": _CHANGE + "sys #0, c8, c3, #1, x8\n dsb sy\n isb",
    "vale1": _CHANGE + "sys #0, c8, c7, #5, x8\n dsb sy\n isb", "vaae1": _CHANGE + "sys #0, c8, c7, #3, x8\n dsb sy\n isb",
    "vaale1is": _CHANGE + "sys #0, c8, c3, #7, x8\n dsb sy\n isb", "vmalle1": _CHANGE + "sys #0, c8, c7, #0, xzr\n dsb sy\n isb",
    "aside1": _CHANGE + "sys #0, c8, c7, #2, x8\n dsb sy\n isb",
}  # fmt: skip
"""What happens before an access: nothing, another address space (TTBR0 in X8), or a new descriptor X6 at X5 and its
invalidation, by the operand X8."""

ASIDS = (5, 0x1207)


@dataclass(frozen=True)
class Granule:
    """A translation granule: TG0, page shift, and TxSZ with the level that its walk starts at."""

    tg0: int
    shift: int
    tsz: int
    start: int

    @property
    def index_bits(self) -> int:
        return self.shift - 3

    def level_shift(self, level: int) -> int:
        return self.shift + (3 - level) * self.index_bits


GRANULES = {"4K": Granule(0, 12, 25, 1), "16K": Granule(2, 14, 28, 2), "64K": Granule(1, 16, 22, 2)}


@dataclass(frozen=True)
class Setting:
    """Controls of one run."""

    granule: Granule
    tcr: int
    sctlr: int
    pan: int


def _named(text: str) -> str:
    """System registers by their generic names."""
    return re.sub(r"\b([A-Z]\w*_EL1|PAN|NZCV)\b", lambda m: generic_name(TABLE[m[1]].enc), text)


def _set(register: str, value: int) -> str:
    parts = [f"movz {register}, #{value & 0xFFFF}"]
    return "\n".join(parts + [f"movk {register}, #{value >> s & 0xFFFF}, lsl #{s}" for s in (16, 32, 48) if value >> s & 0xFFFF])


def _program(setting: Setting) -> tuple[bytes, dict[str, int]]:
    """The image's code and labels. X20: cases, X21: notes, X22: the case's X1."""
    handler = "mrs x10, ESR_EL1\nmrs x11, FAR_EL1\nmrs x12, ELR_EL1\nmrs x13, SPSR_EL1\nb note"
    vectors = "".join(f".align 7\n{handler}\n" for _ in range(16))
    lines = [
        "b begin", ".align 11", "vectors:", vectors, "begin:",
        _set("x0", IMAGE + 0x800), "msr VBAR_EL1, x0",
        _set("x0", 3 << 20), "msr CPACR_EL1, x0",
        _set("x0", 0x0044_0C04_00FF), "msr MAIR_EL1, x0",
        _set("x0", TABLES | ASIDS[0] << 48), "msr TTBR0_EL1, x0",
        _set("x0", setting.tcr), "msr TCR_EL1, x0",
        "isb", "sys #0, c8, c7, #0, xzr", "dsb sy", "isb",
        "mrs x0, SCTLR_EL1", _set("x1", setting.sctlr), "orr x0, x0, x1", "msr SCTLR_EL1, x0", "isb",
        _set("x20", CASES), _set("x21", RESULTS),
        "next:", "ldr x9, [x20], #8", "cbz x9, finish",
        "ldr x1, [x20], #8", "ldr x14, [x20], #8", "ldr x2, [x20], #8",
        "ldr x5, [x20], #8", "ldr x6, [x20], #8", "ldr x7, [x20], #8", "ldr x8, [x20], #8", "blr x7",
        _set("x0", MAGIC),
        _set("x3", setting.pan << 22), "msr PAN, x3", "msr NZCV, xzr", "isb",
        "cbz x14, user", "adr x30, back", "br x9",
        "back:", "mov x10, #0", "mov x11, #0", "mov x12, #0", "mov x13, #0", "b note",
        "user:", "msr ELR_EL1, x9", "mov x3, #0", "msr SPSR_EL1, x3", _set("x30", USER_ALIAS), "adr x3, user_back",
        _set("x4", RAM), "sub x3, x3, x4", "add x30, x30, x3", "isb", "eret",
        "user_back:", "svc #0",
        "note:", "stp x10, x11, [x21], #16", "stp x12, x13, [x21], #16", "stp x0, x9, [x21], #16", "b next",
        "finish:", _set("x0", RESULTS), _set("x1", UART), "print:", "cmp x0, x21", "b.eq off", "ldrb w2, [x0], #1", "strb w2, [x1]",
        "b print", "off:", _set("x0", 0x8400_0008), "hvc #0", "b off",
    ]  # fmt: skip
    for name, text in PREPARATIONS.items():
        lines += [f"before_{name}:", text, "ret"]
    for name, (_, text) in OPERATIONS.items():
        lines += [f"op_{name}:", "mov x15, x30", text, "mov x30, x15", "ret"]
    return assemble_with_labels(_named("\n".join(lines)), IMAGE)


@dataclass(frozen=True)
class Case:
    """One access, and what happens before it."""

    name: str
    va: int
    before: str = "nothing"
    at: int = 0
    value: int = 0
    operand: int = 0
    trail: str = ""


class Image:
    """Memory contents: code, two address spaces and cases."""

    def __init__(self, setting: Setting, rng: random.Random, paths: int, per_path: int) -> None:
        self.setting, self.rng = setting, rng
        self.memory: dict[int, int] = {}
        self.code, self.labels = _program(setting)
        self.cases: list[Case] = []
        granule = setting.granule
        root_bytes = max(8 << 64 - granule.tsz - granule.level_shift(granule.start), 1 << granule.shift)
        self.roots = (TABLES, TABLES + root_bytes)
        self._next_table = TABLES + 2 * root_bytes
        self._next_table += -self._next_table % (1 << 16)
        self._space = 0
        self._identity()
        for va in self._addresses(paths):
            self._private = rng.randrange(3) > 0
            first = self._path(self.roots[0], va)
            trails = [first, self._path(self.roots[1], va) if self._private else self._shared(first)]
            address = self._with_tag(va)
            for _ in range(per_path):
                self._case(address, va, trails)

    def _table(self) -> int:
        at = self._next_table
        self._next_table += 1 << self.setting.granule.shift
        assert self._next_table < RAM + RAM_BYTES
        return at

    def _identity(self) -> None:
        """The image for EL1 at its address, for EL0 at USER_ALIAS; the UART for EL1."""
        g = self.setting.granule
        block = g.level_shift(g.start)
        self._used = set()
        for va, pa, attributes in ((RAM, RAM, 1 << 54), (USER_ALIAS, RAM, 1 << 53 | 1 << 6), (UART, UART, 1 << 54 | 1 << 53 | 2 << 2)):
            for offset in range(0, RAM_BYTES if va != UART else 1, 1 << block):
                index = va + offset >> block
                self._used.add(index)
                for root in self.roots:
                    self.memory[root + 8 * index] = pa + offset & -1 << block | attributes | 3 << 8 | 1 << 10 | 1

    def _addresses(self, count: int) -> Iterator[int]:
        """Virtual addresses with root entries of their own; below the root they all lead to the data."""
        g, rng = self.setting.granule, self.rng
        shift = g.level_shift(g.start)
        free = [k for k in range(1 << 64 - g.tsz - shift) if k not in self._used]
        for index in rng.sample(free, min(count, len(free))):
            page = DATA + (rng.randrange(DATA_BYTES >> g.shift) << g.shift)
            yield index << shift | page & (1 << shift) - 1 | rng.choice((0, 8, 0x100, 0xFF8))

    def _with_tag(self, va: int) -> int:
        """Sometimes a tag, sometimes an address outside the range."""
        kind = self.rng.randrange(30)
        if kind < 3:
            return va | self.rng.choice((0xFF, 0x5A, 1)) << 56
        return va | self.rng.choice((1 << 55, 0xFFFF << 48, 1 << 48, 1 << 63 | 1 << 47)) if kind == 3 else va

    def _path(self, root: int, va: int) -> list[tuple[int, int]]:
        """Random descriptors for an address: their own addresses and values, the leaf last."""
        g = self.setting.granule
        table, trail = root, []
        for level in range(g.start, 4):
            bits = g.level_shift(level)
            width = 64 - g.tsz - bits if level == g.start else g.index_bits
            at = table + 8 * (va >> bits & (1 << width) - 1)
            value = self._descriptor(level)
            if value & 3 == 3 and level < 3:
                table = self._table()
                value |= table
            self.memory[at] = value
            trail.append((at, value))
            if value & 3 != 3 or level == 3:
                break
        return trail

    def _shared(self, trail: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The other address space has the same path: a global translation may be used in both."""
        at, value = trail[0]
        self.memory[at + self.roots[1] - self.roots[0]] = value
        return trail

    def _case(self, address: int, va: int, trails: list[list[tuple[int, int]]]) -> None:
        rng = self.rng
        before, at, value, operand = "nothing", 0, 0, 0
        kind = rng.randrange(8)
        if kind == 0:
            self._space ^= 1
            before, operand = "switch", self.roots[self._space] | ASIDS[self._space] << 48
        trail = trails[self._space]
        if kind in (1, 2) and (len(trail) > 1 or trails[0] is not trails[1]):
            unsuitable = ("nothing", "switch") if trail[-1][1] & NOT_GLOBAL else ("nothing", "switch", "aside1")
            before = rng.choice([name for name in PREPARATIONS if name not in unsuitable])
            at, value = trail[-1][0], self._leaf(self.setting.granule.start + len(trail) - 1)
            operand = va >> 12 & (1 << 44) - 1 | ASIDS[self._space] << 48
            trail[-1] = at, value
        read_only = trail[-1][1] & 1 == 0 or trail[-1][1] & READ_ONLY
        name = rng.choice(NAMES if read_only else MEMORY_STAYS)
        if name == "stp" and va & 0xFF8 == 0xFF8:
            name = "str"  # what is stored before a fault on the second page is open
        text = " ".join(f"{descriptor:016x}" for _, descriptor in trail)
        self.cases.append(Case(name, address, before, at, value, operand, text))

    def _leaf(self, level: int) -> int:
        """A descriptor that ends a walk: an invalid one, a block or a page."""
        while True:
            value = self._descriptor(level)
            if level == 3 or value & 3 != 3:
                return value

    def _descriptor(self, level: int) -> int:
        """A random descriptor; a leaf's output is the data page."""
        g, rng = self.setting.granule, self.rng
        kind = rng.randrange(24)
        if kind == 0:
            return rng.getrandbits(64) & ~1
        if level < 3 and kind < 19:
            return 3 | (rng.randrange(16) << 59 if rng.randrange(2) else 0) | (rng.getrandbits(8) << 51 if rng.randrange(4) == 0 else 0)
        if level == 3 and kind == 1:
            return rng.getrandbits(62) << 2 | 1
        size = g.level_shift(level)
        output = DATA + (rng.randrange(DATA_BYTES >> g.shift) << g.shift) & -1 << size
        if rng.randrange(12) == 0:
            output |= rng.choice(BEYOND[self.setting.tcr >> 32 & 7])
        value = output | (3 if level == 3 else 1)
        value |= rng.getrandbits(2) << 6 | rng.getrandbits(2) << 8 | rng.choice((0, 1, 1, 1, 1, 1)) << 10 | rng.getrandbits(1) << 11
        value |= rng.getrandbits(3) << 52 if rng.randrange(3) else 0
        value |= rng.choice((0, 0, 0, 1, 2)) << 2
        if self._private:
            value |= NOT_GLOBAL
        if rng.randrange(6) == 0:
            value |= rng.getrandbits(4) << 55 | rng.getrandbits(1) << 5
        return value

    def contents(self) -> bytes:
        """Memory from IMAGE on."""
        data = bytearray(self._next_table - IMAGE)
        data[: len(self.code)] = self.code
        rows = b""
        for number, case in enumerate(self.cases):
            el = OPERATIONS[case.name][0]
            address = self.labels[f"op_{case.name}"] - (0 if el else RAM - USER_ALIAS)
            stored, before = RET | number << 32, self.labels[f"before_{case.before}"]
            rows += ROW.pack(address, case.va, el, stored, case.at, case.value, before, case.operand)
        data[CASES - IMAGE : CASES - IMAGE + len(rows)] = rows
        assert len(rows) < RESULTS - CASES and NOTE.size * len(self.cases) < DATA - RESULTS
        pages = (struct.pack("<II", RET, page) * (PAGE // 8) for page in range(DATA_BYTES // PAGE))
        data[DATA - IMAGE : TABLES - IMAGE] = b"".join(pages)
        for at, value in self.memory.items():
            data[at - IMAGE : at - IMAGE + 8] = value.to_bytes(8, "little")
        return bytes(data)


def on_qemu(contents: bytes, size: int) -> bytes:
    """The notes that the image leaves under system-mode QEMU."""
    with tempfile.TemporaryDirectory(prefix="trapline-translation-") as directory:
        image, serial = Path(directory, "image"), Path(directory, "serial")
        header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 2, 183, 1, IMAGE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, IMAGE, IMAGE, len(contents), len(contents), 4096)
        image.write_bytes((header + segment).ljust(4096, b"\0") + contents)
        command = [EMULATOR, *MACHINE, "-serial", f"file:{serial}", "-kernel", str(image)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=True)
        notes = serial.read_bytes()
    assert len(notes) == size, f"{len(notes)} bytes of notes instead of {size}"
    return notes


def on_trapline(contents: bytes, size: int) -> bytes:
    """The notes that the image leaves under Trapline's KVM."""
    with System(Software()) as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(RAM, RAM_BYTES)
        memory[IMAGE - RAM : IMAGE - RAM + len(contents)] = contents
        vcpu = vm.create_vcpu()
        vcpu.regs.pc = IMAGE
        result = vcpu.run()
        assert isinstance(result, MmioExit) and result.phys_addr == UART, f"{result} at {vcpu.regs.pc:#x}"
        return bytes(memory[RESULTS - RAM : RESULTS - RAM + size])


def meaning(name: str, note: bytes) -> tuple[int, ...]:
    """What of a note has to agree: ESR, FAR where it is valid, ELR, SPSR and X0."""
    esr, far, elr, spsr, x0, _ = NOTE.unpack(note)
    ec = esr >> 26
    if name.startswith("at_") and not x0 & 1 and x0 >> 56 & 0xF0 == 0:
        x0 |= 2 << 7  # PAR_EL1.SH of Device memory reads as Outer Shareable; QEMU shows the descriptor's
        x0 &= ~(1 << 7)
    return esr, far if ec in (0x20, 0x21, 0x22, 0x24, 0x25) else 0, elr, spsr & ~PSTATE_ELSEWHERE, x0


PSTATE_ELSEWHERE = 1 << 25 | 1 << 24 | 1 << 12 | 3 << 10
"""SPSR bits of features that only QEMU's CPU has: TCO, DIT, SSBS, BTYPE."""


FIELDS = ("esr", "far", "elr", "spsr", "x0")


def random_setting(rng: random.Random, granule: Granule) -> Setting:
    tcr = granule.tsz | granule.tg0 << 14 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 23 | 1 << 36 | rng.choice((2, 3, 5, 5)) << 32
    tcr |= rng.getrandbits(1) << 37 | rng.choice((0, 0, 1)) << 41
    sctlr = 1 | 1 << 2 | 1 << 12 | 1 << 23 | 1 << 14 | 1 << 26
    return Setting(granule, tcr, sctlr, rng.getrandbits(1))


def compare(granule: Granule, seed: int, paths: int = 400, per_path: int = 24) -> tuple[int, list[str]]:
    """Run one image on both; the number of cases and the differences as text."""
    rng = random.Random(seed)
    setting = random_setting(rng, granule)
    image = Image(setting, rng, paths, per_path)
    contents, size = image.contents(), NOTE.size * len(image.cases)
    theirs, ours = on_qemu(contents, size), on_trapline(contents, size)
    found, kinds = [], Counter()
    for k, case in enumerate(image.cases):
        name = case.name
        a, b = (meaning(name, notes[NOTE.size * k : NOTE.size * (k + 1)]) for notes in (ours, theirs))
        if a != b:
            kinds[name, tuple(n for n, x, y in zip(FIELDS, a, b, strict=True) if x != y), a[0], b[0]] += 1
            rows = " ".join(f"{n}={x:x}/{y:x}" for n, x, y in zip(FIELDS, a, b, strict=True) if x != y)
            found.append(f"#{k} {case.before} {name} {case.va:#x} descriptors {case.trail}: trapline/qemu {rows}")
    if found:
        found[:0] = [f"{count} x {kind}" for kind, count in kinds.most_common(30)]
        found.insert(0, f"seed {seed} tcr {setting.tcr:#x} sctlr {setting.sctlr:#x} pan {setting.pan} {granule}")
    return len(image.cases), found


def missing() -> str | None:
    return None if shutil.which(EMULATOR) else f"{EMULATOR} is not installed (Debian package qemu-system-arm)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.translation", description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    total = bad = 0
    for seed in range(options.seed, options.seed + options.images):
        count, found = compare(random.Random(seed).choice(list(GRANULES.values())), seed)
        total, bad = total + count, bad + max(0, len(found) - 1)
        print("".join(line + "\n" for line in found[:40]), end="")
    print(f"seeds {options.seed} on: {total} accesses, {bad} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
