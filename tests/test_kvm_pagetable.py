"""Stage-2 tables, read back by a walk of our own that knows only the architecture."""

from __future__ import annotations

import ctypes
import random

import pytest

from trapline.kvm.arm64.pagetable import BLOCK_SIZE, PAGE_SIZE, READ, WRITE, Stage2, start_level

OUTPUT = 0x7F12_3456_7000


def walk(tables: Stage2, ipa: int) -> int | None:
    """The output address for an IPA, by the rules of the 4 KiB granule."""
    table, level = tables.root, tables.first_level
    shift = 39 - 9 * level
    index = ipa >> shift
    while True:
        descriptor = ctypes.c_uint64.from_address(table + 8 * index).value
        if not descriptor & 1:
            return None
        address = descriptor & 0xFFFF_FFFF_F000
        if level == 3 or not descriptor & 2:
            assert level != 3 or descriptor & 2
            assert descriptor >> 10 & 1 and descriptor >> 2 & 0xF == 0xF and descriptor >> 8 & 3 == 3
            return address | ipa & (1 << shift) - 1
        table, level, shift = address, level + 1, shift - 9
        index = ipa >> shift & 0x1FF


@pytest.mark.parametrize(("bits", "level", "pages"), [(32, 2, 4), (34, 2, 16), (36, 1, 1), (40, 1, 2), (43, 1, 16), (44, 0, 1), (48, 0, 1)])
def test_geometry(bits: int, level: int, pages: int) -> None:
    assert start_level(bits) == level
    tables = Stage2(bits)
    assert tables.root % (pages * PAGE_SIZE) == 0
    top = (1 << bits) - PAGE_SIZE
    assert tables.map_page(top, OUTPUT, READ)
    assert walk(tables, top + 5) == OUTPUT + 5


def test_random_pages_and_unmaps() -> None:
    tables, mapped, numbers = Stage2(40), {}, random.Random(1)
    for _ in range(3000):
        page = numbers.randrange(1 << 13) * PAGE_SIZE
        if numbers.random() < 0.9:
            if page not in mapped:
                assert tables.map_page(page, OUTPUT ^ page, READ | WRITE)
                mapped[page] = OUTPUT ^ page
        else:
            end = page + numbers.choice((PAGE_SIZE, 16 * PAGE_SIZE, 2 * BLOCK_SIZE))
            inside = [ipa for ipa in mapped if page <= ipa < end]
            # Emptied tables count as found: they are translations too.
            assert tables.unmap(page, end) or not inside
            tables.reclaim()
            for ipa in inside:
                del mapped[ipa]
    for index in range(1 << 13):
        assert walk(tables, index * PAGE_SIZE) == mapped.get(index * PAGE_SIZE)


def test_block_and_page_do_not_replace_each_other() -> None:
    tables = Stage2(40)
    block = 0x4000_0000
    assert tables.map_block(block, OUTPUT & -BLOCK_SIZE, READ)
    assert not tables.map_page(block + PAGE_SIZE, OUTPUT, READ)
    assert tables.unmap(block + PAGE_SIZE, block + 2 * PAGE_SIZE), "a part of a block takes the block away"
    assert walk(tables, block) is None
    assert tables.map_page(block + PAGE_SIZE, OUTPUT, READ)
    assert not tables.map_block(block, OUTPUT & -BLOCK_SIZE, READ)


def test_permissions_change_in_place_but_output_does_not() -> None:
    tables = Stage2(40)
    assert tables.map_page(0, OUTPUT, READ)
    assert tables.map_page(0, OUTPUT, READ | WRITE)
    assert not tables.map_page(0, OUTPUT + PAGE_SIZE, READ)
    assert tables.leaf(0)[0] & WRITE
    assert tables.write_protect(0, PAGE_SIZE) and not tables.write_protect(0, PAGE_SIZE)
    assert not tables.leaf(0)[0] & WRITE


def test_tables_are_recycled_only_after_reclaim() -> None:
    tables = Stage2(40)
    tables.map_page(0, OUTPUT, READ)
    middle = ctypes.c_uint64.from_address(tables.root).value & 0xFFFF_FFFF_F000
    tables.unmap(0, 1 << 40)
    assert ctypes.c_uint64.from_address(middle).value & 1, "a walk that is in the table still finds it whole"
    tables.reclaim()
    assert ctypes.c_uint64.from_address(middle).value == 0
