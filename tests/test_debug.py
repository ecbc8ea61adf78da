"""Self-hosted debug: the rules of matching, and what the engine makes of them."""

from __future__ import annotations

import random
import time

import pytest

from tests.engine_machine import EL0, PTE_USER, Bench
from trapline.arm64 import debug
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.features import Features
from trapline.arm64.regs import (
    CONTEXTIDR_EL1,
    CONTEXTIDR_EL2,
    CPACR_EL1,
    ELR_EL1,
    ELR_EL2,
    ESR_EL1,
    ESR_EL2,
    FAR_EL1,
    FAR_EL2,
    HCR_EL2,
    ID_AA64DFR0_EL1,
    MDCR_EL2,
    MDSCR_EL1,
    OSLSR_EL1,
    SPSR_EL1,
    SPSR_EL2,
    TABLE,
    TCR_EL1,
    VTCR_EL2,
    VTTBR_EL2,
)
from trapline.arm64.regs.debug import DBGBCR, DBGBVR, DBGWCR, DBGWVR, DebugControl, WatchControl
from trapline.arm64.state import CpuState
from trapline.bits.native import compile_functions
from trapline.engine import Cpu

D, SS = 8, 1 << 21
BREAK, STEP, WATCH, BRK, HVC = 0x30, 0x32, 0x34, 0x3C, 0x16
FUNCTIONS = (
    debug.debug_enabled, debug.step_after_return, debug.breakpoint_hit, debug.watchpoint_hit, debug.page_is_watched,
    debug.watchpoints_on, debug.linked_match,
)  # fmt: skip
COMPILED = compile_functions(FUNCTIONS)


def machine(el: int = 1, **registers: int) -> CpuState:
    """A PE with the OS lock open and debug exceptions going to EL2, so that nothing masks them."""
    state = CpuState()
    state.el = el
    for reg, value in Features().reset_values().items():
        state.sysreg[reg.slot] = int(value)
    values = {
        "OSLSR_EL1": 8,
        "MDSCR_EL1": int(MDSCR_EL1(MDE=1)),
        "MDCR_EL2": int(MDCR_EL2(TDE=1)),
        "VTCR_EL2": 0,
        "TCR_EL1": 0,
        **registers,
    }
    for name, value in values.items():
        state.sysreg[TABLE[name].slot] = value
    return state


@pytest.mark.parametrize(
    ("el", "tde", "kde", "masked", "locked", "enabled"),
    [
        (0, 0, 0, 1, 0, True),
        (1, 0, 0, 0, 0, False),
        (1, 0, 1, 0, 0, True),
        (1, 0, 1, 1, 0, False),
        (1, 1, 0, 1, 0, True),
        (2, 0, 1, 0, 0, False),
        (2, 1, 0, 0, 0, False),
        (2, 1, 1, 0, 0, True),
        (2, 1, 1, 1, 0, False),
        (0, 1, 1, 0, 1, False),
    ],
)
def test_where_debug_exceptions_are_enabled(el: int, tde: int, kde: int, masked: int, locked: int, enabled: bool) -> None:
    state = machine(el, MDCR_EL2=int(MDCR_EL2(TDE=tde)), MDSCR_EL1=int(MDSCR_EL1(KDE=kde)), OSLSR_EL1=8 | locked << 1)
    state.daif = D * masked
    assert bool(debug.debug_enabled(state)) == enabled
    assert bool(COMPILED["debug_enabled"](state)) == enabled


HERE = 0xFFFF_8000_1234_5678 & ~3


def break_at(n: int = 0, value: int = HERE, **fields: int) -> dict[str, int]:
    control = DebugControl(**{"E": 1, "PMC": 3, "BAS": 15, **fields})
    return {DBGBVR[n].name: value, DBGBCR[n].name: int(control)}


