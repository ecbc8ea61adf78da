"""FEAT_MOPS: copies and sets do what memmove and memset do, fault in the right place, and go on where they were."""

from __future__ import annotations

import random
import threading

import pytest

from tests.engine_machine import EL0, EL1H_MASKED, PAGE, PTE_READONLY, PTE_USER, Bench, hvc_number
from trapline.arm64.regs import ELR_EL1, ELR_EL2, ESR_EL1, FAR_EL1, HCRX_EL2, SCTLR_EL1, SPSR_EL1, SPSR_EL2
from trapline.engine import Cpu

VA = 0x12_3456_7000
"""Where the window is mapped: virtual addresses that are no host addresses."""
PAGES = 6
WORD = (1 << 64) - 1
FROM_SPX, FROM_EL0 = 0x104, 0x108
EC_MOPS, EC_DABT = 0x27, 0x25
COPY = "cpy{f}p{h} [x0]!, [x1]!, x2!\ncpy{f}m{h} [x0]!, [x1]!, x2!\ncpy{f}e{h} [x0]!, [x1]!, x2!\nhvc #1"
SET = "setp{h} [x0]!, x2!, x1\nsetm{h} [x0]!, x2!, x1\nsete{h} [x0]!, x2!, x1\nhvc #1"
NZCV = 0xF << 28


class Window:
    """A bench with a few pages at VA, neighbours there but not in memory."""

    def __init__(self, flags: int = 0) -> None:
        self.bench = Bench(PAGES * 2 + 64)
        self.pages = [self.bench.memory.page() for _ in range(2 * PAGES)][::2]
        for k, page in enumerate(self.pages):
            self.bench.tables.map(VA + k * PAGE, page, flags)

    def fill(self, data: bytes) -> None:
        for k, page in enumerate(self.pages):
            self.bench.memory.write(page, data[k * PAGE : (k + 1) * PAGE])

    def contents(self) -> bytearray:
        return bytearray(b"".join(self.bench.memory.read(page, PAGE) for page in self.pages))

    def start(self, code: int, pstate: int = EL1H_MASKED, **registers: int) -> Cpu:
        cpu = self.bench.cpu(code, pstate=pstate, **registers)
        cpu[HCRX_EL2] = int(HCRX_EL2(MSCEn=1))
        return cpu


@pytest.fixture(scope="module")
def window() -> Window:
    return Window()


