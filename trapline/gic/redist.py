"""The registers of a redistributor: the control frame, and 64 KiB above it the frame of the private interrupts (IHI0069, 12.11)."""

from __future__ import annotations

from trapline.registers import Field, Register

from .dist import PIDR2_GICV3, iidr, per_irq
from .regmap import WORD_DOUBLE, Access, Plain, Read, RegisterMap, Write
from .state import CpuInterface

REDIST_SIZE = 0x2_0000
SGI_FRAME = 0x1_0000


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
    return GICR_TYPER(Last=access.gic.is_last(cpu), Processor_Number=cpu.vcpu.id & 0xFFFF, Affinity_Value=cpu.affinity)


def _stored(name: str) -> tuple[Read, Write]:
    """Plain storage: without LPIs the table addresses are kept and not used."""

    def read(access: Access) -> int:
        return _owner(access).redist.get(name, 0)

    def write(access: Access, value: int) -> None:
        _owner(access).redist[name] = value

    return read, write


_statusr, _set_statusr = _stored("GICR_STATUSR")

CONTROL_FRAME = RegisterMap(
    [
        Plain("GICR_CTLR", 0x000, 4),
        Plain("GICR_IIDR", 0x004, 4, iidr),
        Plain("GICR_TYPER", 0x008, 8, _typer, widths=WORD_DOUBLE),
        Plain("GICR_STATUSR", 0x010, 4, user_read=_statusr, user_write=_set_statusr),
        # No power management: the processor is never asleep as far as the redistributor can tell.
        Plain("GICR_WAKER", 0x014, 4),
        Plain("GICR_PROPBASER", 0x070, 8, *_stored("GICR_PROPBASER"), widths=WORD_DOUBLE),
        Plain("GICR_PENDBASER", 0x078, 8, *_stored("GICR_PENDBASER"), widths=WORD_DOUBLE),
        Plain("GICR_IDREGS", 0xFFD0, 0x30, lambda _: PIDR2_GICV3 << 8 * (0xFFE8 - 0xFFD0)),
    ]
)

PRIVATE_FRAME = RegisterMap(per_irq("GICR"))
