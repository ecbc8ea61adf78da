"""What a GICv2 has in place of system registers: a memory-mapped CPU interface, and software interrupts that know their sender.

The interface works on the list registers and by the rules of a GICv3's (arm64/gic_interface.py), so that the processor takes interrupts
in one way. A guest of a GICv2 cannot reach them but through the registers here. Group 0 can be signalled as IRQ (GICC_CTLR.FIQEn clear,
what nearly everybody does); then it is group 1 to the list registers, and what tells the groups apart is done here.
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.arm64 import gic_interface as rules
from trapline.arm64.gic_interface import VIRTUAL
from trapline.arm64.regs import ICH_VMCR_EL2
from trapline.registers import Field, Register

from .cpuif import deactivate
from .regmap import Access, Plain, RegisterMap
from .state import LIST_REGISTERS, LR_ACTIVE, LR_GROUP, LR_PENDING, CpuInterface, Irq

SENDER = 10
"""Where an INTID read from GICC_IAR, and a list register, have the number of the processor that sent an SGI."""

SENDERS = 7
INTID = 0x3FF
SENT_INTID = 0x1FFF
"""INTID and sender."""

OTHER_GROUP, SPURIOUS = 1022, 1023
IIDR = 0x4B << 20 | 2 << 16 | 0x43B
MIN_ABPR = 3


class GICC_CTLR(Register, width=32):
    """CPU Interface Control Register."""

    EnableGrp0 = Field(0)
    EnableGrp1 = Field(1)
    AckCtl = Field(2)
    FIQEn = Field(3)
    CBPR = Field(4)
    EOImode = Field(9)


class LegacySgi(Irq):
    """A software-generated interrupt, pending once for each processor that sent it, and delivered once for each."""

    __slots__ = ("senders", "active_sender", "owner")
    one_at_a_time = True

    def __init__(self, intid: int, owner: int) -> None:
        super().__init__(intid)
        self.owner = owner
        """Number of the vCPU it belongs to."""
        self.senders = 0
        """Who sent it, as bits; with the one whose turn it is in a list register."""
        self.active_sender = 0

    def state(self) -> tuple[object, ...]:
        """As of other interrupts, and the senders."""
        return (*super().state(), self.senders, self.active_sender)

    def vintid(self) -> int:
        """With the sender whose interrupt is active, or the next one's."""
        sender = self.active_sender if self.active else max((self.senders & -self.senders).bit_length() - 1, 0)
        return self.intid | sender << SENDER

    def send(self, sender: int) -> bool:
        """Make it pending from this sender; False if it already was."""
        if self.senders >> sender & 1:
            return False
        self.senders |= 1 << sender
        if self.lr < 0:
            self.latch = True
        return True

    def unsend(self, senders: int) -> None:
        """Withdraw what these senders sent. What is in a list register is taken out, and comes back if its sender is still there."""
        self.senders &= ~senders
        self.latch = bool(self.senders) and self.lr < 0
        self.drop_pending = self.lr >= 0

    def latched(self) -> bool:
        """From any sender."""
        return bool(self.senders)

    def is_pending(self) -> bool:
        """It has no wire."""
        return bool(self.senders)

    def set_latch(self) -> bool:
        """Restored without a sender: it is the vCPU's own."""
        return self.send(self.owner)

    def clear_latch(self) -> None:
        """Withdraw what anybody sent."""
        self.unsend(0xFF)

    def fold(self, value: int) -> None:
        """Take the state back; the sender in the list register has had its turn if that is not pending any more."""
        sender = value >> SENDER & SENDERS
        if self.lr_latch and not value & LR_PENDING:
            self.senders &= ~(1 << sender)
        if value & LR_ACTIVE:
            self.active_sender = sender
        super().fold(value)
        self.latch = bool(self.senders)


class LegacyInterface:
    """The registers of a CPU interface that list registers have no place for."""

    __slots__ = ("control", "abpr")

    def __init__(self) -> None:
        self.control = 0
        self.abpr = MIN_ABPR

    def reset(self) -> int:
        """After a reset. Returns ICH_VMCR_EL2: nothing passes the priority mask, and groups are told apart here."""
        self.control = 0
        self.abpr = MIN_ABPR
        return ICH_VMCR_EL2(VENG0=1, VENG1=1, VCBPR=1, VFIQEn=1, VBPR0=rules.MIN_BPR0, VBPR1=rules.MIN_BPR1)

    def enabled(self, group: int) -> bool:
        """Whether interrupts of a group are signalled."""
        return bool(self.control >> group & 1)

    def line(self, group: int) -> int:
        """The group that list registers say: 1 is an IRQ, 0 an FIQ."""
        return group or int(not self.control & GICC_CTLR.FIQEn.mask)


def _of(access: Access) -> tuple[CpuInterface, LegacyInterface]:
    cpu = access.cpu
    if cpu is None or cpu.legacy is None:
        raise TypeError("a CPU interface register needs a GICv2's CPU interface")
    return cpu, cpu.legacy


# ---- controls ---------------------------------------------------------------------------------------------------------------------


def _ctlr(access: Access) -> int:
    return _of(access)[1].control


def _set_ctlr(access: Access, value: int) -> None:
    cpu, interface = _of(access)
    interface.control = value & GICC_CTLR.fields_mask()
    vmcr = ICH_VMCR_EL2(cpu.sysreg[ICH_VMCR_EL2.slot])
    cpu.sysreg[ICH_VMCR_EL2.slot] = vmcr.replace(VEOIM=int(bool(value & GICC_CTLR.EOImode.mask)))
    for irq in access.irqs:
        if irq.target is cpu or irq.holder is cpu:
            access.gic.requeue(irq)


