"""The distributor's registers, and the per-interrupt register files that redistributors share with it (IHI0069, 12.9).

Affinity routing is always on and there is one security state (GICD_CTLR.ARE and .DS read as one), so the private
interrupts' bits of the distributor, GICD_ITARGETSR and the legacy SGI registers read as zero.
"""

from __future__ import annotations

import errno

from trapline.errors import KvmError
from trapline.registers import Field, Register

from .lpi import LPI_ID_BITS
from .regmap import BYTE_WORD, WORD_DOUBLE, Access, Gic, PerIrq, Plain, RegisterMap, Row
from .state import AFFINITY, PRIORITY_MASK, PRIVATE_IRQS, Irq

FRAME_SIZE = 0x1_0000
SPI_ID_BITS = 10
PIDR2_GICV3 = 0x3B
IIDR = 0x4B00_0000 | 0x43B
"""Product 'K', implementer Arm: what KVM's own GIC says of itself; the revision is added in bits 15:12."""

IIDR_REVISION = Field(15, 12)
REVISIONS = range(1, 4)
"""Revisions of the model that user space may ask for when it restores a VM."""


class GICD_CTLR(Register, width=32):
    """Distributor Control Register."""

    EnableGrp0 = Field(0)
    EnableGrp1 = Field(1)
    ARE = Field(4)
    DS = Field(6)
    RWP = Field(31)


class GICD_TYPER(Register, width=32):
    """Interrupt Controller Type Register."""

    ITLinesNumber = Field(4, 0)
    LPIS = Field(17)
    IDbits = Field(23, 19)
    No1N = Field(25)


GROUPS = GICD_CTLR.EnableGrp0.mask | GICD_CTLR.EnableGrp1.mask
EDGE = 2
"""GICD_ICFGR value of an edge-triggered interrupt."""


def _ctlr(access: Access) -> int:
    return GICD_CTLR(access.gic.group_enable, ARE=1, DS=1)


def _set_ctlr(access: Access, value: int) -> None:
    access.gic.set_groups(value & GROUPS)


def _typer(access: Access) -> int:
    lpis = access.gic.lpis.memory is not None
    bits = LPI_ID_BITS if lpis else SPI_ID_BITS
    return GICD_TYPER(ITLinesNumber=access.gic.nr_irqs // 32 - 1, LPIS=lpis, IDbits=bits - 1, No1N=1)


def iidr(access: Access) -> int:
    """GICD_IIDR and GICR_IIDR: implementer, and the revision that user space may have asked for."""
    return IIDR | IIDR_REVISION(access.gic.implementation["revision"])


def _set_revision(access: Access, value: int) -> None:
    revision = IIDR_REVISION.extract(value)
    if value & ~IIDR_REVISION.mask != IIDR or revision not in REVISIONS:
        raise KvmError(errno.EINVAL, f"GICD_IIDR {value:#x} is not a model this vgic can be")
    access.gic.implementation["revision"] = revision


def _statusr(access: Access) -> int:
    return access.gic.implementation["GICD_STATUSR"]


def _set_statusr(access: Access, value: int) -> None:
    access.gic.implementation["GICD_STATUSR"] = value


def _set_group(gic: Gic, irq: Irq, value: int) -> None:
    irq.group = value
    gic.requeue(irq)


def _enable(gic: Gic, irq: Irq, value: int) -> None:
    if value and not irq.enabled:
        irq.enabled = True
        gic.requeue(irq)


def _disable(gic: Gic, irq: Irq, value: int) -> None:
    if value and irq.enabled:
        irq.enabled = False
        gic.requeue(irq)


def _set_pending(gic: Gic, irq: Irq, value: int) -> None:
    if value and irq.set_latch():
        gic.requeue(irq)


def _clear_pending(gic: Gic, irq: Irq, value: int) -> None:
    if value:
        irq.clear_latch()
        gic.requeue(irq)


def _restore_pending(gic: Gic, irq: Irq, value: int) -> None:
    """User space writes the latch of every interrupt at once, zeros included: its ICPENDR is ignored."""
    if value:
        _set_pending(gic, irq, 1)
    elif irq.latched():
        _clear_pending(gic, irq, 1)


def _activate(gic: Gic, irq: Irq, value: int) -> None:
    if value and not irq.is_active():
        irq.set_active(True)
        gic.requeue(irq)


def _deactivate(gic: Gic, irq: Irq, value: int) -> None:
    if value and irq.is_active():
        irq.set_active(False)
        gic.requeue(irq)


def _set_priority(gic: Gic, irq: Irq, value: int) -> None:
    irq.priority = value & PRIORITY_MASK
    if irq.holder:
        gic.requeue(irq)


def _set_config(gic: Gic, irq: Irq, value: int) -> None:
    if irq.intid >= PRIVATE_IRQS:
        irq.edge = bool(value & EDGE)
        gic.requeue(irq)


def _set_route(gic: Gic, irq: Irq, value: int) -> None:
    gic.route(irq, value & AFFINITY)


def per_irq(prefix: str) -> list[Row]:
    """The register files that the distributor (SPIs) and each redistributor's second frame (SGIs, PPIs) have in common."""
    return [
        PerIrq(prefix + "_IGROUPR", 0x080, 1, lambda irq: irq.group, _set_group),
        PerIrq(prefix + "_ISENABLER", 0x100, 1, lambda irq: irq.enabled, _enable),
        PerIrq(prefix + "_ICENABLER", 0x180, 1, lambda irq: irq.enabled, _disable),
        PerIrq(prefix + "_ISPENDR", 0x200, 1, Irq.is_pending, _set_pending, Irq.latched, _restore_pending),
        PerIrq(prefix + "_ICPENDR", 0x280, 1, Irq.is_pending, _clear_pending, lambda _: 0, lambda *_: None),
        PerIrq(prefix + "_ISACTIVER", 0x300, 1, Irq.is_active, _activate),
        PerIrq(prefix + "_ICACTIVER", 0x380, 1, Irq.is_active, _deactivate),
        PerIrq(prefix + "_IPRIORITYR", 0x400, 8, lambda irq: irq.priority, _set_priority, widths=BYTE_WORD),
        PerIrq(prefix + "_ICFGR", 0xC00, 2, lambda irq: EDGE * irq.edge, _set_config),
        PerIrq(prefix + "_IGRPMODR", 0xD00, 1),
        PerIrq(prefix + "_NSACR", 0xE00, 2),
    ]


DISTRIBUTOR = RegisterMap(
    [
        Plain("GICD_CTLR", 0x000, 4, _ctlr, _set_ctlr),
        Plain("GICD_TYPER", 0x004, 4, _typer),
        Plain("GICD_IIDR", 0x008, 4, iidr, user_write=_set_revision),
        Plain("GICD_TYPER2", 0x00C, 4),
        Plain("GICD_STATUSR", 0x010, 4, user_read=_statusr, user_write=_set_statusr),
        *per_irq("GICD"),
        PerIrq("GICD_ITARGETSR", 0x800, 8, widths=BYTE_WORD),
        Plain("GICD_CPENDSGIR", 0xF10, 16),
        Plain("GICD_SPENDSGIR", 0xF20, 16),
        PerIrq("GICD_IROUTER", 0x6000, 64, lambda irq: irq.affinity, _set_route, widths=WORD_DOUBLE),
        Plain("GICD_IDREGS", 0xFFD0, 0x30, lambda _: PIDR2_GICV3 << 8 * (0xFFE8 - 0xFFD0)),
    ]
)
