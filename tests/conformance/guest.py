"""The smallest guests: a few loads and stores, in machine code of either architecture, without any translation."""

from __future__ import annotations

from collections.abc import Sequence

PROGRAM = 0x1000
"""Where the first vCPU's program is; each further one has a page of its own after it."""

DATA = 0x4000
"""Where cases put memory unless they say otherwise."""

NOWHERE = 0xF000
"""Where no case has memory: an access exits as MMIO."""


def machine_code(arch: str, accesses: Sequence[tuple[str, int, int]]) -> bytes:
    """Code for byte accesses below 64 KiB: ("store", address, value) or ("load", address, anything). Then it spins."""
    encode, spin = (_arm64, b"\0\0\0\x14") if arch == "arm64" else (_x86, b"\xeb\xfe")
    return b"".join(encode(*access) for access in accesses) + spin


def write_pages(address: int, pages: int) -> bytes:
    """arm64 code that stores a byte to the beginning of each page of a range below 4 GiB, then to NOWHERE."""
    words = (
        0xD280_0000 | (address & 0xFFFF) << 5,  # mov x0, #low
        0xF2A0_0000 | (address >> 16) << 5,  # movk x0, #high, lsl #16
        0xD280_0001 | pages << 5,  # mov x1, #pages
        0x3900_0001,  # again: strb w1, [x0]
        0x9140_0400,  # add x0, x0, #1, lsl #12
        0xF100_0421,  # subs x1, x1, #1
        0x54FF_FFA1,  # b.ne again
    )
    return b"".join(word.to_bytes(4, "little") for word in words) + machine_code("arm64", [("store", NOWHERE, 1)])


def _arm64(kind: str, address: int, value: int) -> bytes:
    move_address, move_value = 0xD280_0000 | address << 5, 0x5280_0001 | value << 5  # mov x0, #address; mov w1, #value
    access = 0x3900_0001 if kind == "store" else 0x3940_0001  # strb w1, [x0]; ldrb w1, [x0]
    return b"".join(word.to_bytes(4, "little") for word in (move_address, move_value, access))


def _x86(kind: str, address: int, value: int) -> bytes:
    where = address.to_bytes(2, "little")
    return b"\xc6\x06" + where + bytes([value]) if kind == "store" else b"\xa0" + where  # mov byte [address], value; mov al, [address]
