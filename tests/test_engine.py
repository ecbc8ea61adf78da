"""What the engine promises besides executing instructions: coherence, invalidation, faults that change nothing, interrupts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from tests.engine_machine import EL0, EL1H_MASKED, PTE_READONLY, PTE_USER, Bench, hvc_number
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import (
    CNTHCTL_EL2,
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    CNTVOFF_EL2,
    CPACR_EL1,
    ELR_EL1,
    ELR_EL2,
    ESR_EL1,
    ESR_EL2,
    FAR_EL1,
    HCR_EL2,
    SCTLR_EL1,
)
from trapline.engine.cpu import NS_PER_TICK
from trapline.engine.state import PAGE_BYTES
from trapline.engine.timers import Timers

SYNC_FROM_SPX = 0x100 + 4
"""The number that the vector for a synchronous exception from the current level, with SP_ELx, passes to HVC."""
IRQ_FROM_SPX = 0x100 + 5
"""The same for an interrupt."""
IRQ_MASKED = 1 << 7
PTE_UXN = 1 << 54
VA = 0x12_3456_7000
"""A virtual address that is no host address."""


@pytest.fixture
def bench() -> Bench:
    return Bench()


MAPPINGS = """
import pathlib, sys
import llvmlite.binding
if sys.argv[1:]:
    from tests.engine_machine import Bench
    bench = Bench()
    cpu = bench.cpu(bench.load("add x0, x1, x2\\nhvc #1"), x1=2, x2=3)
    cpu.enter()
    assert cpu.state.x[0] == 5
