"""Floating point, Advanced SIMD and crypto instructions against Unicorn, one instruction at a time on random states.

Every declared pattern runs on several random words. V, X, SP, NZCV, FPSR and memory must agree for the recording of the word,
for the recording of its shape (operands symbolic), and for compiled code. TRAPLINE_SIMD_CASES sets how many words each
pattern gets.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest
import simd_cases
from simd_cases import BUFFER, DATA, GROUPS, Case, differences

from trapline.arm64 import effects as fx
from trapline.arm64.record import Recorder
from trapline.arm64.regs import TABLE
from trapline.arm64.state import CpuState
from trapline.bits import Bits
from trapline.bits.evaluate import Evaluator

CASES = int(os.environ.get("TRAPLINE_SIMD_CASES", "4"))


def slot(name: str) -> int:
    return TABLE[name].slot


FPCR, FPSR = slot("FPCR"), slot("FPSR")


def load_state(case: Case, state: CpuState) -> None:
    """Put the registers of a case into a CPU state."""
    for k, vector in enumerate(case.v):
        state.v[k].lo, state.v[k].hi = vector & (1 << 64) - 1, vector >> 64
    for k, x in enumerate(case.x):
        state.x[k] = x
    state.n, state.z, state.c, state.v_flag = (case.nzcv >> k & 1 for k in (3, 2, 1, 0))
    state.sysreg[FPCR], state.sysreg[FPSR] = case.fpcr, case.fpsr


def outcome(state: CpuState, sp: int, nzcv: int, memory: bytes) -> dict[str, object]:
    """What is compared with the oracle."""
    return {
        **{f"v{k}": vector.lo | vector.hi << 64 for k, vector in enumerate(state.v)},
        **{f"x{k}": state.x[k] for k in range(31)},
        "sp": sp,
        "nzcv": nzcv,
        "fpsr": state.sysreg[FPSR],
        "memory": memory,
    }


def run_recording(case: Case, recorder: Recorder) -> dict[str, object]:
    """Evaluate a recording, of a word or of a shape, on the case's state."""
    state, memory = CpuState(), bytearray(case.memory)
    base = ctypes.addressof(state)
    load_state(case, state)
    state.sp = case.sp

    def leaf(node: Bits) -> int:
        if node.op == "word":
            return case.word
        if node.op == "decoded":
            return value(node.args[0]) & (1 << node.width) - 1
        assert node.op == "state", node
        offset = value(node.args[0]) if node.args else node.attr
        return int.from_bytes(ctypes.string_at(base + offset, node.width // 8), "little")

    value = Evaluator(leaf)
    for effect in recorder.effects:
        at = value(effect.addr) - DATA
        if isinstance(effect, fx.Load):
            value.set(effect.result, int.from_bytes(memory[at : at + effect.width // 8], "little"))
        else:
            size = effect.value.width // 8
            memory[at : at + size] = value(effect.value).to_bytes(size, "little")
    for offset, storage, new in [
        (value(w.offset) if isinstance(w.offset, Bits) else w.offset, w.storage, value(w.value)) for w in recorder.writes
    ]:
        ctypes.memmove(base + offset, new.to_bytes(storage // 8, "little"), storage // 8)
    nzcv = state.n << 3 | state.z << 2 | state.c << 1 | state.v_flag
    return outcome(state, state.sp, nzcv, bytes(memory))


@pytest.fixture(scope="module")
def oracle() -> simd_cases.Oracle:
    return simd_cases.Oracle()


@pytest.mark.parametrize("group", GROUPS)
def test_recordings_agree_with_oracle(group: str, oracle: simd_cases.Oracle) -> None:
    wrong: list[str] = []
    for case in simd_cases.cases_of(group, CASES):
        insn = case.insn
        expected = oracle.run(case)
        wrong += differences(case, expected, run_recording(case, insn.record_word(case.word, slot)))
        wrong += differences(case, expected, run_recording(case, insn.record_shape(insn.shape_of(case.word), slot)))
    assert not wrong, "\n".join(wrong[:40]) + f"\n{len(wrong)} differences"


class Compiled:
    """A PE of the engine at EL1 with translation off, so that addresses are host addresses."""

    HVC = 0xD4000002

    def __init__(self) -> None:
        from trapline.engine import Engine

        self.cpu = Engine().create_cpu()
        self.texts: list[mmap.mmap] = []
        self.set("HCR_EL2", 1 << 31)
        self.set("CPACR_EL1", 3 << 20)

    def set(self, name: str, value: int) -> None:
        self.cpu[TABLE[name]] = value

    def get(self, name: str) -> int:
        return self.cpu[TABLE[name]]

    def place(self, words: list[int]) -> int:
        """The address of a new text of these words, each followed by HVC. Texts stay: the engine remembers their pages."""
        data = b"".join(word.to_bytes(4, "little") + self.HVC.to_bytes(4, "little") for word in words)
        text = mmap.mmap(-1, len(data))
        text[:] = data
        self.texts.append(text)
        return ctypes.addressof(ctypes.c_char.from_buffer(text))

    def run(self, case: Case, address: int) -> dict[str, object]:
        """Run the instruction at `address`, which an HVC follows."""
        state = self.cpu.state
        load_state(case, state)
        state.sp_el[1] = case.sp
        BUFFER[:] = case.memory
        self.set("ELR_EL2", address)
        self.set("SPSR_EL2", case.nzcv << 28 | 0x3C5)
        self.cpu.enter()
        assert self.get("ESR_EL2") >> 26 == 0x16, f"{case.insn.name} {case.word:08x}: ESR_EL2 {self.get('ESR_EL2'):x}"
        return outcome(state, state.sp_el[1], self.get("SPSR_EL2") >> 28, BUFFER[:])


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return Compiled()


@pytest.mark.parametrize("group", GROUPS)
def test_compiled_code_agrees_with_oracle(group: str, oracle: simd_cases.Oracle, compiled: Compiled) -> None:
    cases = list(simd_cases.cases_of(group, CASES))
    base = compiled.place([case.word for case in cases])
    wrong: list[str] = []
    for k, case in enumerate(cases):
        wrong += differences(case, oracle.run(case), compiled.run(case, base + 8 * k))
    assert not wrong, "\n".join(wrong[:40]) + f"\n{len(wrong)} differences"
