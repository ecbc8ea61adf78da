"""TLB invalidation: every TLBI removes what it names, on this vCPU, in address spaces that are not selected, and on other vCPUs.

Each case also runs without its TLBI and must then see the old page: so a test fails when an invalidation is dropped, and shows that
there was something to invalidate.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine_machine import PTE_NONGLOBAL, PTE_USER, Bench, Tables, hvc_number
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import ESR_EL1, FAR_EL1, ID_AA64ISAR0_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1
from trapline.arm64.regs.system import TLBI_OPS, Regime, Shareable, Tlbi, TlbiBy
from trapline.arm64.sysreg import generic_name
from trapline.engine.state import BANKS, JOURNAL, TLB_ENTRIES

VA = 0x12_3460_0000
"""A virtual address that is no host address, aligned to 2 MiB."""
ASID, OTHER = 5, 6
AGAIN = "dsb ish\n{tlbi}\ndsb ish\nisb\n"
CASES = [op for op in TLBI_OPS if isinstance(op.action, Tlbi) and op.action.regime is Regime.EL1 and op.enc[1] == 0]
OLD, NEW = 0x11, 0x22
TTBR0 = generic_name(TTBR0_EL1.enc)


@pytest.fixture
def bench() -> Iterator[Bench]:
    pytest.importorskip("llvmlite")
    bench = Bench(256)
    yield bench
    bench.engine.close()


def instruction(op: Any, register: str = "x8") -> str:
    _, op1, crn, crm, op2 = op.enc
    return f"sys #{op1}, c{crn}, c{crm}, #{op2}, {register}"


def operand(action: Tlbi, va: int, asid: int, pages: int = 1) -> int:
    """Xt for an address; with `ranged`, for at least `pages` pages of 4 KiB."""
    if action.by is TlbiBy.ASID:
        return asid << 48
    if not action.ranged:
        return asid << 48 | va >> 12
    scale = next(s for s in range(4) if pages <= 32 << 5 * s + 1)
    num = -(-pages // (1 << 5 * scale + 1)) - 1
    return asid << 48 | 1 << 46 | scale << 44 | num << 39 | va >> 12 & (1 << 37) - 1


def spaces(bench: Bench, count: int = 2) -> list[Tables]:
    """Address spaces that share everything but VA's 512 GiB."""
    result = []
    for _ in range(count):
        space = Tables(bench.memory)
        for slot in range(512):
            space.memory.put(space.root + 8 * slot, bench.memory.get(bench.tables.root + 8 * slot))
        space.memory.put(space.root + 8 * (VA >> 39), 0)
        result.append(space)
    return result


def two_pages(bench: Bench) -> tuple[int, int]:
    old, new = bench.memory.page(), bench.memory.page()
    bench.memory.put(old, OLD)
    bench.memory.put(new, NEW)
    return old, new


def descriptors(bench: Bench, space: Tables, va: int) -> None:
    """Map the table that holds `va`'s descriptor, so that the guest can change it."""
    at = space.entry(va) & ~4095
    bench.tables.map(at, at)


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.mnemonic)
@pytest.mark.parametrize("load", ["ldr", "ldtr"])
def test_tlbi_of_a_changed_page(bench: Bench, op: Any, load: str) -> None:
    """EL1's TLB and that of EL0; a page of one address space."""
    old, new = two_pages(bench)
    descriptors(bench, bench.tables, VA)
    code = {}
    for name, tlbi in (("with", instruction(op)), ("without", "nop")):
        code[name] = bench.load(f"{load} x0, [x1]\nstr x2, [x3]\n" + AGAIN.format(tlbi=tlbi) + f"{load} x4, [x1]\nhvc #1")
    flags = PTE_NONGLOBAL | (PTE_USER if load == "ldtr" else 0)
    cpu = bench.cpu(code["with"])
    for name, expected in (("with", NEW), ("without", OLD)):
        bench.tables.map(VA, old, flags)
        bench.engine.tlbi_vmalls12e1(0)
        bench.start(cpu, code[name], x1=VA, x2=new | 0x703 | flags, x3=bench.tables.entry(VA), x8=operand(op.action, VA, ASID))
        cpu[TTBR0_EL1] |= ASID << 48
        cpu.enter()
        assert (hvc_number(cpu), cpu.state.x[0]) == (1, OLD)
        assert cpu.state.x[4] == expected, name


