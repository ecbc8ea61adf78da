"""Exception entry and return, syndromes, routing and masking; CPython and LLVM must agree."""

from __future__ import annotations

import ctypes
import random

import pytest

from trapline.arm64 import exceptions as ex
from trapline.arm64.exceptions import EC, IL, NO_EXCEPTION, AbortSyndrome, Fsc, SysregSyndrome, Vector
from trapline.arm64.gic_interface import PHYSICAL
from trapline.arm64.regs import (
    CPACR_EL1,
    CPTR_EL2,
    ELR_EL1,
    ELR_EL2,
    ESR_EL1,
    ESR_EL2,
    FAR_EL1,
    FAR_EL2,
    HCR_EL2,
    ICH_HCR_EL2,
    ICH_LR0_EL2,
    ICH_VMCR_EL2,
    MDCR_EL2,
    SCTLR_EL1,
    SPSR_EL1,
    SPSR_EL2,
)
from trapline.arm64.state import CpuState
from trapline.bits.native import NativeFunction, compile_functions

NATIVES = [value for value in vars(ex).values() if isinstance(value, NativeFunction) and value.module == ex.__name__]
COMPILED = compile_functions(NATIVES)


def python_version(name: str):
    return getattr(ex, name)


def compiled_version(name: str):
    return COMPILED[name]


@pytest.fixture(params=[python_version, compiled_version], ids=["python", "llvm"])
def call(request):
    """A native function by name, in each of its two executions."""
    return request.param


def machine(el: int = 0, spsel: int = 0, **registers: int) -> CpuState:
    """A state at EL `el` with system registers by name."""
    from trapline.arm64.regs import TABLE

    state = CpuState()
    state.el, state.spsel = el, spsel
    for name, value in registers.items():
        state.sysreg[TABLE[name].slot] = value
    return state


def test_syndromes_from_the_manual() -> None:
    assert ex.esr_sysreg(0xC580, 3, True) == 0x6230_2C61
    syndrome = SysregSyndrome(ex.esr_sysreg(0xC102, 5, False))
    assert (syndrome.encoding, syndrome.Rt, syndrome.READ, syndrome.EC, syndrome.IL) == (0xC102, 5, 0, 0x18, 1)
    assert ex.esr(EC.SVC64, 7) == 0x5600_0007
    assert ex.esr(EC.HVC64) == 0x5A00_0000
    assert ex.esr_data_abort(Fsc.PERMISSION_L0 + 3, lower=True, write=True) == 0x9200_004F
    assert ex.esr_instruction_abort(Fsc.TRANSLATION_L0 + 1, lower=False) == 0x8600_0005
    access = ex.access_syndrome(2, 0, 9, 1, 0)
    decoded = AbortSyndrome(ex.esr_data_abort(Fsc.TRANSLATION_L0 + 1, lower=True, access=access))
    assert (decoded.ISV, decoded.SAS, decoded.SRT, decoded.SF, decoded.AR) == (1, 2, 9, 1, 0)


def test_svc_from_el0(call) -> None:
    state = machine(0, 0, VBAR_EL1=0x8000, SCTLR_EL1=int(SCTLR_EL1(SPAN=1)))
    state.sp, state.sp_el[1], state.n, state.c = 0x1000, 0x2000, 1, 1
    call("take_exception")(state, 1, ex.esr(EC.SVC64), 0xBAD, Vector.SYNC, 0x4004)
    assert (state.el, state.spsel, state.daif, state.pc) == (1, 1, 15, 0x8400)
    assert (state.sp, state.sp_el[0]) == (0x2000, 0x1000)
    assert state.sysreg[ELR_EL1.slot] == 0x4004
    assert state.sysreg[SPSR_EL1.slot] == 0xA000_0000
    assert state.sysreg[ESR_EL1.slot] == 0x5600_0000
    assert state.sysreg[FAR_EL1.slot] == 0
    assert state.pan == 0


