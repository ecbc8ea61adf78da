"""The registers of a redistributor: the control frame, and 64 KiB above it the frame of the private interrupts (IHI0069, 12.11)."""

from __future__ import annotations

from trapline.registers import Field, Register

from .dist import PIDR2_GICV3, iidr, per_irq
from .lpi import Pendbaser, honest
from .regmap import WORD_DOUBLE, Access, Plain, Read, RegisterMap, Write
from .state import CpuInterface

REDIST_SIZE = 0x2_0000
SGI_FRAME = 0x1_0000


class GICR_CTLR(Register, width=32):
    """Redistributor Control Register."""

    EnableLPIs = Field(0)
    CES = Field(1)
    IR = Field(2)


class GICR_TYPER(Register, width=64):
    """Redistributor Type Register."""

    PLPIS = Field(0)
    Last = Field(4)
    Processor_Number = Field(23, 8)
    Affinity_Value = Field(63, 32)


def _owner(access: Access) -> CpuInterface:
    if access.cpu is None:
        raise TypeError("a redistributor register needs a redistributor")
    return access.cpu


def _typer(access: Access) -> int:
    cpu = _owner(access)
    lpis = access.gic.lpis.memory is not None
    return GICR_TYPER(PLPIS=lpis, Last=access.gic.is_last(cpu), Processor_Number=cpu.vcpu.id & 0xFFFF, Affinity_Value=cpu.affinity)


def _ctlr(access: Access) -> int:
    if access.gic.lpis.memory is None:
        return 0
    return GICR_CTLR(EnableLPIs=_owner(access).lpis, CES=1, IR=1)


def _set_ctlr(access: Access, value: int) -> None:
    cpu, lpis = _owner(access), access.gic.lpis
    enable = bool(value & GICR_CTLR.EnableLPIs.mask)
    if lpis.memory is not None and enable != cpu.lpis:
        (lpis.enable if enable else lpis.disable)(cpu)


def _propbaser(access: Access) -> int:
    return access.gic.lpis.propbaser


def _set_propbaser(access: Access, value: int) -> None:
    if not _owner(access).lpis:
        access.gic.lpis.set_propbaser(value)


def _pendbaser(access: Access) -> int:
    return _owner(access).redist["GICR_PENDBASER"] & ~Pendbaser.PTZ.mask


def _set_pendbaser(access: Access, value: int) -> None:
    cpu = _owner(access)
    if not cpu.lpis:
        cpu.redist["GICR_PENDBASER"] = honest(Pendbaser, value)


def _invalidate(access: Access, value: int) -> None:
    if _owner(access).lpis:
        access.gic.lpis.reload(value & 0xFFFF_FFFF)


def _invalidate_all(access: Access, _value: int) -> None:
    cpu = _owner(access)
    if cpu.lpis:
        access.gic.lpis.reload_all(cpu)


def _stored(name: str) -> tuple[Read, Write]:
    """Plain storage."""

    def read(access: Access) -> int:
        return _owner(access).redist.get(name, 0)

    def write(access: Access, value: int) -> None:
        _owner(access).redist[name] = value

    return read, write


_statusr, _set_statusr = _stored("GICR_STATUSR")

CONTROL_FRAME = RegisterMap(
    [
        Plain("GICR_CTLR", 0x000, 4, _ctlr, _set_ctlr),
        Plain("GICR_IIDR", 0x004, 4, iidr),
        Plain("GICR_TYPER", 0x008, 8, _typer, widths=WORD_DOUBLE),
        Plain("GICR_STATUSR", 0x010, 4, user_read=_statusr, user_write=_set_statusr),
        # No power management: the processor is never asleep as far as the redistributor can tell.
        Plain("GICR_WAKER", 0x014, 4),
        Plain("GICR_PROPBASER", 0x070, 8, _propbaser, _set_propbaser, widths=WORD_DOUBLE),
        Plain("GICR_PENDBASER", 0x078, 8, _pendbaser, _set_pendbaser, widths=WORD_DOUBLE),
        # Nothing is ever under way when a register can be read: GICR_SYNCR is 0.
        Plain("GICR_INVLPIR", 0x0A0, 8, write=_invalidate, widths=WORD_DOUBLE),
        Plain("GICR_INVALLR", 0x0B0, 8, write=_invalidate_all, widths=WORD_DOUBLE),
        Plain("GICR_SYNCR", 0x0C0, 4),
        Plain("GICR_IDREGS", 0xFFD0, 0x30, lambda _: PIDR2_GICV3 << 8 * (0xFFE8 - 0xFFD0)),
    ]
)

PRIVATE_FRAME = RegisterMap(per_irq("GICR"))
