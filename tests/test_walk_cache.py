"""What walks remember: the answers stay those of whole walks, and end when they are invalidated."""

from __future__ import annotations

import ctypes
import random

import pytest

from tests.test_walk import AF, Guest, Updating, load, store
from trapline.arm64.descriptors import FAULT, FAULT_STAGE2
from trapline.arm64.regs.el1 import TTBR0_EL1
from trapline.arm64.walk import ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE, translate, translate_cached
from trapline.arm64.walk_cache import WalkCache, forget_stage2, forget_tables_of


def test_a_cache_shortens_walks_but_never_invents() -> None:
    """With a warm cache the last level is read from memory still, and a fault is what memory says."""
    guest = Guest()
    cache = WalkCache()
    at = ctypes.addressof(cache)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_WRITE, at)[:2] == (0, 0x7F00_0000_3000)
    middle = guest.low.slot(guest.USER, 2)[0]
    kept = load(middle)
    store(middle, 0)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_WRITE, at)[0] == 0, "the table is remembered"
    assert translate(guest.cpu, guest.USER, ACCESS_WRITE)[0] == FAULT | 0x06
    forget_tables_of(cache, guest.USER >> 12, guest.USER >> 12)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_WRITE, at)[0] == FAULT | 0x06
    store(middle, kept)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_WRITE, at)[0] == 0
    store(guest.stage2.slot(0x5000_0000, 2)[0], 0)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_WRITE, at)[0] == 0, "so is stage 2's block"
    forget_stage2(cache)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_WRITE, at)[0] == FAULT | FAULT_STAGE2 | 0x06


@pytest.mark.parametrize("updates", [False, True])
def test_a_remembered_table_says_what_a_whole_walk_says(updates: bool) -> None:
    """Random last-level descriptors under a remembered table, for all accesses at both levels: same fault, address and rights."""
    rng = random.Random(2026)
    for restricted in (0, 1 << 61, 1 << 62, 1 << 59, 1 << 60):  # table descriptors that take rights away
        guest = Updating() if updates else Guest()
        cache = WalkCache()
        at = ctypes.addressof(cache)
        middle, leaf = (guest.low.slot(guest.USER, level)[0] for level in (2, 3))
        store(middle, load(middle) | restricted)
        plain = load(leaf)
        assert translate_cached(guest.cpu, guest.USER, ACCESS_READ, at) == translate(guest.cpu, guest.USER, ACCESS_READ)
        assert any(entry.host for entry in cache.tables), "the next one need not begin at the root"
        for _ in range(150):
            descriptor = plain ^ rng.getrandbits(64) & (1 << 54 | 1 << 53 | 1 << 51 | 1 << 50 | 0xFFC | 3)
            if rng.random() < 0.7:
                descriptor |= AF | 3
            guest.cpu.el, guest.cpu.pan = rng.randrange(2), rng.randrange(2)
            for access in (ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC, ACCESS_READ | ACCESS_WRITE):
                va = guest.USER + rng.randrange(4096)
                store(leaf, descriptor)
                quick = translate_cached(guest.cpu, va, access, at)
                after = load(leaf)
                store(leaf, descriptor)
                assert quick == translate(guest.cpu, va, access), (hex(descriptor), access, guest.cpu.el, guest.cpu.pan)
                assert after == load(leaf)


def test_a_remembered_table_belongs_to_its_base_registers() -> None:
    guest = Guest()
    cache = WalkCache()
    at = ctypes.addressof(cache)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_READ, at)[0] == 0
    guest.cpu.sysreg[TTBR0_EL1.slot] += 0x1000  # another table, which is not mapped: stage 2 has it, and it is full of zeroes
    assert translate_cached(guest.cpu, guest.USER, ACCESS_READ, at) == translate(guest.cpu, guest.USER, ACCESS_READ)
    assert translate_cached(guest.cpu, guest.USER, ACCESS_READ, at)[0] != 0
    guest.cpu.sysreg[TTBR0_EL1.slot] -= 0x1000
    assert translate_cached(guest.cpu, guest.USER, ACCESS_READ, at)[0] == 0
    for tagged in (guest.USER | 1 << 56, guest.USER | 1 << 55):
        assert translate_cached(guest.cpu, tagged, ACCESS_READ, at) == translate(guest.cpu, tagged, ACCESS_READ)