@pytest.mark.parametrize(
    ("el", "spsel", "target", "kind", "offset"),
    [
        (1, 0, 1, Vector.SYNC, 0x000),
        (1, 1, 1, Vector.IRQ, 0x280),
        (0, 0, 1, Vector.FIQ, 0x500),
        (0, 0, 2, Vector.SERROR, 0x580),
        (1, 1, 2, Vector.IRQ, 0x480),
        (2, 1, 2, Vector.SYNC, 0x200),
    ],
)
def test_vectors(call, el: int, spsel: int, target: int, kind: Vector, offset: int) -> None:
    state = machine(el, spsel, VBAR_EL1=0x1_0000, VBAR_EL2=0x1_0000)
    call("take_exception")(state, target, ex.esr(EC.UNKNOWN), 0, kind, 0)
    assert state.pc == 0x1_0000 + offset
    assert (state.el, state.spsel) == (target, 1)


def test_interrupts_leave_the_syndrome_alone(call) -> None:
    state = machine(1, 1, ESR_EL1=0x1234, FAR_EL1=0x5678)
    call("take_exception")(state, 1, ex.esr(EC.DATA_ABORT), 1, Vector.IRQ, 0)
    assert (state.sysreg[ESR_EL1.slot], state.sysreg[FAR_EL1.slot]) == (0x1234, 0x5678)


def test_aborts_write_the_fault_address(call) -> None:
    for ec in (EC.DATA_ABORT_LOWER, EC.INSN_ABORT_LOWER, EC.PC_ALIGNMENT, EC.WATCHPOINT_LOWER):
        state = machine(1, 1)
        call("take_exception")(state, 2, ex.esr(ec), 0xABC, Vector.SYNC, 0)
        assert state.sysreg[FAR_EL2.slot] == 0xABC
        assert state.sysreg[ESR_EL2.slot] == ex.esr(ec)


def test_pan_on_entry(call) -> None:
    state = machine(0, 0, SCTLR_EL1=0)
    call("take_exception")(state, 1, ex.esr(EC.SVC64), 0, Vector.SYNC, 0)
    assert state.pan == 1
    host = int(HCR_EL2(E2H=1, TGE=1))
    for hcr, pan in ((host, 1), (0, 0)):
        state = machine(0, 0, HCR_EL2=hcr)
        call("take_exception")(state, 2, ex.esr(EC.SVC64), 0, Vector.SYNC, 0)
        assert state.pan == pan


def random_pstate(rng: random.Random, el: int) -> CpuState:
    state = machine(el, rng.randrange(2) if el else 0)
    for name, bits in (("n", 1), ("z", 1), ("c", 1), ("v_flag", 1), ("daif", 4), ("pan", 1), ("uao", 1), ("dit", 1), ("ssbs", 1)):
        setattr(state, name, rng.getrandbits(bits))
    state.btype, state.tco = rng.getrandbits(2), rng.getrandbits(1)
    state.pc, state.sp = rng.getrandbits(48), rng.getrandbits(48)
    for bank in range(3):
        state.sp_el[bank] = rng.getrandbits(48)
    return state


def visible(state: CpuState) -> dict[str, int]:
    names = "n z c v_flag daif pan uao dit ssbs btype tco el spsel sp pc".split()
    return {name: getattr(state, name) for name in names}


@pytest.mark.parametrize(("el", "target"), [(0, 1), (1, 1), (0, 2), (1, 2), (2, 2)])
def test_entry_and_return_are_inverse(call, el: int, target: int) -> None:
    rng = random.Random(el * 10 + target)
    for _ in range(50):
        state = random_pstate(rng, el)
        before = visible(state)
        call("take_exception")(state, target, ex.esr(EC.SVC64), 0, Vector.SYNC, state.pc)
        state.n, state.daif, state.ssbs = 1, 3, 1
        call("exception_return")(state)
        assert visible(state) == before
        assert state.event == 1


