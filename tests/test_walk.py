"""Translation: hand cases, and random tables compared with a plain second implementation; CPython and LLVM agree."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
import walk_reference as ref

from trapline.arm64.descriptors import FAULT, FAULT_S1PTW, FAULT_STAGE2, FAULT_UPDATE
from trapline.arm64.regs.el1 import MAIR_EL1, PAR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1
from trapline.arm64.regs.el2 import HCR_EL2, MAIR_EL2, SCTLR_EL2, TCR_EL2, TTBR0_EL2, TTBR1_EL2, VTCR_EL2, VTTBR_EL2
from trapline.arm64.regs.identification import ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1
from trapline.arm64.state import CpuState
from trapline.arm64.walk import (
    ACCESS_EXEC,
    ACCESS_READ,
    ACCESS_UNPRIVILEGED,
    ACCESS_WRITE,
    INFO_DEVICE,
    INFO_EXEC,
    INFO_NONGLOBAL,
    INFO_READ,
    INFO_WRITE,
    address_translate,
    address_translate_fault,
    translate,
)
from trapline.bits.native import compile_functions

ARENA = 4 << 20
IPA_BASE = 0x4000_0000
TG0 = {12: 0, 16: 1, 14: 2}
TG1 = {14: 1, 12: 2, 16: 3}
ACCESS = {"r": ACCESS_READ, "w": ACCESS_WRITE, "rw": ACCESS_READ | ACCESS_WRITE, "x": ACCESS_EXEC}
VALID, TABLE, AF = 1, 3, 1 << 10


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return compile_functions([translate, address_translate, address_translate_fault])


class Arena:
    """Memory for tables."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(ARENA + 0x10000)
        self.base = (ctypes.addressof(self.buffer) + 0xFFFF) & ~0xFFFF
        self.next = self.base

    def table(self, size: int, alignment: int) -> int:
        self.next = (self.next + alignment - 1) & ~(alignment - 1)
        at, self.next = self.next, self.next + size
        if self.next > self.base + ARENA:
            raise MemoryError
        return at


