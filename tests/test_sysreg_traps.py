"""Trap routing: the rows' meaning in examples, the compiled decision against the definition, and the access functions."""

from __future__ import annotations

import random

import pytest

from trapline.arm64.features import Features
from trapline.arm64.regs import (
    CNTHCTL_EL2,
    CNTKCTL_EL1,
    CNTP_CVAL_EL0,
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    CNTVOFF_EL2,
    CPACR_EL1,
    CPTR_EL2,
    FPCR,
    HCR_EL2,
    ICC_SGI1R_EL1,
    ID_AA64PFR0_EL1,
    MDCR_EL2,
    MIDR_EL1,
    OSLSR_EL1,
    PMCR_EL0,
    SCTLR_EL1,
    TABLE,
    TPIDRRO_EL0,
    VPIDR_EL2,
)
from trapline.arm64.regs.system import BY_ENCODING, SYSTEM_OPS
from trapline.arm64.state import CpuState
from trapline.arm64.sysreg import encode
from trapline.arm64.sysreg_functions import FUNCTIONS, cval_from_tval, next_timer_count, timer_lines, tval_from_cval
from trapline.arm64.traps import (
    OK,
    TRAPPED,
    UNDEFINED,
    Trapped,
    Undefined,
    access_outcome,
    access_result,
    unallocated_outcome,
    unallocated_result,
)
from trapline.registers import Register


def result(row, el, write, **controls):
    """`access_result` with control registers given as NAME=value, all others 0."""
    return access_result(row, el, write, lambda register: controls.get(register.__name__, 0))


def test_privilege() -> None:
    assert result(TABLE["TCR_EL1"], 0, False) == Undefined()
    assert result(TABLE["TCR_EL1"], 1, True) is None
    assert result(HCR_EL2, 1, False) == Undefined()
    assert result(TPIDRRO_EL0, 0, False) is None
    assert result(TPIDRRO_EL0, 0, True) == Undefined()
    assert result(TABLE["CurrentEL"], 1, True) == Undefined()


def test_virtual_memory_controls() -> None:
    tvm = int(HCR_EL2(TVM=1))
    assert result(TABLE["TTBR0_EL1"], 1, True, HCR_EL2=tvm) == Trapped(2, 0x18)
    assert result(TABLE["TTBR0_EL1"], 1, False, HCR_EL2=tvm) is None
    assert result(TABLE["TTBR0_EL1"], 2, True, HCR_EL2=tvm) is None


def test_el0_controls_go_to_el1_and_with_tge_to_el2() -> None:
    daif = TABLE["DAIF"]
    assert result(daif, 0, True) == Trapped(1, 0x18)
    assert result(daif, 0, True, HCR_EL2=int(HCR_EL2(TGE=1))) == Trapped(2, 0x18)
    assert result(daif, 0, True, SCTLR_EL1=int(SCTLR_EL1(UMA=1))) is None


def test_el1_is_asked_before_el2() -> None:
    ctr = TABLE["CTR_EL0"]
    assert result(ctr, 0, False, HCR_EL2=int(HCR_EL2(TID2=1))) == Trapped(1, 0x18)
    assert result(ctr, 0, False, HCR_EL2=int(HCR_EL2(TID2=1)), SCTLR_EL1=int(SCTLR_EL1(UCT=1))) == Trapped(2, 0x18)


def test_timer_controls_move_with_e2h() -> None:
    timer, e2h = TABLE["CNTP_CTL_EL0"], int(HCR_EL2(E2H=1))
    assert result(timer, 1, False) == Trapped(2, 0x18)
    assert result(timer, 1, False, CNTHCTL_EL2=int(CNTHCTL_EL2(EL1PCEN=1))) is None
    assert result(timer, 1, False, CNTHCTL_EL2=int(CNTHCTL_EL2(EL1PCEN=1)), HCR_EL2=e2h) == Trapped(2, 0x18)
    assert result(timer, 1, False, CNTHCTL_EL2=int(CNTHCTL_EL2(EL1PTEN_E2H=1)), HCR_EL2=e2h) is None
    virtual = TABLE["CNTVCT_EL0"]
    assert result(virtual, 0, False) == Trapped(1, 0x18)
    assert result(virtual, 0, False, CNTKCTL_EL1=int(CNTKCTL_EL1(EL0VCTEN=1))) is None


def test_id_registers_and_sgis_and_floating_point() -> None:
    assert result(ID_AA64PFR0_EL1, 1, False, HCR_EL2=int(HCR_EL2(TID3=1))) == Trapped(2, 0x18)
    assert result(ICC_SGI1R_EL1, 1, True, HCR_EL2=int(HCR_EL2(IMO=1))) == Trapped(2, 0x18)
    assert result(FPCR, 0, False, CPACR_EL1=int(CPACR_EL1(FPEN=1))) == Trapped(1, 0x07)
    assert result(FPCR, 0, False, CPACR_EL1=int(CPACR_EL1(FPEN=3))) is None
    assert result(FPCR, 0, False, CPACR_EL1=int(CPACR_EL1(FPEN=1)), HCR_EL2=int(HCR_EL2(TGE=1))) == Trapped(2, 0)


