"""Extensions of floating point and SIMD can be turned off: their instructions are UNDEFINED then, and FPCR.FZ16 is RES0."""

from __future__ import annotations

import pytest

from tests.differential.machine import MARKERS, Machine
from trapline.arm64.asm import assemble, disassemble
from trapline.arm64.features import Features

EC_UNKNOWN = 0
INSTRUCTIONS = {
    "fadd h0, h1, h2": (0x1EE22820, "FP16"),
    "fadd v0.4h, v1.4h, v2.4h": (0x0E421420, "FP16"),
    "fcvtzs w0, h1": (0x1EF80020, "FP16"),
    "fmov h0, #1.0": (0x1EEE1000, "FP16"),
    "fmov v0.8h, #1.0": (0x4F03FE00, "FP16"),
    "sqrdmlah v0.4s, v1.4s, v2.4s": (0x6E828420, "RDM"),
    "sdot v0.4s, v1.16b, v2.16b": (0x4E829420, "DotProd"),
    "fcmla v0.4s, v1.4s, v2.4s, #0": (0x6E82C420, "FCMA"),
    "fmlal v0.4s, v1.4h, v2.4h": (0x4E22EC20, "FHM"),
    "eor3 v0.16b, v1.16b, v2.16b, v3.16b": (0xCE020C20, "SHA3"),
    "sha512h q0, q1, v2.2d": (0xCE628020, "SHA512"),
    "bfdot v0.4s, v1.8h, v2.8h": (0x6E42FC20, "BF16"),
    "smmla v0.4s, v1.16b, v2.16b": (0x4E82A420, "I8MM"),
    "fjcvtzs w0, d1": (0x1E7E0020, "JSCVT"),
    "frint32z s0, s1": (0x1E284020, "FRINTTS"),
    "frint64x v0.2d, v1.2d": (0x6E61F820, "FRINTTS"),
    "fcadd v0.4h, v1.4h, v2.4h, #90": (0x2E42E420, "FCMA"),
    "bfcvt h0, s1": (0x1E634020, "BF16"),
    "rax1 v0.2d, v1.2d, v2.2d": (0xCE628C20, "SHA3"),
    "sm3ss1 v0.4s, v1.4s, v2.4s, v3.4s": (0xCE420C20, "SM3"),
    "sm4e v0.4s, v1.4s": (0xCEC08420, "SM4"),
}
"""Words by their text, and the feature that each belongs to."""

FEATURES = sorted({feature for _, feature in INSTRUCTIONS.values()})
MSR_FPCR, MRS_FPCR = 0xD51B_4400, 0xD53B_4401


def machine(features: Features) -> Machine:
    return Machine(0x4000, features)


@pytest.fixture(scope="module")
def full() -> Machine:
    return machine(Features())


@pytest.fixture(scope="module")
def bare() -> Machine:
    return machine(Features().without(*FEATURES))


def run(m: Machine, *words: int) -> tuple[bool, int]:
    """Whether the words run to their end, and the class of the exception else."""
    at = m.code.address + 0x2000
    for k, word in enumerate((*words, MARKERS[1])):
        m.put(at + 4 * k, word)
    outcome = m.run(at)
    return outcome.finished, outcome.ec


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_instructions_exist_with_their_feature_only(text: str, full: Machine, bare: Machine) -> None:
    word, _ = INSTRUCTIONS[text]
    assert disassemble(word) == text and assemble(text) == word
    assert run(full, word) == (True, 0)
    assert run(bare, word) == (False, EC_UNKNOWN)


def test_flushing_of_half_precision_can_be_chosen_with_its_feature_only(full: Machine, bare: Machine) -> None:
    for m, writable in ((full, 0x07C8_0000), (bare, 0x07C0_0000)):
        m.state.x[0] = 0xFFFF_FFFF
        assert run(m, MSR_FPCR, MRS_FPCR) == (True, 0)
        assert m.state.x[1] == writable


@pytest.mark.parametrize("feature", FEATURES)
def test_the_feature_shows_in_an_identification_register(feature: str) -> None:
    with_it, without_it = Features().id_values(), Features().without(feature).id_values()
    assert with_it != without_it


def test_an_instruction_may_need_two_features() -> None:
    features = Features()
    assert "FEAT_FCMA & FEAT_FP16" in features
    assert "FEAT_FCMA & FEAT_FP16" not in features.without("FP16") and "FCMA" in features.without("FP16")
