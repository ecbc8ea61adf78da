"""The same programs at EL1: under system-mode QEMU, whose memory is a file, and on the engine. Both have the same keys."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from tests.differential.machine import HCR, MODES
from tests.differential.program import CODE, DATA, PAGE, Program
from tests.differential.runners import WRONG, RunError, Trapline, Whole, Wrong
from trapline.arm64.asm_program import assemble_program, assemble_with_labels
from trapline.arm64.regs import CPACR_EL1, ELR_EL1, ESR_EL1, HCR_EL2, MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1, VBAR_EL1
from trapline.arm64.regs.el1 import PAUTH_KEYS
from trapline.arm64.sysreg import Sysreg, generic_name

EMULATOR = "qemu-system-aarch64"
RAM, MB = 0x4000_0000, 1 << 20
BYTES = 256 * MB
STUB, TABLES, VERDICT, CODE_AT, DATA_AT = (RAM + n * MB for n in (2, 3, 4, 32, 64))
CODE_BYTES, DATA_BYTES, BLOCK = 16 * MB, 64 * MB, 2 * MB
READ_ONLY, READ_WRITE = 0x7C1, 0x741
"""Blocks that EL0 may use too, or LDTR would fault."""
CPU = "max,sve=off,sme=off,lpa2=off,pauth=on"
MACHINE = ["-M", "virt,memory-backend=ram", "-cpu", CPU, "-m", str(BYTES // MB), "-nodefaults", "-display", "none"]
KEYS = tuple(0x0123_4567_89AB_CDEF * (2 * n + 3) & (1 << 64) - 1 for n in range(len(PAUTH_KEYS)))
TCR = 25 | 25 << 16 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 30 | 2 << 32
SCTLR = int(SCTLR_EL1.res1 | SCTLR_EL1(SPAN=1, EnIA=1, EnIB=1, EnDA=1, EnDB=1))
MMU_ON = int(SCTLR_EL1(M=1, C=1, I=1))
SYSTEM_OFF = 0x8400_0008
EC_SVC, WRITE = 0x15, 64


def _set(reg: type[Sysreg], value: int) -> str:
    return f"{_constant('x0', value)}\nmsr {generic_name(reg.enc)}, x0"


def _constant(register: str, value: int) -> str:
    parts = [f"movz {register}, #{value & 0xFFFF}"]
    return "\n".join(parts + [f"movk {register}, #{value >> s & 0xFFFF}, lsl #{s}" for s in (16, 32, 48)])


def _stub() -> bytes:
    """Sets EL1 up and goes to the program; whatever exception comes is written down, and the machine turned off."""
    esr, elr = (generic_name(reg.enc) for reg in (ESR_EL1, ELR_EL1))
    handler = f"mrs x20, {esr}\nmrs x21, {elr}\n{_constant('x22', VERDICT)}\nstp x20, x21, [x22]\nstr x8, [x22, #16]\n"
    vectors = "".join(".align 7\nb taken\n" for _ in range(16))
    values = {MAIR_EL1: 0xFF, TCR_EL1: TCR, TTBR0_EL1: TABLES, VBAR_EL1: STUB + 0x800, CPACR_EL1: int(CPACR_EL1(FPEN=3))}
    values |= dict(zip(PAUTH_KEYS, KEYS, strict=True)) | {SCTLR_EL1: SCTLR | MMU_ON}
    begin = "\n".join(_set(reg, value) for reg, value in values.items())
    text = f"b begin\n.align 11\n{vectors}taken: {handler}{_constant('x0', SYSTEM_OFF)}\nhvc #0\nbegin: {begin}\nisb\n"
    return assemble_with_labels(f"{text}{_constant('x0', CODE)}\nbr x0", STUB)[0]


def _tables() -> bytes:
    """Level 1 and, for the gigabyte of code and records, level 2."""
    first, second = [0] * 512, [0] * 512
    first[RAM >> 30] = RAM | 0x701
    first[CODE >> 30] = TABLES + PAGE | 3
    for start, at, size, flags in ((CODE, CODE_AT, CODE_BYTES, READ_ONLY), (DATA & -BLOCK, DATA_AT, DATA_BYTES, READ_WRITE)):
        for offset in range(0, size, BLOCK):
            second[start + offset >> 21 & 511] = at + offset | flags
    return struct.pack("<1024Q", *first, *second)


class SystemQemu(Whole):
    """System-mode QEMU at EL1."""

    name = EMULATOR
    wrong: Wrong = WRONG
    lacks = ()
    groups: dict[str, str] = {}

    @staticmethod
    def missing() -> str | None:
        return None if shutil.which(EMULATOR) else f"{EMULATOR} is not installed (Debian package qemu-system-arm)"

    def run(self, program: Program) -> bytes:
        assert len(program.code) <= CODE_BYTES and len(program.data) + DATA % BLOCK <= DATA_BYTES
        data_at = DATA_AT + DATA % BLOCK
        with tempfile.TemporaryDirectory(prefix="trapline-differential-") as directory:
            path = Path(directory, "ram")
            with path.open("w+b") as file:
                file.truncate(BYTES)
                with mmap.mmap(file.fileno(), BYTES) as ram:
                    for at, content in ((STUB, _stub()), (TABLES, _tables()), (CODE_AT, program.code), (data_at, program.data)):
                        ram[at - RAM : at - RAM + len(content)] = content
                    backend = f"memory-backend-file,id=ram,size={BYTES},mem-path={path},share=on"
                    command = [EMULATOR, *MACHINE, "-object", backend, "-device", f"loader,addr={STUB:#x},cpu-num=0"]
                    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True)
                    esr, elr, x8 = struct.unpack_from("<3Q", ram, VERDICT - RAM)
                    if esr >> 26 != EC_SVC or x8 != WRITE:
                        raise RunError(f"{EMULATOR}: ESR {esr:#x} at {elr:#x}")
                    return ram[data_at - RAM : data_at - RAM + len(program.data)]


class Kernel(Trapline):
    """The engine at EL1, with the keys and the algorithm that QEMU has."""

    groups: dict[str, str] = {}
    mode = MODES[1]

    def __init__(self) -> None:
        super().__init__("+pacqarma5")
        vectors = CODE + CODE_BYTES
        ctypes.memmove(vectors, assemble_program("hvc #0\n" * (PAGE // 4)), PAGE)
        cpu = self.cpu
        cpu[HCR_EL2], cpu[TCR_EL1], cpu[SCTLR_EL1], cpu[VBAR_EL1] = int(HCR[1]), TCR, SCTLR, vectors
        for key, value in zip(PAUTH_KEYS, KEYS, strict=True):
            cpu[key] = value

    def syndrome(self) -> int:
        """Why EL1's vectors called EL2."""
        return self.cpu[ESR_EL1]