@pytest.mark.parametrize("op", [op for op in CASES if op.action.shareable is Shareable.LOCAL], ids=lambda op: op.mnemonic)
def test_tlbi_of_changed_code(bench: Bench, op: Any) -> None:
    """A function is called at VA before and after its page is exchanged."""
    old, new = bench.memory.page(), bench.memory.page()
    for page, value in ((old, OLD), (new, NEW)):
        bench.memory.write(page, assemble_program(f"mov x0, #{value}\nret"))
    descriptors(bench, bench.tables, VA)
    text = "blr x1\nmov x4, x0\nstr x2, [x3]\n" + AGAIN + "blr x1\nhvc #1"
    code = [bench.load(text.format(tlbi=tlbi)) for tlbi in (instruction(op), "nop")]
    cpu = bench.cpu(code[0])
    for place, expected in zip(code, (NEW, OLD), strict=True):
        bench.tables.map(VA, old, PTE_NONGLOBAL)
        bench.engine.tlbi_vmalls12e1(0)
        x2 = new | 0x703 | PTE_NONGLOBAL
        bench.start(cpu, place, x1=VA, x2=x2, x3=bench.tables.entry(VA), x8=operand(op.action, VA, ASID))
        cpu[TTBR0_EL1] |= ASID << 48
        cpu.enter()
        assert (hvc_number(cpu), cpu.state.x[4], cpu.state.x[0]) == (1, OLD, expected)


@pytest.mark.parametrize("op", [op for op in CASES if op.action.shareable is Shareable.LOCAL], ids=lambda op: op.mnemonic)
def test_tlbi_of_an_address_space_that_is_not_selected(bench: Bench, op: Any) -> None:
    """The page is looked at in one space, changed and invalidated in another, and looked at again in the first."""
    old, new = two_pages(bench)
    text = f"ldtr x0, [x1]\nmsr {TTBR0}, x10\nisb\nstr x2, [x3]\n{AGAIN}msr {TTBR0}, x9\nisb\nldtr x4, [x1]\nhvc #1"
    code = [bench.load(text.format(tlbi=tlbi)) for tlbi in (instruction(op), "nop")]
    first, second = spaces(bench)
    first.map(VA, old, PTE_USER | PTE_NONGLOBAL)
    descriptors(bench, first, VA)
    at = first.entry(VA)
    for each in (first, second):  # what `descriptors` mapped is below another entry of the root
        for slot in range(512):
            if slot != VA >> 39:
                bench.memory.put(each.root + 8 * slot, bench.memory.get(bench.tables.root + 8 * slot))
    cpu = bench.cpu(code[0])
    for place, expected in zip(code, (NEW, OLD), strict=True):
        first.map(VA, old, PTE_USER | PTE_NONGLOBAL)
        bench.engine.tlbi_vmalls12e1(0)
        registers = {"x9": first.root | ASID << 48, "x10": second.root | OTHER << 48, "x3": at, "x8": operand(op.action, VA, ASID)}
        bench.start(cpu, place, x1=VA, x2=new | 0x703 | PTE_USER | PTE_NONGLOBAL, **registers)
        cpu[TTBR0_EL1] = registers["x9"]
        cpu.enter()
        assert (hvc_number(cpu), cpu.state.x[0], cpu.state.x[4]) == (1, OLD, expected)