@pytest.mark.parametrize(
    ("el", "registers", "hit"),
    [
        (1, break_at(), True),
        (1, break_at(5), True),
        (1, break_at(6), False),  # there are six
        (1, break_at(E=0), False),
        (1, break_at(value=HERE + 4), False),
        (1, break_at(value=HERE ^ 1 << 60), False),
        (0, break_at(PMC=1), False),
        (1, break_at(PMC=2), False),
        (0, break_at(PMC=2), True),
        (2, break_at(), False),
        (2, break_at(HMC=1), True),
        (2, break_at(PMC=0, SSC=3), True),
        (1, break_at(SSC=2), False),
        (1, break_at(BT=4), False),
        (1, {**break_at(BT=1, LBN=5), **break_at(5, 77, BT=3), "CONTEXTIDR_EL1": 77}, True),
        (1, {**break_at(BT=1, LBN=5), **break_at(5, 77, BT=3), "CONTEXTIDR_EL1": 78}, False),
        (1, {**break_at(BT=1, LBN=5), **break_at(5, 77, BT=2), "CONTEXTIDR_EL1": 77 + (1 << 31)}, False),
        (1, {**break_at(BT=1, LBN=5), **break_at(5, 77, BT=3, E=0), "CONTEXTIDR_EL1": 77}, False),
        (1, {**break_at(BT=1, LBN=3), **break_at(3, 77, BT=3), "CONTEXTIDR_EL1": 77}, False),  # not context-aware
        (1, {**break_at(4, 77, BT=2), "CONTEXTIDR_EL1": 77}, True),
        (0, {**break_at(4, 77, BT=6), "CONTEXTIDR_EL1": 77}, True),
        (1, {**break_at(4, 77, BT=3), "CONTEXTIDR_EL1": 77}, False),  # linked ones do nothing alone
        (2, {**break_at(4, 77, BT=6, HMC=1), "CONTEXTIDR_EL1": 77}, False),
        (2, {**break_at(4, 77, BT=2, HMC=1), "CONTEXTIDR_EL2": 77, "HCR_EL2": int(HCR_EL2(E2H=1))}, True),
        (1, {**break_at(4, 0x34 << 32, BT=8), "VTTBR_EL2": 0x1234 << 48}, True),
        (1, {**break_at(4, 0x34 << 32, BT=8), "VTTBR_EL2": 0x1234 << 48, "VTCR_EL2": int(VTCR_EL2(VS=1))}, False),
        (1, {**break_at(4, 0x34 << 32 | 7, BT=10), "VTTBR_EL2": 0x34 << 48, "CONTEXTIDR_EL1": 7}, True),
        (1, {**break_at(4, 0x34 << 32 | 7, BT=10), "VTTBR_EL2": 0x34 << 48, "CONTEXTIDR_EL1": 8}, False),
        (0, {**break_at(4, 9 << 32, BT=12), "CONTEXTIDR_EL2": 9}, True),
        (0, {**break_at(4, 9 << 32 | 7, BT=14), "CONTEXTIDR_EL2": 9, "CONTEXTIDR_EL1": 7}, True),
        (0, {**break_at(4, 9 << 32 | 7, BT=14), "CONTEXTIDR_EL2": 8, "CONTEXTIDR_EL1": 7}, False),
    ],
)
def test_breakpoints_match(el: int, registers: dict[str, int], hit: bool) -> None:
    state = machine(el, **registers)
    assert bool(debug.breakpoint_hit(state, HERE)) == hit
    assert bool(COMPILED["breakpoint_hit"](state, HERE)) == hit


def watch(value: int = 0x1000, **fields: int) -> dict[str, int]:
    control = WatchControl(**{"E": 1, "PAC": 3, "LSC": 3, "BAS": 255, **fields})
    return {DBGWVR[1].name: value, DBGWCR[1].name: int(control)}


@pytest.mark.parametrize(
    ("registers", "va", "size", "kind", "at"),
    [
        (watch(), 0x1000, 8, 1, 0x1000),
        (watch(), 0x1007, 1, 1, 0x1007),
        (watch(), 0x1008, 1, 1, None),
        (watch(), 0xFFF, 1, 1, None),
        (watch(), 0xFF9, 8, 2, 0x1000),
        (watch(LSC=1), 0x1000, 8, 2, None),
        (watch(LSC=2), 0x1000, 8, 2, 0x1000),
        (watch(BAS=0b00110000), 0x1000, 4, 1, None),
        (watch(BAS=0b00110000), 0x1000, 8, 1, 0x1004),
        (watch(0x1004, BAS=0b0010), 0x1000, 8, 1, 0x1005),
        (watch(0x1004, BAS=0b00100000), 0x1000, 8, 1, None),  # only BAS[3:0] counts in the upper word
        (watch(MASK=12), 0x1FFF, 1, 1, 0x1FFF),
        (watch(MASK=12), 0x2000, 1, 1, None),
        (watch(0, MASK=31), 0x7FFF_FFFF, 1, 1, 0x7FFF_FFFF),
        (watch(PAC=2), 0x1000, 8, 1, None),
        (watch(), 0x55 << 56 | 0x1000, 8, 1, None),
        ({**watch(), "TCR_EL1": int(TCR_EL1(TBI0=1))}, 0x55 << 56 | 0x1000, 8, 1, 0x55 << 56 | 0x1000),
        ({**watch(WT=1, LBN=5), **break_at(5, 3, BT=3), "CONTEXTIDR_EL1": 3}, 0x1000, 8, 1, 0x1000),
        ({**watch(WT=1, LBN=5), **break_at(5, 3, BT=3), "CONTEXTIDR_EL1": 4}, 0x1000, 8, 1, None),
    ],
)
def test_watchpoints_match(registers: dict[str, int], va: int, size: int, kind: int, at: int | None) -> None:
    state = machine(1, **registers)
    expected = (at is not None, at or 0)
    assert debug.watchpoint_hit(state, va, size, kind, 1) == expected
    assert tuple(COMPILED["watchpoint_hit"](state, va, size, kind, 1)) == expected
    if at is not None:
        assert debug.page_is_watched(state, at)


