"""The assembler and disassembler against GNU as, against each other, and against written vectors."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.oracles import GNU_ARCH, knows
from tests.test_decode import is_unfit
from trapline.arm64.asm import AsmError, assemble, disassemble
from trapline.arm64.decode import Decoder
from trapline.arm64.insn import A64, Insn
from trapline.arm64.isa import load_a64

GNU_AS, GNU_OBJCOPY = "aarch64-linux-gnu-as", "aarch64-linux-gnu-objcopy"
VECTORS = Path(__file__).parent / "vectors"
RELATIVE = re.compile(r"(?:^b(?!rk)|^cb|^tb|^adr\b|^ldr|^prfm).*\b(0x[0-9a-f]+)$")
NO_GNU_AS = {"adrp"}
"""GNU as leaves these to the linker."""


load_a64()
DECODER = Decoder(A64)


def random_words(instruction: Insn, count: int, rng: random.Random) -> list[int]:
    """Words of this instruction: random fields, and all of its don't-care bits one or zero."""
    free = 0xFFFF_FFFF & ~instruction.pattern.mask
    dont_care = free
    for f in instruction.pattern.fields:
        dont_care &= ~(((1 << f.width) - 1) << f.lo)
    words = []
    for _ in range(400):
        word = instruction.pattern.value | rng.getrandbits(32) & free & ~dont_care | rng.choice((0, dont_care))
        if DECODER.decode(word) is instruction and not is_unfit(instruction, word):
            words.append(word)
        if len(words) == count:
            break
    return words


def equal_but_dont_care(instruction: Insn, a: int, b: int) -> bool:
    return all(f.of(a) == f.of(b) for f in instruction.pattern.fields) and DECODER.decode(b) is instruction


def gnu_as(lines: list[str], directory: Path) -> list[int | None]:
    """The word of each line, None where GNU as reports an error."""
    source, binary = directory / "case.s", directory / "case.bin"
    header = f".arch {GNU_ARCH}\n"
    failed: set[int] = set()
    for _ in range(2):
        text = "".join(".word 0\n" if n in failed else line + "\n" for n, line in enumerate(lines))
        source.write_text(header + text)
        done = subprocess.run([GNU_AS, "-o", directory / "case.o", source], capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            break
        failed |= {int(m) - 2 for m in re.findall(r"case\.s:(\d+): Error", done.stderr)}
    subprocess.run([GNU_OBJCOPY, "-O", "binary", "-j", ".text", directory / "case.o", binary], check=True, timeout=60)
    data = binary.read_bytes()
    words = [int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 4)]
    return [None if n in failed else word for n, word in enumerate(words)]


def test_gnu_as_reads_our_disassembly(tmp_path: Path) -> None:
    if not shutil.which(GNU_AS) or not shutil.which(GNU_OBJCOPY):
        pytest.skip(f"DISASSEMBLY NOT COMPARED: {GNU_AS} (Debian: binutils-aarch64-linux-gnu) is not installed")
    rng = random.Random(1)
    cases: list[tuple[Insn, int, str]] = []
    for instruction in A64.insns:
        if not instruction.asm or instruction.name in NO_GNU_AS or not knows("objdump", instruction.feature):
            continue
        for word in random_words(instruction, 24, rng):
            text = disassemble(word)
            assert text is not None, f"{instruction} has no text for {word:#010x}"
            cases.append((instruction, word, text))
    lines = []
    for _, _, text in cases:
        target = RELATIVE.match(text)
        if target:
            offset = (int(target[1], 16) + 2**63) % 2**64 - 2**63
            text = text[: target.start(1)] + f".+({offset})"
        lines.append(text)
    problems = []
    for (instruction, word, text), line, got in zip(cases, lines, gnu_as(lines, tmp_path)):
        if got is None or not equal_but_dont_care(instruction, word, got) and disassemble(got) != text:
            problems.append(f"{instruction.name}: {word:#010x} {line} -> {'rejected' if got is None else hex(got)}")
    assert not problems, f"{len(problems)} differ from GNU as:\n" + "\n".join(problems[:60])


def test_assembler_reads_our_disassembly() -> None:
    rng = random.Random(2)
    problems = []
    for instruction in A64.insns:
        for word in random_words(instruction, 12, rng) if instruction.asm else ():
            text = disassemble(word, 0x40_0000)
            assert text is not None
            try:
                got = assemble(text, 0x40_0000)
            except AsmError:
                problems.append(f"{instruction.name}: {word:#010x} {text} -> rejected")
                continue
            if not equal_but_dont_care(instruction, word, got) and disassemble(got, 0x40_0000) != text:
                problems.append(f"{instruction.name}: {word:#010x} {text} -> {got:#010x} {disassemble(got, 0x40_0000)}")
    assert not problems, f"{len(problems)} do not come back:\n" + "\n".join(problems[:60])


def test_patterns_do_not_overlap() -> None:
    assert [f"{a} and {b}" for a, b in A64.overlaps()] == []


def vector_lines() -> list[tuple[str, int]]:
    """`hex word: text` lines of the vector files."""
    found = []
    for path in sorted(VECTORS.glob("asm*.txt")):
        for line in path.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                word, _, text = line.partition(":")
                found.append((text.strip(), int(word, 16)))
    return found


@pytest.mark.parametrize("text,word", vector_lines(), ids=lambda value: value if isinstance(value, str) else f"{value:08x}")
def test_vectors(text: str, word: int) -> None:
    assert assemble(text, 0x1000, {"label": 0x1010}) == word


@pytest.mark.parametrize(
    "text",
    [
        "",
        "frob x0",
        "add x0, x1",
        "add x0, w1, #1",
        "mov x0, #0x123456789",
        "ldr x0, [x1, #3",
        "b nowhere",
        "add x0, x1, #4096000",
        "and x0, x1, #0",
        "ldp x0, x1, [x2, #4]",
    ],
)
def test_bad_source_is_refused(text: str) -> None:
    with pytest.raises(AsmError):
        assemble(text)
