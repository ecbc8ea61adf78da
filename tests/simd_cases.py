"""Random states for floating point, Advanced SIMD and crypto instructions, and Unicorn's answers to them.

Registers are full of NaNs, infinities, denormals and saturation limits; FPCR takes all rounding modes, FZ, FZ16, DN and AHP.
"""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Iterator

import pytest

from tests.differential.runners import Unicorn
from tests.oracles import executes
from trapline.arm64.decode import Decoder
from trapline.arm64.features import Features
from trapline.arm64.insn import A64, Insn
from trapline.arm64.isa import load_a64

unicorn = pytest.importorskip("unicorn", reason="NOT COMPARED WITH THE ORACLE: unicorn is not installed")
from unicorn import arm64_const as uc  # noqa: E402

load_a64()
DECODER = Decoder(A64)
SIZE = 0x1000
BUFFER = mmap.mmap(-1, SIZE)
DATA = ctypes.addressof(ctypes.c_char.from_buffer(BUFFER))
"""Memory operands lie here: at its host address, which the compiled engine uses with translation off."""
CODE = 0x10000
FPSR_BITS = 0x0800009F
FZ16 = 1 << 19

FEATURES = Features()
INSNS = [
    i
    for i in A64.insns
    if i.group.startswith(("simd_", "fp_", "crypto"))
    and (i.feature is None or i.feature in FEATURES)
    and executes("unicorn", i.feature)
    and i.name not in Unicorn.wrong
]
GROUPS = tuple(sorted({i.group for i in INSNS}))
V_IDS = [uc.UC_ARM64_REG_V0 + k for k in range(32)]
X_IDS = [*(uc.UC_ARM64_REG_X0 + k for k in range(29)), uc.UC_ARM64_REG_X29, uc.UC_ARM64_REG_X30]

SPECIAL = {
    16: (0, 0x8000, 1, 0x3FF, 0x400, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFE00, 0x7FFF),
    32: (
        0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x3F800000, 0xBF800000, 0x3F000000, 0x3FC00000, 0x4B000000,
        0x4F000000, 0x4EFFFFFF, 0x5F000000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFC12345, 0x38800000,
        0x477FE000, 0x477FF000, 0x33000000, 0x7FFFFFFF, 0xFFFFFFFF,
    ),
    64: (
        0, 1 << 63, 1, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x3FF0000000000000, 0xBFF0000000000000, 0x3FE0000000000000,
        0x3FF8000000000000, 0x41DFFFFFFFC00000, 0x41E0000000000000, 0x43E0000000000000, 0xC3E0000000000000, 0x36A0000000000000,
        0x380FFFFFF0000000, 0x47EFFFFFF0000000, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF0000000000001,
        0x7FF8000000000000, 0xFFF8000000012345, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x3EA0000000000000,
    ),
}  # fmt: skip


