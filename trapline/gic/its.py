"""The interrupt translation service: which message of which device is which LPI, and on which vCPU (IHI0069, chapters 5 and 12.19).

The guest says so in commands (its_commands.py). What they mapped is kept in `Its` (its_state.py); the tables in guest memory, which the
guest provides for it, are written and read only when user space saves or restores them (its_tables.py). Here are the registers.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from trapline.errors import KvmError
from trapline.registers import Field, Register

from .its_commands import process
from .its_state import COLLECTION_TABLE, DEVICE_TABLE, ENTRY_BYTES, PAGES_OF_64K, Baser, Cbaser, Its, ring_size
from .lpi import LPI_ID_BITS, honest
from .regmap import WORD_DOUBLE, Access, Plain, Read, RegisterMap, Write

ITS_SIZE = 0x2_0000
TRANSLATION_FRAME = 0x1_0000
DEVICE_ID_BITS = 16
IIDR = 0x4B00_0000 | 0x43B
"""Product 'K', implementer Arm, layout 0 of the tables."""

IIDR_LAYOUT = Field(15, 12)
ID_REGISTERS = 0xFFD0
IDENTIFICATION = {0xFFD0: 0x40, 0xFFE0: 0x92, 0xFFE4: 0xB4, 0xFFE8: 0x3B, 0xFFF0: 0x0D, 0xFFF4: 0xF0, 0xFFF8: 0x05, 0xFFFC: 0xB1}
"""GITS_PIDR<n> and GITS_CIDR<n>, by offset."""


class GITS_CTLR(Register, width=32):
    """ITS Control Register."""

    Enabled = Field(0)
    Quiescent = Field(31)


class GITS_TYPER(Register):
    """ITS Type Register. Counts and sizes are stored minus one."""

    Physical = Field(0)
    ITT_entry_size = Field(7, 4)
    ID_bits = Field(12, 8)
    Devbits = Field(17, 13)


@dataclass(frozen=True)
class ItsAccess(Access):
    """An access to a frame of an ITS."""

    its: Its


def access(its: Its) -> ItsAccess:
    """The context of accesses to an ITS."""
    return ItsAccess(its.gic, None, [], 0, its)


def place(its: Its, base: int) -> None:
    """Put the frames of an ITS at a guest physical address. With the lock held."""
    its.base = base
    context = access(its)
    its.gic.add_frames({base: (CONTROL, context), base + TRANSLATION_FRAME: (TRANSLATION, context)})


def _its(access: Access) -> Its:
    if not isinstance(access, ItsAccess):
        raise TypeError("an ITS register needs an ITS")
    return access.its


def _ctlr(access: Access) -> int:
    its = _its(access)
    return GITS_CTLR(Enabled=its.enabled, Quiescent=its.creadr == its.cwriter)


def _set_ctlr(access: Access, value: int) -> None:
    its = _its(access)
    ready = all(table & Baser.Valid.mask for table in (its.cbaser, *its.tables.values()))
    if value & GITS_CTLR.Enabled.mask and not its.enabled and not ready:
        return
    its.enabled = bool(value & GITS_CTLR.Enabled.mask)
    process(its)


def _typer(_access: Access) -> int:
    sizes = {"ITT_entry_size": ENTRY_BYTES - 1, "ID_bits": LPI_ID_BITS - 1, "Devbits": DEVICE_ID_BITS - 1}
    return GITS_TYPER(Physical=1, **sizes)


def _set_iidr(_access: Access, value: int) -> None:
    if IIDR_LAYOUT.extract(value):
        raise KvmError(errno.EINVAL, f"GITS_IIDR {value:#x} names a layout of the tables that this ITS does not know")


def _set_cbaser(access: Access, value: int) -> None:
    its = _its(access)
    if not its.enabled:
        its.cbaser = honest(Cbaser, value)
        its.creadr = its.cwriter = 0


def _offset(value: int) -> int:
    return value & 0xF_FFE0


def _set_cwriter(access: Access, value: int) -> None:
    its = _its(access)
    if _offset(value) < ring_size(its.cbaser):
        its.cwriter = _offset(value)
        process(its)


def _restore_creadr(access: Access, value: int) -> None:
    its = _its(access)
    if its.enabled:
        raise KvmError(errno.EBUSY, "GITS_CREADR can be restored only while the ITS is off")
    if _offset(value) >= ring_size(its.cbaser):
        raise KvmError(errno.EINVAL, f"GITS_CREADR {value:#x} is outside the command ring")
    its.creadr = _offset(value)


def _baser(kind: int) -> tuple[Read, Write]:
    def read(access: Access) -> int:
        return _its(access).tables[kind]

    def write(access: Access, value: int) -> None:
        its = _its(access)
        if its.enabled:
            return
        fixed = Baser(value).replace(Type=kind, Entry_Size=ENTRY_BYTES - 1, Page_Size=PAGES_OF_64K)
        its.tables[kind] = honest(Baser, fixed)
        if not fixed.Valid:
            (its.forget_devices if kind == DEVICE_TABLE else its.forget_collections)()

    return read, write


IDENTIFICATION_VALUE = sum(value << 8 * (at - ID_REGISTERS) for at, value in IDENTIFICATION.items())

CONTROL = RegisterMap(
    [
        Plain("GITS_CTLR", 0x00, 4, _ctlr, _set_ctlr),
        Plain("GITS_IIDR", 0x04, 4, lambda _: IIDR, user_write=_set_iidr),
        Plain("GITS_TYPER", 0x08, 8, _typer, widths=WORD_DOUBLE),
        Plain("GITS_CBASER", 0x80, 8, lambda access: _its(access).cbaser, _set_cbaser, widths=WORD_DOUBLE),
        Plain("GITS_CWRITER", 0x88, 8, lambda access: _its(access).cwriter, _set_cwriter, widths=WORD_DOUBLE),
        Plain("GITS_CREADR", 0x90, 8, lambda access: _its(access).creadr, user_write=_restore_creadr, widths=WORD_DOUBLE),
        Plain("GITS_BASER0", 0x100, 8, *_baser(DEVICE_TABLE), widths=WORD_DOUBLE),
        Plain("GITS_BASER1", 0x108, 8, *_baser(COLLECTION_TABLE), widths=WORD_DOUBLE),
        *(Plain(f"GITS_BASER{n}", 0x100 + 8 * n, 8, widths=WORD_DOUBLE) for n in range(2, 8)),
        Plain("GITS_IDREGS", ID_REGISTERS, 0x30, lambda _: IDENTIFICATION_VALUE),
    ]
)
TRANSLATION = RegisterMap([])
"""GITS_TRANSLATER is for devices, whose messages come by KVM_SIGNAL_MSI; processors write nothing there."""
