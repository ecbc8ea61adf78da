"""The distributor of a GICv2 (IHI0048, 4.3): private interrupts are banked by the processor that looks, SPIs have a mask of targets."""

from __future__ import annotations

import errno

from trapline.errors import KvmError
from trapline.registers import Field, Register

from .dist import IIDR, IIDR_REVISION, per_irq
from .legacy import LegacySgi
from .regmap import BYTE_WORD, Access, Gic, PerIrq, Plain, RegisterMap
from .state import PRIVATE_IRQS, SGIS, CpuInterface, Irq

FRAME_SIZE = 0x1000
MAX_CPUS = 8
BOTH_GROUPS = 3
REVISIONS = range(2, 4)
"""Revisions of the model that user space may ask for."""

REPLACED = ("GICD_IGROUPR", "GICD_ISPENDR", "GICD_ICPENDR", "GICD_IGRPMODR", "GICD_NSACR")


class GICD_TYPER(Register, width=32):
    """Interrupt Controller Type Register."""

    ITLinesNumber = Field(4, 0)
    CPUNumber = Field(7, 5)


class GICD_SGIR(Register, width=32):
    """Software Generated Interrupt Register."""

    INTID = Field(3, 0)
    CPUTargetList = Field(23, 16)
    TargetListFilter = Field(25, 24)


TO_LISTED, TO_OTHERS, TO_SELF = 0, 1, 2


def _set_ctlr(access: Access, value: int) -> None:
    access.gic.set_groups(BOTH_GROUPS if value & 1 else 0)


def _typer(access: Access) -> int:
    return GICD_TYPER(ITLinesNumber=access.gic.nr_irqs // 32 - 1, CPUNumber=len(access.gic.cpus) - 1)


def _iidr(access: Access) -> int:
    return IIDR | IIDR_REVISION(access.gic.implementation["revision"])


def _set_revision(access: Access, value: int) -> None:
    """Who restores this knows which groups interrupts were in; older user space restored wrong ones."""
    revision = IIDR_REVISION.extract(value)
    if value & ~IIDR_REVISION.mask != IIDR or revision not in REVISIONS:
        raise KvmError(errno.EINVAL, f"GICD_IIDR {value:#x} is not a model this vgic can be")
    access.gic.implementation["revision"] = revision
    access.gic.implementation["groups"] = 1


def _set_group(gic: Gic, irq: Irq, value: int) -> None:
    irq.group = value
    gic.requeue(irq)


def _restore_group(gic: Gic, irq: Irq, value: int) -> None:
    if gic.implementation.get("groups"):
        _set_group(gic, irq, value)


def _set_pending(gic: Gic, irq: Irq, value: int) -> None:
    """SGIs are made pending through GICD_SPENDSGIR only."""
    if value and irq.intid >= SGIS and irq.set_latch():
        gic.requeue(irq)


def _clear_pending(gic: Gic, irq: Irq, value: int) -> None:
    if value and irq.intid >= SGIS:
        irq.clear_latch()
        gic.requeue(irq)


def _restore_pending(gic: Gic, irq: Irq, value: int) -> None:
    """Zeros included: ICPENDR is ignored."""
    if value and irq.set_latch():
        gic.requeue(irq)
    elif not value and irq.latched():
        irq.clear_latch()
        gic.requeue(irq)


def _targets(irq: Irq) -> int:
    if irq.intid < PRIVATE_IRQS:
        return 0 if irq.target is None else 1 << irq.target.vcpu.index
    return irq.affinity


def _set_targets(gic: Gic, irq: Irq, value: int) -> None:
    """The first of them gets all; with none it is the first vCPU's."""
    if irq.intid >= PRIVATE_IRQS:
        irq.affinity = value & (1 << len(gic.cpus)) - 1
        irq.target = gic.cpus[max((irq.affinity & -irq.affinity).bit_length() - 1, 0)]
        gic.requeue(irq)


def _senders(irq: Irq) -> int:
    return irq.senders if isinstance(irq, LegacySgi) else 0


def _send(gic: Gic, irq: Irq, value: int) -> None:
    if isinstance(irq, LegacySgi):
        for sender in range(MAX_CPUS):
            if value >> sender & 1 and irq.send(sender):
                gic.requeue(irq)


def _unsend(gic: Gic, irq: Irq, value: int) -> None:
    if isinstance(irq, LegacySgi) and value & irq.senders:
        irq.unsend(value)
        gic.requeue(irq)


def _generate(access: Access, value: int) -> None:
    """GICD_SGIR: to the listed processors, to all others, or to the writer."""
    request, me = GICD_SGIR(value), access.cpu
    if me is None:
        return

    def is_target(cpu: CpuInterface) -> bool:
        if request.TargetListFilter == TO_LISTED:
            return bool(request.CPUTargetList >> cpu.vcpu.index & 1)
        return cpu is not me if request.TargetListFilter == TO_OTHERS else cpu is me and request.TargetListFilter == TO_SELF

    for cpu in filter(is_target, access.gic.cpus):
        _send(access.gic, cpu.private[request.INTID], 1 << me.vcpu.index)


DISTRIBUTOR = RegisterMap(
    [
        Plain("GICD_CTLR", 0x000, 4, lambda access: access.gic.group_enable & 1, _set_ctlr),
        Plain("GICD_TYPER", 0x004, 4, _typer),
        Plain("GICD_IIDR", 0x008, 4, _iidr, user_write=_set_revision),
        *(row for row in per_irq("GICD") if row.name not in REPLACED),
        PerIrq("GICD_IGROUPR", 0x080, 1, lambda irq: irq.group, _set_group, user_put=_restore_group),
        PerIrq("GICD_ISPENDR", 0x200, 1, Irq.is_pending, _set_pending, Irq.latched, _restore_pending),
        PerIrq("GICD_ICPENDR", 0x280, 1, Irq.is_pending, _clear_pending, lambda _: 0, lambda *_: None),
        PerIrq("GICD_ITARGETSR", 0x800, 8, _targets, _set_targets, widths=BYTE_WORD),
        Plain("GICD_SGIR", 0xF00, 4, write=_generate),
        PerIrq("GICD_CPENDSGIR", 0xF10, 8, _senders, _unsend, widths=BYTE_WORD, count=SGIS),
        PerIrq("GICD_SPENDSGIR", 0xF20, 8, _senders, _send, widths=BYTE_WORD, count=SGIS),
    ]
)
