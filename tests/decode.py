"""`python -m tests.decode --count N --seed S`: random words through our decoder, GNU objdump and Capstone.

Uniformly random words, all features of the disassemblers on. For each: is it allocated, and is it the same text (canonical
instructions of objdump; Capstone has aliases only, so its text counts where the mnemonic is ours). What differs is either in one
of the tables of reasons, which say who is wrong, or is an error here.
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
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.decode_reasons import explain
from tests.oracles import knows
from trapline.arm64 import effects as fx
from trapline.arm64.asm import disassemble
from trapline.arm64.decode import Decoder
from trapline.arm64.features import Features
from trapline.arm64.insn import Insn
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE

OBJDUMP = "aarch64-linux-gnu-objdump"
BATCH = 100_000
EXAMPLES = 5
FEATURES = Features()
DECODER = Decoder(load_a64())

_LINE = re.compile(r"^ *[0-9a-f]+:\t[0-9a-f]{8} \t(.*)$", re.M)
_COMMENT = re.compile(r"\s*(//|;|<).*$")
_FLOAT = re.compile(r"#(-?\d+\.\d+(?:e[+-]?\d+)?)")
_NUMBER = re.compile(r"#?(?<![\w.])(-?)(0x[0-9a-f]+|\d+)(?![\w.])")
_CONDITION = {"hs": "cs", "lo": "cc"}
_CONDITIONS = re.compile(r"\b(hs|lo)\b")
_RANGE = re.compile(r"v(\d+)(\.\w+)-v(\d+)\2")
_WORD = re.compile(r"\w+")
_PREFETCH = re.compile(r"\b(pld|pli|pst)l([123])(keep|strm)\b")


@dataclass(frozen=True)
class Row:
    """A word and what it is: canonical texts, None for what is not allocated. `insn` is set also if the word is UNDEFINED."""

    word: int
    insn: Insn | None
    ours: str | None
    gnu: str | None
    capstone: str | None

    def __str__(self) -> str:
        return f"{self.word:08x}: {self.insn} is {self.ours!r}, objdump {self.gnu!r}, Capstone {self.capstone!r}"


@dataclass
class Report:
    """What a comparison found."""

    seed: int
    words: int = 0
    allocated: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def text(self) -> str:
        wrong = sum(map(len, self.unexplained.values()))
        lines = [f"seed {self.seed}: {self.words} words, {self.allocated} allocated, {wrong} unexplained disagreements"]
        lines += [f"  {count:9} {reason}" for reason, count in self.explained.most_common()]
        for name, rows in sorted(self.unexplained.items()):
            lines += [f"{name}: {len(rows)}", *(f"  {row}" for row in rows[:EXAMPLES])]
        return "\n".join(lines)


def missing() -> str | None:
    """Why there is nothing to compare with."""
    if shutil.which(OBJDUMP) is None:
        return f"{OBJDUMP} (Debian: binutils-aarch64-linux-gnu) is not installed"
    try:
        import capstone  # noqa: F401
    except ImportError:
        return "the Python package capstone is not installed"
    return None


@cache
def _is_undefined(insn: Insn, shape: int) -> bool:
    recording = insn.record_shape(shape, lambda name: TABLE[name].slot)
    return any(isinstance(e, fx.Raise) and e.kind == "undefined" for e in recording.effects)


def ours(word: int, pc: int) -> tuple[Insn | None, str | None]:
    """The instruction of the default machine, and its text unless it is UNDEFINED."""
    insn = DECODER.decode(word)
    if insn is None or insn.feature is not None and insn.feature not in FEATURES:
        return None, None
    if _is_undefined(insn, insn.shape_of(word)):
        return insn, None
    return insn, disassemble(word, pc) or "?"


def gnu(code: bytes) -> list[str | None]:
    """objdump's canonical texts of the words of `code`, which lies at address 0."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(code)
        file.flush()
        command = [OBJDUMP, "-D", "-z", "-b", "binary", "-m", "aarch64", "-M", "no-aliases", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    found = _LINE.findall(text)
    assert len(found) == len(code) // 4
    return [None if t.startswith(".inst") else _COMMENT.sub("", t) for t in found]


def capstone_texts(code: bytes) -> list[str | None]:
    """Capstone's texts."""
    import capstone

    machine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    machine.skipdata = True
    rows = list(machine.disasm_lite(code, 0))
    assert len(rows) == len(code) // 4
    return [None if mnemonic == ".byte" else f"{mnemonic} {operands}" for _, _, mnemonic, operands in rows]


def _listed(m: re.Match[str]) -> str:
    return ", ".join(f"v{n}{m[2]}" for n in range(int(m[1]), int(m[3]) + 1))


@cache
def _register_numbers() -> dict[str, str]:
    found = {}
    for reg in TABLE:
        op0, op1, n, m, op2 = (reg.encoding >> at & (1 << width) - 1 for at, width in ((14, 2), (11, 3), (7, 4), (3, 4), (0, 3)))
        found[reg.name.lower()] = f"s{op0}_{op1}_c{n}_c{m}_{op2}"
    return found


def _prefetch(m: re.Match[str]) -> str:
    return f"#{('pld', 'pli', 'pst').index(m[1]) << 3 | int(m[2]) - 1 << 1 | (m[3] == 'strm')}"


def normal(text: str) -> str:
    """Text in one spelling: condition names, register lists, prefetches, numbers modulo 2**64, white space."""
    text = _PREFETCH.sub(_prefetch, _RANGE.sub(_listed, text.lower()))
    text = _CONDITIONS.sub(lambda m: _CONDITION[m[1]], text)
    if text.startswith(("mrs", "msr")):
        text = _WORD.sub(lambda m: _register_numbers().get(m[0], m[0]), text)
    text = _FLOAT.sub(lambda m: f"#{float(m[1])!r}f", text)
    text = _NUMBER.sub(lambda m: str(int(m[1] + m[2], 0) & (1 << 64) - 1), text)
    return re.sub(r"\s+", "", text)


def words(count: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Random words in batches."""
    rng = random.Random(seed)
    while count > 0:
        size = min(BATCH, count)
        yield struct.unpack(f"<{size}I", rng.randbytes(4 * size))
        count -= size


def rows(batch: Sequence[int]) -> Iterator[Row]:
    """What everyone says."""
    code = struct.pack(f"<{len(batch)}I", *batch)
    for k, (word, theirs, caps) in enumerate(zip(batch, gnu(code), capstone_texts(code), strict=True)):
        insn, text = ours(word, 4 * k)
        if text is not None or theirs is not None or caps is not None:
            yield Row(word, insn, text, theirs, caps)


def disagreements(row: Row) -> Iterator[str]:
    """Kinds of differences in a row."""
    for name, text in (("objdump", row.gnu), ("capstone", row.capstone)):
        if (row.ours is None) != (text is None):
            yield f"{name} {'refuses' if text is None else 'accepts'}"
        elif row.ours is not None and text is not None and normal(row.ours) != normal(text):
            alike = row.ours.split()[0] == text.split()[0]
            yield f"{name} {'operands' if alike else 'mnemonic'}"


def _subject(row: Row, kind: str) -> str:
    """What a reason has to match."""
    other = row.gnu if kind.startswith("objdump") else row.capstone
    if kind.endswith("mnemonic"):
        return f"{(row.ours or '').split()[0]} {(other or '').split()[0]}"
    return row.insn.name if row.insn and row.ours else (other or "").split()[0]


def _unknown(row: Row, kind: str) -> str | None:
    """The reason why a program refuses what is of a feature that it does not know."""
    program, _, says = kind.partition(" ")
    if says != "refuses" or row.insn is None or knows(program, row.insn.feature):
        return None
    return f"{program} does not know {row.insn.feature}"


def compare(count: int, seed: int) -> Report:
    """Compare `count` words."""
    report = Report(seed)
    for batch in words(count, seed):
        for row in rows(batch):
            report.allocated += row.ours is not None
            for kind in disagreements(row):
                name = _subject(row, kind)
                reason = _unknown(row, kind) or explain(kind, name, row.word)
                if reason:
                    report.explained[f"{kind}: {reason}"] += 1
                else:
                    report.unexplained[f"{kind}: {name}"].append(row)
        report.words += len(batch)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.decode", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    reason = missing()
    if reason:
        print(f"DECODING NOT COMPARED: {reason}")
        return 2
    report = compare(options.count, options.seed)
    print(report.text())
    return 1 if report.unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