def test_both_executions_agree_on_random_registers() -> None:
    rng = random.Random(11)
    for _ in range(300):
        state = machine(rng.randrange(3))
        state.daif = rng.getrandbits(4)
        for reg in (*DBGBCR, *DBGWCR, MDSCR_EL1, MDCR_EL2, HCR_EL2, VTCR_EL2, TCR_EL1):
            state.sysreg[reg.slot] = rng.getrandbits(64)
        for reg in (*DBGBVR, *DBGWVR):
            state.sysreg[reg.slot] = HERE + rng.randrange(-16, 16)
        for reg in (CONTEXTIDR_EL1, CONTEXTIDR_EL2, VTTBR_EL2):
            state.sysreg[reg.slot] = HERE & 0xFFFF_FFFF
        state.sysreg[OSLSR_EL1.slot] = rng.choice((8, 8, 10))
        va, spsr, el = HERE + rng.randrange(-16, 16), rng.getrandbits(32), rng.randrange(3)
        calls = (
            ("debug_enabled", ()), ("step_after_return", (spsr, el)), ("breakpoint_hit", (va & ~3,)), ("page_is_watched", (va,)),
            ("watchpoint_hit", (va, 1 << rng.randrange(7), 1 + rng.randrange(2), el)), ("watchpoints_on", ()),
            ("linked_match", (rng.randrange(16),)),
        )  # fmt: skip
        for name, arguments in calls:
            ours, theirs = getattr(debug, name)(state, *arguments), COMPILED[name](state, *arguments)
            assert ours == (tuple(theirs) if isinstance(ours, tuple) else theirs), name


# ---- the engine ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench() -> Bench:
    return Bench()


def debugged(bench: Bench, text: str, mdscr: int, pstate: int = 0x3C5, **registers: int) -> tuple[Cpu, int]:
    """A vCPU whose debug exceptions go to EL2, and where its program starts."""
    code = bench.load(text)
    cpu = bench.cpu(code, pstate=pstate, **registers)
    cpu[OSLSR_EL1], cpu[MDSCR_EL1], cpu[MDCR_EL2], cpu[CPACR_EL1] = 8, mdscr, int(MDCR_EL2(TDE=1)), 3 << 20
    return cpu, code


def stop(cpu: Cpu, base: int) -> tuple[int, int, int]:
    """Run until the next exception: its class, its ISS, and how far from `base` it came."""
    cpu.enter()
    return cpu[ESR_EL2] >> 26, cpu[ESR_EL2] & 0x1FF_FFFF, cpu[ELR_EL2] - base


def steps(cpu: Cpu, base: int, count: int) -> list[int]:
    """Step so many instructions; where each one led. All have to be steps with a valid syndrome."""
    found = []
    for _ in range(count):
        cpu[SPSR_EL2] |= SS
        ec, iss, at = stop(cpu, base)
        assert (ec, iss & ~0x40) == (STEP, 0x100_0022), f"{ec:#x} {iss:#x} at {at:#x}"
        found.append(at)
    return found


def test_stepping_follows_every_kind_of_branch(bench: Bench) -> None:
    text = """
        b over
        nop
    over: cbz xzr, self
        nop
    self: cbnz x5, self
        bl f
        adr x1, end
        br x1
    f:  ret
        nop
    end: hvc #7
    """
    cpu, code = debugged(bench, text, int(MDSCR_EL1(SS=1)), x5=0)
    assert steps(cpu, code, 7) == [8, 16, 20, 32, 24, 28, 40]
    cpu[SPSR_EL2] |= SS
    assert stop(cpu, code) == (HVC, 7, 44)
    assert not cpu[SPSR_EL2] & SS, "an instruction that is complete counts as stepped"


