"""`python -m tests.differential.exceptions_el2`: snippets at EL2, EL1 and EL0 of a machine with EL2, under QEMU and on the bare machine.

Every register by every name, every system instruction, calls, returns and misaligned accesses, under random traps of HCR_EL2,
CPTR_EL2, MDCR_EL2, CNTHCTL_EL2 and EL1's controls, with and without E2H and TGE. Stage 1 is off; stage 2 is on for some, with blocks
that fault in every way. What is compared is the exception that a snippet takes: level, vector, ESR, FAR, HPFAR, ELR and SPSR; and X0
where its value is architectural.
"""

from __future__ import annotations

import argparse
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.differential.translation import EMULATOR, IMAGE, MAGIC, RAM, RAM_BYTES, UART, _set
from trapline.abi.exits import MmioExit
from trapline.arm64.asm_program import assemble_program, assemble_with_labels
from trapline.arm64.features import Features
from trapline.arm64.regs import CNTHCTL_EL2, CPTR_EL2, HCR_EL2, MDCR_EL2, TABLE
from trapline.arm64.regs.el1 import CPACR_EL1, SCTLR_EL1
from trapline.arm64.regs.system import SYSTEM_OPS
from trapline.arm64.sysreg import decode, el12_name, generic_name
from trapline.bare.machine import BareSystem

MACHINE = ["-M", "virt,virtualization=on,gic-version=3", "-cpu", "max,sve=off,sme=off,pauth=off,lpa2=off", "-m", "128",
           "-nodefaults", "-display", "none"]  # fmt: skip
CASES, STUBS, RESULTS = IMAGE + (64 << 10), IMAGE + (2 << 20), RAM + (8 << 20)
STACK = STUBS - (16 << 10)
ROW = struct.Struct("<12Q")
NOTE = struct.Struct("<8Q")
STUB_WORDS = 8
RET = 0xD65F_03C0
KERNEL_STACK, USER_STACK = STACK, STACK - 4096
STAGE2 = IMAGE + (48 << 10)
"""The first of two tables of stage 2, which the image at its start does not reach."""
FAULTY = 0x8000_0000
"""Where the blocks are that fault: 2 MiB each, all of the same memory."""
BLOCK, MEMORY = 2 << 20, RAM + (64 << 20)
VTCR = 32 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 16 | 1 << 31
"""4 GiB from level 1, 4 KiB granule, 36 bits of output."""

VALID, AF, S2_READ, S2_WRITE, S2_XN, S2_NORMAL = 1, 1 << 10, 1 << 6, 1 << 7, 2 << 53, 0xF << 2
BLOCKS = (
    0,
    MEMORY | VALID | S2_READ | S2_WRITE | S2_NORMAL,
    MEMORY | VALID | AF | S2_READ | S2_NORMAL,
    MEMORY | VALID | AF | S2_WRITE | S2_NORMAL,
    MEMORY | VALID | AF | S2_NORMAL,
    MEMORY | VALID | AF | S2_READ | S2_WRITE | S2_XN | S2_NORMAL,
    1 << 40 | VALID | AF | S2_READ | S2_NORMAL,
    MEMORY | VALID | AF | S2_READ | S2_WRITE | S2_NORMAL,
)
"""Invalid; without access flag; read-only; write-only; no access; no execution; beyond the output size; and one that is as it should be."""

ACCESSES = (
    "ldr x0, [x1]", "ldr w0, [x1]", "ldrb w0, [x1]", "ldrh w0, [x1]", "ldrsb x0, [x1]", "ldrsh w0, [x1]", "ldrsw x0, [x1]", "str x2, [x1]",
    "strb w2, [x1]", "strh w2, [x1]", "str xzr, [x1]", "ldur x0, [x1, #8]", "ldr x0, [x1], #8", "str x2, [x1, #8]!", "ldp x0, x3, [x1]",
    "stp x2, x2, [x1]", "ldr q0, [x1]", "ldtr x0, [x1]", "sttr w2, [x1]", "br x1", "blr x1",
)  # fmt: skip

HCR_TRAPS = ("TID1", "TID2", "TID3", "TSC", "TIDCP", "TACR", "TSW", "TPCP", "TPU", "TTLB", "TVM", "TRVM", "TDZ", "TWE", "IMO", "FMO", "AMO")
MDCR_TRAPS = ("TDA", "TDOSA", "TDRA", "TDE")
SCTLR_FIELDS = ("UMA", "SA", "SA0", "nTWI", "nTWE", "UCT", "DZE", "UCI", "A")
SCTLR2_FIELDS = ("SA", "SA0", "nTWI", "nTWE", "UCT", "DZE", "UCI", "A")