def test_an_asid_is_kept_apart(bench: Bench) -> None:
    """TLBI ASIDE1 and VAE1 of one ASID leave the translations of another alone."""
    old, new = two_pages(bench)
    descriptors(bench, bench.tables, VA)
    for tlbi in ("tlbi aside1, x8", "tlbi vae1, x8", "tlbi vale1, x8"):
        code = bench.load("ldtr x0, [x1]\nstr x2, [x3]\n" + AGAIN.format(tlbi=tlbi) + "ldtr x4, [x1]\nhvc #1")
        bench.tables.map(VA, old, PTE_USER | PTE_NONGLOBAL)
        cpu = bench.engine.cpus[0] if bench.engine.cpus else bench.cpu(code)
        bench.engine.tlbi_vmalls12e1(0)
        x8 = OTHER << 48 | (0 if "aside" in tlbi else VA >> 12)
        bench.start(cpu, code, x1=VA, x2=new | 0x703 | PTE_USER | PTE_NONGLOBAL, x3=bench.tables.entry(VA), x8=x8)
        cpu[TTBR0_EL1] |= ASID << 48
        cpu.enter()
        assert (hvc_number(cpu), cpu.state.x[4]) == (1, OLD), f"{tlbi} took more than it should"


@pytest.mark.parametrize("load", ["ldr", "ldtr"])
def test_more_address_spaces_than_banks(bench: Bench, load: str) -> None:
    """Each space has a page of its own at VA; whoever is selected sees it, however often they take turns."""
    count = BANKS + 3
    loop = f"next: ldr x9, [x7], #8\ncbz x9, done\nmsr {TTBR0}, x9\nisb\n{load} x4, [x1]\nstr x4, [x6], #8\nb next"
    code = bench.load(loop + "\ndone: hvc #1")
    table, out = bench.memory.page(), bench.memory.page()
    for page in (table, out):
        bench.tables.map(page, page)
    everyone = spaces(bench, count)
    order = [k * 7 % count for k in range(3 * count)] + [0, 1, 0, 1]
    for k, space in enumerate(everyone):
        page = bench.memory.page()
        bench.memory.put(page, 100 + k)
        space.map(VA, page, PTE_USER | PTE_NONGLOBAL)
    for n, k in enumerate(order):
        bench.memory.put(table + 8 * n, everyone[k].root | (k + 1) << 48)
    cpu = bench.cpu(code, x1=VA, x6=out, x7=table)
    cpu.enter()
    assert hvc_number(cpu) == 1
    assert [bench.memory.get(out + 8 * n) for n in range(len(order))] == [100 + k for k in order]


@pytest.mark.parametrize("tlbi", ["tlbi vae1, x8", "tlbi vaae1, x8", "tlbi aside1, x8", "tlbi vmalle1"])
def test_a_table_that_is_taken_away(bench: Bench, tlbi: str) -> None:
    """Cached tables go too, unless the TLBI is for the last level only."""
    old, new = two_pages(bench)
    leaf = bench.tables.entry(VA)
    table = bench.memory.page()
    bench.memory.put(table + (leaf & 4095) + 8, new | 0x703)
    bench.tables.map(VA, old)
    bench.tables.map(VA + 4096, old)
    middle = bench.memory.get(bench.memory.get(bench.tables.root + 8 * (VA >> 39)) & ~4095 & (1 << 48) - 1 | (VA >> 30 & 511) << 3)
    slot = (middle & ~4095 & (1 << 48) - 1) + 8 * (VA >> 21 & 511)
    bench.tables.map(slot & ~4095, slot & ~4095)
    kept = bench.memory.get(slot)
    # The first load warms the table; the second page has never been looked at.
    text = "ldr x0, [x1]\nstr x2, [x3]\n" + AGAIN + "ldr x4, [x1, #4096]\nhvc #1"
    code = [bench.load(text.format(tlbi=tlbi)) for tlbi in (tlbi, "nop")]
    cpu = bench.cpu(code[0])
    for place, expected in zip(code, (NEW, OLD), strict=True):
        bench.memory.put(slot, kept)
        bench.engine.tlbi_vmalls12e1(0)
        bench.start(cpu, place, x1=VA, x2=table | 3, x3=slot, x8=VA >> 12)
        cpu.enter()
        allowed = {expected, NEW}  # a table may always be forgotten: the code's, at a host address, may take its place in the cache
        assert hvc_number(cpu) == 1 and cpu.state.x[0] == OLD and cpu.state.x[4] in allowed


