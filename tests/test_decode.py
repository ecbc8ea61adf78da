"""Decoding: LLVM's and GNU's disassemblers accept the words that we accept, and no others, and call them the same.

LLVM can be told which features exist, so it judges what is allocated; GNU objdump judges mnemonics.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import tempfile
from collections import defaultdict
from functools import cache

import pytest

from tests.oracles import LLVM_FEATURES, knows
from trapline.arm64 import effects as fx
from trapline.arm64.asm import disassemble
from trapline.arm64.decode import Decoder
from trapline.arm64.features import Features
from trapline.arm64.insn import Insn
from trapline.arm64.isa import load_a64
from trapline.arm64.isa.memory_copy import unfit_for_copy, unfit_for_set
from trapline.arm64.regs import TABLE

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
RANDOM_WORDS, WORDS_PER_PATTERN = 300_000, 60
OBJDUMP, LLVM_MC = "aarch64-linux-gnu-objdump", "llvm-mc"
FEATURES = Features()
A64 = load_a64()
DECODER = Decoder(A64)

UNDEFINED_BY_NAME = {
    "dcps1": "UNDEFINED outside Debug state",
    "dcps2": "UNDEFINED outside Debug state",
    "dcps3": "UNDEFINED outside Debug state",
    "drps": "UNDEFINED outside Debug state",
    "hlt": "UNDEFINED while halting debug is off",
    "udf": "permanently UNDEFINED",
}
"""Mnemonics that only LLVM accepts, and why that is right."""

RESERVED_SPACE = {"mrs": "op0 is 0: no register is there", "msr": "op0 is 0: no register or PSTATE field is there"}
"""LLVM shows these as S0_..., a name for an encoding that is not allocated."""

SHOULD_BE = {
    "sb": "CRm should be zero; we take it as UNDEFINED",
}
"""Bits that should have one value, where the architecture leaves open what other values do, and we refuse."""

GNU_REFUSES = {
    "ldpsw_offset": "two loads into one register are CONSTRAINED UNPREDICTABLE",
    "ldpsw_pre_index": "two loads into one register are CONSTRAINED UNPREDICTABLE",
    "ldpsw_post_index": "two loads into one register are CONSTRAINED UNPREDICTABLE",
    "load_acquire": "unused register fields should be ones, and are ignored",
    "store_release": "unused register fields should be ones, and are ignored",
    "load_exclusive": "unused register fields should be ones, and are ignored",
    "store_exclusive": "unused register fields should be ones, and are ignored",
    "load_exclusive_pair": "unused register fields should be ones, and are ignored",
}
"""Instructions of which GNU refuses some words that we and LLVM accept."""

_CRM_IGNORED = "CRm should be zero and is ignored; GNU shows other values as MSR"
GNU_CALLS = {name: ("msr", _CRM_IGNORED) for name in ("cfinv", "axflag", "xaflag")}
"""Other mnemonics that GNU uses for some words."""


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"DECODING NOT COMPARED: {tool} is not installed")


@cache
def _is_undefined(insn: Insn, shape: int) -> bool:
    recording = insn.record_shape(shape, lambda name: TABLE[name].slot)
    return any(isinstance(e, fx.Raise) and e.kind == "undefined" for e in recording.effects)


def accepted(word: int) -> Insn | None:
    """The instruction that `word` is on the default machine, unless it is UNDEFINED."""
    insn = DECODER.decode(word)
    if insn is None or insn.feature is not None and insn.feature not in FEATURES:
        return None
    return None if _is_undefined(insn, insn.shape_of(word)) or is_unfit(insn, word) else insn


def is_unfit(insn: Insn, word: int) -> bool:
    """Memory copies and sets whose registers do not go together are UNDEFINED."""
    if insn.group != "memory_copy":
        return False
    unfit = unfit_for_set if insn.name.startswith("set") else unfit_for_copy
    return bool(unfit(word & 31, word >> 16 & 31, word >> 5 & 31))


@cache
def sample() -> tuple[int, ...]:
    """Uniformly random words, words of every pattern, and those with one bit changed."""
    rng = random.Random(SEED)
    words = [rng.getrandbits(32) for _ in range(RANDOM_WORDS)]
    for insn in A64.insns:
        for _ in range(WORDS_PER_PATTERN):
            word = insn.pattern.value | rng.getrandbits(32) & ~insn.pattern.mask
            words += [word, word ^ 1 << rng.randrange(32)]
    return tuple(words)


def llvm_texts(words: tuple[int, ...]) -> list[str | None]:
    """LLVM's disassembly of each word, None where it refuses."""
    source = "\n".join(" ".join(f"{byte:#04x}" for byte in word.to_bytes(4, "little")) for word in words)
    command = [LLVM_MC, "--disassemble", "-triple=aarch64", f"-mattr={LLVM_FEATURES}"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=300)
    refused = {int(m[1]) - 1 for m in re.finditer(r"^<stdin>:(\d+):\d+: warning: invalid", done.stderr, re.M)}
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip() and ".text" not in line]
    assert len(lines) == len(words) - len(refused), done.stderr[:500]
    rest = iter(lines)
    return [None if k in refused else next(rest) for k in range(len(words))]


