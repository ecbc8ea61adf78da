"""Whole programs through the assembler."""

from __future__ import annotations

import pytest

from trapline.arm64.asm import AsmError, assemble, disassemble
from trapline.arm64.asm_program import assemble_program, assemble_with_labels
from trapline.arm64.isa import load_a64

load_a64()

HELLO = """
        .equ  UART, 0x09000000
start:  mov   x0, #UART              // where it goes
        adr   x1, Message
loop:   ldrb  w2, [x1], #1
        cbz   w2, done
        strb  w2, [x0]
        b     loop
done:   hvc   #0
Message: .asciz "a // b; \\n"
        .align 3
table:  .quad start, loop+4, -1
        .hword 1, 2
        .space 4
end:
"""


def test_labels_and_directives() -> None:
    data, labels = assemble_with_labels(HELLO, 0x4008_0000)
    assert labels["loop"] == 0x4008_0008 and labels["Message"] == 0x4008_001C
    assert data[0x1C : 0x1C + 10] == b"a // b; \n\0"
    table = labels["table"] - 0x4008_0000
    assert labels["table"] % 8 == 0
    assert int.from_bytes(data[table : table + 8], "little") == 0x4008_0000
    assert int.from_bytes(data[table + 8 : table + 16], "little") == 0x4008_000C
    assert data[table + 16 : table + 24] == b"\xff" * 8
    assert len(data) == labels["end"] - 0x4008_0000 == table + 24 + 4 + 4


def test_branches_reach_their_labels() -> None:
    data, labels = assemble_with_labels(HELLO, 0x4008_0000)
    text = [disassemble(int.from_bytes(data[k : k + 4], "little"), 0x4008_0000 + k) for k in range(0, 0x1C, 4)]
    assert text[1] == f"adr x1, {labels['Message']:#x}"
    assert text[3] == f"cbz w2, {labels['done']:#x}"
    assert text[5] == f"b {labels['loop']:#x}"


@pytest.mark.parametrize(
    "text,message",
    [
        ("nop\nfrob x1", "line 2: cannot assemble 'frob x1'"),
        ("a:\na:", "line 2: label a is defined twice"),
        (".quad nowhere", "line 1: neither a number nor a label: 'nowhere'"),
        (".foo 1", "line 1: unknown directive .foo"),
        ('.ascii "open', 'line 1: not a string: "open'),
        ("b far", "line 1: cannot assemble 'b far'"),
    ],
)
def test_mistakes_name_their_line(text: str, message: str) -> None:
    with pytest.raises(AsmError) as caught:
        assemble_program(text)
    assert str(caught.value) == message


def test_case_and_space_are_free() -> None:
    assert assemble("  ADD   X0 ,x1,  #1 ") == assemble("add x0, x1, 1")
    assert assemble("STP x0,x1,[SP,#-16]!") == assemble("stp x0, x1, [sp, #-16]!")