def random_vector(rng: random.Random) -> int:
    """128 random bits, or lanes of one size full of values that matter."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.getrandbits(128)
    esize = (8, 16, 32, 64)[rng.randrange(4)] if kind < 3 else (32, 64)[rng.randrange(2)]
    value = 0
    for position in range(0, 128, esize):
        value |= random_lane(rng, esize) << position
    return value


def random_lane(rng: random.Random, esize: int) -> int:
    choice = rng.randrange(8)
    if choice < 3 and esize in SPECIAL:
        return rng.choice(SPECIAL[esize])
    if choice == 3:
        return rng.randrange(-70, 70) & (1 << esize) - 1
    if choice == 4:
        return (1 << esize - 1) + rng.randrange(-2, 2) & (1 << esize) - 1
    if choice == 5 and esize >= 32:  # a number near 1, where sums cancel and products stay in range
        fraction, bias = (23, 127) if esize == 32 else (52, 1023)
        exponent = bias + rng.randrange(-4, 36)
        return rng.getrandbits(1) << esize - 1 | exponent << fraction | rng.getrandbits(fraction) & rng.getrandbits(fraction)
    return rng.getrandbits(esize)


def random_word(insn: Insn, rng: random.Random) -> int | None:
    """A word that decodes to `insn`; None if chance does not find one."""
    for _ in range(200):
        word = rng.getrandbits(32) & ~insn.pattern.mask | insn.pattern.value
        if DECODER.decode(word) is insn:
            return word
    return None


class Case:
    """A random state for one word; memory operands point into the buffer."""

    def __init__(self, insn: Insn, word: int, rng: random.Random) -> None:
        self.insn, self.word = insn, word
        self.v = [random_vector(rng) for _ in range(32)]
        self.x = [rng.choice((rng.getrandbits(64), rng.getrandbits(6), random_vector(rng) & (1 << 64) - 1)) for _ in range(31)]
        self.sp = DATA + 0x400
        self.nzcv = rng.getrandbits(4)
        self.fpcr = rng.choice((0, rng.getrandbits(5) << 22, rng.getrandbits(5) << 22 | FZ16))
        self.fpsr = rng.choice((0, rng.getrandbits(32) & FPSR_BITS))
        self.memory = rng.randbytes(SIZE)
        if insn.group == "simd_memory":
            base = word >> 5 & 31
            if base != 31:
                self.x[base] = DATA + 0x400 + rng.randrange(64)


def cases_of(group: str, count: int) -> Iterator[Case]:
    """`count` cases for every instruction of a group, the same ones each time."""
    rng = random.Random(f"{group} {count}")
    for insn in INSNS:
        if insn.group == group:
            for _ in range(count):
                word = random_word(insn, rng)
                assert word is not None, f"no word found for {insn}"
                yield Case(insn, word, rng)


class Oracle:
    """Unicorn with one page of code and one of data."""

    def __init__(self) -> None:
        self.engine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.engine.ctl_set_cpu_model(uc.UC_CPU_ARM64_MAX)
        self.engine.mem_map(CODE, 0x1000)
        self.engine.mem_map(DATA, SIZE)
        self.engine.reg_write(uc.UC_ARM64_REG_CPACR_EL1, 3 << 20)

    def run(self, case: Case) -> dict[str, object]:
        engine = self.engine
        for ids, values in ((V_IDS, case.v), (X_IDS, case.x)):
            for register, value in zip(ids, values):
                engine.reg_write(register, value)
        engine.reg_write(uc.UC_ARM64_REG_SP, case.sp)
        engine.reg_write(uc.UC_ARM64_REG_NZCV, case.nzcv << 28)
        engine.reg_write(uc.UC_ARM64_REG_FPCR, case.fpcr)
        engine.reg_write(uc.UC_ARM64_REG_FPSR, case.fpsr)
        engine.mem_write(DATA, case.memory)
        engine.mem_write(CODE, case.word.to_bytes(4, "little"))
        engine.ctl_remove_cache(CODE, CODE + 4)
        engine.emu_start(CODE, CODE + 4, count=1)
        return {
            **{f"v{k}": engine.reg_read(r) for k, r in enumerate(V_IDS)},
            **{f"x{k}": engine.reg_read(r) for k, r in enumerate(X_IDS)},
            "sp": engine.reg_read(uc.UC_ARM64_REG_SP),
            "nzcv": engine.reg_read(uc.UC_ARM64_REG_NZCV) >> 28,
            "fpsr": engine.reg_read(uc.UC_ARM64_REG_FPSR) & FPSR_BITS,
            "memory": bytes(engine.mem_read(DATA, SIZE)),
        }


def differences(case: Case, expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """One line per register that differs."""
    lines = []
    for name, value in expected.items():
        if found[name] != value:
            shown = (hex(value), hex(found[name])) if isinstance(value, int) else ("...", "...")  # type: ignore[arg-type]
            lines.append(f"{case.insn.name} {case.word:08x} fpcr={case.fpcr:x}: {name} is {shown[1]}, oracle says {shown[0]}")
    return lines