def test_stepping_a_branch_to_itself(bench: Bench) -> None:
    cpu, code = debugged(bench, "self: b self", int(MDSCR_EL1(SS=1)))
    assert steps(cpu, code, 5) == [0] * 5


def test_without_spsr_ss_the_step_is_over_before_it_began(bench: Bench) -> None:
    cpu, code = debugged(bench, "nop", int(MDSCR_EL1(SS=1)))
    assert stop(cpu, code) == (STEP, 0x22, 0)


def test_a_stepped_load_exclusive_is_reported(bench: Bench) -> None:
    page = bench.memory.page()
    bench.tables.map(page, page)
    cpu, code = debugged(bench, "ldaxr x0, [x1]\nldxp x0, x2, [x1]\nclrex\ncasp x2, x3, x4, x5, [x1]", int(MDSCR_EL1(SS=1)), x1=page)
    found = []
    for _ in range(4):
        steps(cpu, code, 1)
        found.append(cpu[ESR_EL2] & 0x40)
    assert found == [0x40, 0x40, 0, 0]


def test_stepping_into_and_out_of_exceptions(bench: Bench) -> None:
    """A step of SVC ends at the vector; ERET there ends its step where it returns to."""
    handler = bench.vectors + 0x200
    bench.load("eret", handler)
    cpu, code = debugged(bench, "svc #1\nnop\nldr x0, [x1]\nnop", int(MDSCR_EL1(SS=1)), x1=0x7777_0000)
    cpu[SPSR_EL2] |= SS
    assert stop(cpu, handler) == (STEP, 0x22, 0)
    assert (cpu[ELR_EL1], cpu[SPSR_EL1] & SS) == (code + 4, 0)
    assert steps(cpu, code, 2) == [4, 8]
    cpu[SPSR_EL2] |= SS
    assert stop(cpu, handler) == (STEP, 0x22, 0)
    assert (cpu[ELR_EL1], cpu[SPSR_EL1] & SS) == (code + 8, SS), "what faulted was not stepped"


def test_an_interrupt_is_taken_before_the_step(bench: Bench) -> None:
    cpu, code = debugged(bench, "nop\nnop", int(MDSCR_EL1(SS=1)), pstate=0x345)
    cpu[HCR_EL2] |= int(HCR_EL2(VI=1, IMO=1))
    cpu[SPSR_EL2] |= SS
    assert stop(cpu, bench.vectors + 0x280) == (STEP, 0x22, 0)
    assert (cpu[ELR_EL1], cpu[SPSR_EL1] & SS) == (code, SS)


def test_el0_is_stepped_by_el1(bench: Bench) -> None:
    """The kernel steps its process: exceptions from EL0 to EL1 stop the stepping, the return to EL0 goes on with it."""
    user = bench.load("svc #1\nadd x0, x0, #1\nsvc #2")
    bench.tables.map(user, user, PTE_USER)
    bench.load("mrs x9, s3_0_c5_c2_0\nadd x8, x8, #1\nmrs x7, s3_0_c4_c0_1\nhvc #3", bench.vectors + 0x400)
    cpu = bench.cpu(user, pstate=EL0 & ~0x200 | SS, x0=0, x8=0)
    cpu[OSLSR_EL1], cpu[MDSCR_EL1] = 8, int(MDSCR_EL1(SS=1))
    cpu.enter()
    assert (cpu.state.x[9] >> 26, cpu.state.x[7]) == (0x15, user + 4)
    cpu[ELR_EL2], cpu[SPSR_EL2] = user + 4, EL0 & ~0x200 | SS
    cpu.enter()
    assert (cpu.state.x[9], cpu.state.x[7], cpu.state.x[0]) == (STEP << 26 | 0x300_0022, user + 8, 1)


def arm(cpu: Cpu, **registers: int) -> None:
    for name, value in registers.items():
        cpu[TABLE[name]] = value