OTHERS = (
    "svc #0x1234", "hvc #0x42", "smc #7", "brk #0x42", "hlt #7", "fmov x0, d0", "fadd d0, d0, d0", "wfe", "sevl\n wfe",
    "msr s3_3_c4_c2_1, x2", "mrs x0, s3_3_c4_c2_1", "sys #3, c7, c11, #1, x1",
    "msr daifset, #15", "msr daifclr, #8", ".word 0", ".word 0xd69f03e0", "ldur x0, [x1, #3]", "ldar x0, [x1]", "ldr x0, [sp]",
)  # fmt: skip

SPSR_BITS = 0xF060_03CD
KEEP = ("DAIF", "SPSel", "PAN", "UAO", "SCTLR_EL1", "SCTLR_EL2", "SCTLR_EL12", "SP_EL0", "SP_EL1", "SP_EL2", "RMR_EL2", "HCR_EL2", "FPCR",
        "CNTFRQ_EL0", "NZCV", "ICC_PMR_EL1", "ICC_IGRPEN0_EL1", "ICC_IGRPEN1_EL1")  # fmt: skip
"""Not written, not even with what they hold."""
NOT_IN_QEMU = ("CNTVCTSS", "CNTPCTSS", "OSECCR", "OSDTR", "DBGPRCR", "DBGDTR", "DBGCLAIM", "DBGAUTHSTATUS", "SCXTNUM", "MDCCINT", "RNDR",
               "ICC_ASGI1R", "ICC_SGI", "DBGVCR", "MDCCSR", "MDRAR", "DBGDSAR", "AP", "RMR")  # fmt: skip
"""Registers that QEMU lacks or treats in its own way."""


@dataclass(frozen=True)
class Snippet:
    """Code at an exception level, with controls; `value` says whether X0 is compared."""

    what: str
    words: tuple[int, ...]
    el: int
    controls: tuple[int, ...]
    x1: int
    x2: int
    value: bool = False


def _named(text: str) -> str:
    """System registers by their generic names."""
    return re.sub(r"\b([A-Z]\w*_EL[0-2]|SPSel|PAN|NZCV)\b", lambda m: generic_name(TABLE[m[1]].enc), text)