modes = [line.split()[1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines()]
print(sum("w" in mode and "x" in mode for mode in modes))
"""
"""How many mappings are writable and executable: with an argument, after running a guest."""


def test_the_engine_adds_no_page_that_is_writable_and_executable() -> None:
    """llvmlite has one when imported: libffi keeps the closures of its callbacks there."""
    alone, running = (
        subprocess.run([sys.executable, "-c", MAPPINGS, *more], capture_output=True, text=True, check=True).stdout for more in ([], ["run"])
    )
    assert running == alone


@pytest.mark.parametrize("invalidate", ["ic ivau, x2", "ic iallu", "ic ialluis"])
def test_code_that_a_guest_rewrites(bench: Bench, invalidate: str) -> None:
    """The sequence that the manual asks for: clean, DSB, invalidate, DSB, ISB."""
    code = bench.load(
        f"""
        mov x5, #3
        adr x2, patched
    again:
        bl patched
        add x0, x0, x9
        str w1, [x2]
        dc cvau, x2
        dsb ish
        {invalidate}
        dsb ish
        isb
        subs x5, x5, #1
        b.ne again
        hvc #1
    patched:
        mov x9, #1
        ret
    """
    )
    new = int.from_bytes(assemble_program("mov x9, #100"), "little")
    cpu = bench.cpu(code, x0=0, x1=new)
    cpu.enter()
    assert (hvc_number(cpu), cpu.state.x[0]) == (1, 201)


def test_code_that_another_vcpu_rewrites(bench: Bench) -> None:
    """One vCPU spins in a function; another turns its branch into a NOP, as Linux's static keys do."""
    target = bench.load("spin: add x1, x1, #1\nb spin\nmov x0, #7\nhvc #1")
    nop = int.from_bytes(assemble_program("nop"), "little")
    patcher = bench.load("str w1, [x2]\ndc cvau, x2\ndsb ish\nic ivau, x2\ndsb ish\nisb\nhvc #2")
    spinning, patching = bench.cpu(target), bench.cpu(patcher, x1=nop, x2=target + 4)
    thread = threading.Thread(target=spinning.enter, daemon=True)
    thread.start()
    while not spinning.state.x[1]:  # it has decoded the branch
        pass
    patching.enter()
    assert hvc_number(patching) == 2
    thread.join(30)
    assert not thread.is_alive()
    assert (hvc_number(spinning), spinning.state.x[0]) == (1, 7)


def test_a_broadcast_tlbi_reaches_a_running_vcpu(bench: Bench) -> None:
    """After TLBI VAE1IS and DSB nobody reads the old page: the reader tells what it saw after it saw the flag."""
    old, new, flag, seen = (bench.memory.page() for _ in range(4))
    bench.memory.put(old, 1)
    bench.memory.put(new, 2)
    bench.tables.map(VA, old)
    bench.tables.map(flag, flag)
    bench.tables.map(seen, seen)
    bench.tables.map(bench.tables.entry(VA) & ~4095, bench.tables.entry(VA) & ~4095)
    reader = bench.load("again: ldr x0, [x1]\nstr x0, [x8]\nldar x2, [x3]\ncbz x2, again\nldr x0, [x1]\nhvc #1")
    writer = bench.load("str x4, [x5]\ndsb ishst\ntlbi vae1is, x6\ndsb ish\nmov x7, #1\nstlr x7, [x3]\nhvc #2")
    for _ in range(50):
        bench.tables.map(VA, old)
        bench.memory.put(flag, 0)
        bench.memory.put(seen, 0)
        reading = bench.engine.cpus[0] if bench.engine.cpus else bench.cpu(reader)
        bench.start(reading, reader, x1=VA, x3=flag, x8=seen)
        writing = bench.engine.cpus[1] if len(bench.engine.cpus) > 1 else bench.cpu(writer)
        bench.start(writing, writer, x3=flag, x4=new | 0x703, x5=bench.tables.entry(VA), x6=VA >> 12)
        bench.engine.tlbi_vmalls12e1(0)
        thread = threading.Thread(target=reading.enter, daemon=True)
        thread.start()
        while not bench.memory.read(seen, 1)[0]:  # it has read the old page
            pass
        writing.enter()
        thread.join(30)
        assert not thread.is_alive()
        assert (hvc_number(writing), hvc_number(reading), reading.state.x[0]) == (2, 1, 2)


def test_a_store_that_faults_on_its_second_page_stores_nothing(bench: Bench) -> None:
    page = bench.memory.page(2)
    bench.tables.map(VA, page)
    bench.tables.map(VA + 4096, page + 4096, PTE_READONLY)
    cpu = bench.cpu(bench.load("stp x1, x2, [x3]\nhvc #1"), x1=(1 << 64) - 1, x2=(1 << 64) - 1, x3=VA + 4096 - 4)
    cpu.enter()
    assert hvc_number(cpu) == SYNC_FROM_SPX
    assert bench.memory.read(page, 8192) == bytes(8192)
    assert cpu[FAR_EL1] == VA + 4096
    assert cpu[ESR_EL1] & 0x7F == 0x4F, "permission fault, level 3, write"


def test_a_load_across_pages_that_are_not_neighbours(bench: Bench) -> None:
    low, high = bench.memory.page(), bench.memory.page()
    bench.memory.write(low + 4092, b"\x11\x22\x33\x44")
    bench.memory.write(high, b"\x55\x66\x77\x88")
    bench.tables.map(VA, low)
    bench.tables.map(VA + 4096, high)
    cpu = bench.cpu(bench.load("ldr x0, [x1]\nhvc #1"), x1=VA + 4092)
    cpu.enter()
    assert (hvc_number(cpu), cpu.state.x[0]) == (1, 0x8877665544332211)


def test_a_fault_leaves_registers_as_they_were(bench: Bench) -> None:
    cpu = bench.cpu(bench.load("ldp x0, x1, [x2], #16\nhvc #1"), x0=10, x1=11, x2=VA)
    cpu.enter()
    assert hvc_number(cpu) == SYNC_FROM_SPX
    assert list(cpu.state.x[:3]) == [10, 11, VA]
    assert cpu[ESR_EL1] >> 26 == 0x25
    assert cpu[FAR_EL1] == VA


@pytest.mark.parametrize("offset, faults", [(0, False), (8, True)])
def test_a_misaligned_stack_pointer(bench: Bench, offset: int, faults: bool) -> None:
    stack = bench.memory.page()
    bench.tables.map(stack, stack)
    cpu = bench.cpu(bench.load("mov sp, x1\nldr x0, [sp]\nhvc #1"), x1=stack + 64 + offset)
    cpu[SCTLR_EL1] = cpu[SCTLR_EL1] | SCTLR_EL1.SA.mask
    cpu.enter()
    assert hvc_number(cpu) == (SYNC_FROM_SPX if faults else 1)
    if faults:
        assert cpu[ESR_EL1] >> 26 == 0x26


def test_el0_may_not_touch_kernel_pages(bench: Bench) -> None:
    code, secret = bench.memory.page(), bench.memory.page()
    bench.load("ldr x0, [x1]\nsvc #0", code)
    bench.tables.map(code, code, PTE_USER)
    bench.tables.map(secret, secret)
    cpu = bench.cpu(code, pstate=EL0, x0=0, x1=secret)
    cpu.enter()
    assert hvc_number(cpu) == 0x100 + 8, "a synchronous exception from EL0"
    assert cpu[ESR_EL1] >> 26 == 0x24
    assert cpu[ELR_EL1] == code


def test_fp_is_trapped_until_it_is_enabled(bench: Bench) -> None:
    code = bench.load("fmov d0, #1.0\nhvc #1")
    cpu = bench.cpu(code)
    cpu[CPACR_EL1] = 0
    cpu.enter()
    assert hvc_number(cpu) == SYNC_FROM_SPX
    assert cpu[ESR_EL1] >> 26 == 0x07
    bench.start(cpu, code)
    cpu[CPACR_EL1] = 3 << 20
    cpu.enter()
    assert (hvc_number(cpu), cpu.state.v[0].lo) == (1, 0x3FF0_0000_0000_0000)


def test_a_kick_ends_a_loop_and_is_remembered(bench: Bench) -> None:
    cpu = bench.cpu(bench.load("spin: b spin"))
    for _ in range(2):
        cpu.kick()
        assert cpu.enter().kind == "irq"
    timer = threading.Timer(0.05, cpu.kick)
    timer.start()
    assert cpu.enter().kind == "irq"
    timer.join()


def test_the_virtual_timer_interrupts_a_running_guest(bench: Bench) -> None:
    text = "mrs x0, s3_3_c14_c0_2\nadd x0, x0, x1\nmsr s3_3_c14_c3_2, x0\nmov x2, #1\nmsr s3_3_c14_c3_1, x2\nspin: b spin"
    cpu = bench.cpu(bench.load(text), x1=62_500 * 5)
    cpu[HCR_EL2] = int(HCR_EL2(RW=1, IMO=1, FMO=1))
    assert cpu.enter().kind == "irq"
    assert cpu.timer_lines() == 1
    assert cpu[CNTV_CTL_EL0] & 1
    deadline = cpu.next_timer_deadline()
    assert deadline is not None
    assert cpu[CNTV_CVAL_EL0] == cpu.state.x[0]


def test_a_timer_that_was_set_from_outside_interrupts_a_running_guest(bench: Bench) -> None:
    """As after a migration: no instruction of the guest sets it. Two PEs share the clock; the later timer must not lose its turn."""
    for first, second in ((2, 8), (8, 2)):
        cpus = [bench.cpu(bench.load("spin: b spin")) for _ in range(2)]
        helpers = []
        for cpu, milliseconds in zip(cpus, (first, second), strict=True):
            now = time.monotonic_ns() // NS_PER_TICK
            cpu[HCR_EL2] = int(HCR_EL2(RW=1, IMO=1, FMO=1))
            cpu[CNTV_CVAL_EL0] = now - cpu[CNTVOFF_EL2] + 62_500 * milliseconds & (1 << 64) - 1
            cpu[CNTV_CTL_EL0] = 1
            helpers.append(threading.Thread(target=cpu.enter))
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join(20)
            assert not helper.is_alive(), "the clock did not ring"
        assert [cpu.timer_lines() for cpu in cpus] == [1, 1]


def test_a_timer_that_is_due_before_there_is_a_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = bench.cpu(bench.load("spin: b spin"))
    due = time.monotonic_ns() // NS_PER_TICK + 62_500 * 50
    plain = Timers._start

    def start(timers: Timers) -> None:
        plain(timers)
        while time.monotonic_ns() // NS_PER_TICK <= due:
            pass

    monkeypatch.setattr(Timers, "_start", start)
    cpu[HCR_EL2] = int(HCR_EL2(RW=1, IMO=1, FMO=1))
    cpu[CNTV_CVAL_EL0] = due - cpu[CNTVOFF_EL2] & (1 << 64) - 1
    cpu[CNTV_CTL_EL0] = 1
    helper = threading.Thread(target=cpu.enter, daemon=True)
    helper.start()
    helper.join(20)
    assert not helper.is_alive() and cpu.timer_lines() == 1


def test_a_full_code_arena_starts_afresh(bench: Bench) -> None:
    """More code pages than the arena holds, in turn: the guest doesn't notice that their places are others' by then."""
    pages = [bench.memory.page() for _ in range(12)]
    shared = bench.engine.shared
    shared.code_end = shared.code_next + 5 * PAGE_BYTES
    for k, page in enumerate(pages):
        bench.load(f"add x0, x0, x0, lsl #1\nadd x0, x0, #{k}\nldr x9, [x7], #8\nbr x9", page)
    order = [*range(12), *range(12), 5, 0, 7, 3, 3, 11, 1]
    table = bench.memory.page()
    bench.tables.map(table, table)
    for n, at in enumerate([*(pages[k] for k in order), bench.load("hvc #1")]):
        bench.memory.put(table + 8 * n, at)
    cpu = bench.cpu(bench.load("ldr x9, [x7], #8\nbr x9"), x0=0, x7=table)
    cpu.enter()
    expected = 0
    for k in order:
        expected = 3 * expected + k & (1 << 64) - 1
    assert (hvc_number(cpu), cpu.state.x[0]) == (1, expected)


def test_a_wild_jump_is_an_abort(bench: Bench) -> None:
    cpu = bench.cpu(bench.load("br x0"), x0=0xDEAD_BEEF_0000)
    cpu.enter()
    assert hvc_number(cpu) == SYNC_FROM_SPX
    assert cpu[ESR_EL1] >> 26 == 0x21
    assert cpu[FAR_EL1] == cpu[ELR_EL1] == 0xDEAD_BEEF_0000
    assert cpu[ELR_EL2] and cpu[ESR_EL2]


def test_random_numbers_clear_the_flags(bench: Bench) -> None:
    at = bench.load("mrs x0, s3_3_c2_c4_0\nmrs x1, s3_3_c2_c4_1\nmrs x2, s3_3_c4_c2_0\nhvc #1")
    seen = set()
    for _ in range(3):
        cpu = bench.cpu(at, pstate=EL1H_MASKED | 0xF << 28)
        cpu.enter()
        assert hvc_number(cpu) == 1 and cpu.state.x[2] == 0
        seen |= {cpu.state.x[0], cpu.state.x[1]}
    assert len(seen) == 6


@pytest.mark.parametrize(("text", "iss"), [("wfit x3", 0x1E0_0066), ("wfet x3", 0x1E0_0067)])
def test_waiting_until_a_time(bench: Bench, text: str, iss: int) -> None:
    at = bench.load(f"wfe\n{text}\nhvc #1")  # WFE takes the event that entering the guest has set
    for deadline in (0, (1 << 64) - 1):
        cpu = bench.cpu(at, x3=deadline)
        cpu[HCR_EL2] = int(HCR_EL2(RW=1, TWI=1, TWE=1))
        cpu.enter()
        if deadline == 0:
            assert hvc_number(cpu) == 1
        else:
            assert (cpu[ESR_EL2] >> 26, cpu[ESR_EL2] & 0x1FF_FFFF) == (0x01, iss)


def test_self_synchronized_counters(bench: Bench) -> None:
    at = bench.load("mrs x0, s3_3_c14_c0_5\nmrs x1, s3_3_c14_c0_1\nmrs x2, s3_3_c14_c0_6\nmrs x3, s3_3_c14_c0_2\nhvc #1")
    cpu = bench.cpu(at)
    cpu[CNTHCTL_EL2] = int(CNTHCTL_EL2(EL1PCTEN=1))
    cpu[CNTVOFF_EL2] = 1 << 40
    cpu.enter()
    x = cpu.state.x
    assert hvc_number(cpu) == 1 and x[0] <= x[1] <= x[2] + (1 << 40) & 2**64 - 1 <= x[3] + (1 << 40) & 2**64 - 1


def test_user_access_override_and_pan(bench: Bench) -> None:
    """LDTR is an access by EL0, which PAN does not forbid; with PSTATE.UAO it is one by EL1, which PAN forbids. TLBs or not."""
    page = bench.memory.page()
    bench.tables.map(VA, page, PTE_USER)
    for uao, pan, faults in ((0, 1, False), (1, 0, False), (1, 1, True), (0, 0, False)):
        code = bench.load(f"msr uao, #0\nmsr pan, #1\nldtr x2, [x1]\nmsr uao, #{uao}\nmsr pan, #{pan}\nldtr x0, [x1]\nhvc #1")
        cpu = bench.cpu(code, x1=VA)
        cpu.enter()
        assert (cpu[ESR_EL1] >> 26 == 0x25) == faults, (uao, pan)
        assert hvc_number(cpu) == (SYNC_FROM_SPX if faults else 1)


def test_pan_of_executable_pages(bench: Bench) -> None:
    """With SCTLR_EL1.EPAN, PAN also forbids EL1 what EL0 may execute but not read."""
    page = bench.memory.page()
    bench.tables.map(VA, page)
    bench.tables.map(VA + 4096, page, PTE_UXN)
    for epan, at, faults in ((0, VA, False), (1, VA, True), (1, VA + 4096, False)):
        cpu = bench.cpu(bench.load("msr pan, #1\nldr x0, [x1]\nhvc #1"), x1=at)
        cpu[SCTLR_EL1] |= int(SCTLR_EL1(EPAN=epan))
        cpu.enter()
        assert (hvc_number(cpu) == SYNC_FROM_SPX) == faults, (epan, at)


def test_an_interrupt_is_taken_where_a_branch_lands_whether_or_not_its_page_is_known(bench: Bench) -> None:
    """A machine that was restored knows no pages, and must go on exactly as the one that was saved."""
    target = bench.load("add x0, x0, #1\nadd x0, x0, #1\nadd x0, x0, #1\nhvc #2")
    code = bench.load("msr s3_0_c4_c0_0, x10\nmsr s3_0_c4_c0_1, x11\neret\nback: br x9")
    cpu = bench.cpu(code, x9=target)
    for known in (False, True):
        bench.start(cpu, code, x0=0, x9=target, x10=EL1H_MASKED & ~IRQ_MASKED, x11=code + 12)
        cpu[HCR_EL2] |= int(HCR_EL2(VI=1, IMO=1))
        cpu.enter()
        assert (hvc_number(cpu), cpu[ELR_EL1], cpu.state.x[0]) == (IRQ_FROM_SPX, target, 0), f"known: {known}"


@pytest.mark.parametrize("restarts", [False, True])
def test_what_waits_does_not_interrupt_an_instruction_that_runs_again(bench: Bench, restarts: bool) -> None:
    """An abort that the guest does not know of comes between: exclusives hold, and the interrupt waits for the branch."""
    data = bench.memory.page()
    bench.tables.map(data, data)
    code = bench.load("stxr w0, x1, [x2]\nmov x3, #1\nb next\nnext: hvc #2")
    cpu = bench.cpu(code, x0=7, x2=data, pstate=EL1H_MASKED & ~IRQ_MASKED)
    cpu[HCR_EL2] |= int(HCR_EL2(VI=1, IMO=1))
    state = cpu.state
    state.excl_valid, state.excl_addr, state.excl_size, state.restarts = 1, data, 8, restarts
    cpu.enter()
    assert hvc_number(cpu) == IRQ_FROM_SPX
    assert (cpu[ELR_EL1] - code, state.x[0], state.x[3]) == ((12, 0, 1) if restarts else (0, 7, 0))