@pytest.mark.parametrize("where", [0x3000, 0x1F_F000])
@pytest.mark.parametrize("tlbi", ["tlbi vae1, x8", "tlbi vaale1, x8"])
def test_a_block_goes_by_any_of_its_addresses(bench: Bench, tlbi: str, where: int) -> None:
    """A page of a 2 MiB block was used; the TLBI names another page of the block."""
    size = 2 << 20
    memory = Bench(3 * size // 4096 + 64).memory
    block = memory.base + -memory.base % size
    memory.put(block + 0x5000, OLD)
    _, new = two_pages(bench)
    bench.tables.entry(VA)
    upper = bench.memory.get(bench.tables.root + 8 * (VA >> 39)) & ~4095 & (1 << 48) - 1
    slot = (bench.memory.get(upper + 8 * (VA >> 30 & 511)) & ~4095 & (1 << 48) - 1) + 8 * (VA >> 21 & 511)
    bench.tables.map(slot & ~4095, slot & ~4095)
    table = bench.memory.page()
    bench.memory.put(table + 8 * 5, new | 0x703)
    text = "ldr x0, [x1]\nstr xzr, [x3]\n" + AGAIN + "str x2, [x3]\ndsb ish\nldr x4, [x1]\nhvc #1"
    code = [bench.load(text.format(tlbi=t)) for t in (tlbi, "nop")]
    cpu = bench.cpu(code[0])
    for place, expected in zip(code, (NEW, OLD), strict=True):
        bench.memory.put(slot, block | 0x701)
        bench.engine.tlbi_vmalls12e1(0)
        bench.start(cpu, place, x1=VA + 0x5000, x2=table | 3, x3=slot, x8=VA + where >> 12)
        cpu.enter()
        assert (hvc_number(cpu), cpu.state.x[0], cpu.state.x[4]) == (1, OLD, expected)


@pytest.mark.parametrize("pages", [2, 20, TLB_ENTRIES + 100])
def test_a_range_reaches_its_last_page(bench: Bench, pages: int) -> None:
    old, new = two_pages(bench)
    last = VA + (pages - 1) * 4096
    descriptors(bench, bench.tables, last)
    text = "ldr x0, [x1]\nstr x2, [x3]\n" + AGAIN + "ldr x4, [x1]\nhvc #1"
    range_op = next(op for op in CASES if op.mnemonic == "TLBI RVAAE1")
    code = [bench.load(text.format(tlbi=tlbi)) for tlbi in (instruction(range_op), "nop")]
    cpu = bench.cpu(code[0])
    for place, expected in zip(code, (NEW, OLD), strict=True):
        bench.tables.map(last, old)
        bench.engine.tlbi_vmalls12e1(0)
        bench.start(cpu, place, x1=last, x2=new | 0x703, x3=bench.tables.entry(last), x8=operand(range_op.action, VA, 0, pages))
        cpu.enter()
        assert (hvc_number(cpu), cpu.state.x[0], cpu.state.x[4]) == (1, OLD, expected)


@pytest.mark.parametrize("count", [100, JOURNAL + 100])
@pytest.mark.parametrize("tlbi", ["tlbi aside1, x8", "tlbi vmalle1"])
def test_the_last_of_many_pages(bench: Bench, tlbi: str, count: int) -> None:
    """Whether a TLB is emptied entry by entry or by and large."""
    old, new = two_pages(bench)
    last = VA + (count - 1) * 4096
    flags = PTE_USER | PTE_NONGLOBAL
    for k in range(count):
        bench.tables.map(VA + 4096 * k, old, flags)
    descriptors(bench, bench.tables, last)
    walk = "more: ldtr x0, [x1]\nadd x1, x1, #1, lsl #12\nsubs x5, x5, #1\nb.ne more\nstr x2, [x3]\n"
    code = [bench.load(walk + AGAIN.format(tlbi=each) + "ldtr x4, [x6]\nhvc #1") for each in (tlbi, "nop")]
    cpu = bench.cpu(code[0])
    for place, expected in zip(code, (NEW, OLD), strict=True):
        bench.tables.map(last, old, flags)
        bench.engine.tlbi_vmalls12e1(0)
        bench.start(cpu, place, x1=VA, x2=new | 0x703 | flags, x3=bench.tables.entry(last), x5=count, x6=last, x8=0)
        cpu.enter()
        assert (hvc_number(cpu), cpu.state.x[0], cpu.state.x[4]) == (1, OLD, expected)


@pytest.mark.parametrize(
    "register, bit, address, fsc", [(SCTLR_EL1, SCTLR_EL1.A, VA + 1, 0x21), (TCR_EL1, TCR_EL1.TBI0, VA | 1 << 56, 0x04)]
)
def test_controls_that_translation_depends_on(bench: Bench, register: Any, bit: Any, address: int, fsc: int) -> None:
    """An access that a control permits, and no more when the control changed: nothing is left of the entry it made."""
    old, _ = two_pages(bench)
    bench.tables.map(VA, old)
    name = generic_name(register.enc)
    code = bench.load(f"msr {name}, x8\nisb\nldr x0, [x1]\nmsr {name}, x9\nisb\nldr x4, [x1]\nhvc #1")
    cpu = bench.cpu(code, x1=address)
    permits = cpu[register] & ~bit.mask if register is SCTLR_EL1 else cpu[register] | bit.mask
    cpu.state.x[8], cpu.state.x[9] = permits, permits ^ bit.mask
    cpu.enter()
    assert hvc_number(cpu) == 0x104 and cpu[ESR_EL1] & 0x3F == fsc
    assert cpu.state.x[0] & 0xFF in (OLD, 0) and cpu[FAR_EL1] == address


SHARED = [op for op in CASES if op.action.shareable is not Shareable.LOCAL]


@pytest.mark.parametrize("op", SHARED, ids=lambda op: op.mnemonic)
def test_a_broadcast_reaches_a_running_vcpu(bench: Bench, op: Any) -> None:
    """After the TLBI and DSB nobody reads the old page: the reader tells what it saw after it saw the flag."""
    old, new = two_pages(bench)
    flag = bench.memory.page()
    bench.tables.map(flag, flag)
    descriptors(bench, bench.tables, VA)
    flags = PTE_USER | PTE_NONGLOBAL
    reader = bench.load("again: ldtr x0, [x1]\nldar x2, [x3]\ncbz x2, again\nldtr x0, [x1]\nhvc #1")
    writer = bench.load(f"str x4, [x5]\ndsb ishst\n{instruction(op)}\ndsb ish\nmov x7, #1\nstlr x7, [x3]\nhvc #2")
    reading, writing = bench.cpu(reader), bench.cpu(writer)
    for _ in range(4):
        bench.tables.map(VA, old, flags)
        bench.memory.put(flag, 0)
        bench.start(reading, reader, x0=0, x1=VA, x3=flag)
        x8 = operand(op.action, VA, ASID)
        bench.start(writing, writer, x3=flag, x4=new | 0x703 | flags, x5=bench.tables.entry(VA), x8=x8)
        for cpu in (reading, writing):
            cpu[TTBR0_EL1] |= ASID << 48
        bench.engine.tlbi_vmalls12e1(0)
        thread = threading.Thread(target=reading.enter, daemon=True)
        thread.start()
        while reading.state.x[0] != OLD:
            pass
        writing.enter()
        thread.join(30)
        assert not thread.is_alive()
        assert (hvc_number(writing), hvc_number(reading), reading.state.x[0]) == (2, 1, NEW)


def test_a_page_that_changed_while_a_vcpu_stood_still(bench: Bench) -> None:
    """A vCPU that was not running when another one invalidated does so before it goes on."""
    old, new = two_pages(bench)
    bench.tables.map(VA, old)
    code = bench.load("ldr x0, [x1]\nhvc #1")
    still, other = bench.cpu(code, x1=VA), bench.cpu(bench.load("tlbi vmalle1is\ndsb ish\nhvc #2"))
    still.enter()
    assert still.state.x[0] == OLD
    bench.tables.map(VA, new)
    other.enter()
    assert hvc_number(other) == 2
    bench.start(still, code, x1=VA)
    still.enter()
    assert still.state.x[0] == NEW


def test_the_machine_shows_the_operations_that_are_tested(bench: Bench) -> None:
    assert ID_AA64ISAR0_EL1(bench.engine.features.id_values()[ID_AA64ISAR0_EL1]).TLB == 2
    assert len(CASES) == 30