@pytest.mark.parametrize(
    ("from_el", "spsr", "hcr", "illegal"),
    [
        (1, 0x0, 0, False),
        (1, 0x4, 0, False),
        (1, 0x5, 0, False),
        (1, 0x9, 0, True),
        (2, 0x9, 0, False),
        (2, 0xD, 0, True),
        (1, 0x1, 0, True),
        (1, 0x6, 0, True),
        (1, 0x10, 0, True),
        (2, 0x1F, 0, True),
        (2, 0x5, int(HCR_EL2(TGE=1)), True),
        (2, 0x0, int(HCR_EL2(TGE=1)), False),
    ],
)
def test_illegal_returns(call, from_el: int, spsr: int, hcr: int, illegal: bool) -> None:
    state = machine(from_el, 1, HCR_EL2=hcr)
    spsr |= 0xF000_0000 | 0x80
    for register, value in ((SPSR_EL1, spsr), (SPSR_EL2, spsr), (ELR_EL1, 0x40), (ELR_EL2, 0x40)):
        state.sysreg[register.slot] = value
    state.sp, state.sp_el[0] = 5, 6
    call("exception_return")(state)
    assert state.pc == 0x40
    assert (state.n, state.daif) == (1, 2)
    assert state.il == illegal
    if illegal:
        assert (state.el, state.spsel, state.sp) == (from_el, 1, 5)
    else:
        assert state.el == spsr >> 2 & 3


def test_routing(call) -> None:
    route = call("route_sync")
    assert route(machine(0)) == 1
    assert route(machine(0, HCR_EL2=int(HCR_EL2(TGE=1)))) == 2
    assert route(machine(1)) == 1
    assert route(machine(2)) == 2
    assert call("route_external_abort")(machine(1, HCR_EL2=int(HCR_EL2(TEA=1)))) == 2
    assert call("route_debug")(machine(1, MDCR_EL2=int(MDCR_EL2(TDE=1)))) == 2
    assert call("hvc_outcome")(machine(0)) == 0
    assert call("hvc_outcome")(machine(1)) == 2
    assert call("hvc_outcome")(machine(1, HCR_EL2=int(HCR_EL2(HCD=1)))) == 0
    assert call("smc_outcome")(machine(1)) == 0
    assert call("smc_outcome")(machine(1, HCR_EL2=int(HCR_EL2(TSC=1)))) == 2


def test_wait_traps(call) -> None:
    wait = call("wait_trap")
    assert wait(machine(0), 0) == 1
    assert wait(machine(0, SCTLR_EL1=int(SCTLR_EL1(nTWI=1))), 0) == 0
    assert wait(machine(0, SCTLR_EL1=int(SCTLR_EL1(nTWI=1))), 1) == 1
    assert wait(machine(1, HCR_EL2=int(HCR_EL2(TWI=1))), 0) == 2
    assert wait(machine(1, HCR_EL2=int(HCR_EL2(TWI=1))), 1) == 0
    assert wait(machine(2, HCR_EL2=int(HCR_EL2(TWI=1))), 0) == 0


def test_fp_traps(call) -> None:
    trap = call("fp_trap")
    on = int(CPACR_EL1(FPEN=3))
    assert trap(machine(1)) == 1
    assert trap(machine(0, HCR_EL2=int(HCR_EL2(TGE=1)))) == 2
    assert trap(machine(0, CPACR_EL1=int(CPACR_EL1(FPEN=1)))) == 1
    assert trap(machine(1, CPACR_EL1=int(CPACR_EL1(FPEN=1)))) == 0
    assert trap(machine(1, CPACR_EL1=on)) == 0
    assert trap(machine(1, CPACR_EL1=on, CPTR_EL2=int(CPTR_EL2(TFP=1)))) == 2
    e2h = int(HCR_EL2(E2H=1))
    assert trap(machine(1, CPACR_EL1=on, HCR_EL2=e2h)) == 2
    assert trap(machine(1, CPACR_EL1=on, HCR_EL2=e2h, CPTR_EL2=int(CPTR_EL2(FPEN=3)))) == 0


def test_virtual_interrupts(call) -> None:
    pending = call("pending_virtual_exception")
    vi, vf = int(HCR_EL2(VI=1, IMO=1)), int(HCR_EL2(VF=1, FMO=1))
    assert pending(machine(1, HCR_EL2=vi)) == Vector.IRQ
    assert pending(machine(0, HCR_EL2=vf)) == Vector.FIQ
    assert pending(machine(1, HCR_EL2=int(HCR_EL2(VI=1)))) == NO_EXCEPTION
    assert pending(machine(2, HCR_EL2=vi)) == NO_EXCEPTION
    assert pending(machine(1, HCR_EL2=vi | HCR_EL2.TGE.mask)) == NO_EXCEPTION
    masked = machine(1, HCR_EL2=vi)
    masked.daif = 2
    assert pending(masked) == NO_EXCEPTION
    assert pending(machine(1, HCR_EL2=vi | int(HCR_EL2(AMO=1, VSE=1)))) == Vector.SERROR