def gnu_mnemonics(words: list[int], option: str) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(struct.pack(f"<{len(words)}I", *words))
        file.flush()
        command = [OBJDUMP, "-D", "-z", "-b", "binary", "-m", "aarch64", "-M", option, file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    found = [m[1] for m in re.finditer(r"^ *[0-9a-f]+:\t[0-9a-f]{8} \t(\S+)", text, re.M)]
    assert len(found) == len(words)
    return found


def test_what_we_accept_llvm_accepts() -> None:
    need(LLVM_MC)
    wrong: dict[str, list[str]] = defaultdict(list)
    for word, text in zip(sample(), llvm_texts(sample()), strict=True):
        insn = accepted(word)
        if insn is not None and text is None and knows("llvm", insn.feature):
            wrong[insn.name].append(f"{word:08x}")
    assert not wrong, f"seed {SEED}: accepted here only: " + str({name: words[:5] for name, words in wrong.items()})


def test_what_llvm_accepts_we_accept() -> None:
    need(LLVM_MC)
    wrong: dict[str, list[str]] = defaultdict(list)
    for word, text in zip(sample(), llvm_texts(sample()), strict=True):
        if text is None or accepted(word) is not None:
            continue
        mnemonic = text.split()[0]
        insn = DECODER.decode(word)
        explained = mnemonic in UNDEFINED_BY_NAME or mnemonic in SHOULD_BE or insn is not None and is_unfit(insn, word)
        if not explained and not (mnemonic in RESERVED_SPACE and "S0_" in text):
            wrong[mnemonic].append(f"{word:08x} {text}")
    assert not wrong, f"seed {SEED}: refused here only: " + str({name: words[:5] for name, words in wrong.items()})


def test_mnemonics_are_those_of_objdump() -> None:
    need(OBJDUMP)
    words = [word for word in sample() if accepted(word)]
    rows = zip(words, gnu_mnemonics(words, "aliases"), gnu_mnemonics(words, "no-aliases"), strict=True)
    wrong: dict[str, list[str]] = defaultdict(list)
    for word, alias, plain in rows:
        insn = DECODER.decode(word)
        assert insn is not None
        ours = (disassemble(word) or "?").split()[0]
        if ours in (alias, plain) or alias == ".inst" and (insn.name in GNU_REFUSES or not knows("objdump", insn.feature)):
            continue
        if GNU_CALLS.get(insn.name, ("",))[0] != alias:
            wrong[insn.name].append(f"{word:08x} ours {ours}, objdump {alias}")
    assert not wrong, f"seed {SEED}: " + str({name: words[:5] for name, words in wrong.items()})


def test_compiled_decoder_agrees() -> None:
    """The predecoder's switch and the Python decoder pick the same instruction."""
    from trapline.engine import Engine

    code = Engine().code
    wrong = []
    for word in sample()[::3]:
        expected = code.compiler.space.resolve(code.entry.decode(word, 0))
        insn = DECODER.decode(word)
        if insn is not None and insn.group == "system":  # the engine has an instruction for each register instead
            continue
        if (expected.insn if expected else None) is not insn:
            wrong.append(f"{word:08x}: predecoder {expected}, decoder {insn}")
    assert not wrong, wrong[:10]
