"""Assembler and disassembler, derived from the `asm=` templates of the instructions.

    disassemble(0x91000421)            'add x1, x1, #1'
    assemble("add x1, x1, #1")         0x91000421
    assemble_program(text)             bytes; labels and a few directives (see `asm_program`)

The syntax is that of the manual in lower case; the template language is described in `asm_template`. Disassembly prints
canonical instructions; the assembler also knows the common aliases (`asm_alias`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache, cached_property

from trapline.arm64.asm_alias import expand_alias
from trapline.arm64.asm_elements import AsmError, Context
from trapline.arm64.asm_template import Template
from trapline.arm64.decode import Decoder
from trapline.arm64.insn import Insn, InstructionSet, Pattern
from trapline.arm64.isa import load_a64

__all__ = ["AsmError", "Assembler", "assemble", "disassemble"]


class Assembler:
    """The two directions for one instruction set."""

    def __init__(self, isa: InstructionSet) -> None:
        self.isa = isa

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.isa)

    @cached_property
    def templates(self) -> dict[Insn, Template]:
        """The compiled template of every instruction that has one."""
        return {i: Template(i.asm, {f.name: f.width for f in i.pattern.fields}) for i in self.isa.insns if i.asm}

    @cached_property
    def by_mnemonic(self) -> dict[str, list[Insn]]:
        found: dict[str, list[Insn]] = {}
        for instruction, template in self.templates.items():
            for mnemonic in template.mnemonics():
                found.setdefault(mnemonic, []).append(instruction)
        return found

    def disassemble(self, word: int, pc: int = 0) -> str | None:
        """The instruction at `pc` as text, or None when it is unallocated (or has no syntax)."""
        instruction = self.decoder.decode(word)
        if instruction is None or instruction not in self.templates:
            return None
        return self.templates[instruction].format({f.name: f.of(word) for f in instruction.pattern.fields}, pc)

    def assemble(self, text: str, pc: int = 0, labels: Mapping[str, int] | None = None) -> int:
        """The word of one instruction at `pc`; AsmError if nothing matches."""
        at = Context(pc, labels)
        plain = re.sub(r"\s+", " ", text.strip().lower() if labels is None else _lower(text.strip(), labels))
        for candidate in (plain, *expand_alias(plain)):
            for word in self._encodings(candidate, at):
                return word
        raise AsmError(f"cannot assemble {text.strip()!r}")

    def _encodings(self, text: str, at: Context) -> Iterator[int]:
        for instruction in self.by_mnemonic.get(text.partition(" ")[0], ()):
            for values in self.templates[instruction].parse(text, at):
                word = instruction.pattern.value | unused_registers(instruction.pattern)
                for f in instruction.pattern.fields:
                    word |= values.get(f.name, 0) << f.lo
                if self.decoder.decode(word) is instruction:
                    yield word


def _lower(text: str, labels: Mapping[str, int]) -> str:
    """Lower case, except the words that are labels; `#label` becomes the number."""
    text = re.sub(r"#([A-Za-z_.$][\w.$]*)", lambda m: f"#{labels.get(m[1], m[1])}", text)
    return re.sub(r"[A-Za-z_.$][\w.$]*", lambda m: m[0] if m[0] in labels else m[0].lower(), text)


def unused_registers(pattern: Pattern) -> int:
    """The should-be-one bits of an encoding: register fields that aren't used, written `.....` in the pattern, hold 31."""
    mask, position = 0, 32
    for token in pattern.text.split():
        position -= int(token.partition(":")[2] or len(token))
        mask |= (token == ".....") * 31 << position
    return mask


@cache
def _a64() -> Assembler:
    """The assembler of the whole A64 set, whose modules are imported with the first use."""
    return Assembler(load_a64())


def disassemble(word: int, pc: int = 0) -> str | None:
    """The A64 instruction `word` at address `pc` as text, or None when it is unallocated."""
    return _a64().disassemble(word, pc)


def assemble(text: str, pc: int = 0, labels: Mapping[str, int] | None = None) -> int:
    """The word of one A64 instruction; labels are resolved in `labels`. Raises AsmError."""
    return _a64().assemble(text, pc, labels)