def test_a_breakpoint_in_a_page_that_is_running_already(bench: Bench) -> None:
    """Pages without breakpoints run as ever; the one that gets one stops there every time, and never once it is gone."""
    inner = bench.load("nop\nadd x0, x0, #1\nret")
    cpu, code = debugged(bench, "again: blr x1\nsub x2, x2, #1\ncbnz x2, again\nhvc #1", int(MDSCR_EL1(MDE=1)), x0=0, x1=inner, x2=3)
    assert stop(cpu, code) == (HVC, 1, 16)
    for run in range(2):
        bench.start(cpu, code, x0=0, x2=3)
        arm(cpu, **break_at(value=inner + 4))
        for k in range(3):
            assert stop(cpu, inner) == (BREAK, 0x22, 4)
            assert cpu.state.x[0] == k
            cpu.state.x[0] += 1
            cpu[ELR_EL2] += 4
        assert stop(cpu, code) == (HVC, 1, 16), run
        bench.start(cpu, code, x0=0, x2=1000)
        arm(cpu, **break_at(value=inner + 4, E=0))
        assert (stop(cpu, code), cpu.state.x[0]) == ((HVC, 1, 16), 1000)


def test_a_context_breakpoint_stops_everywhere(bench: Bench) -> None:
    cpu, code = debugged(bench, "msr s3_0_c13_c0_1, x0\nnop\nnop", int(MDSCR_EL1(MDE=1)), x0=5)
    arm(cpu, **break_at(5, 5, BT=2), CONTEXTIDR_EL1=0)
    assert stop(cpu, code) == (BREAK, 0x22, 4)
    cpu[ELR_EL2] += 4
    assert stop(cpu, code) == (BREAK, 0x22, 8)


def test_debugging_one_vcpu_leaves_others_alone(bench: Bench) -> None:
    cpu, code = debugged(bench, "nop\nnop\nhvc #1", int(MDSCR_EL1(MDE=1)))
    arm(cpu, **break_at(value=code + 4))
    other = bench.cpu(code)
    assert stop(cpu, code) == (BREAK, 0x22, 4)
    assert stop(other, code) == (HVC, 1, 12)


@pytest.mark.parametrize(
    ("text", "iss", "far"),
    [
        ("ldr x0, [x1]", 0x22, 0x100),
        ("str x2, [x1]", 0x62, 0x100),
        ("ldp x0, x3, [x1, #-8]", 0x22, 0x100),
        ("stur x2, [x1, #-4]", 0x62, 0x100),
        ("ldadd x2, x0, [x1]", 0x22, 0x100),
        ("swpb w2, w0, [x1]", 0x22, 0x100),
        ("sys #3, c7, c4, #1, x1", 0x62, 0x100),  # DC ZVA
        ("sys #0, c7, c6, #1, x4", 0x162, 0x110),  # DC IVAC of the line
        ("ld1 {v0.16b, v1.16b}, [x5]", 0x22, 0x100),
    ],
)
def test_a_watchpoint_stops_before_the_access(bench: Bench, text: str, iss: int, far: int) -> None:
    """The first run fills the TLB; the page leaves it when the watchpoint is set and comes back when it is gone."""
    page = bench.memory.page()
    bench.tables.map(page, page)
    registers = {"x1": page + 0x100, "x2": 0x1234, "x4": page + 0x110, "x5": page + 0xF0, "x6": page + 0x800}
    cpu, code = debugged(bench, f"str x2, [x6]\n{text}\nhvc #1", int(MDSCR_EL1(MDE=1)), **registers)
    assert stop(cpu, code) == (HVC, 1, 12)
    bench.memory.put(page + 0x100, 77)
    bench.memory.put(page + 0x800, 0)
    bench.start(cpu, code, **registers)
    arm(cpu, **watch(page + 0x100))
    assert stop(cpu, code) == (WATCH, iss, 4)
    assert cpu[FAR_EL2] - page == far
    assert (bench.memory.get(page + 0x100), bench.memory.get(page + 0x800)) == (77, 0x1234)
    arm(cpu, **watch(page + 0x100, E=0))
    assert stop(cpu, code) == (HVC, 1, 12)


def test_watchpoints_that_the_guest_sets_take_effect_at_once(bench: Bench) -> None:
    page = bench.memory.page(2)
    for at in (page, page + 4096):
        bench.tables.map(at, at)
    text = "ldr x0, [x1]\nmsr s2_0_c0_c0_6, x1\nmsr s2_0_c0_c0_7, x2\nldr x0, [x3]\nldr x0, [x1]\nhvc #1"
    control = int(WatchControl(E=1, PAC=3, LSC=1, BAS=255))
    cpu, code = debugged(bench, text, int(MDSCR_EL1(MDE=1, KDE=1)), pstate=0x1C5, x1=page + 8, x2=control, x3=page + 4096)
    cpu[MDCR_EL2] = 0  # EL1 debugs itself
    assert stop(cpu, bench.vectors + 0x204) == (HVC, 0x104, 0)
    assert (cpu[ESR_EL1], cpu[ELR_EL1], cpu[FAR_EL1]) == (WATCH + 1 << 26 | 0x200_0022, code + 16, page + 8)
    cpu[ELR_EL2], cpu[MDSCR_EL1] = code + 16, 0
    assert stop(cpu, code) == (HVC, 1, 24)


