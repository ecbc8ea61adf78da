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


def _arm64(kind: str, address: int, value: int) -> bytes:
    move_address, move_value = 0xD280_0000 | address << 5, 0x5280_0001 | value << 5  # mov x0, #address; mov w1, #value
    access = 0x3900_0001 if kind == "store" else 0x3940_0001  # strb w1, [x0]; ldrb w1, [x0]
    return b"".join(word.to_bytes(4, "little") for word in (move_address, move_value, access))


def _x86(kind: str, address: int, value: int) -> bytes:
    where = address.to_bytes(2, "little")
    return b"\xc6\x06" + where + bytes([value]) if kind == "store" else b"\xa0" + where  # mov byte [address], value; mov al, [address]
