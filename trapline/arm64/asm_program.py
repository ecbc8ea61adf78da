"""Assembling whole programs: labels, a few directives, one statement to a line.

    start:  mov   x0, #0x40000000       // comments: // and ;
            adr   x1, message
    loop:   ldrb  w2, [x1], #1
            cbz   w2, done
            b     loop
    done:   hvc   #0
    message: .asciz "hello"

Directives: `.byte .hword .word .quad` (numbers and labels, with `+` or `-` a number), `.ascii .asciz`, `.align n` (to 2**n bytes),
`.space n`, `.equ name, number`. `ldr x0, =value` doesn't exist: write `mov` and `movk`, or `ldr x0, label` and `.quad`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass

from trapline.arm64.asm import assemble
from trapline.arm64.asm_elements import AsmError, Context

_LABEL = re.compile(r"\s*([A-Za-z_.$][\w.$]*)\s*:")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SIZES = {".byte": 1, ".hword": 2, ".word": 4, ".quad": 8}


@dataclass(frozen=True)
class Statement:
    """One instruction or directive with the address it will have."""

    line: int
    text: str
    address: int
    size: int


def _without_comment(line: str) -> str:
    """The line up to // or ;, which don't count inside a string."""
    strings = _STRING.sub(lambda m: " " * len(m[0]), line)
    ends = [strings.find(mark) for mark in ("//", ";") if mark in strings]
    return line[: min(ends)] if ends else line


def _string(operand: str) -> bytes:
    try:
        return str(ast.literal_eval(operand)).encode("latin-1")
    except (SyntaxError, ValueError, UnicodeEncodeError) as error:
        raise AsmError(f"not a string: {operand}") from error


def _number(operand: str, at: Context) -> int:
    value = at.resolve(operand.strip())
    if value is None:
        raise AsmError(f"neither a number nor a label: {operand.strip()!r}")
    return value


def _size(text: str, address: int) -> int:
    """How many bytes a statement takes at this address."""
    name, _, operands = text.partition(" ")
    if name in _SIZES:
        return _SIZES[name] * len(operands.split(","))
    sizes: dict[str, Callable[[], int]] = {
        ".ascii": lambda: len(_string(operands)),
        ".asciz": lambda: len(_string(operands)) + 1,
        ".align": lambda: -address % (1 << _number(operands, Context())),
        ".space": lambda: _number(operands, Context()),
    }
    if name.startswith(".") and name not in sizes:
        raise AsmError(f"unknown directive {name}")
    return sizes[name]() if name in sizes else 4


def _bytes(statement: Statement, labels: dict[str, int]) -> bytes:
    name, _, operands = statement.text.partition(" ")
    at = Context(statement.address, labels)
    if name in _SIZES:
        size = _SIZES[name]
        return b"".join((_number(o, at) % (1 << 8 * size)).to_bytes(size, "little") for o in operands.split(","))
    if name in (".ascii", ".asciz"):
        return _string(operands).ljust(statement.size, b"\0")
    if name in (".align", ".space"):
        return bytes(statement.size)
    return assemble(statement.text, statement.address, labels).to_bytes(4, "little")


def assemble_program(text: str, origin: int = 0) -> bytes:
    """The bytes of a program that is loaded at `origin`. AsmError names the line of the first mistake."""
    return assemble_with_labels(text, origin)[0]


def assemble_with_labels(text: str, origin: int = 0) -> tuple[bytes, dict[str, int]]:
    """The bytes of a program, and the addresses of its labels."""
    labels: dict[str, int] = {}
    statements: list[Statement] = []
    address = origin
    for number, line in enumerate(text.splitlines(), 1):
        rest = _without_comment(line)
        try:
            while match := _LABEL.match(rest):
                if match[1] in labels:
                    raise AsmError(f"label {match[1]} is defined twice")
                labels[match[1]] = address
                rest = rest[match.end() :]
            statement = re.sub(r"^(\S+)\s+", r"\1 ", rest.strip())
            if statement.startswith(".equ "):
                name, _, value = statement[5:].partition(",")
                labels[name.strip()] = _number(value, Context(address, labels))
            elif statement:
                size = _size(statement, address)
                statements.append(Statement(number, statement, address, size))
                address += size
        except AsmError as error:
            raise AsmError(f"line {number}: {error}") from error
    result = b""
    for item in statements:
        try:
            result += _bytes(item, labels)
        except AsmError as error:
            raise AsmError(f"line {item.line}: {error}") from error
    return result, labels