def test_a_host_s_el0_is_ruled_by_el2() -> None:
    """HCR_EL2.E2H and TGE: SCTLR_EL2, CPTR_EL2 and CNTHCTL_EL2 stand in for EL1's controls, and EL2's traps don't apply."""
    host = int(HCR_EL2(E2H=1, TGE=1, TID2=1, TPCP=1))
    ctr, counter = TABLE["CTR_EL0"], TABLE["CNTVCT_EL0"]
    assert result(ctr, 0, False, HCR_EL2=host, SCTLR_EL1=int(SCTLR_EL1(UCT=1))) == Trapped(2, 0x18)
    assert result(ctr, 0, False, HCR_EL2=host, SCTLR_EL2=int(SCTLR_EL1(UCT=1))) is None
    assert result(counter, 0, False, HCR_EL2=host, CNTKCTL_EL1=3) == Trapped(2, 0x18)
    assert result(counter, 0, False, HCR_EL2=host, CNTHCTL_EL2=2) is None
    assert result(FPCR, 0, False, HCR_EL2=host, CPACR_EL1=int(CPACR_EL1(FPEN=3))) == Trapped(2, 0x07)
    assert result(FPCR, 0, False, HCR_EL2=host, CPTR_EL2=int(CPTR_EL2(FPEN=3))) is None
    assert result(FPCR, 0, False, HCR_EL2=host, CPTR_EL2=int(CPTR_EL2(FPEN=1))) == Trapped(2, 0x07)


def test_system_instructions() -> None:
    zva = BY_ENCODING[encode((1, 3, 7, 4, 1))]
    assert result(zva, 0, True) == Trapped(1, 0x18)
    assert result(zva, 1, True) is None
    tlbi = BY_ENCODING[encode((1, 0, 8, 3, 1))]
    assert result(tlbi, 0, True) == Undefined()
    assert result(tlbi, 1, True, HCR_EL2=int(HCR_EL2(TTLB=1))) == Trapped(2, 0x18)


def test_implementation_defined_space() -> None:
    def read(register: type[Register]) -> int:
        return int(HCR_EL2(TIDCP=1)) if register is HCR_EL2 else 0

    assert unallocated_result(0xC580, 1, read) == Trapped(2, 0x18)
    assert unallocated_result(0xC780, 1, read) == Trapped(2, 0x18)
    assert unallocated_result(0xC780, 0, read) == Undefined()
    assert unallocated_result(0xC780, 1, lambda register: 0) == Undefined()
    assert unallocated_result(0xC500, 1, read) == Undefined()


def test_performance_monitors_trap_although_the_machine_has_none() -> None:
    """PMCR_EL0, PMINTENSET_EL1, PMEVCNTR0_EL0; by the definition and compiled."""
    for encoding, els in ((encode((3, 3, 9, 12, 0)), (0, 1)), (encode((3, 0, 9, 14, 1)), (1,)), (encode((3, 3, 14, 8, 0)), (0, 1))):
        for el in range(3):
            for trap in (False, True):
                state = CpuState()
                state.el, state.sysreg[MDCR_EL2.slot] = el, MDCR_EL2(TPM=trap)
                wanted = unallocated_result(encoding, el, lambda register, state=state: state.sysreg[register.slot])
                assert wanted == (Trapped(2, 0x18) if trap and el in els else Undefined()), (hex(encoding), el)
                outcome = unallocated_outcome(state, encoding)
                assert outcome == (TRAPPED | 2 << 8 | 0x18 << 16 if isinstance(wanted, Trapped) else UNDEFINED)


def test_compiled_decision_is_the_defined_one() -> None:
    from trapline.bits.native import compile_functions

    compiled = compile_functions([access_outcome])["access_outcome"]
    rng = random.Random(20)
    state = CpuState()
    for count in range(6000):
        row = rng.choice((*TABLE, *SYSTEM_OPS))
        write, state.el = rng.random() < 0.5, rng.randrange(3)
        for register in {HCR_EL2} | {test.register for trap in row.traps for test in trap.when.tests}:
            state.sysreg[TABLE[register.__name__].slot] = rng.getrandbits(64)
        wanted = access_result(row, state.el, write, lambda register: state.sysreg[TABLE[register.__name__].slot])
        code = OK if wanted is None else UNDEFINED if wanted == Undefined() else TRAPPED | wanted.target << 8 | wanted.ec << 16
        assert compiled(state, row.encoding, write) == code, (row, state.el, write)
        if count % 20 == 0:
            assert access_outcome(state, row.encoding, write) == code


def test_every_existing_register_has_its_functions() -> None:
    features = Features()
    for reg in TABLE:
        if reg.exists(features):
            assert {reg.read, reg.write} - {None} <= FUNCTIONS.keys(), reg.name


