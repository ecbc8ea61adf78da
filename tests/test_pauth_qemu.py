"""Pointer authentication by QARMA5, as QEMU's largest CPU has it: codes, checks and failures for random keys and pointers."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator

import pytest

from tests.differential import translation
from tests.differential.translation import CASES, EMULATOR, IMAGE, RESULTS, UART, _set, on_qemu
from trapline.arm64 import pauth
from trapline.arm64.asm_program import assemble_with_labels
from trapline.arm64.features import Features
from trapline.arm64.models import parse
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.el1 import PAUTH_KEYS, SCTLR_EL1, TCR_EL1
from trapline.arm64.state import CpuState
from trapline.arm64.sysreg import generic_name

COUNT = 120
ROW, ANSWER = struct.Struct("<4Q"), struct.Struct("<8Q")
CORRUPT = 1 << 50
TBI, BOTH_TBI = int(TCR_EL1.TBI0.mask | TCR_EL1.TBID0.mask), int(TCR_EL1.TBI0.mask | TCR_EL1.TBI1.mask)


def program(tcr: int) -> bytes:
    """Rows (X20) of key, pointer and modifier; eight results each (X21)."""
    lines = ["b begin", ".align 11", "begin:", _set("x20", CASES), _set("x21", RESULTS), _set("x0", tcr), "msr TCR_EL1, x0"]
    enable = int(SCTLR_EL1(EnIA=1, EnIB=1, EnDA=1, EnDB=1))
    lines += ["mrs x0, SCTLR_EL1", _set("x1", enable), "orr x0, x0, x1", "msr SCTLR_EL1, x0", "isb", "next:", "ldp x1, x2, [x20], #16"]
    lines += ["orr x0, x1, x2", "cbz x0, finish", "ldp x3, x4, [x20], #16"]
    lines += [f"msr {generic_name(key.enc)}, x{1 + n % 2}" for n, key in enumerate(PAUTH_KEYS)]
    lines += ["isb", _set("x9", CORRUPT)]
    for n, text in enumerate(
        (
            "pacia x5, x4", "pacib x5, x4", "pacda x5, x4", "pacdb x5, x4", "pacga x5, x3, x4", "pacia x5, x4\nautia x5, x4",
            "pacib x5, x4\neor x5, x5, x9\nautib x5, x4", "pacda x5, x4\nxpacd x5",
        )
    ):  # fmt: skip
        lines += ["mov x5, x3", text, f"str x5, [x21, #{8 * n}]"]
    lines += ["add x21, x21, #64", "b next", "finish:", _set("x0", RESULTS), _set("x1", UART), "print:", "cmp x0, x21", "b.eq off"]
    lines += ["ldrb w2, [x0], #1", "strb w2, [x1]", "b print", "off:", _set("x0", 0x8400_0008), "hvc #0", "b off"]
    text = "\n".join(lines)
    for name in ("TCR_EL1", "SCTLR_EL1"):
        text = text.replace(name, generic_name(TABLE[name].enc))
    return assemble_with_labels(text, IMAGE)[0]


def cases(rng: random.Random) -> Iterator[tuple[int, int, int, int]]:
    """QEMU takes the controls of the range that bit 55 selects where the manual has bit 63, so both are alike here."""
    for _ in range(COUNT):
        low, high, modifier = (rng.getrandbits(64) for _ in range(3))
        pointer = rng.choice((rng.getrandbits(47), (1 << 64) - 1 - rng.getrandbits(47), rng.getrandbits(64), rng.getrandbits(55)))
        pointer = pointer & ~(1 << 63) | (pointer >> 55 & 1) << 63
        yield low, high, pointer, modifier


def ours(tcr: int, row: tuple[int, int, int, int], features: Features) -> tuple[int, ...]:
    cpu = CpuState()
    cpu.el = 1
    for reg, value in features.id_values().items():
        cpu.sysreg[reg.slot] = int(value)
    cpu.sysreg[TABLE["TCR_EL1"].slot] = tcr
    cpu.sysreg[TABLE["SCTLR_EL1"].slot] = int(SCTLR_EL1(EnIA=1, EnIB=1, EnDA=1, EnDB=1))
    low, high, pointer, modifier = row
    for n, key in enumerate(PAUTH_KEYS):
        cpu.sysreg[key.slot] = high if n % 2 else low
    signed = [pauth.pac_add(cpu, key, pointer, modifier) for key in range(4)]
    return (
        *signed,
        pauth.pac_generic(cpu, pointer, modifier),
        pauth.pac_auth(cpu, 0, signed[0], modifier),
        pauth.pac_auth(cpu, 1, signed[1] ^ CORRUPT, modifier),
        pauth.pac_strip(cpu, signed[2], True),
    )


@pytest.mark.parametrize("tcr", [0, 16 | 16 << 16, 25 | 20 << 16, 16 | 16 << 16 | TBI, 16 | 16 << 16 | BOTH_TBI])
def test_codes_are_those_of_qemu(tcr: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"POINTER AUTHENTICATION NOT COMPARED: {EMULATOR} is not installed")
    monkeypatch.setattr(translation, "MACHINE", [word.replace("pauth=off", "pauth=on") for word in translation.MACHINE])
    features = parse("+pacqarma5")
    rows = list(cases(random.Random(tcr)))
    image = program(tcr).ljust(CASES - IMAGE, b"\0") + b"".join(ROW.pack(*row) for row in rows) + bytes(ROW.size)
    answers = on_qemu(image, ANSWER.size * COUNT)
    for k, row in enumerate(rows):
        theirs = ANSWER.unpack_from(answers, ANSWER.size * k)
        assert ours(tcr, row, features) == theirs, [hex(x) for x in row]
