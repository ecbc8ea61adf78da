"""Translation a second time, written plainly from the manual's tables, for comparison with trapline.arm64.walk."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

BOUNDS = {
    12: {0: (47, 39), 1: (38, 30), 2: (29, 21), 3: (20, 12)},
    14: {0: (47, 47), 1: (46, 36), 2: (35, 25), 3: (24, 14)},
    16: {1: (47, 42), 2: (41, 29), 3: (28, 16)},
}
"""Address bits that each level resolves, by log2 of the granule."""

BLOCKS = {12: {1, 2}, 14: {2}, 16: {2}}
SIZES = [32, 36, 40, 42, 44, 48, 48, 48]
AP_TABLE = {0: ("rw", ""), 1: ("rw", "rw"), 2: ("r", ""), 3: ("r", "r")}
XN_TABLE = {0: (True, True), 1: (True, False), 2: (False, False), 3: (False, True)}
"""Stage 2: executable at EL0, at EL1."""


class Fault(Exception):
    """A translation that failed: status code without level, level, stage, on a stage-1 walk or not, IPA."""

    def __init__(self, code: int, level: int, stage: int = 1):
        super().__init__(code, level, stage)
        self.fsc = code + level
        self.stage = stage
        self.s1ptw = False
        self.ipa = 0

    def packed(self) -> int:
        """As `translate` reports it."""
        return 0x200 | self.fsc | (0x100 if self.stage == 2 else 0) | (0x80 if self.s1ptw else 0)


def bits(value: int, hi: int, lo: int) -> int:
    return (value >> lo) & ((1 << (hi - lo + 1)) - 1)


@dataclass
class Leaf:
    descriptor: int
    level: int
    output: int
    size: int
    tables: list[int]


def walk(read: Callable[[int], int], root: int, top: int, start: int, granule: int, out_bits: int, address: int, stage: int) -> Leaf:
    """Descend from `root`; `top` is the highest address bit that the first level resolves."""
    if root >= 1 << out_bits:
        raise Fault(0x00, 0, stage)
    table, passed = root, list[int]()
    for level in range(start, 4):
        hi, lo = BOUNDS[granule][level]
        index = bits(address, top if level == start else hi, lo)
        descriptor = read(table + 8 * index)
        kind = descriptor & 3
        last = level == 3
        if kind in (0, 2) or (kind == 1 and (last or level not in BLOCKS[granule])):
            raise Fault(0x04, level, stage)
        if kind == 3 and not last:
            table = bits(descriptor, 47, granule) << granule
            if table >= 1 << out_bits:
                raise Fault(0x00, level, stage)
            passed.append(descriptor)
            continue
        output = bits(descriptor, 47, lo) << lo
        if output >= 1 << out_bits:
            raise Fault(0x00, level, stage)
        if not bits(descriptor, 10, 10):
            raise Fault(0x08, level, stage)
        return Leaf(descriptor, level, output | bits(address, lo - 1, 0), lo, passed)
    raise AssertionError


def first_level(size: int, granule: int) -> int:
    """The level whose bounds contain the highest bit of a `size`-bit address."""
    return next(level for level, (hi, lo) in BOUNDS[granule].items() if lo <= size - 1 <= hi)


@dataclass
class Machine:
    """The registers that matter, by field."""

    el: int = 1
    pan: int = 0
    mmu: int = 1
    wxn: int = 0
    tsz: tuple[int, int] = (16, 16)
    granule: tuple[int, int] = (12, 12)
    epd: tuple[int, int] = (0, 0)
    tbi: tuple[int, int] = (0, 0)
    hpd: tuple[int, int] = (0, 0)
    ips: int = 5
    ttbr: tuple[int, int] = (0, 0)
    mair: int = 0
    vm: int = 0
    ptw: int = 0
    t0sz: int = 24
    sl0: int = 1
    granule2: int = 12
    ps: int = 5
    vttbr: int = 0


def read_host(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def stage2(m: Machine, ipa: int) -> tuple[Leaf, str, str, int]:
    """The leaf, what EL0 and EL1 may do, and MemAttr."""
    size = 64 - m.t0sz
    if m.granule2 == 12:
        levels = {0: 2, 1: 1, 2: 0}
    else:
        levels = {0: 3, 1: 2, 2: 1}
    if not 25 <= size <= 48 or m.sl0 not in levels or ipa >= 1 << size:
        raise Fault(0x04, 0, 2)
    start = levels[m.sl0]
    hi, lo = BOUNDS[m.granule2][start]
    stride = m.granule2 - 3
    if not lo < size <= lo + stride + 4:
        raise Fault(0x04, 0, 2)
    entries = 1 << (size - lo)
    root = bits(m.vttbr, 47, 1) << 1 & ~(entries * 8 - 1)
    leaf = walk(read_host, root, size - 1, start, m.granule2, SIZES[m.ps], ipa, 2)
    access = ("r" if bits(leaf.descriptor, 6, 6) else "") + ("w" if bits(leaf.descriptor, 7, 7) else "")
    x0, x1 = XN_TABLE[bits(leaf.descriptor, 54, 53)]
    return leaf, access + "x" * x0, access + "x" * x1, bits(leaf.descriptor, 5, 2)


def fetch(m: Machine, ipa: int) -> int:
    """A stage-1 descriptor."""
    if not m.vm:
        return read_host(ipa)
    try:
        leaf, _, el1, memattr = stage2(m, ipa)
        if "r" not in el1 or (m.ptw and memattr < 4):
            raise Fault(0x0C, leaf.level, 2)
    except Fault as fault:
        fault.s1ptw, fault.ipa = True, ipa
        raise
    return read_host(leaf.output)


def translate(m: Machine, va: int, wanted: str, el: int) -> tuple[int, int, str, int, int, bool]:
    """(host address, IPA, allowed, log2 size, nG, device) or Fault; `wanted` is a set of letters r w x."""
    if not m.mmu:
        if bits(va, 55 if m.tbi[bits(va, 55, 55)] else 63, 48):
            raise Fault(0x00, 0)
        output, allowed, size, nonglobal, device = bits(va, 47, 0), "rwx", 12, 0, "x" not in wanted
    else:
        half = bits(va, 55, 55)
        size = 64 - m.tsz[half]
        top = bits(va, 55 if m.tbi[half] else 63, min(size, 55)) if size <= 55 else 0
        expected = ((1 << ((55 if m.tbi[half] else 63) - size + 1)) - 1) if half else 0
        if m.epd[half] or not 25 <= size <= 48 or top != expected:
            raise Fault(0x04, 0)
        granule = m.granule[half]
        start = first_level(size, granule)
        entries = 1 << (size - BOUNDS[granule][start][1])
        root = bits(m.ttbr[half], 47, 1) << 1 & ~(entries * 8 - 1)
        leaf = walk(lambda a: fetch(m, a), root, size - 1, start, granule, SIZES[m.ips], bits(va, size - 1, 0), 1)
        output, size = leaf.output, leaf.size
        nonglobal = bits(leaf.descriptor, 11, 11)
        attribute = bits(m.mair, 8 * bits(leaf.descriptor, 4, 2) + 7, 8 * bits(leaf.descriptor, 4, 2))
        device = attribute < 16
        allowed = _stage1_allowed(m, leaf, half, el)
        if not set(wanted) <= set(allowed):
            raise Fault(0x0C, leaf.level)
    if not m.vm:
        return output, output, allowed, size, nonglobal, device
    try:
        outer, el0, el1, memattr = stage2(m, output)
        theirs = el1 if el else el0
        if not set(wanted) <= set(theirs):
            raise Fault(0x0C, outer.level, 2)
    except Fault as fault:
        fault.ipa = output
        raise
    both = "".join(letter for letter in allowed if letter in theirs)
    return outer.output, output, both, size, nonglobal, device or memattr < 4


def _stage1_allowed(m: Machine, leaf: Leaf, half: int, el: int) -> str:
    ap, pxn, uxn = bits(leaf.descriptor, 7, 6), bits(leaf.descriptor, 53, 53), bits(leaf.descriptor, 54, 54)
    if not m.hpd[half]:
        for table in leaf.tables:
            ap = ap | 2 if bits(table, 62, 62) else ap
            ap = ap & 2 if bits(table, 61, 61) else ap
            pxn, uxn = pxn | bits(table, 59, 59), uxn | bits(table, 60, 60)
    el1, el0 = AP_TABLE[ap]
    x1 = not pxn and "w" not in el0 and not (m.wxn and "w" in el1)
    x0 = not uxn and not (m.wxn and "w" in el0)
    if el == 0:
        return el0 + "x" * x0
    return ("" if m.pan and el0 else el1) + "x" * x1
