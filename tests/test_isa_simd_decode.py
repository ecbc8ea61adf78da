"""Which words are floating point, Advanced SIMD and crypto instructions, and how they print: against LLVM's disassembler.

LLVM is asked for the extensions that are implemented, so others must be unallocated.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess

import pytest

from tests.oracles import LLVM_FEATURES, knows
from trapline.arm64.asm import disassemble
from trapline.arm64.decode import Decoder
from trapline.arm64.features import Features
from trapline.arm64.insn import A64, Insn
from trapline.arm64.isa import load_a64

load_a64()
DECODER = Decoder(A64)
FEATURES = Features()
TOOL = "llvm-mc"
COMMAND = (TOOL, "--disassemble", "-triple=aarch64", f"-mattr={LLVM_FEATURES}", "--show-encoding")
WORDS = 12_000

ALIASES = {("ins", "mov"), ("dup", "mov"), ("umov", "mov"), ("orr", "mov")}
"""(canonical mnemonic, the alias that LLVM prints): only the mnemonic is compared."""


def is_simd(insn: Insn) -> bool:
    return insn.group.startswith(("simd_", "fp_", "crypto"))


def candidates(rng: random.Random) -> list[int]:
    """Words of the encoding space: at random, of a declared pattern, and one bit away from one."""
    insns = [insn for insn in A64.insns if is_simd(insn)]
    words = []
    for k in range(WORDS):
        word = rng.getrandbits(32)
        if k % 4 == 0:
            word = word & ~(15 << 25) | rng.choice((7, 15)) << 25  # SIMD and floating-point data processing
        elif k % 4 == 1:
            word = word & 0x41BFFFFF | 0x0C000000  # structure loads and stores
        else:
            insn = rng.choice(insns)
            word = word & ~insn.pattern.mask | insn.pattern.value
            if k % 4 == 3:
                word ^= 1 << rng.randrange(32)
        words.append(word)
    return words


def llvm_says(words: list[int]) -> list[str | None]:
    """The disassembly of each word, None for an unallocated one."""
    text = "\n".join(" ".join(f"0x{byte:02x}" for byte in word.to_bytes(4, "little")) for word in words)
    done = subprocess.run(COMMAND, input=text, capture_output=True, text=True, timeout=120)
    invalid = {int(n) - 1 for n in re.findall(r"<stdin>:(\d+):\d+: warning: invalid", done.stderr)}
    lines = iter(line.partition("// encoding")[0].strip() for line in done.stdout.splitlines() if "encoding:" in line)
    return [None if k in invalid else next(lines) for k in range(len(words))]


def normal(text: str) -> str:
    """Text in one spelling: condition names, numbers, white space."""
    text = re.sub(r"\bhs$", "cs", re.sub(r"\blo$", "cc", text))
    text = re.sub(r"#0x0*([0-9a-f]+)", lambda m: f"#{int(m[1], 16)}", text)
    text = re.sub(r"#-?\d+\.\d+", lambda m: f"#{float(m[0][1:])}", text)
    return re.sub(r"\s+", "", text)


@pytest.mark.skipif(shutil.which(TOOL) is None, reason=f"NOT COMPARED WITH THE ORACLE: {TOOL} is not installed")
def test_allocation_and_text_agree_with_llvm() -> None:
    words = candidates(random.Random(8))
    wrong = []
    for word, theirs in zip(words, llvm_says(words)):
        insn = DECODER.decode(word)
        if insn is not None and not is_simd(insn):
            continue
        if insn is not None and insn.feature is not None and insn.feature not in FEATURES:
            insn = None
        if insn is not None and not knows("llvm", insn.feature):
            continue
        ours = disassemble(word) if insn else None
        if ours is None or theirs is None:
            agree = ours is None and theirs is None and insn is None
        else:
            agree = (ours.split()[0], theirs.split()[0]) in ALIASES or normal(ours) == normal(theirs)
        if not agree:
            wrong.append(f"{word:08x}: {insn} is {ours!r}, LLVM says {theirs!r}")
    assert not wrong, "\n".join(wrong[:40]) + f"\n{len(wrong)} differences"