@pytest.mark.parametrize("forward", [False, True])
def test_copies_are_memmove(window: Window, forward: bool) -> None:
    rng = random.Random(11)
    code = window.bench.load(COPY.format(f="f" if forward else "", h=""))
    cpu = window.start(code)
    size = PAGES * PAGE
    for _ in range(250):
        data = rng.randbytes(size)
        count = rng.choice((0, 1, rng.randrange(64), rng.randrange(PAGE), rng.randrange(size // 2)))
        source, target = rng.randrange(size - count), rng.randrange(size - count)
        if rng.randrange(2):
            target = max(0, min(size - count, source + rng.randrange(-80, 80)))
        if forward and source < target < source + count:
            continue
        window.fill(data)
        window.bench.start(cpu, code, pstate=EL1H_MASKED | NZCV, x0=VA + target, x1=VA + source, x2=count)
        cpu.enter()
        assert hvc_number(cpu) == 1
        expected = bytearray(data)
        expected[target : target + count] = data[source : source + count]
        assert window.contents() == expected, (source, target, count)
        backward = not forward and source < target < source + count
        moved = 0 if backward else count
        assert (cpu.state.x[0], cpu.state.x[1], cpu.state.x[2]) == (VA + target + moved, VA + source + moved, 0)
        assert cpu[SPSR_EL2] & NZCV == 0


def test_sets_are_memset(window: Window) -> None:
    rng = random.Random(12)
    code = window.bench.load(SET.format(h=""))
    cpu = window.start(code)
    size = PAGES * PAGE
    for _ in range(150):
        data = rng.randbytes(size)
        count = rng.choice((0, 1, rng.randrange(64), rng.randrange(size)))
        target, value = rng.randrange(size - count + 1), rng.getrandbits(64)
        window.fill(data)
        window.bench.start(cpu, code, x0=VA + target, x1=value, x2=count)
        cpu.enter()
        expected = bytearray(data)
        expected[target : target + count] = bytes([value & 0xFF]) * count
        assert hvc_number(cpu) == 1 and window.contents() == expected
        assert (cpu.state.x[0], cpu.state.x[2]) == (VA + target + count, 0)


def test_the_zero_register_can_be_set(window: Window) -> None:
    window.fill(b"\xff" * (PAGES * PAGE))
    cpu = window.start(window.bench.load(SET.format(h="").replace("x1", "xzr")), x0=VA + 5, x2=100)
    cpu.enter()
    assert window.contents()[:120] == b"\xff" * 5 + bytes(100) + b"\xff" * 15


def test_sizes_saturate(window: Window) -> None:
    for text, limit in (("cpyp", 2**55 - 1), ("cpyfp", 2**63 - 1)):
        cpu = window.start(window.bench.load(f"{text} [x0]!, [x1]!, x2!\nhvc #1"), x0=0, x1=0, x2=WORD)
        cpu.enter()
        assert cpu.state.x[2] == -limit & WORD and cpu.state.x[0] == limit


# ---- faults ------------------------------------------------------------------------------------------------------------------


def fault(cpu: Cpu, code: int, far: int, *, write: bool, left: int) -> None:
    """The run ended in a data abort of the main instruction, with this much left."""
    assert hvc_number(cpu) == FROM_SPX and cpu[ESR_EL1] >> 26 == EC_DABT
    assert (cpu[ELR_EL1], cpu[FAR_EL1], cpu[ESR_EL1] >> 6 & 1) == (code + 4, far, int(write))
    assert cpu.state.x[2] == left & WORD


@pytest.mark.parametrize(("broken", "write"), [(1, False), (4, True)])
def test_a_copy_that_faults_goes_on_later(broken: int, write: bool) -> None:
    """Forwards, from page 0 on to page 3 on: one page is missing at first."""
    window = Window()
    data = random.Random(13).randbytes(PAGES * PAGE)
    window.fill(data)
    entry = window.bench.tables.entry(VA + broken * PAGE)
    good = window.bench.memory.get(entry)
    window.bench.memory.put(entry, 0)
    code = window.bench.load(COPY.format(f="", h=""))
    count = 2 * PAGE + 100
    cpu = window.start(code, x0=VA + 3 * PAGE + 7, x1=VA + 5, x2=count)
    cpu.enter()
    done = PAGE - (5 if broken == 1 else 7)
    fault(cpu, code, VA + broken * PAGE, write=write, left=done - count)
    window.bench.memory.put(entry, good)
    cpu[ELR_EL2], cpu[SPSR_EL2] = cpu[ELR_EL1], cpu[SPSR_EL1]
    cpu.enter()
    assert hvc_number(cpu) == 1
    assert window.contents()[3 * PAGE + 7 :][:count] == data[5:][:count]


def test_a_backward_copy_faults_at_the_highest_byte() -> None:
    window = Window()
    data = random.Random(14).randbytes(PAGES * PAGE)
    window.fill(data)
    entry = window.bench.tables.entry(VA + PAGE)
    good = window.bench.memory.get(entry)
    window.bench.memory.put(entry, good | PTE_READONLY)
    code = window.bench.load(COPY.format(f="", h=""))
    count = 3 * PAGE
    cpu = window.start(code, x0=VA + 50, x1=VA + 10, x2=count)
    cpu.enter()
    fault(cpu, code, VA + 2 * PAGE - 1, write=True, left=2 * PAGE - 50)
    window.bench.memory.put(entry, good)
    window.bench.engine.tlbi_vmalls12e1(0)
    cpu[ELR_EL2], cpu[SPSR_EL2] = cpu[ELR_EL1], cpu[SPSR_EL1]
    cpu.enter()
    assert hvc_number(cpu) == 1 and window.contents()[50:][:count] == data[10:][:count]


def test_a_set_that_faults() -> None:
    window = Window()
    window.bench.memory.put(window.bench.tables.entry(VA + 2 * PAGE), 0)
    code = window.bench.load(SET.format(h=""))
    cpu = window.start(code, x0=VA + PAGE + 1, x1=0x5A, x2=2 * PAGE)
    cpu.enter()
    fault(cpu, code, VA + 2 * PAGE, write=True, left=-(PAGE + 1))
    assert window.contents()[PAGE + 1 : 2 * PAGE] == b"\x5a" * (PAGE - 1)


@pytest.mark.parametrize(("hint", "faults"), [("", None), ("wt", True), ("rt", False), ("t", False), ("n", None), ("wtrn", True)])
def test_unprivileged_variants(hint: str, faults: bool | None, window: Window) -> None:
    """The window belongs to EL1 only: reads come first, so `t` faults with one."""
    cpu = window.start(window.bench.load(COPY.format(f="f", h=hint)), x0=VA, x1=VA + PAGE, x2=9)
    cpu.enter()
    if faults is None:
        assert hvc_number(cpu) == 1
    else:
        assert (cpu[ESR_EL1] >> 26, bool(cpu[ESR_EL1] >> 6 & 1)) == (EC_DABT, faults)


# ---- controls ----------------------------------------------------------------------------------------------------------------


def test_where_it_is_switched_off(window: Window) -> None:
    code = window.bench.load("setp [x0]!, x2!, x1\nhvc #1")
    cpu = window.start(code)
    cpu[HCRX_EL2] = 0
    cpu.enter()
    assert (hvc_number(cpu), cpu[ESR_EL1] >> 26) == (FROM_SPX, 0)
    at_el0 = Window(PTE_USER)
    code = at_el0.bench.load("setp [x0]!, x2!, x1\nsvc #1")
    at_el0.bench.tables.map(code, code, PTE_USER)
    for enabled in (0, 1):
        cpu = at_el0.start(code, pstate=EL0)
        cpu[SCTLR_EL1] |= int(SCTLR_EL1(MSCEn=enabled))
        cpu.enter()
        assert (hvc_number(cpu), cpu[ESR_EL1] >> 26) == (FROM_EL0, 0x15 if enabled else 0)


@pytest.mark.parametrize("text", ["cpyp [x0]!, [x0]!, x2!", "cpyfm [x0]!, [x1]!, x0!", "sete [x0]!, x1!, x1", "setp [x0]!, x0!, x1"])
def test_equal_registers_are_undefined(window: Window, text: str) -> None:
    cpu = window.start(window.bench.load(text + "\nhvc #1"), x0=VA, x1=VA, x2=4)
    cpu.enter()
    assert (hvc_number(cpu), cpu[ESR_EL1] >> 26) == (FROM_SPX, 0)


def test_registers_of_the_other_option_are_refused(window: Window) -> None:
    for text, iss in (("cpyfmt [x0]!, [x1]!, x2!", 3 << 19 | 1 << 5 | 2), ("sete [x0]!, x2!, x3", 1 << 24 | 1 << 18 | 3 << 5 | 2)):
        cpu = window.start(window.bench.load(text + "\nhvc #1"), pstate=EL1H_MASKED | 1 << 29, x0=VA, x1=VA, x2=WORD)
        cpu.enter()
        assert (cpu[ESR_EL1] >> 26, cpu[ESR_EL1] & 0x1FF_FFFF) == (EC_MOPS, iss | 1 << 17 | 1 << 16)


def test_an_interrupt_finds_the_instruction_half_done() -> None:
    """Another thread kicks a vCPU that copies over and over; some kick comes in the middle, and the copy is right all the same."""
    window = Window()
    bench = window.bench
    pages = 512
    for k in range(PAGES, pages):
        bench.tables.map(VA + k * PAGE, window.pages[k % PAGES])
    window.fill(b"\x33" * PAGES * PAGE)
    text = "again:\nmov x0, x10\nmov x2, x12\nsetp [x0]!, x2!, x1\nsetm [x0]!, x2!, x1\nsete [x0]!, x2!, x1\nb again"
    code = bench.load(text)
    cpu = window.start(code, x1=0x33, x10=VA + 1, x12=pages * PAGE - 1)
    done = threading.Event()

    def kick() -> None:
        while not done.wait(0.0002):
            cpu.kick()

    kicker = threading.Thread(target=kick)
    kicker.start()
    try:
        middle = False
        for _ in range(2000):
            assert cpu.enter().kind == "irq"
            assert cpu.state.x[2] == 0 or cpu.state.x[0] in (VA + 1, VA + pages * PAGE)
            middle = cpu[ELR_EL2] == code + 12 and 0 < -cpu.state.x[2] & WORD < pages * PAGE - 1
            if middle:
                break
    finally:
        done.set()
        kicker.join()
    assert middle
    assert window.contents() == b"\x33" * PAGES * PAGE