def _rule(read: Callable[..., int], write: Callable[..., None]) -> tuple[Callable[[Access], int], Callable[[Access, int], None]]:
    """A register that the rules of the system registers serve."""

    def get(access: Access) -> int:
        return int(read(_of(access)[0].vcpu.cpu.state, VIRTUAL))

    def put(access: Access, value: int) -> None:
        write(_of(access)[0].vcpu.cpu.state, VIRTUAL, value)

    return get, put


_pmr, _set_pmr = _rule(rules.pmr_read, rules.pmr_write)


def _restored_pmr(access: Access) -> int:
    """User space has only the five implemented bits, at the bottom."""
    return _pmr(access) >> rules.PRIORITY_SHIFT


def _restore_pmr(access: Access, value: int) -> None:
    _set_pmr(access, value << rules.PRIORITY_SHIFT & 0xFF)


def _set_abpr(access: Access, value: int) -> None:
    _of(access)[1].abpr = max(value & 7, MIN_ABPR)


def _apr(access: Access) -> int:
    sysreg = _of(access)[0].sysreg
    return int(sysreg[rules.AP0R0] | sysreg[rules.AP1R0])


def _set_apr(access: Access, value: int) -> None:
    sysreg = _of(access)[0].sysreg
    sysreg[rules.AP0R0], sysreg[rules.AP1R0] = 0, value


# ---- acknowledge and complete -----------------------------------------------------------------------------------------------------


def _next(access: Access, aliased: bool, signalled: bool) -> tuple[int, int]:
    """What GICC_IAR or HPPIR (or their aliases for group 1) show, and the list register's value; that is 0 if nothing is there.

    `signalled` asks for an interrupt that passes the priority mask and the running priority.
    """
    cpu, interface = _of(access)
    state = cpu.vcpu.cpu.state
    best = rules.most_urgent(state, VIRTUAL)
    if best == LIST_REGISTERS:
        return SPURIOUS, 0
    value = cpu.list_register(best)
    if signalled and not rules.is_signalled(state, VIRTUAL, value):
        return SPURIOUS, 0
    group = cpu.loaded[best][0].group
    if aliased and not group:
        return SPURIOUS, 0
    if not aliased and group and not interface.control & GICC_CTLR.AckCtl.mask:
        return OTHER_GROUP, 0
    return value & SENT_INTID, value


def _acknowledge(access: Access, aliased: bool) -> int:
    shown, value = _next(access, aliased, signalled=True)
    if value:
        rules.acknowledge(_of(access)[0].vcpu.cpu.state, VIRTUAL, value >> LR_GROUP & 1)
    return shown


def _complete(access: Access, value: int) -> None:
    cpu = _of(access)[0]
    sent = value & SENT_INTID
    listed = (cpu.list_register(n) for n in range(len(cpu.loaded)))
    group = next((lr >> LR_GROUP & 1 for lr in listed if lr & LR_ACTIVE and lr & SENT_INTID == sent), 1)
    rules.complete(cpu.vcpu.cpu.state, VIRTUAL, sent, group)


def _deactivate(access: Access, value: int) -> None:
    cpu, interface = _of(access)
    if interface.control & GICC_CTLR.EOImode.mask:
        for irq in list(cpu.queue):
            if irq.intid == value & INTID and irq.is_active():
                deactivate(irq, access.gic.requeue)


def _running_priority(access: Access) -> int:
    return int(rules.running_priority(_of(access)[0].vcpu.cpu.state, VIRTUAL))


CPU_INTERFACE = RegisterMap(
    [
        Plain("GICC_CTLR", 0x00, 4, _ctlr, _set_ctlr),
        Plain("GICC_PMR", 0x04, 4, _pmr, _set_pmr, _restored_pmr, _restore_pmr),
        Plain("GICC_BPR", 0x08, 4, *_rule(rules.bpr0_read, rules.bpr0_write)),
        Plain("GICC_IAR", 0x0C, 4, lambda access: _acknowledge(access, aliased=False)),
        Plain("GICC_EOIR", 0x10, 4, write=_complete),
        Plain("GICC_RPR", 0x14, 4, _running_priority),
        Plain("GICC_HPPIR", 0x18, 4, lambda access: _next(access, False, False)[0]),
        Plain("GICC_ABPR", 0x1C, 4, lambda access: _of(access)[1].abpr, _set_abpr),
        Plain("GICC_AIAR", 0x20, 4, lambda access: _acknowledge(access, aliased=True)),
        Plain("GICC_AEOIR", 0x24, 4, write=_complete),
        Plain("GICC_AHPPIR", 0x28, 4, lambda access: _next(access, True, False)[0]),
        Plain("GICC_APR0", 0xD0, 4, _apr, _set_apr),
        Plain("GICC_APR1", 0xD4, 12),
        Plain("GICC_IIDR", 0xFC, 4, lambda _: IIDR),
        Plain("GICC_DIR", 0x1000, 4, write=_deactivate),
    ]
)
"""Both pages."""

RESTORED = frozenset({0x00, 0x04, 0x08, 0x1C, 0xD0, 0xD4, 0xD8, 0xDC, 0xFC})
"""Offsets that user space saves and restores."""