def _program() -> bytes:
    """X20: rows, X21: notes. An exception to EL1 is passed on to EL2 by HVC."""
    kernel = "".join(f".align 7\nmov x16, #{k}\nhvc #0xe1\n" for k in range(16))
    upper = "".join(f".align 7\nmov x17, #{k}\nb upper\n" for k in range(16))
    lines = [
        "b begin", ".align 11", kernel, ".align 11", upper,
        "begin:", _set("x0", IMAGE + 0x800), "msr VBAR_EL1, x0", _set("x0", IMAGE + 0x1000), "msr VBAR_EL2, x0",
        _set("x20", CASES), _set("x21", RESULTS), "mov x0, #0", "msr OSLAR_EL1, x0",
        _set("x0", STAGE2), "msr VTTBR_EL2, x0", _set("x0", VTCR), "msr VTCR_EL2, x0",
        "sys #4, c8, c7, #4, xzr", "dsb sy", "isb",
        "next:", _set("x0", 1 << 31), "msr HCR_EL2, x0", "isb", "ldr x9, [x20], #8", "cbz x9, finish",
        "ldr x14, [x20], #8", "ldr x3, [x20], #8", "ldr x4, [x20], #8", "msr SCTLR_EL1, x4", "ldr x4, [x20], #8", "msr SCTLR_EL2, x4",
        "ldr x4, [x20], #8", "msr CPACR_EL1, x4", "ldr x5, [x20], #8", "ldr x4, [x20], #8", "msr MDCR_EL2, x4", "ldr x6, [x20], #8",
        "ldr x4, [x20], #8", "msr CNTKCTL_EL1, x4", "ldr x1, [x20], #8", "ldr x2, [x20], #8",
        ".word 0xd50041bf", _set("x0", KERNEL_STACK), "mov sp, x0", "msr SP_EL1, x0", _set("x0", USER_STACK), "msr SP_EL0, x0",
        "msr HCR_EL2, x3", "isb", "msr CPTR_EL2, x5", "msr CNTHCTL_EL2, x6", "msr NZCV, xzr", "mov x0, #0", "msr PAN, x0",
        "mov x4, #0", "msr FAR_EL2, x4", "msr HPFAR_EL2, x4", "isb",
        _set("x0", MAGIC), "mov x3, #0", "mov x16, #0", "mov x17, #0", "cmp x14, #2", "b.ne lower",
        "adr x30, back", "br x9",
        "back:", "mov x3, #0", "mov x10, #0", "mov x11, #0", "mov x12, #0", "mov x13, #0", "mov x15, #0", "b note",
        "lower:", "msr ELR_EL2, x9", "mov x7, #0x3c0", "adr x30, user_back", "cbz x14, go", "mov x7, #0x3c5", "adr x30, kernel_back",
        "go:", "msr SPSR_EL2, x7", "isb", "eret",
        "user_back:", "svc #0xfff", "kernel_back:", "hvc #0xffe",
        "upper:", "mrs x3, HPFAR_EL2",
        "mrs x10, ESR_EL2", "mrs x11, FAR_EL2", "mrs x12, ELR_EL2", "mrs x13, SPSR_EL2", "orr x15, x17, #0x200",
        _set("x18", 1 << 31), "msr HCR_EL2, x18", "isb", _set("x18", 0x5A00_00E1), "cmp x10, x18", "b.ne note",
        "mrs x10, ESR_EL1", "mrs x11, FAR_EL1", "mrs x12, ELR_EL1", "mrs x13, SPSR_EL1", "orr x15, x16, #0x100",
        "note:", "stp x10, x11, [x21], #16", "stp x12, x13, [x21], #16", "stp x0, x9, [x21], #16", "stp x15, x3, [x21], #16", "b next",
        "finish:", _set("x0", RESULTS), _set("x1", UART), "print:", "cmp x0, x21", "b.eq off",
        "ldrb w2, [x0], #1", "strb w2, [x1]", "b print", "off:", _set("x0", 0x8400_0008), "smc #0", "b off",
    ]  # fmt: skip
    return assemble_with_labels(_named("\n".join(lines)), IMAGE)[0]


def _words(text: str) -> tuple[int, ...]:
    code = assemble_program(_named(text))
    return struct.unpack(f"<{len(code) // 4}I", code)