def test_an_interrupt_in_a_list_register_is_taken(call) -> None:
    state = machine(
        1,
        1,
        HCR_EL2=int(HCR_EL2(IMO=1, FMO=1)),
        ICH_HCR_EL2=int(ICH_HCR_EL2(En=1)),
        ICH_VMCR_EL2=int(ICH_VMCR_EL2(VENG1=1, VPMR=0xF0)),
        ICH_LR0_EL2=int(ICH_LR0_EL2(vINTID=27, Priority=0xA0, Group=1, State=1)),
    )
    state.pc = 0x100
    assert call("pending_virtual_exception")(state) == Vector.IRQ
    call("take_virtual_exception")(state, Vector.IRQ)
    assert (state.el, state.pc, state.sysreg[ELR_EL1.slot]) == (1, 0x280, 0x100)
    assert call("pending_virtual_exception")(state) == NO_EXCEPTION


def test_virtual_serror_is_taken_once(call) -> None:
    state = machine(1, 1, HCR_EL2=int(HCR_EL2(AMO=1, VSE=1)))
    call("take_virtual_exception")(state, Vector.SERROR)
    assert HCR_EL2(state.sysreg[HCR_EL2.slot]).VSE == 0
    assert state.sysreg[ESR_EL1.slot] == EC.SERROR << 26 | IL


PHYSICAL_ROUTES = (
    # E2H TGE IMO: the level that takes an IRQ, or None where it stays pending; at EL0, EL1 and EL2, first with PSTATE.I clear, then set
    ((0, 0, 0), (1, 1, None), (None, None, None)),
    ((0, 0, 1), (2, 2, 2), (2, 2, None)),
    ((0, 1, 0), (2, 2, 2), (2, 2, None)),
    ((0, 1, 1), (2, 2, 2), (2, 2, None)),
    ((1, 0, 0), (1, 1, None), (None, None, None)),
    ((1, 0, 1), (2, 2, 2), (2, 2, None)),
    ((1, 1, 0), (2, 2, 2), (None, None, None)),
    ((1, 1, 1), (2, 2, 2), (None, None, None)),
)
"""The manual's tables of routing and masking physical interrupts, without EL3."""


@pytest.mark.parametrize(("controls", "unmasked", "masked"), PHYSICAL_ROUTES)
def test_physical_interrupts(call, controls, unmasked, masked) -> None:
    e2h, tge, imo = controls
    lr = 1 << 62 | 1 << 60 | 0xA0 << 48 | 40
    for daif, row in ((0, unmasked), (2, masked)):
        for el, target in enumerate(row):
            if el == 1 and tge:
                continue  # there is no EL1 then
            state = machine(el, HCR_EL2=int(HCR_EL2(E2H=e2h, TGE=tge, IMO=imo)))
            for reg, value in ((ICH_HCR_EL2, 1), (ICH_VMCR_EL2, 0xF800_0003), (ICH_LR0_EL2, lr)):
                state.sysreg[PHYSICAL + reg.slot] = value
            state.daif = daif
            found = call("pending_physical_exception")(state)
            assert found == (NO_EXCEPTION if target is None else Vector.IRQ), (controls, el, daif)
            if target is not None:
                call("take_physical_exception")(state, found)
                assert state.el == target


def test_both_executions_agree_on_random_states() -> None:
    rng = random.Random(3)
    for _ in range(200):
        first = random_pstate(rng, rng.randrange(3))
        for slot in range(512):
            first.sysreg[slot] = rng.getrandbits(64)
        second = CpuState.from_buffer_copy(first)
        target, kind = max(first.el, rng.randrange(1, 3)), rng.choice(list(Vector))
        args = target, rng.getrandbits(32), rng.getrandbits(64), kind, rng.getrandbits(64)
        ex.take_exception(first, *args)
        COMPILED["take_exception"](second, *args)
        ex.exception_return(first)
        COMPILED["exception_return"](second)
        assert ctypes.string_at(ctypes.addressof(first), ctypes.sizeof(first)) == ctypes.string_at(
            ctypes.addressof(second), ctypes.sizeof(second)
        )