def load(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def store(address: int, value: int) -> None:
    ctypes.c_uint64.from_address(address).value = value


def apply(cpu: CpuState, m: ref.Machine) -> None:
    """Put a machine's fields into registers."""
    cpu.el, cpu.pan = m.el, m.pan
    cpu.sysreg[ID_AA64MMFR1_EL1.slot] = ID_AA64MMFR1_EL1(XNX=1)
    cpu.sysreg[SCTLR_EL1.slot] = SCTLR_EL1(M=m.mmu, WXN=m.wxn)
    cpu.sysreg[TCR_EL1.slot] = TCR_EL1(
        T0SZ=m.tsz[0], T1SZ=m.tsz[1], TG0=TG0[m.granule[0]], TG1=TG1[m.granule[1]], EPD0=m.epd[0], EPD1=m.epd[1],
        TBI0=m.tbi[0], TBI1=m.tbi[1], HPD0=m.hpd[0], HPD1=m.hpd[1], IPS=m.ips,
    )  # fmt: skip
    cpu.sysreg[TTBR0_EL1.slot], cpu.sysreg[TTBR1_EL1.slot] = m.ttbr
    cpu.sysreg[MAIR_EL1.slot] = m.mair
    cpu.sysreg[HCR_EL2.slot] = HCR_EL2(VM=m.vm, PTW=m.ptw)
    cpu.sysreg[VTCR_EL2.slot] = VTCR_EL2(T0SZ=m.t0sz, SL0=m.sl0, TG0=TG0[m.granule2], PS=m.ps)
    cpu.sysreg[VTTBR_EL2.slot] = m.vttbr


def expected(m: ref.Machine, va: int, wanted: str, el: int) -> tuple[int, int, int, int]:
    """What `translate` should return."""
    try:
        host, ipa, allowed, size, nonglobal, device = ref.translate(m, va, wanted, el)
    except ref.Fault as fault:
        return fault.packed(), 0, fault.ipa, 0
    info = INFO_READ * ("r" in allowed) | INFO_WRITE * ("w" in allowed) | INFO_EXEC * ("x" in allowed)
    return 0, host, ipa, info | INFO_NONGLOBAL * nonglobal | INFO_DEVICE * device | size << 8


class Stage:
    """A tree of tables that grows where an address is mapped; tables' own addresses are host addresses less `offset`."""

    def __init__(self, arena: Arena, granule: int, start: int, size: int, offset: int = 0):
        self.arena, self.granule, self.start, self.size, self.offset = arena, granule, start, size, offset
        entries = 8 << (size - ref.BOUNDS[granule][start][1])
        self.root = arena.table(entries, max(entries, 64)) - offset

    def slot(self, address: int, level: int, rng: random.Random | None = None) -> tuple[int, int]:
        """Host address of the descriptor at `level` or of the leaf above it, and its level."""
        table = self.root
        for current in range(self.start, level + 1):
            hi, lo = ref.BOUNDS[self.granule][current]
            at = table + self.offset + 8 * ref.bits(address, self.size - 1 if current == self.start else hi, lo)
            descriptor = load(at)
            if current == level or (descriptor and descriptor & 3 != 3):
                return at, current
            if not descriptor:
                fresh = self.arena.table(1 << self.granule, 1 << self.granule) - self.offset
                descriptor = fresh | TABLE
                if rng and rng.random() < 0.3:
                    descriptor |= 1 << rng.randrange(59, 63)
                store(at, descriptor)
            table = ref.bits(descriptor, 47, self.granule) << self.granule
        raise AssertionError

    def map(self, address: int, output: int, level: int, attributes: int) -> None:
        """Map the block or page that holds `address`."""
        at, found = self.slot(address, level)
        assert found == level
        lo = ref.BOUNDS[self.granule][level][1]
        store(at, output >> lo << lo | attributes | (3 if level == 3 else 1))

    def scatter(self, rng: random.Random, address: int, outputs: list[int]) -> None:
        """A random descriptor, mostly sensible, somewhere on the path of `address`."""
        level = rng.choice([level for level in ref.BOUNDS[self.granule] if level >= self.start])
        at, level = self.slot(address, level, rng)
        lo = ref.BOUNDS[self.granule][level][1]
        kind = rng.choice([3, 3, 3, 3, 1, 0]) if level == 3 else rng.choice([1, 1, 1, 0, 2])
        flags = rng.getrandbits(12) & 0xFFC | (rng.getrandbits(64) & 0x7FF << 52)
        flags |= AF if rng.random() < 0.9 else 0
        output = rng.choice(outputs) & ~((1 << lo) - 1)
        if rng.random() < 0.1:
            output |= 1 << rng.randrange(32, 48)
        if not load(at):
            store(at, output | flags | kind)


def random_machine(rng: random.Random, arena: Arena, stages: int) -> tuple[ref.Machine, list[int]]:
    """Registers and tables, and addresses worth translating."""
    m = ref.Machine(
        el=rng.randrange(2), pan=rng.randrange(2), wxn=rng.random() < 0.2, mair=rng.choice([0x0044_FF04_00BB_FF00, rng.getrandbits(64)]),
        granule=(rng.choice([12, 14, 16]), rng.choice([12, 14, 16])), granule2=rng.choice([12, 14, 16]),
        tsz=(rng.randrange(16, 40), rng.randrange(16, 40)), hpd=(rng.randrange(2), rng.randrange(2)),
        tbi=(rng.randrange(2), rng.randrange(2)), vm=stages == 2, ptw=rng.random() < 0.3,
    )  # fmt: skip
    offset = 0
    if stages == 2:
        offset = arena.base - IPA_BASE
        m.ips = rng.choice([0, 1, 2, 5])
        m.t0sz, m.sl0 = rng.choice(
            {12: [(24, 1), (16, 2), (30, 1), (32, 1), (28, 1)], 14: [(24, 1), (20, 2), (30, 1)], 16: [(24, 1), (16, 2), (32, 1)]}[
                m.granule2
            ]
        )
        start = (2 if m.granule2 == 12 else 3) - m.sl0
        tree = Stage(arena, m.granule2, start, 64 - m.t0sz)
        m.vttbr = tree.root
        for at in range(0, ARENA, 1 << m.granule2):
            attributes = AF | 0xC0 | 0x3C | rng.getrandbits(2) << 53
            if rng.random() < 0.03:
                attributes ^= rng.choice([AF, 0x40, 0x3C, 1 << 7])
            tree.map(IPA_BASE + at, arena.base + at, 3, attributes)
        for _ in range(20):
            tree.scatter(rng, rng.getrandbits(64 - m.t0sz), [rng.getrandbits(40), arena.base])
    addresses, roots = list[int](), list[int]()
    for half in range(2):
        size, granule = 64 - m.tsz[half], m.granule[half]
        tree = Stage(arena, granule, ref.first_level(size, granule), size, offset)
        roots.append(tree.root | rng.getrandbits(16) << 48)
        inside = [IPA_BASE + rng.randrange(ARENA) for _ in range(6)]
        outputs = [rng.getrandbits(34), rng.getrandbits(47), *inside]
        for _ in range(25):
            va = rng.getrandbits(size)
            tree.scatter(rng, va, outputs)
            addresses.append(va | ((1 << 64) - (1 << size) if half else 0))
    m.ttbr = roots[0], roots[1]
    if rng.random() < 0.1:
        m.epd = (1, 0)
    if rng.random() < 0.1:
        m.mmu = 0
        addresses += [rng.getrandbits(rng.choice([20, 32, 48, 50])) for _ in range(10)]
    return m, addresses


@pytest.mark.parametrize("stages", [1, 2])
def test_random_tables(stages: int, compiled: dict[str, Any]) -> None:
    rng = random.Random(100 + stages)
    seen: dict[int, int] = {}
    for _ in range(60):
        arena = Arena()
        m, addresses = random_machine(rng, arena, stages)
        cpu = CpuState()
        apply(cpu, m)
        for address in addresses:
            va = address
            change = rng.randrange(8)
            if change == 0:
                va ^= 1 << rng.randrange(64)
            elif change == 1:
                va ^= rng.getrandbits(8) << 56
            else:
                va ^= rng.getrandbits(12)
            wanted = rng.choice(list(ACCESS))
            unprivileged = "x" not in wanted and rng.random() < 0.2
            access = ACCESS[wanted] | (ACCESS_UNPRIVILEGED if unprivileged else 0)
            result = translate(cpu, va, access)
            assert result == compiled["translate"](cpu, va, access)
            assert result == expected(m, va, wanted, 0 if unprivileged else m.el), (m, hex(va), wanted)
            seen[result[0]] = seen.get(result[0], 0) + 1
            for el in range(2):
                args = (cpu, va, stages, el, wanted == "w", True)
                par = address_translate(*args)
                assert par == compiled["address_translate"](*args)
                check_par(m, va, "w" if wanted == "w" else "r", el, stages, par)
    assert seen[0] > 100 and len(seen) > (10 if stages == 1 else 16), seen


def check_par(m: ref.Machine, va: int, wanted: str, el: int, stages: int, par: int) -> None:
    want = expected(m, va, wanted, el)
    if want[0] == 0 or (want[0] & FAULT_STAGE2 and stages == 1 and not want[0] & FAULT_S1PTW):
        assert not par & 1
        assert par & 0xFFFF_FFFF_F000 == (want[1] if stages == 2 else want[2]) & ~0xFFF
    else:
        assert par & 0x37F == 1 | (want[0] & 0x3F) << 1 | (want[0] & FAULT_S1PTW) << 1 | (want[0] & FAULT_STAGE2) << 1


class Linux:
    """A usual set-up: 4 KiB granule, 48 bits both ways, a kernel block, a user page; stage 2 off."""

    KERNEL = 0xFFFF_8000_0800_0000
    USER = 0x0000_AAAA_BBBB_C000

    def __init__(self) -> None:
        self.arena = Arena()
        low, high = Stage(self.arena, 12, 0, 48), Stage(self.arena, 12, 0, 48)
        self.low, self.high = low, high
        high.map(self.KERNEL & (1 << 48) - 1, 0x4020_0000, 2, AF | 3 << 8 | 1 << 54)
        low.map(self.USER, 0x5000_3000, 3, AF | 3 << 8 | 1 << 2 | 1 << 6 | 1 << 11 | 1 << 53)
        self.machine = ref.Machine(ttbr=(low.root, high.root), mair=0x0404_FF44_0400_00FF | 0xFF << 8)
        self.cpu = CpuState()
        apply(self.cpu, self.machine)


def test_kernel_block_and_user_page() -> None:
    linux = Linux()
    cpu = linux.cpu
    fault, host, ipa, info = translate(cpu, linux.KERNEL + 0x12345, ACCESS_READ | ACCESS_WRITE)
    assert (fault, host, ipa) == (0, 0x4021_2345, 0x4021_2345)
    assert info == INFO_READ | INFO_WRITE | INFO_EXEC | 21 << 8
    fault, host, _, info = translate(cpu, linux.USER + 8, ACCESS_READ)
    assert (fault, host, info) == (0, 0x5000_3008, INFO_READ | INFO_WRITE | INFO_NONGLOBAL | 12 << 8)
    assert translate(cpu, linux.USER, ACCESS_EXEC)[0] == FAULT | 0x0F
    cpu.pan = 1
    assert translate(cpu, linux.USER, ACCESS_READ)[0] == FAULT | 0x0F
    assert translate(cpu, linux.USER, ACCESS_READ | ACCESS_UNPRIVILEGED)[0] == 0
    cpu.el = 0
    assert translate(cpu, linux.USER, ACCESS_READ)[0] == 0
    assert translate(cpu, linux.USER, ACCESS_EXEC)[0] == 0
    assert translate(cpu, linux.KERNEL, ACCESS_READ)[0] == FAULT | 0x0E
    assert translate(cpu, linux.KERNEL + (2 << 20), ACCESS_READ)[0] == FAULT | 0x06
    assert translate(cpu, linux.USER + 0x1000, ACCESS_READ)[0] == FAULT | 0x07
    assert translate(cpu, 0x0001_0000_0000_0000, ACCESS_READ)[0] == FAULT | 0x04


def test_top_byte_ignore() -> None:
    linux = Linux()
    tagged = linux.USER | 0xAB << 56
    assert translate(linux.cpu, tagged, ACCESS_READ)[0] == FAULT | 0x04
    linux.cpu.sysreg[TCR_EL1.slot] |= TCR_EL1.TBI0.mask
    assert translate(linux.cpu, tagged, ACCESS_READ)[:2] == (0, 0x5000_3000)
    linux.cpu.sysreg[TCR_EL1.slot] |= TCR_EL1.TBID0.mask
    linux.cpu.el = 0
    assert translate(linux.cpu, linux.USER, ACCESS_EXEC)[0] == 0
    assert translate(linux.cpu, tagged, ACCESS_EXEC)[0] == FAULT | 0x04
    assert translate(linux.cpu, tagged, ACCESS_READ)[0] == 0


def test_par_of_stage_1() -> None:
    linux = Linux()
    par = address_translate(linux.cpu, linux.USER + 0x123, 1, 1, False, False)
    assert PAR_EL1(par).PA << 12 == 0x5000_3000 and PAR_EL1(par).ATTR == 0xFF and PAR_EL1(par).SH == 3
    linux.cpu.pan = 1
    assert address_translate(linux.cpu, linux.USER, 1, 1, False, False) & 1 == 0
    assert address_translate(linux.cpu, linux.USER, 1, 1, False, True) & 0x7F == 1 | 0x0F << 1
    assert address_translate(linux.cpu, linux.KERNEL, 1, 0, True, False) & 0x7F == 1 | 0x0E << 1


class Guest(Linux):
    """The same with stage 2: 40-bit IPAs from level 1, of which the arena is mapped at IPA_BASE by pages."""

    def __init__(self) -> None:
        super().__init__()
        offset = self.arena.base - IPA_BASE
        self.stage2 = Stage(self.arena, 12, 1, 40)
        self.low = Stage(self.arena, 12, 0, 48, offset)
        self.low.map(self.USER, 0x5000_3000, 3, AF | 1 << 2 | 1 << 6 | 1 << 11 | 1 << 53)
        for at in range(0, ARENA, 0x1000):
            self.stage2.map(IPA_BASE + at, self.arena.base + at, 3, AF | 0xC0 | 0x3C)
        self.stage2.map(0x5000_0000, 0x7F00_0000_0000, 2, AF | 0xC0 | 0x3C)
        self.machine.ttbr = (self.low.root, 0)
        self.machine.vm, self.machine.vttbr = 1, self.stage2.root
        apply(self.cpu, self.machine)


def test_two_stages() -> None:
    guest = Guest()
    fault, host, ipa, info = translate(guest.cpu, guest.USER + 5, ACCESS_WRITE)
    assert (fault, host, ipa, info >> 8) == (0, 0x7F00_0000_3005, 0x5000_3005, 12)
    par = address_translate(guest.cpu, guest.USER, 2, 1, False, False)
    assert par & 0xFFFF_FFFF_F000 == 0x7F00_0000_3000
    assert address_translate(guest.cpu, guest.USER, 1, 1, False, False) & 0xFFFF_FFFF_F000 == 0x5000_3000


def test_stage_2_faults() -> None:
    guest = Guest()
    guest.stage2.map(0x5000_0000, 0x7F00_0000_0000, 2, AF | 0x40 | 0x3C)
    assert translate(guest.cpu, guest.USER, ACCESS_WRITE) == (FAULT | FAULT_STAGE2 | 0x0E, 0, 0x5000_3000, 0)
    assert translate(guest.cpu, guest.USER, ACCESS_READ)[3] & (INFO_READ | INFO_WRITE) == INFO_READ
    store(guest.stage2.slot(0x5000_0000, 2)[0], 0)
    assert translate(guest.cpu, guest.USER + 9, ACCESS_READ) == (FAULT | FAULT_STAGE2 | 0x06, 0, 0x5000_3009, 0)


def test_stage_2_faults_on_stage_1_tables(compiled: dict[str, Any]) -> None:
    guest = Guest()
    where = guest.low.slot(guest.USER, 2)[0] - guest.arena.base + IPA_BASE
    page = guest.stage2.slot(where, 3)[0]
    for value, fsc in ((0, 0x07), (load(page) & ~AF, 0x0B), (load(page) & ~0x40, 0x0F)):
        store(page, value)
        want = (FAULT | FAULT_STAGE2 | FAULT_S1PTW | fsc, 0, where, 0)
        assert translate(guest.cpu, guest.USER, ACCESS_READ) == want
        assert address_translate(guest.cpu, guest.USER, 1, 1, False, False) & 0x37F == 1 | fsc << 1 | 1 << 8 | 1 << 9
        assert address_translate_fault(guest.cpu, guest.USER, 1, False, False) == (want[0], where)
        assert compiled["address_translate_fault"](guest.cpu, guest.USER, 1, False, False) == (want[0], where)


def test_walk_in_device_memory_is_refused_with_ptw() -> None:
    guest = Guest()
    where = guest.low.slot(guest.USER, 3)[0] - guest.arena.base + IPA_BASE
    page = guest.stage2.slot(where, 3)[0]
    store(page, load(page) & ~0x3C | 0x04)
    assert translate(guest.cpu, guest.USER, ACCESS_READ)[0] == 0
    guest.cpu.sysreg[HCR_EL2.slot] |= HCR_EL2.PTW.mask
    assert translate(guest.cpu, guest.USER, ACCESS_READ)[0] == FAULT | FAULT_STAGE2 | FAULT_S1PTW | 0x0F


@pytest.mark.parametrize(
    "granule, t0sz, sl0, good",
    [
        (12, 16, 2, True), (12, 24, 1, True), (12, 25, 1, True), (12, 21, 1, True), (12, 20, 1, False), (12, 30, 0, True),
        (12, 34, 1, False), (12, 33, 1, True), (12, 34, 0, True), (12, 24, 3, False), (12, 15, 2, False), (12, 39, 0, True),
        (12, 40, 0, False), (14, 24, 2, True), (14, 28, 2, False), (14, 27, 2, True), (14, 24, 1, True), (14, 16, 2, True),
        (14, 16, 3, False), (16, 16, 2, True), (16, 22, 2, False), (16, 21, 2, True), (16, 24, 1, True), (16, 18, 1, True),
        (16, 17, 1, False),
    ],
)  # fmt: skip
def test_stage_2_start_levels(granule: int, t0sz: int, sl0: int, good: bool) -> None:
    """T0SZ must fit the start level; up to 16 tables are concatenated. A good empty table faults at the start level."""
    arena = Arena()
    machine = ref.Machine(mmu=0, vm=1, t0sz=t0sz, sl0=sl0, granule2=granule, vttbr=arena.table(1 << 20, 1 << 20))
    cpu = CpuState()
    apply(cpu, machine)
    level = (2 if granule == 12 else 3) - sl0 if good else 0
    assert translate(cpu, 0x1000, ACCESS_READ) == (FAULT | FAULT_STAGE2 | 0x04 | level, 0, 0x1000, 0)


@pytest.mark.parametrize("bits, good", [(52, True), (51, True), (49, True), (48, False)])
def test_stage_2_that_starts_at_level_minus_1(bits: int, good: bool) -> None:
    """One bit for the start level's index is enough (S2InconsistentSL in the manual); QEMU 7.2 wants 52 bits."""
    arena = Arena()
    cpu = CpuState()
    apply(cpu, ref.Machine(mmu=0, vm=1, vttbr=arena.table(1 << 16, 1 << 16)))
    cpu.sysreg[ID_AA64MMFR0_EL1.slot] = ID_AA64MMFR0_EL1(PARange=6, TGran4=1, TGran4_2=3)
    cpu.sysreg[VTCR_EL2.slot] = VTCR_EL2(T0SZ=64 - bits, DS=1, SL2=1, SL0=0, PS=6)
    assert translate(cpu, 0x1000, ACCESS_READ) == (FAULT | FAULT_STAGE2 | (0x2B if good else 0x04), 0, 0x1000, 0)


def test_stage_1_off() -> None:
    cpu = CpuState(el=1)
    fault, host, _, info = translate(cpu, 0x1234_5678, ACCESS_WRITE)
    assert (fault, host) == (0, 0x1234_5678)
    assert info == INFO_READ | INFO_WRITE | INFO_EXEC | INFO_DEVICE | 12 << 8
    assert translate(cpu, 1 << 48, ACCESS_READ)[0] == FAULT
    cpu.sysreg[TCR_EL1.slot] = TCR_EL1.TBI0.mask
    assert translate(cpu, 0x55 << 56 | 0x1000, ACCESS_READ)[:2] == (0, 0x1000)


def test_default_cacheable_turns_stage_1_off_and_stage_2_on() -> None:
    guest = Guest()
    guest.cpu.sysreg[HCR_EL2.slot] = HCR_EL2.DC.mask
    fault, host, ipa, info = translate(guest.cpu, 0x5000_1000, ACCESS_READ)
    assert (fault, host, ipa, info & INFO_DEVICE) == (0, 0x7F00_0000_1000, 0x5000_1000, 0)


def test_el2_regime() -> None:
    arena = Arena()
    tree = Stage(arena, 12, 0, 48)
    tree.map(0x8000_0000, 0x9000_0000, 2, AF | 1 << 7)
    tree.map(0x8020_0000, 0x9020_0000, 2, AF | 1 << 54 | 1 << 11)
    cpu = CpuState(el=2)
    assert translate(cpu, 0x8000_0000, ACCESS_WRITE)[:2] == (0, 0x8000_0000)
    cpu.sysreg[SCTLR_EL2.slot] = SCTLR_EL2.M.mask
    cpu.sysreg[TCR_EL2.slot] = TCR_EL2(T0SZ=16, PS=5)
    cpu.sysreg[TTBR0_EL2.slot] = tree.root
    cpu.sysreg[MAIR_EL2.slot] = 0xFF
    assert translate(cpu, 0x8000_0010, ACCESS_EXEC) == (0, 0x9000_0010, 0x9000_0010, INFO_READ | INFO_EXEC | 21 << 8)
    assert translate(cpu, 0x8000_0010, ACCESS_WRITE)[0] == FAULT | 0x0E
    assert translate(cpu, 0x8020_0000, ACCESS_WRITE)[3] == INFO_READ | INFO_WRITE | 21 << 8
    assert translate(cpu, 0x8020_0000, ACCESS_EXEC)[0] == FAULT | 0x0E
    assert translate(cpu, 0xFFFF_8000_0000_0000, ACCESS_READ)[0] == FAULT | 0x04


class Host:
    """EL2&0: a kernel's block high, a user's page low, controls in EL2's registers; EL0 belongs to it."""

    def __init__(self) -> None:
        self.arena = Arena()
        low, high = Stage(self.arena, 12, 0, 48), Stage(self.arena, 12, 0, 48)
        high.map(Linux.KERNEL & (1 << 48) - 1, 0x4020_0000, 2, AF | 3 << 8 | 1 << 54)
        low.map(Linux.USER, 0x5000_3000, 3, AF | 3 << 8 | 1 << 6 | 1 << 11 | 1 << 53)
        self.cpu = CpuState(el=2)
        self.cpu.sysreg[HCR_EL2.slot] = HCR_EL2(E2H=1, TGE=1, VM=1)
        self.cpu.sysreg[SCTLR_EL2.slot] = SCTLR_EL2.M.mask
        self.cpu.sysreg[TCR_EL2.slot] = TCR_EL1(T0SZ=16, T1SZ=16, TG1=2, IPS=5)
        self.cpu.sysreg[TTBR0_EL2.slot], self.cpu.sysreg[TTBR1_EL2.slot] = low.root, high.root
        self.cpu.sysreg[MAIR_EL2.slot] = 0xFF


def test_el2_as_a_host_has_two_ranges() -> None:
    cpu = Host().cpu
    assert translate(cpu, Linux.KERNEL + 5, ACCESS_WRITE)[:2] == (0, 0x4020_0005)
    assert translate(cpu, Linux.KERNEL, ACCESS_EXEC)[0] == 0
    assert translate(cpu, Linux.USER, ACCESS_READ)[3] == INFO_READ | INFO_WRITE | INFO_NONGLOBAL | 12 << 8
    assert translate(cpu, Linux.USER, ACCESS_EXEC)[0] == FAULT | 0x0F
    cpu.pan = 1
    assert translate(cpu, Linux.USER, ACCESS_READ)[0] == FAULT | 0x0F
    assert translate(cpu, Linux.USER, ACCESS_READ | ACCESS_UNPRIVILEGED)[0] == 0
    cpu.sysreg[TCR_EL2.slot] |= TCR_EL1.EPD1.mask
    assert translate(cpu, Linux.KERNEL, ACCESS_READ)[0] == FAULT | 0x04


def test_el0_of_a_host() -> None:
    """With TGE EL0 is in EL2&0, without stage 2; without TGE it is in EL1&0."""
    cpu = Host().cpu
    cpu.el = 0
    assert translate(cpu, Linux.USER, ACCESS_WRITE)[:3] == (0, 0x5000_3000, 0x5000_3000)
    assert translate(cpu, Linux.KERNEL, ACCESS_READ)[0] == FAULT | 0x0E
    cpu.sysreg[TCR_EL2.slot] |= TCR_EL1.E0PD1.mask
    assert translate(cpu, Linux.KERNEL, ACCESS_READ)[0] == FAULT | 0x04
    cpu.sysreg[HCR_EL2.slot] = HCR_EL2(E2H=1)
    assert translate(cpu, Linux.USER, ACCESS_READ)[:2] == (0, Linux.USER)


def test_at_of_el1_means_the_host_where_one_rules() -> None:
    cpu = Host().cpu
    for stages, el in ((1, 1), (2, 1), (1, 2), (1, 0)):
        assert address_translate(cpu, Linux.USER, stages, el, False, False) & 0xFFFF_FFFF_F000 == 0x5000_3000
    assert address_translate(cpu, Linux.KERNEL, 1, 0, False, False) & 0x7F == 1 | 0x0E << 1
    cpu.pan = 1
    assert address_translate(cpu, Linux.USER, 1, 1, False, True) & 0x7F == 1 | 0x0F << 1


def test_unprivileged_accesses_of_el2_are_its_own_without_a_host() -> None:
    cpu = Host().cpu
    cpu.sysreg[HCR_EL2.slot] = HCR_EL2(E2H=1)
    assert translate(cpu, Linux.KERNEL, ACCESS_READ | ACCESS_UNPRIVILEGED)[0] == 0
    cpu.sysreg[HCR_EL2.slot] = HCR_EL2(E2H=1, TGE=1)
    assert translate(cpu, Linux.KERNEL, ACCESS_READ | ACCESS_UNPRIVILEGED)[0] == FAULT | 0x0E


def test_small_tables() -> None:
    """FEAT_TTST: TxSZ up to 48; the walk starts at the last level."""
    arena = Arena()
    tree = Stage(arena, 12, 3, 16)
    tree.map(0x3000, 0x5000_7000, 3, AF)
    cpu = CpuState(el=1)
    apply(cpu, ref.Machine(tsz=(48, 16), ttbr=(tree.root, 0)))
    assert translate(cpu, 0x3008, ACCESS_READ)[0] == FAULT | 0x04
    cpu.sysreg[ID_AA64MMFR2_EL1.slot] = ID_AA64MMFR2_EL1(ST=1)
    assert translate(cpu, 0x3008, ACCESS_READ)[:2] == (0, 0x5000_7008)
    assert translate(cpu, 0x1_3008, ACCESS_READ)[0] == FAULT | 0x04


class Updating(Guest):
    """The user's page is old and clean, and hardware keeps access flag and dirty state of both stages."""

    DBM = 1 << 51

    def __init__(self, level: int = 2) -> None:
        super().__init__()
        self.cpu.sysreg[ID_AA64MMFR1_EL1.slot] = ID_AA64MMFR1_EL1(HAFDBS=level)
        self.cpu.sysreg[TCR_EL1.slot] |= TCR_EL1.HA.mask | TCR_EL1.HD.mask
        self.leaf = self.low.slot(self.USER, 3)[0]
        store(self.leaf, load(self.leaf) & ~AF | 1 << 7 | self.DBM)
        self.outer = self.stage2.slot(0x5000_0000, 2)[0]


def test_hardware_sets_the_access_flag_and_dirty_state(compiled: dict[str, Any]) -> None:
    for run in (translate, compiled["translate"]):
        guest = Updating()
        old = load(guest.leaf)
        fault, _, _, info = run(guest.cpu, guest.USER, ACCESS_READ)
        assert fault == 0 and info & (INFO_READ | INFO_WRITE) == INFO_READ, "a clean page may not be written behind the walker's back"
        assert load(guest.leaf) == old | AF
        fault, _, _, info = run(guest.cpu, guest.USER, ACCESS_WRITE)
        assert fault == 0 and info & INFO_WRITE
        assert load(guest.leaf) == (old | AF) & ~(1 << 7)


def test_at_sets_the_access_flag_alone() -> None:
    guest = Updating()
    old = load(guest.leaf)
    assert address_translate(guest.cpu, guest.USER, 1, 1, True, False) & 1 == 0
    assert load(guest.leaf) == old | AF


def test_a_refused_access_changes_no_descriptor() -> None:
    guest = Updating()
    old = load(guest.leaf)
    guest.cpu.pan = 1
    assert translate(guest.cpu, guest.USER, ACCESS_WRITE)[0] == FAULT | 0x0F
    assert load(guest.leaf) == old


def test_dirty_state_needs_the_feature_and_both_controls() -> None:
    for level, clear in ((1, 0), (2, TCR_EL1.HD.mask)):
        guest = Updating(level)
        guest.cpu.sysreg[TCR_EL1.slot] &= ~clear
        assert translate(guest.cpu, guest.USER, ACCESS_READ)[0] == 0
        assert translate(guest.cpu, guest.USER, ACCESS_WRITE)[0] == FAULT | 0x0F
    guest = Updating()
    guest.cpu.sysreg[TCR_EL1.slot] &= ~TCR_EL1.HA.mask
    assert translate(guest.cpu, guest.USER, ACCESS_READ)[0] == FAULT | 0x0B


def test_an_update_that_stage_2_refuses(compiled: dict[str, Any]) -> None:
    """The fault is that of a write to the descriptor, and nothing changed."""
    guest = Updating()
    where = guest.leaf - guest.arena.base + IPA_BASE
    page = guest.stage2.slot(where, 3)[0]
    store(page, load(page) & ~0x80)
    old = load(guest.leaf)
    want = (FAULT | FAULT_STAGE2 | FAULT_S1PTW | FAULT_UPDATE | 0x0F, 0, where, 0)
    assert translate(guest.cpu, guest.USER, ACCESS_READ) == want == compiled["translate"](guest.cpu, guest.USER, ACCESS_READ)
    assert load(guest.leaf) == old


def test_stage_2_keeps_access_flag_and_dirty_state() -> None:
    guest = Updating()
    guest.cpu.sysreg[VTCR_EL2.slot] |= VTCR_EL2.HA.mask | VTCR_EL2.HD.mask
    store(guest.outer, load(guest.outer) & ~(AF | 0x80) | guest.DBM)
    old = load(guest.outer)
    assert translate(guest.cpu, guest.USER, ACCESS_READ)[3] & INFO_WRITE == 0
    assert load(guest.outer) == old | AF
    assert translate(guest.cpu, guest.USER, ACCESS_WRITE)[3] & INFO_WRITE
    assert load(guest.outer) == old | AF | 0x80
    guest = Updating()
    store(guest.outer, load(guest.outer) & ~AF)
    assert translate(guest.cpu, guest.USER, ACCESS_READ)[0] == FAULT | FAULT_STAGE2 | 0x0A


def test_pan_for_what_el0_may_only_execute() -> None:
    linux = Linux()
    at = linux.low.slot(linux.USER, 3)[0]
    store(at, load(at) & ~(1 << 6))
    linux.cpu.pan = 1
    assert translate(linux.cpu, linux.USER, ACCESS_READ)[0] == 0
    linux.cpu.sysreg[SCTLR_EL1.slot] |= SCTLR_EL1.EPAN.mask
    assert translate(linux.cpu, linux.USER, ACCESS_READ)[0] == FAULT | 0x0F
    store(at, load(at) | 1 << 54)
    assert translate(linux.cpu, linux.USER, ACCESS_READ)[0] == 0
