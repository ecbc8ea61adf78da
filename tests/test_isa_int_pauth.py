"""Pointer authentication: codes come and go, wrong ones are noticed, and CPython and LLVM agree."""

from __future__ import annotations

import random

import pytest

from trapline.arm64 import pauth
from trapline.arm64.asm import assemble
from trapline.arm64.decode import Decoder
from trapline.arm64.insn import A64
from trapline.arm64.isa import load_a64
from trapline.arm64.models import parse
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.el1 import SCTLR_EL1, TCR_EL1
from trapline.arm64.regs.el2 import HCR_EL2
from trapline.arm64.state import CpuState
from trapline.arm64.walker import Walker

KERNEL, USER = 0xFFFF_FFF0_1234_5678, 0x0000_0025_1234_5678
TBI0, TBI1, TBID1 = TCR_EL1.TBI0.mask, TCR_EL1.TBI1.mask, TCR_EL1.TBID1.mask
TCR = 16 | 16 << 16

load_a64()
DECODER = Decoder(A64)


def make_cpu(tcr: int = TCR, enabled: bool = True) -> CpuState:
    cpu = CpuState()
    rng = random.Random(3)
    for key in pauth.PAUTH_KEYS:
        cpu.sysreg[key.slot] = rng.getrandbits(64)
    cpu.sysreg[SCTLR_EL1.slot] = sum(pauth.ENABLES) if enabled else 0
    cpu.sysreg[TCR_EL1.slot] = tcr
    cpu.sysreg[HCR_EL2.slot] = HCR_EL2.API.mask
    cpu.el = 1
    return cpu


@pytest.mark.parametrize("key", range(4))
@pytest.mark.parametrize("pointer", [KERNEL, USER, 0, 2**64 - 1])
@pytest.mark.parametrize("tcr", [TCR, TCR | TBI0, TCR | TBI0 | TBI1, TCR | TBI1 | TBID1, 25 | 25 << 16])
def test_code_comes_and_goes(pointer: int, key: int, tcr: int) -> None:
    cpu = make_cpu(tcr)
    signed = pauth.pac_add(cpu, key, pointer, 0x1234)
    assert signed != pointer
    assert signed & (2**39 - 1) == pointer & (2**39 - 1) and signed >> 55 & 1 == pointer >> 55 & 1
    assert pauth.pac_auth(cpu, key, signed, 0x1234) == pointer
    assert pauth.pac_strip(cpu, signed, key >= 2) == pointer
    wrong = pauth.pac_auth(cpu, key, signed, 0x1235)
    assert wrong != pointer and pauth.pac_strip(cpu, wrong, key >= 2) == pointer


def test_top_byte_is_kept_when_ignored() -> None:
    cpu = make_cpu(TCR | TBI0)
    tagged = USER | 0xA5 << 56
    signed = pauth.pac_add(cpu, 2, tagged, 7)
    assert signed >> 56 == 0xA5 and signed != tagged
    assert pauth.pac_auth(cpu, 2, signed, 7) == tagged


def test_error_code_is_where_the_manual_puts_it() -> None:
    for key, tcr, bit in ((0, TCR, 61), (1, TCR, 62), (2, TCR | TBI0, 53), (3, TCR | TBI0, 54)):
        cpu = make_cpu(tcr)
        broken = pauth.pac_auth(cpu, key, pauth.pac_add(cpu, key, USER, 1) ^ 1 << 50, 1)
        assert broken == USER | 1 << bit


def test_noncanonical_pointer_gets_a_code_that_fails() -> None:
    cpu = make_cpu()
    signed = pauth.pac_add(cpu, 0, USER | 1 << 50, 5)
    assert pauth.pac_auth(cpu, 0, signed, 5) != USER


def test_disabled_keys_do_nothing() -> None:
    cpu = make_cpu(enabled=False)
    assert pauth.pac_add(cpu, 0, KERNEL, 1) == KERNEL == pauth.pac_auth(cpu, 0, KERNEL, 1)