def test_features_decide_what_exists() -> None:
    features = Features()
    assert not PMCR_EL0.exists(features)
    assert TABLE["DBGBVR5_EL1"].exists(features)
    assert not TABLE["DBGBVR6_EL1"].exists(features)
    fewer = Features(breakpoints=2)
    assert not TABLE["DBGBVR5_EL1"].exists(fewer)
    assert repr(fewer) != repr(features), "their code is not the same"
    assert not TABLE["APIAKeyLo_EL1"].exists(features.without("FEAT_PAuth"))
    values = features.id_values()
    assert ID_AA64PFR0_EL1(values[ID_AA64PFR0_EL1]).GIC == 1
    assert TABLE["ID_AA64ISAR0_EL1"](values[TABLE["ID_AA64ISAR0_EL1"]]).Atomic == 2
    without = features.without("LSE")
    assert "LSE2" not in without
    assert "FEAT_LSE" in features
    assert TABLE["ID_AA64ISAR0_EL1"](without.id_values()[TABLE["ID_AA64ISAR0_EL1"]]).Atomic == 0


def test_asking_for_the_impossible_is_refused() -> None:
    from trapline.errors import NotSupported

    with pytest.raises(NotSupported, match="FEAT_SVE is not implemented"):
        Features().with_("SVE")
    with pytest.raises(NotSupported, match="requires FEAT_LSE"):
        Features(["LSE2"])


def test_virtual_identity() -> None:
    state = CpuState()
    state.sysreg[MIDR_EL1.slot], state.sysreg[VPIDR_EL2.slot] = 1, 2
    state.el = 1
    assert FUNCTIONS["midr_read"](state) == 2
    state.el = 2
    assert FUNCTIONS["midr_read"](state) == 1


def test_stack_pointer_of_el0_while_it_is_selected() -> None:
    state = CpuState()
    state.el, state.spsel, state.sp = 1, 1, 100
    FUNCTIONS["sp_el0_write"](state, 7)
    FUNCTIONS["spsel_write"](state, 0)
    assert (state.sp, state.sp_el[1]) == (7, 100)
    assert FUNCTIONS["sp_el0_read"](state) == 7
    FUNCTIONS["spsel_write"](state, 1)
    assert (state.sp, state.sp_el[0]) == (100, 7)


def test_timers() -> None:
    state = CpuState()
    state.sysreg[CNTVOFF_EL2.slot] = 1000
    state.sysreg[CNTV_CTL_EL0.slot] = 1
    state.sysreg[CNTV_CVAL_EL0.slot] = 500
    assert timer_lines(state, 1499) == 0
    assert timer_lines(state, 1500) == 1
    assert next_timer_count(state, 1200) == 1500
    state.sysreg[CNTV_CTL_EL0.slot] = 3
    assert timer_lines(state, 1500) == 0
    assert next_timer_count(state, 1200) == (1 << 64) - 1
    state.sysreg[TABLE["CNTP_CTL_EL0"].slot] = 1
    state.sysreg[CNTP_CVAL_EL0.slot] = 1100
    assert timer_lines(state, 1200) == 2
    assert next_timer_count(state, 1200) == 1200
    assert tval_from_cval(100, 200) == 0xFFFF_FF9C
    assert cval_from_tval(0xFFFF_FF9C, 200) == 100
    assert cval_from_tval(50, 200) == 250


def test_physical_offset() -> None:
    """CNTPOFF_EL2 delays EL1's physical timer where CNTHCTL_EL2.ECV says so, and where EL1 is below EL2."""
    state = CpuState()
    state.sysreg[TABLE["CNTP_CTL_EL0"].slot] = 1
    state.sysreg[CNTP_CVAL_EL0.slot] = 500
    state.sysreg[TABLE["CNTPOFF_EL2"].slot] = 300
    assert timer_lines(state, 500) == 2 and next_timer_count(state, 100) == 500
    state.sysreg[CNTHCTL_EL2.slot] = CNTHCTL_EL2(ECV=1)
    assert timer_lines(state, 799) == 0 and timer_lines(state, 800) == 2 and next_timer_count(state, 400) == 800
    state.sysreg[HCR_EL2.slot] = HCR_EL2(E2H=1, TGE=1)
    assert timer_lines(state, 500) == 2 and next_timer_count(state, 100) == 500


def test_os_lock() -> None:
    state = CpuState()
    state.sysreg[OSLSR_EL1.slot] = OSLSR_EL1.reset_value()
    FUNCTIONS["oslar_write"](state, 0)
    assert OSLSR_EL1(state.sysreg[OSLSR_EL1.slot]).OSLK == 0
    FUNCTIONS["oslar_write"](state, 1)
    assert OSLSR_EL1(state.sysreg[OSLSR_EL1.slot]).OSLK == 1


def test_instructions_name_declared_features() -> None:
    from trapline.arm64.features import BY_NAME
    from trapline.arm64.isa import load_a64

    named = {name.removeprefix("FEAT_") for insn in load_a64().insns if insn.feature for name in insn.feature.split(" & ")}
    assert named <= BY_NAME.keys()
    assert all(BY_NAME[name].implemented for name in named)