def test_unprivileged_accesses_count_as_el0(bench: Bench) -> None:
    page = bench.memory.page()
    bench.tables.map(page, page, PTE_USER)
    cpu, code = debugged(bench, "ldr x0, [x1]\nldtr x0, [x1]\nhvc #1", int(MDSCR_EL1(MDE=1)), x1=page)
    arm(cpu, **watch(page, PAC=2))
    assert stop(cpu, code) == (WATCH, 0x22, 4)


def test_faults_come_before_watchpoints(bench: Bench) -> None:
    bench.load("hvc #5", bench.vectors + 0x200)
    cpu, code = debugged(bench, "ldr x0, [x1]", int(MDSCR_EL1(MDE=1)), x1=0x7777_0000)
    arm(cpu, **watch(0x7777_0000))
    assert stop(cpu, bench.vectors + 0x204) == (HVC, 5, 0)


def test_brk_needs_nothing_to_be_enabled(bench: Bench) -> None:
    cpu, code = debugged(bench, "brk #9", 0)
    cpu[OSLSR_EL1] = 10
    assert stop(cpu, code) == (BRK, 9, 0)


def test_the_machine_says_what_it_has() -> None:
    dfr = ID_AA64DFR0_EL1(Features().id_values()[ID_AA64DFR0_EL1])
    assert (dfr.BRPs + 1, dfr.WRPs + 1, dfr.CTX_CMPs + 1) == (6, 4, 2)


def test_compiled_regions_give_way(bench: Bench) -> None:
    """A loop over two pages that has become a region: breakpoints in either page, a watchpoint and steps stop it all the same."""
    page, data = bench.memory.page(2), bench.memory.page()
    for at in (page, page + 4096, data):
        bench.tables.map(at, at)
    start, beyond = page + 4096 - 16, page + 4096
    text = "again: add x0, x0, #1\nstr x0, [x1]\nldr x3, [x1, #8]\nadd x4, x4, x3\nsubs x2, x2, #1\nadd x5, x5, #1\nb.ne again\nhvc #1"
    bench.memory.write(start, assemble_program(text, start))
    cpu = bench.cpu(start)
    cpu[OSLSR_EL1], cpu[MDCR_EL2] = 8, int(MDCR_EL2(TDE=1))

    def run(mdscr: int, turns: int, ss: int = 0, **registers: int) -> tuple[int, int, int]:
        bench.start(cpu, start, x0=0, x1=data, x2=turns, x4=0, x5=0)
        arm(cpu, **break_at(E=0), **watch(E=0), MDSCR_EL1=mdscr)
        arm(cpu, **registers)
        cpu[SPSR_EL2] |= ss
        return stop(cpu, start)

    regions = bench.engine.regions
    assert regions is not None
    deadline = time.monotonic() + 100
    while not regions.installed:
        assert time.monotonic() < deadline, "the loop got no region"
        assert run(0, 3_000_000) == (HVC, 1, 32)
    for _ in range(3):
        monitor = int(MDSCR_EL1(MDE=1))
        assert run(monitor, 1000, **break_at(value=beyond + 4)) == (BREAK, 0x22, 20)
        assert (cpu.state.x[0], cpu.state.x[5]) == (1, 0)
        assert run(monitor, 1000, **break_at(value=start + 4)) == (BREAK, 0x22, 4)
        assert run(monitor, 1000, **watch(data + 8)) == (WATCH, 0x22, 8)
        assert run(monitor, 1000, **watch(data)) == (WATCH, 0x62, 4)
        assert run(int(MDSCR_EL1(SS=1)), 1000, SS) == (STEP, 0x100_0022, 4)
        assert run(monitor, 1000, **break_at(value=start + 28)) == (BREAK, 0x22, 28)
        assert (cpu.state.x[0], cpu.state.x[5]) == (1000, 1000)
        assert run(0, 1000) == (HVC, 1, 32)
