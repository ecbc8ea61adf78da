"""List-register management: what a vCPU's processor is given before it enters the guest, and what comes back.

There are four list registers. When more interrupts are queued, the one pending interrupt that would be taken next is always in
a list register, so that something is deliverable; then come the active ones, most urgent first, because the guest completes
them in that order and completing what has no list register costs an exit; the remaining places go to further pending ones.
The maintenance interrupt brings the vCPU back when a place is worth refilling:

    no list register is pending (NPIE)                      a queued interrupt can take a place
    an interrupt without list register was completed        EOIcount tells how many: the most urgent active ones
    the guest switched a group on or off                    which pending interrupt is next has changed
    a level-sensitive interrupt was completed (LR.EOI)      its wire has to be looked at again
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.arm64.regs import ICH_AP0R0_EL2, ICH_AP1R0_EL2, ICH_HCR_EL2, ICH_VMCR_EL2

from .state import (
    LIST_REGISTERS,
    LR_ACTIVE,
    LR_EOI,
    LR_GROUP,
    LR_PENDING,
    LR_PRIORITY,
    LR_SLOT,
    CpuInterface,
    Irq,
)

_HCR, _VMCR = ICH_HCR_EL2.slot, ICH_VMCR_EL2.slot
_APRS = (ICH_AP0R0_EL2.slot, ICH_AP1R0_EL2.slot)
_EN = ICH_HCR_EL2.En.mask
_EOICOUNT = ICH_HCR_EL2.EOIcount
_GROUP_ENABLED = (ICH_VMCR_EL2.VENG0.mask, ICH_VMCR_EL2.VENG1.mask)
_GROUPS = sum(_GROUP_ENABLED)
_WHEN_ENABLED = (ICH_HCR_EL2.VGrp0EIE.mask, ICH_HCR_EL2.VGrp1EIE.mask)
_WHEN_DISABLED = (ICH_HCR_EL2.VGrp0DIE.mask, ICH_HCR_EL2.VGrp1DIE.mask)
_PMR = ICH_VMCR_EL2.VPMR
_EOIM = ICH_VMCR_EL2.VEOIM.mask

Requeue = Callable[[Irq], None]
Deliverable = Callable[[Irq], bool]


def reset(cpu: CpuInterface, requeue: Requeue) -> None:
    """The state of the CPU interface after a reset: everything masked, no priority active. Interrupts keep their state."""
    regs = cpu.sysreg
    for n, (_, value) in enumerate(cpu.loaded):
        # The processor's own reset may have come first. What was loaded is what the guest left: all else was folded at its exit.
        regs[LR_SLOT + n] = value
    cpu.spilled = False
    fold(cpu, requeue)
    for n in range(LIST_REGISTERS):
        regs[LR_SLOT + n] = 0
    regs[_VMCR] = ICH_VMCR_EL2(VFIQEn=1, VBPR0=2, VBPR1=3) if cpu.legacy is None else cpu.legacy.reset()
    regs[_HCR] = _EN
    for slot in _APRS:
        regs[slot] = 0


def changed(cpu: CpuInterface) -> bool:
    """Whether the guest has changed anything that `fold` would take back, or that decides who gets a list register."""
    regs = cpu.sysreg
    slot = LR_SLOT
    for _, value in cpu.loaded:
        if regs[slot] != value:
            return True
        slot += 1
    return cpu.spilled and (regs[_HCR] >> _EOICOUNT.lo != 0 or regs[_VMCR] & _GROUPS != cpu.groups)


def fold(cpu: CpuInterface, requeue: Requeue) -> list[int]:
    """Take every interrupt out of the list registers. Returns the INTIDs somebody watches that the guest has completed."""
    regs = cpu.sysreg
    completed = []
    loaded, cpu.loaded = cpu.loaded, []
    for n, (irq, _) in enumerate(loaded):
        value = regs[LR_SLOT + n]
        regs[LR_SLOT + n] = 0
        irq.fold(value)
        if irq.watched and not irq.edge and value & (LR_EOI | LR_PENDING | LR_ACTIVE) == LR_EOI:
            completed.append(irq.intid)
        requeue(irq)
    if cpu.spilled:
        folded = {irq for irq, _ in loaded}
        for _ in range(_EOICOUNT.extract(regs[_HCR])):
            elsewhere = [irq for irq in cpu.queue if irq.active and irq not in folded]
            if not elsewhere:
                break
            completed += deactivate(min(elsewhere, key=_urgency), requeue)
        cpu.spilled = False
    cpu.dirty = True
    return completed


def deactivate(irq: Irq, requeue: Requeue) -> list[int]:
    """The guest has completed an active interrupt in a way that the list registers did not see."""
    irq.set_active(False)
    requeue(irq)
    return [irq.intid] if irq.watched and not irq.edge else []


def load(cpu: CpuInterface, deliverable: Deliverable) -> None:
    """Give the list registers to the most important interrupts of the queue. All have been folded before."""
    regs = cpu.sysreg
    cpu.dirty = False
    control = _EN
    chosen = list(cpu.queue)
    if len(chosen) > LIST_REGISTERS:
        chosen, control = _choose(cpu, chosen, deliverable)
    elif len(chosen) > 1:
        chosen.sort(key=_urgency)
    for n, irq in enumerate(chosen):
        value = _list_register(cpu, irq, deliverable)
        regs[LR_SLOT + n] = value
        cpu.loaded.append((irq, value))
        irq.lr = n
        if value & LR_PENDING:
            irq.lr_latch = irq.latch
            irq.latch = False
    regs[_HCR] = control


def pending(cpu: CpuInterface, forwarded: Deliverable) -> bool:
    """Whether an interrupt is pending that the CPU interface would pass on to an idle processor."""
    if not cpu.queue:
        return False
    vmcr = cpu.sysreg[_VMCR]
    mask = _PMR.extract(vmcr)
    return any(irq.priority < mask and vmcr & _GROUP_ENABLED[irq.group] and not irq.is_active() and forwarded(irq) for irq in cpu.queue)


def _urgency(irq: Irq) -> tuple[int, int]:
    return irq.priority, irq.intid


def _choose(cpu: CpuInterface, queue: list[Irq], deliverable: Deliverable) -> tuple[list[Irq], int]:
    """The interrupts that get a list register when there are too few, and ICH_HCR_EL2 to be told when that changes."""
    vmcr = cpu.sysreg[_VMCR]
    active = sorted((irq for irq in queue if irq.active), key=_urgency)
    waiting = [irq for irq in queue if not irq.active and deliverable(irq)]
    waiting.sort(key=lambda irq: (not vmcr & _GROUP_ENABLED[irq.group], irq.priority, irq.intid))
    chosen = (waiting[:1] + active + waiting[1:])[:LIST_REGISTERS]
    cpu.spilled = True
    cpu.groups = vmcr & _GROUPS
    control = _EN | ICH_HCR_EL2.LRENPIE.mask
    if len(waiting) > 1:
        control |= ICH_HCR_EL2.NPIE.mask
        for group, enabled in enumerate(_GROUP_ENABLED):
            control |= (_WHEN_DISABLED if vmcr & enabled else _WHEN_ENABLED)[group]
    if len(active) >= LIST_REGISTERS and vmcr & _EOIM:
        control |= ICH_HCR_EL2.TDIR.mask
    return chosen, control


def _list_register(cpu: CpuInterface, irq: Irq, deliverable: Deliverable) -> int:
    group = irq.group if cpu.legacy is None else cpu.legacy.line(irq.group)
    value = irq.vintid() | irq.priority << LR_PRIORITY | group << LR_GROUP
    if not irq.edge:
        # Pending *and* active would be delivered again without a look at the wire in between.
        value |= LR_EOI
        return value | (LR_ACTIVE if irq.active else LR_PENDING)
    if irq.active:
        value |= LR_ACTIVE
        if irq.target is not cpu or irq.one_at_a_time:
            # Its next delivery is another vCPU's, so this one only has to say when it is done.
            return value | LR_EOI
    return value | LR_PENDING if deliverable(irq) else value
