"""Processors by description: names, what comes and goes with them, and that instructions follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.machine import MARKERS, Machine
from tests.oracles import LACKED_BY, RUN_BY_NOBODY
from trapline.arm64.asm import assemble
from trapline.arm64.features import BY_NAME, FEATURES, Features
from trapline.arm64.isa import load_a64
from trapline.arm64.models import ALWAYS, BASES, NAMES, parse
from trapline.arm64.regs import HCRX_EL2, TABLE
from trapline.errors import BadInput, TraplineError
from trapline.ui.cli import make_parser

EC_UNKNOWN = 0


def most() -> Features:
    """A machine with all that a machine can have at once: what is there by default, and what is there when asked for."""
    features = Features()
    for feature in FEATURES:
        if feature.implemented and features.names.isdisjoint(feature.instead) and features.names.issuperset(feature.requires):
            features = features.with_(feature.name)
    return features


def test_nothing_said_is_everything_that_is_understood() -> None:
    assert parse("") == parse("max") == Features()


def test_names_of_linux_and_of_the_manual() -> None:
    for name in ("atomics", "lse", "LSE", "FEAT_LSE"):
        assert parse(f"-{name}") == Features().without("LSE"), name
    assert "PAuth" not in parse("-paca") and "BTI" in parse("-paca")


def test_what_requires_a_feature_goes_with_it_and_what_it_requires_comes() -> None:
    assert {"LSE", "LSE2"}.isdisjoint(parse("-lse").names)
    assert {"FlagM", "FlagM2"} <= parse("armv8.0,+flagm2").names
    assert "PACIMP" in parse("armv8.0,+pauth")


def test_versions_of_the_architecture_grow() -> None:
    versions = [BASES[f"armv8.{minor}"] for minor in range(10)]
    assert all(a < b for a, b in zip(versions, versions[1:], strict=False))
    assert parse("armv8.0").names == versions[0]
    assert "AES" not in versions[9] and "AES" in parse("armv8.0,+aes")


@pytest.mark.parametrize("text", ["-nonsense", "cortex-a999", "lse,-pauth", "max,sse2", "-fp", "max,-asimd"])
def test_what_is_wrong_is_said_in_one_line(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_every_name_can_be_added_and_removed() -> None:
    for name, feature in NAMES.items():
        assert feature in parse(f"+{name}")
        if feature not in ALWAYS:
            assert feature not in parse(f"-{name}")


def test_the_command_line_takes_a_description_that_looks_like_an_option() -> None:
    options = make_parser().parse_args(["run", "--cpu", "-lse,-pauth", "--cpus", "2"])
    assert (options.cpu, options.cpus) == ("-lse,-pauth", 2)
    assert make_parser().parse_args(["guest", "--cpu=armv8.0", "--", "--cpu", "-x"]).words == ["--cpu", "-x"]


def test_kvm_makes_machines_with_other_cpus() -> None:
    import trapline

    isar0 = TABLE["ID_AA64ISAR0_EL1"]
    with trapline.open("software", cpu="-sha512") as kvm:
        for cpu, atomic in ((None, 2), ("armv8.0", 0)):
            with kvm.create_vm(cpu=cpu) as vm:
                value = isar0(vm.create_vcpu().get_one_reg(isar0.one_reg_id))
                assert (value.Atomic, value.SHA2) == (atomic, 1 if cpu is None else 0)
    with pytest.raises(TraplineError):
        trapline.open("software", cpu="-nonsense")


# ---- instructions ----------------------------------------------------------------------------------------------------------------

INSTRUCTIONS = {
    "CRC32": "crc32b w0, w1, w2",
    "LSE": "swp x0, x2, [sp]",
    "FlagM": "rmif x1, #3, #5",
    "FlagM2": "axflag",
    "PAuth": "paciza x0",
    "SB": "sb",
    "DIT": "msr dit, #1",
    "SSBS2": "msr ssbs, #1",
    "PAN": "msr pan, #0",
    "UAO": "msr uao, #0",
    "DPB": "sys #3, c7, c12, #1, x28",
    "DPB2": "sys #3, c7, c13, #1, x28",
    "RNG": "mrs x0, s3_3_c2_c4_0",
    "LRCPC": "ldapr x0, [sp]",
    "LRCPC2": "ldapur x0, [sp, #8]",
    "CSSC": "cnt x0, x1",
    "WFxT": "wfet xzr",
    "MOPS": "setp [x28]!, x0!, x1",
    "ECV": "mrs x0, s3_3_c14_c0_6",
    "AES": "aese v0.16b, v1.16b",
    "PMULL": "pmull v0.1q, v1.1d, v2.1d",
    "SHA1": "sha1h s0, s1",
    "SHA256": "sha256su0 v0.4s, v1.4s",
    "PAN2": "sys #0, c7, c9, #0, x28",
}
"""One instruction of each feature; those of floating point and SIMD are in test_isa_simd_features.py."""


@pytest.fixture(scope="module")
def full() -> Machine:
    machine = Machine(0x4000, most())
    machine.cpu[HCRX_EL2] = int(HCRX_EL2(MSCEn=1))
    return machine


@pytest.fixture(scope="module")
def bare() -> Machine:
    return Machine(0x4000, parse("armv8.0"))


def run(m: Machine, text: str) -> tuple[bool, int]:
    """Whether an instruction runs, and the class of the exception else. X28 and SP hold an address."""
    at = m.code.address + 0x2000
    m.put(at, int(text.split()[1], 16) if text.startswith(".word") else assemble(text, at))
    m.put(at + 4, MARKERS[1])
    m.state.x[28] = m.state.sp_el[1] = m.code.address + 0x1000
    outcome = m.run(at)
    return outcome.finished, outcome.ec


@pytest.mark.parametrize("feature", INSTRUCTIONS)
def test_an_instruction_is_undefined_without_its_feature(feature: str, full: Machine, bare: Machine) -> None:
    assert run(full, INSTRUCTIONS[feature]) == (True, 0)
    assert run(bare, INSTRUCTIONS[feature]) == (False, EC_UNKNOWN)


@pytest.mark.parametrize("word", [0xF83F_D041, 0xF83F_9041, 0xF820_B041, 0xF820_A041])
def test_64_byte_accesses_are_undefined(word: int, full: Machine) -> None:
    """LD64B, ST64B, ST64BV and ST64BV0: no feature makes them."""
    assert run(full, f".word {word:#x}") == (False, EC_UNKNOWN)


@pytest.mark.parametrize("text", ["paciasp", "bti c", "add x0, x1, x2", "mrs x0, s3_0_c0_c6_1", "ldar x0, [sp]"])
def test_hints_and_the_rest_run_without_features(text: str, bare: Machine) -> None:
    assert run(bare, text)[0]


def test_removing_a_feature_removes_exactly_its_instructions_and_registers() -> None:
    """By the declarations, from which decoder, handlers and register table are made."""
    everything = most()
    for name in sorted(everything.names - ALWAYS):
        gone = everything.without(name)
        lost = everything.names - gone.names
        for insn in load_a64().insns:
            needed = set() if insn.feature is None else {part.removeprefix("FEAT_") for part in insn.feature.split(" & ")}
            assert (insn.feature is not None and insn.feature not in gone) == bool(needed & lost), (name, insn)
        for reg in TABLE:
            if reg.exists(everything):
                assert reg.exists(gone) == (reg.feature not in lost), (name, reg)


def test_what_other_programs_are_said_to_lack_is_here() -> None:
    """The table of tests/oracles.py names features that instructions name, and tests that exist."""
    named = {part for insn in load_a64().insns for part in (insn.feature or "").split(" & ")}
    assert (LACKED_BY.keys() | RUN_BY_NOBODY.keys()) <= named
    assert set().union(*LACKED_BY.values()) <= {"objdump", "llvm", "capstone", "unicorn"}
    assert all((Path(__file__).parents[1] / f"{test}.py").exists() for test in RUN_BY_NOBODY.values())


def test_features_with_instructions_show_in_an_identification_register() -> None:
    for insn in load_a64().insns:
        for part in (insn.feature or "").split(" & "):
            if part:
                name = part.removeprefix("FEAT_")
                assert BY_NAME[name].shows or any(name in f.requires and f.shows for f in FEATURES), name