def run(cpu: CpuState, *lines: str) -> list[tuple]:
    """Execute statements one after another; returns the system operations and exceptions."""
    events: list[tuple] = []
    walker = Walker(cpu, None, lambda *event: events.append(event))  # type: ignore[arg-type,func-returns-value]
    for line in lines:
        word = assemble(line)
        instruction = DECODER.decode(word)
        assert instruction is not None
        walker.run(instruction.record_word(word, lambda name: TABLE[name].slot))
    return events


def test_instructions_round_trip() -> None:
    cpu = make_cpu()
    cpu.x[30], cpu.x[0], cpu.sp = KERNEL, USER, 0x8000
    assert run(cpu, "paciasp", "pacdb x0, sp") == []
    assert cpu.x[30] != KERNEL and cpu.x[0] != USER
    run(cpu, "autdb x0, sp", "autiasp")
    assert (cpu.x[30], cpu.x[0]) == (KERNEL, USER)
    run(cpu, "pacib x0, x1", "xpaci x0")
    assert cpu.x[0] == USER
    run(cpu, "paciasp", "retaa")
    assert cpu.pc == KERNEL
    run(cpu, "pacga x5, x0, x1")
    assert cpu.x[5] & 0xFFFF_FFFF == 0 != cpu.x[5]


def test_trap_to_the_hypervisor() -> None:
    cpu = make_cpu()
    cpu.sysreg[HCR_EL2.slot] = 0
    assert ("system", "pac_trap") in run(cpu, "pacga x0, x1, x2")
    assert ("system", "pac_trap") in run(cpu, "paciasp")
    cpu.sysreg[SCTLR_EL1.slot] = 0
    assert run(cpu, "paciasp") == []


def test_compiled_code_agrees() -> None:
    from trapline.bits.native import compile_functions

    functions = [pauth.pac_add, pauth.pac_auth, pauth.pac_strip, pauth.pac_generic]
    compiled = compile_functions(functions)
    rng = random.Random(5)
    for _ in range(300):
        cpu = make_cpu(rng.choice((TCR, TCR | TBI0, TCR | TBI1, 39 | 17 << 16)))
        pointer = rng.choice((KERNEL, USER, rng.getrandbits(64)))
        key, modifier = rng.randrange(4), rng.getrandbits(64)
        for function in functions[:2]:
            assert compiled[function.name](cpu, key, pointer, modifier) == function(cpu, key, pointer, modifier)
        assert compiled["pac_strip"](cpu, pointer, key >= 2) == pauth.pac_strip(cpu, pointer, key >= 2)
        assert compiled["pac_generic"](cpu, pointer, modifier) == pauth.pac_generic(cpu, pointer, modifier)


# ---- variants ----------------------------------------------------------------------------------------------------------------


def variant(description: str, tcr: int = TCR) -> CpuState:
    cpu = make_cpu(tcr)
    for reg, value in parse(description).id_values().items():
        cpu.sysreg[reg.slot] = int(value)
    return cpu


@pytest.mark.parametrize("algorithm", ["pacimp", "pacqarma5", "pacqarma3"])
@pytest.mark.parametrize("more", ["", ",+epac", ",+pauth2", ",+fpac", ",+fpaccombine"])
@pytest.mark.parametrize("pointer", [KERNEL, USER, 0, 2**64 - 1])
def test_every_kind_comes_and_goes(algorithm: str, more: str, pointer: int) -> None:
    for tcr in (TCR, TCR | TBI0 | TBI1, 25 | 20 << 16):
        cpu = variant(f"+{algorithm}{more}", tcr)
        for key in range(4):
            signed = pauth.pac_add(cpu, key, pointer, 99)
            back = pauth.pac_auth(cpu, key, signed, 99)
            wrong = [pauth.pac_auth(cpu, key, signed, modifier) for modifier in range(90, 99)]  # some codes have seven bits only
            assert back == pointer and any(result != pointer for result in wrong)
            if "pauth2" in more or "fpac" in more:
                assert [pauth.pac_failed(cpu, key, result) for result in (back, *wrong)] == [False, *(w != pointer for w in wrong)]