class Snippets:
    """A random list of snippets."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        features = Features()
        rows = [(r.name, r.encoding, r) for r in TABLE if r.exists(features) and r.enc[0] >= 2 and r.enc[1] not in (6, 7)]
        rows += [(el12_name(r.name), encoding, r) for encoding, r in TABLE.el12.items() if r.exists(features)]
        self.registers = [row for row in rows if not row[0].startswith(NOT_IN_QEMU)]
        self.operations = [op for op in SYSTEM_OPS if op.feature is None or op.feature in features]

    def make(self) -> Snippet:
        rng = self.rng
        kinds = (self._register, self._register, self._register, self._operation, self._other, self._return, self._branch, self._redirect,
                 self._second_stage)  # fmt: skip
        return rng.choice(kinds)(rng)

    def _controls(self, *, traps: bool = True, host: bool | None = None) -> list[int]:
        """HCR, SCTLR_EL1, SCTLR_EL2, CPACR_EL1, CPTR, MDCR, CNTHCTL, CNTKCTL."""
        rng = self.rng
        few = rng.random() < 0.5
        e2h, tge = rng.getrandbits(1), int(rng.randrange(3) == 0)
        if host is not None:
            e2h = tge = int(host)
        fields = {name: int(rng.randrange(8 if few else 2) == 0) for name in HCR_TRAPS} if traps else {}
        hcr = HCR_EL2(RW=1, E2H=e2h, TGE=tge, **fields)
        sctlr = SCTLR_EL1.res1 | SCTLR_EL1(SPAN=1, **{name: rng.getrandbits(1) for name in SCTLR_FIELDS})
        upper = 0x30C5_0830 & ~SCTLR_EL1(nTWI=1, nTWE=1)
        for name in SCTLR2_FIELDS:
            upper = upper & ~getattr(SCTLR_EL1, name).mask | getattr(SCTLR_EL1, name)(rng.getrandbits(1))
        cpacr = CPACR_EL1(FPEN=rng.choice((0, 1, 2, 3, 3, 3)))
        if e2h:
            cptr = CPTR_EL2(FPEN=rng.choice((0, 1, 2, 3, 3, 3)), ZEN=3, TCPAC=int(rng.randrange(6) == 0))
        else:
            cptr = 0x32FF | CPTR_EL2(TZ=1, TFP=int(rng.randrange(4) == 0), TCPAC=int(rng.randrange(6) == 0))
        mdcr = MDCR_EL2(**{name: int(rng.randrange(5) == 0) for name in MDCR_TRAPS})
        if mdcr & (MDCR_EL2.TDE.mask | MDCR_EL2.TDA.mask) == MDCR_EL2.TDE.mask:
            mdcr |= MDCR_EL2(TDA=1, TDOSA=1, TDRA=1)
        cnthctl = rng.getrandbits(12) & 0xF03 if e2h else 3 * rng.getrandbits(1)  # QEMU looks at the wrong bit for CNTPCT_EL0
        assert CNTHCTL_EL2.EL1PTEN_E2H.lo == 11
        return [int(hcr), int(sctlr), int(upper), int(cpacr), int(cptr), int(mdcr), cnthctl, rng.getrandbits(10) & 0x303]

    def _snippet(self, what: str, words: tuple[int, ...], x1: int = STACK - 256, x2: int = 0x55, *, value: bool = False,
                 el: int | None = None, controls: list[int] | None = None) -> Snippet:  # fmt: skip
        rng = self.rng
        controls = controls or self._controls()
        tge = controls[0] & HCR_EL2.TGE.mask
        level = el if el is not None else rng.choice((0, 2) if tge else (0, 1, 1, 2))
        if level == 1 and tge:
            controls[0] &= ~HCR_EL2.TGE.mask
        return Snippet(what, words, level, tuple(controls), x1, x2, value)

    def _register(self, rng: random.Random) -> Snippet:
        name, encoding, reg = rng.choice(self.registers)
        op0, op1, crn, _, _ = decode(encoding)
        el = rng.choice((1, 2)) if op0 == 3 and crn == 0 and op1 < 3 else None  # QEMU has FEAT_IDST
        controls = self._controls()
        if op1 == 5:
            controls[0] |= HCR_EL2.E2H.mask  # QEMU has these names without E2H, too
            controls[4] = 0x33_0000
        word = 0xD510_0000 | (encoding & 0x7FFF | 0x8000) << 5 & 0x1F_FFE0
        if rng.randrange(2) or name in KEEP or reg.name in KEEP:
            return self._snippet(f"mrs x0, {name}", (word | 1 << 21,), el=el, controls=controls)
        return self._snippet(f"mrs x3, {name}; msr {name}, x3", (word | 1 << 21 | 3, word | 3), el=el, controls=controls)

    def _operation(self, rng: random.Random) -> Snippet:
        op = rng.choice(self.operations)
        return self._snippet(op.mnemonic, (0xD500_0000 | (op.encoding & 0x7FFF) << 5 & 0x1F_FFE0 | 1 << 19 | 1,))

    REDIRECTED = (
        ("ELR_EL1", "ELR_EL2"), ("SPSR_EL1", "SPSR_EL2"), ("ESR_EL1", "ESR_EL2"), ("FAR_EL1", "FAR_EL2"), ("MAIR_EL1", "MAIR_EL2"),
        ("TTBR0_EL1", "TTBR0_EL2"), ("TTBR1_EL1", "TTBR1_EL2"), ("CONTEXTIDR_EL1", "CONTEXTIDR_EL2"), ("CNTP_CVAL_EL0", "CNTHP_CVAL_EL2"),
        ("CNTV_CVAL_EL0", "CNTHV_CVAL_EL2"), ("AFSR0_EL1", "AFSR0_EL2"), ("TCR_EL1", "TCR_EL2"),
    )  # fmt: skip

    def _redirect(self, rng: random.Random) -> Snippet:
        """Write a register by one name at EL2, read it by another."""
        names = list(rng.choice(self.REDIRECTED))
        names.append(el12_name(names[0]))
        written, read = rng.choice(names), rng.choice(names)
        controls = self._controls(traps=False)
        if names[2] in (written, read):
            controls = self._controls(traps=False, host=True)  # QEMU has these names without E2H, too
        if "CNTP" in names[0] or "CNTV" in names[0] or names[0] == "MAIR_EL1":
            x2 = rng.getrandbits(62)
        else:
            x2 = rng.getrandbits(16)
        words = []
        for name, is_read in ((written, False), (read, True)):
            found = TABLE.by_name.get(name)
            encoding = found.encoding if found else next(e for e, r in TABLE.el12.items() if el12_name(r.name) == name)
            words.append(0xD510_0000 | (encoding & 0x7FFF | 0x8000) << 5 & 0x1F_FFE0 | is_read << 21 | (0 if is_read else 2))
        e2h = controls[0] & HCR_EL2.E2H.mask
        same = e2h and {written, read} <= set(names[:2]) or written == read
        return self._snippet(f"msr {written}, x2; mrs x0, {read}", tuple(words), x2=x2, el=2, controls=controls,
                             value=same and "TCR" not in written and "TTBR" not in written)  # fmt: skip

    def _return(self, rng: random.Random) -> Snippet:
        mode = rng.choice((0, 4, 5, 5, 8, 9, 0xC, 0xD, 1, 2, 3, 6, 7))
        spsr = rng.getrandbits(32) & SPSR_BITS & ~0x1F | mode | rng.choice((0, 0, 0, 1 << 20))
        el = rng.choice((1, 2, 2))
        code = (f"msr SPSR_EL{el}, x1", "adr x3, target", f"msr ELR_EL{el}, x3", "eret", "target:", "svc #1")
        return self._snippet(f"eret to {spsr:#x}", _words("\n".join(code)), x1=spsr, el=el)

    def _other(self, rng: random.Random) -> Snippet:
        text = rng.choice(OTHERS)
        offset = rng.choice((0, 1, 4, 8)) if "[x1" in text else 0
        controls = self._controls()
        if text.startswith("ldar"):
            controls[1] |= SCTLR_EL1.A.mask
            controls[2] |= SCTLR_EL1.A.mask
        el = 0 if "0xd69f03e0" in text else None
        return self._snippet(text.replace("\n", ";"), _words(text), x1=STACK - 256 + offset, el=el, controls=controls)

    def _second_stage(self, rng: random.Random) -> Snippet:
        """An access below EL2 to a block of stage 2."""
        text = rng.choice(ACCESSES)
        block = rng.randrange(len(BLOCKS))
        if text in ("br x1", "blr x1") and BLOCKS[block] == BLOCKS[-1]:
            block = 0
        controls = self._controls(traps=False)
        controls[0] = controls[0] & ~HCR_EL2.TGE.mask | HCR_EL2.VM.mask
        address = FAULTY + block * BLOCK + rng.randrange(0, BLOCK, 16)
        return self._snippet(f"{text} of block {block}", _words(text), x1=address, el=rng.randrange(2), controls=controls)

    def _branch(self, rng: random.Random) -> Snippet:
        offset = rng.randrange(1, 4)
        return self._snippet(f"br +{offset}", _words("br x1"), x1=RAM + (3 << 20) + offset)


def contents(snippets: list[Snippet]) -> bytes:
    """Memory from IMAGE on."""
    code = _program()
    data = bytearray(STUBS - IMAGE + 4 * STUB_WORDS * len(snippets))
    data[: len(code)] = code
    for k, s in enumerate(snippets):
        at = STUBS + 4 * STUB_WORDS * k
        words = [*s.words, RET][:STUB_WORDS]
        data[at - IMAGE : at - IMAGE + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)
        hcr, sctlr, upper, cpacr, cptr, mdcr, cnthctl, cntkctl = s.controls
        row = ROW.pack(at, s.el, hcr, sctlr, upper, cpacr, cptr, mdcr, cnthctl, cntkctl, s.x1, s.x2)
        data[CASES - IMAGE + ROW.size * k : CASES - IMAGE + ROW.size * (k + 1)] = row
    first = [1 << 10 | 0x3D | 3 << 6, RAM | 1 << 10 | 0x3D | 3 << 6, STAGE2 + 4096 | 3, 0]
    second = [value if value else 0 for value in BLOCKS]
    for at, table in ((STAGE2, first), (STAGE2 + 4096, second)):
        data[at - IMAGE : at - IMAGE + 8 * len(table)] = struct.pack(f"<{len(table)}Q", *table)
    assert len(code) <= STAGE2 - IMAGE
    assert CASES + ROW.size * (len(snippets) + 1) < STACK - 8192
    assert STUBS + 4 * STUB_WORDS * len(snippets) < RESULTS
    return bytes(data)


def on_qemu(image: bytes, size: int) -> bytes:
    """The notes that the image leaves under system-mode QEMU with EL2."""
    with tempfile.TemporaryDirectory(prefix="trapline-el2-") as directory:
        path, serial = Path(directory, "image"), Path(directory, "serial")
        header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 2, 183, 1, IMAGE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, IMAGE, IMAGE, len(image), len(image), 4096)
        path.write_bytes((header + segment).ljust(4096, b"\0") + image)
        command = [EMULATOR, *MACHINE, "-serial", f"file:{serial}", "-kernel", str(path)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
        notes = serial.read_bytes()
    assert len(notes) == size, f"{len(notes)} bytes of notes instead of {size}"
    return notes


def on_trapline(image: bytes, size: int) -> bytes:
    """The notes that the image leaves on the bare machine."""
    with BareSystem(el2=True) as system:
        vm = system.create_vm()
        memory = vm.add_memory(RAM, RAM_BYTES)
        memory[IMAGE - RAM : IMAGE - RAM + len(image)] = image
        vcpu = vm.create_vcpu(0)
        vm.create_gic(0x0800_0000, 0x080A_0000, 256)
        vcpu.start(IMAGE, 0)
        result = vcpu.run()
        assert isinstance(result, MmioExit) and result.phys_addr == UART, f"{result} at {vcpu.regs.pc:#x}"
        notes = bytes(memory[RESULTS - RAM : RESULTS - RAM + size])
        vm.close()
        return notes


PAN, ILLEGAL = 1 << 22, 1 << 20
FAR_VALID = (0x20, 0x21, 0x22, 0x24, 0x25)
SPSR_IGNORED = 1 << 25 | 1 << 24 | 1 << 23 | 1 << 12 | 3 << 10
FIELDS = ("esr", "far", "elr", "spsr", "x0", "level", "hpfar")


def meaning(snippet: Snippet, note: bytes) -> tuple[int, ...]:
    """What of a note has to agree."""
    esr, far, elr, spsr, x0, _, level, hpfar = NOTE.unpack(note)
    stage2 = snippet.controls[0] & HCR_EL2.VM.mask and esr >> 26 in (0x20, 0x24) and level >= 0x200
    if snippet.what.startswith("msr daif") and esr >> 26 == 0x18:
        esr = 0x18 << 26  # QEMU swaps op1 and op2 in this syndrome
    if esr >> 26 in (0x24, 0x25) and not stage2:
        esr &= ~(0x7FF << 14)  # QEMU says which register even if it was not stage 2
    if spsr & ILLEGAL:
        spsr &= ~PAN  # SetPSTATEFromSPSR() takes it from SPSR even then; QEMU doesn't
    return esr, far if esr >> 26 in FAR_VALID else 0, elr, spsr & ~SPSR_IGNORED, x0 if snippet.value else 0, level, hpfar if stage2 else 0


def compare(seed: int, count: int = 3000) -> tuple[int, list[str]]:
    """Run `count` snippets on both; differences as text."""
    maker = Snippets(seed)
    snippets = [maker.make() for _ in range(count)]
    image, size = contents(snippets), NOTE.size * count
    theirs, ours = on_qemu(image, size), on_trapline(image, size)
    found = []
    kinds: Counter[str] = Counter()
    names = ("hcr", "sctlr", "sctlr2", "cpacr", "cptr", "mdcr", "cnthctl", "cntkctl")
    for k, s in enumerate(snippets):
        a, b = (meaning(s, notes[NOTE.size * k : NOTE.size * (k + 1)]) for notes in (ours, theirs))
        if a != b:
            rows = " ".join(f"{n}={x:x}/{y:x}" for n, x, y in zip(FIELDS, a, b, strict=True) if x != y)
            controls = " ".join(f"{n} {v:#x}" for n, v in zip(names, s.controls, strict=True))
            found.append(f"{s.what} at EL{s.el} {controls}: {rows}")
            kinds[s.what] += 1
    if found:
        found.insert(0, ", ".join(f"{n} x {what}" for what, n in kinds.most_common(40)))
    return count, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.exceptions_el2", description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    total, bad = 0, []
    for seed in range(options.seed, options.seed + options.images):
        count, found = compare(seed)
        total += count
        bad += found
    print("".join(line + "\n" for line in bad), end="")
    print(f"seeds {options.seed} on: {total} snippets (trapline/qemu), {max(0, len(bad) - 1)} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