def test_algorithms_differ_and_depend_on_every_input() -> None:
    seen = set()
    for algorithm in ("pacimp", "pacqarma5", "pacqarma3"):
        cpu = variant("+" + algorithm)
        for data, modifier in ((1, 1), (1, 2), (2, 1)):
            seen.add(pauth.compute_pac(cpu, 0, data, modifier))
        for slot in pauth.KEY_SLOTS[:2]:
            cpu.sysreg[slot] ^= 1
            seen.add(pauth.compute_pac(cpu, 0, 1, 1))
    assert len(seen) == 15


def test_a_pointer_with_high_bits() -> None:
    """FEAT_EPAC signs it with zero; FEAT_PAuth2 mixes the bits in, so that signing twice and checking twice gives it back."""
    odd = USER | 1 << 50
    signed = pauth.pac_add(variant("+epac"), 0, odd, 7)
    assert signed == USER
    cpu = variant("+pauth2", TCR | TBI0 | TBI1)
    twice = pauth.pac_add(cpu, 0, pauth.pac_add(cpu, 0, USER, 7), 7)
    assert twice == USER  # the same code, so its bits cancel
    assert pauth.pac_auth(cpu, 0, pauth.pac_add(cpu, 0, odd, 7), 7) == odd


def test_identification_shows_algorithm_and_kind() -> None:
    for description, isar1, isar2 in (
        ("max", 0x1000_0100, 0), ("+pacqarma5", 0x0100_0010, 0), ("+pacqarma3", 0, 0x1100),
        ("+epac", 0x1000_0200, 0), ("+pauth2", 0x1000_0300, 0), ("+fpac,+qarma5", 0x0100_0040, 0), ("+fpaccombine", 0x1000_0500, 0),
    ):  # fmt: skip
        values = {reg.name: int(value) for reg, value in parse(description).id_values().items()}
        assert values["ID_AA64ISAR1_EL1"] & 0xFF00_0FF0 == isar1 and values["ID_AA64ISAR2_EL1"] & 0xFF00 == isar2, description


def test_a_failed_check_is_an_exception() -> None:
    from tests.differential.machine import MARKERS, Machine

    combined = ("retaa", "braaz x0", "ldraa x1, [x0, #0]")
    plain = ("autia x0, x1", "autib x0, x1", "autda x0, x1", "autdzb x0")
    machine = Machine(0x4000, parse("+fpaccombine"))
    half = Machine(0x4000, parse("+fpac"))
    for m in (machine, half):
        at = m.code.address + 0x2000
        m.put(at + 4, MARKERS[1])
        m.state.sysreg[SCTLR_EL1.slot] |= sum(pauth.ENABLES)
        m.state.sysreg[HCR_EL2.slot] |= HCR_EL2.API.mask
        m.state.sysreg[TCR_EL1.slot] = TCR  # codes go up to bit 63, so what fails its check is no address of anything
        for text in plain:
            m.put(at, assemble(text))
            m.state.x[0] = USER | 1 << 50
            outcome = m.run(at)
            assert (outcome.finished, outcome.ec) == (False, 0x1C), text
            assert m.state.x[0] == USER | 1 << 50
    for text in combined:
        machine.put(machine.code.address + 0x2000, assemble(text))
        machine.state.x[0] = machine.state.x[30] = USER | 1 << 50
        assert machine.run(machine.code.address + 0x2000).ec == 0x1C, text
        half.put(half.code.address + 0x2000, assemble(text))
        half.state.x[0] = half.state.x[30] = USER | 1 << 50
        assert half.run(half.code.address + 0x2000).ec != 0x1C, text
