"""The rules of a GICv3 CPU interface: what happens to list registers when software touches ICC_* (IHI0069, chapters 4, 6 and 12).

There are two *banks* of state with the same layout. In VIRTUAL the functions work on the ICH_* registers of a processor: a hypervisor
fills the list registers and reads them back. PHYSICAL is the CPU interface of a machine without such a hypervisor around it: who
plays the distributor (gic/) fills its list registers in the same way, and is called when one is worth refilling. Software cannot
see that bank but through ICC_*.

Everything is compiled into the engine. There are four list registers, five priority bits, all five of which can pre-empt, and one
Active Priorities register for each group. INTIDs are 16 bits wide. Group 1 is signalled as IRQ, group 0 as FIQ.

A virtual interrupt with ICH_LR<n>_EL2.HW deactivates the physical interrupt it names when it is deactivated itself.
"""

from __future__ import annotations

from trapline.arm64.regs.el2 import ICH_HCR_EL2
from trapline.arm64.regs.gic_cpu import ICH_AP0R, ICH_AP1R, ICH_VMCR_EL2, ListRegister
from trapline.arm64.state import SYSREG_SLOTS, CpuState
from trapline.bits.native import Ptr, ctz, native, u1, u32, u64

VIRTUAL = 0
PHYSICAL = SYSREG_SLOTS - ICH_AP0R[0].slot
"""Banks, as what to add to a register's slot. The physical one lies above all registers that have names."""

LIST_REGISTERS = 4
PRIORITY_SHIFT = 3
"""Priorities are multiples of 8: five bits are implemented."""

PRIORITY_BITS = 0xF8
IDLE = 0xFF
"""Running priority when nothing is active."""

SPURIOUS = 1023
SPECIAL = 1020
"""First of the INTIDs that name no interrupt; they end at SPURIOUS."""

FIRST_LPI = 8192
INTID = 0xFF_FFFF

HCR, VMCR, LR0, AP0R0, AP1R0 = ICH_HCR_EL2.slot, ICH_VMCR_EL2.slot, ListRegister.slot, ICH_AP0R[0].slot, ICH_AP1R[0].slot

EN = ICH_HCR_EL2.En.mask
EOICOUNT_LO, EOICOUNT = ICH_HCR_EL2.EOIcount.lo, ICH_HCR_EL2.EOIcount.mask
UIE, LRENPIE, NPIE = ICH_HCR_EL2.UIE.mask, ICH_HCR_EL2.LRENPIE.mask, ICH_HCR_EL2.NPIE.mask
CONDITIONAL = 0xFE
"""Every maintenance interrupt that ICH_HCR_EL2 enables, UIE to VGrp1DIE."""

VENG0, VENG1 = ICH_VMCR_EL2.VENG0.mask, ICH_VMCR_EL2.VENG1.mask
VCBPR, VEOIM = ICH_VMCR_EL2.VCBPR.mask, ICH_VMCR_EL2.VEOIM.mask
BPR0, BPR1, PMR = ICH_VMCR_EL2.VBPR0.lo, ICH_VMCR_EL2.VBPR1.lo, ICH_VMCR_EL2.VPMR.lo
MIN_BPR0, MIN_BPR1 = 2, 3
"""Smallest binary points: with these every implemented priority bit takes part in pre-emption."""

STATE, GROUP, PRIORITY = ListRegister.State.lo, ListRegister.Group.lo, ListRegister.Priority.lo
HW = ListRegister.HW.mask
PINTID, PINTID_BITS = ListRegister.pINTID.lo, ListRegister.pINTID.ones
EOI = 1 << 41
"""ICH_LR<n>_EL2.EOI: bit 9 of pINTID, when HW is 0."""

PENDING, ACTIVE = 1 << STATE, 2 << STATE
EMPTY_BUT_EOI = PENDING | ACTIVE | HW | EOI

LINE_IRQ, LINE_FIQ, LINE_MAINTENANCE = 1, 2, 4
"""Bits of `interface_lines`."""


# ---- priorities ---------------------------------------------------------------------------------------------------------------


@native
def group_priority_mask(vmcr: u64, group: u64) -> u64:
    """The priority bits that take part in pre-emption for a group."""
    if group == 0 or vmcr & VCBPR != 0:
        return 0xFF & 0xFF << max(vmcr >> BPR0 & 7, u64(MIN_BPR0)) + 1
    return 0xFF & 0xFF << max(vmcr >> BPR1 & 7, u64(MIN_BPR1))


@native
def running_priority(cpu: Ptr[CpuState], bank: u64) -> u64:
    """Group priority of the most urgent active interrupt, or IDLE."""
    levels: u64 = cpu.sysreg[bank + AP0R0] | cpu.sysreg[bank + AP1R0]
    if levels == 0:
        return IDLE
    return ctz(levels) << PRIORITY_SHIFT


@native
def most_urgent(cpu: Ptr[CpuState], bank: u64) -> u64:
    """Number of the list register with the highest priority pending interrupt of an enabled group; LIST_REGISTERS if none."""
    enabled: u64 = cpu.sysreg[bank + VMCR] & 3
    best: u64 = LIST_REGISTERS
    best_priority: u64 = 0x100
    for n in range(LIST_REGISTERS):
        lr: u64 = cpu.sysreg[bank + LR0 + n]
        if lr >> STATE == 1 and enabled >> (lr >> GROUP & 1) & 1 != 0:
            priority: u64 = lr >> PRIORITY & 0xFF
            if priority < best_priority:
                best_priority = priority
                best = n
    return best


@native
def is_signalled(cpu: Ptr[CpuState], bank: u64, lr: u64) -> u1:
    """Whether a pending list register passes the interface's enable, the priority mask and the running priority."""
    vmcr: u64 = cpu.sysreg[bank + VMCR]
    priority: u64 = lr >> PRIORITY & 0xFF
    if cpu.sysreg[bank + HCR] & EN == 0 or priority >= vmcr >> PMR & 0xFF:
        return False
    mask: u64 = group_priority_mask(vmcr, lr >> GROUP & 1)
    running: u64 = running_priority(cpu, bank)
    return running == IDLE or priority & mask < running & mask


@native
def drop_priority(cpu: Ptr[CpuState], bank: u64) -> u64:
    """Priority drop: forget the most urgent active priority and return it (IDLE if nothing is active)."""
    group0: u64 = cpu.sysreg[bank + AP0R0]
    group1: u64 = cpu.sysreg[bank + AP1R0]
    if group0 | group1 == 0:
        return IDLE
    if ctz(group0) <= ctz(group1):
        cpu.sysreg[bank + AP0R0] = group0 & group0 - 1
        return ctz(group0) << PRIORITY_SHIFT
    cpu.sysreg[bank + AP1R0] = group1 & group1 - 1
    return ctz(group1) << PRIORITY_SHIFT


# ---- signals ------------------------------------------------------------------------------------------------------------------


@native
def eisr(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICH_EISR_EL2: list registers whose completed interrupt asked for a maintenance interrupt."""
    status: u64 = 0
    for n in range(LIST_REGISTERS):
        if cpu.sysreg[bank + LR0 + n] & EMPTY_BUT_EOI == EOI:
            status |= 1 << n
    return status


@native
def elrsr(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICH_ELRSR_EL2: list registers free for use (nothing in them, and no completion to report)."""
    status: u64 = 0
    for n in range(LIST_REGISTERS):
        lr: u64 = cpu.sysreg[bank + LR0 + n]
        if lr >> STATE == 0 and (lr & HW != 0 or lr & EOI == 0):
            status |= 1 << n
    return status


@native
def conditional_maintenance(cpu: Ptr[CpuState], bank: u64, hcr: u64) -> u64:
    """The bits of ICH_MISR_EL2 that ICH_HCR_EL2 has to enable; both use the same bit positions from UIE up."""
    used: u64 = 0
    pending: u64 = 0
    for n in range(LIST_REGISTERS):
        state: u64 = cpu.sysreg[bank + LR0 + n] >> STATE
        used += u64(state != 0)
        pending += u64(state == 1)
    groups: u64 = cpu.sysreg[bank + VMCR] & 3
    status: u64 = u64(used <= 1) << 1 | u64(hcr & EOICOUNT != 0) << 2 | u64(pending == 0) << 3
    status |= (groups & 1) << 4 | (~groups & 1) << 5 | (groups & 2) << 5 | (~groups & 2) << 6
    return status & hcr & CONDITIONAL


@native
def misr(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICH_MISR_EL2: why the maintenance interrupt is asserted."""
    return conditional_maintenance(cpu, bank, cpu.sysreg[bank + HCR]) | u64(eisr(cpu, bank) != 0)


@native
def maintenance_pending(cpu: Ptr[CpuState], bank: u64) -> u1:
    """Whether the maintenance interrupt is asserted."""
    hcr: u64 = cpu.sysreg[bank + HCR]
    if hcr & EN == 0:
        return False
    if eisr(cpu, bank) != 0:
        return True
    return hcr & CONDITIONAL != 0 and conditional_maintenance(cpu, bank, hcr) != 0


@native
def signalled_group(cpu: Ptr[CpuState], bank: u64) -> u32:
    """LINE_IRQ or LINE_FIQ if a virtual interrupt is signalled to the processor, else 0."""
    any_state: u64 = cpu.sysreg[bank + LR0] | cpu.sysreg[bank + LR0 + 1] | cpu.sysreg[bank + LR0 + 2] | cpu.sysreg[bank + LR0 + 3]
    if any_state & PENDING == 0:
        return 0
    best: u64 = most_urgent(cpu, bank)
    if best == LIST_REGISTERS:
        return 0
    lr: u64 = cpu.sysreg[bank + LR0 + best]
    if not is_signalled(cpu, bank, lr):
        return 0
    return LINE_IRQ if lr >> GROUP & 1 != 0 else LINE_FIQ


@native
def interface_lines(cpu: Ptr[CpuState], bank: u64) -> u32:
    """All outputs of the interface: LINE_IRQ, LINE_FIQ, LINE_MAINTENANCE."""
    lines: u32 = signalled_group(cpu, bank)
    if maintenance_pending(cpu, bank):
        lines |= LINE_MAINTENANCE
    return lines


# ---- acknowledge and complete -------------------------------------------------------------------------------------------------


@native
def acknowledge(cpu: Ptr[CpuState], bank: u64, group: u64) -> u64:
    """ICC_IAR<n>: take the highest priority interrupt if it is of this group and signalled. LPIs are never active."""
    best: u64 = most_urgent(cpu, bank)
    if best == LIST_REGISTERS:
        return SPURIOUS
    lr: u64 = cpu.sysreg[bank + LR0 + best]
    if lr >> GROUP & 1 != group or not is_signalled(cpu, bank, lr):
        return SPURIOUS
    level: u64 = (lr >> PRIORITY & group_priority_mask(cpu.sysreg[bank + VMCR], group)) >> PRIORITY_SHIFT
    cpu.sysreg[bank + AP0R0 + group * (AP1R0 - AP0R0)] |= 1 << level
    intid: u64 = lr & INTID
    cpu.sysreg[bank + LR0 + best] = lr & ~PENDING | (ACTIVE if intid < FIRST_LPI else 0)
    return intid


@native
def find_active(cpu: Ptr[CpuState], bank: u64, intid: u64) -> u64:
    """Number of the list register in which an interrupt is active; LIST_REGISTERS if none."""
    found: u64 = LIST_REGISTERS
    for n in range(LIST_REGISTERS):
        lr: u64 = cpu.sysreg[bank + LR0 + n]
        if lr & ACTIVE != 0 and lr & 0xFFFF_FFFF == intid:
            found = n
    return found


@native
def count_unlisted(cpu: Ptr[CpuState], bank: u64) -> None:
    """A completion found no list register: leave it to the hypervisor, by ICH_HCR_EL2.EOIcount."""
    hcr: u64 = cpu.sysreg[bank + HCR]
    cpu.sysreg[bank + HCR] = hcr & ~EOICOUNT | (hcr + (1 << EOICOUNT_LO) & EOICOUNT)


@native
def deactivate(cpu: Ptr[CpuState], bank: u64, listed: u64) -> None:
    """The interrupt in a list register is no longer active; nor is the physical one behind it."""
    lr: u64 = cpu.sysreg[bank + LR0 + listed]
    cpu.sysreg[bank + LR0 + listed] = lr & ~ACTIVE
    if bank == VIRTUAL and lr & HW != 0:
        physical: u64 = find_active(cpu, PHYSICAL, lr >> PINTID & PINTID_BITS)
        if physical != LIST_REGISTERS:
            cpu.sysreg[PHYSICAL + LR0 + physical] &= ~ACTIVE
        elif cpu.sysreg[PHYSICAL + HCR] & EN != 0:
            count_unlisted(cpu, PHYSICAL)


@native
def complete(cpu: Ptr[CpuState], bank: u64, value: u64, group: u64) -> None:
    """ICC_EOIR<n>: priority drop, and deactivation unless ICC_CTLR.EOImode separates the two (never for LPIs)."""
    intid: u64 = value & INTID
    if intid >= SPECIAL and intid <= SPURIOUS:
        return
    listed: u64 = find_active(cpu, bank, intid)
    dropped: u64 = drop_priority(cpu, bank)
    if cpu.sysreg[bank + VMCR] & VEOIM != 0 and intid < FIRST_LPI:
        return
    if listed == LIST_REGISTERS:
        if dropped != IDLE and intid < FIRST_LPI:
            count_unlisted(cpu, bank)
    elif cpu.sysreg[bank + LR0 + listed] >> GROUP & 1 == group:
        deactivate(cpu, bank, listed)


@native
def iar0_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_IAR0_EL1."""
    return acknowledge(cpu, bank, 0)


@native
def iar1_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_IAR1_EL1."""
    return acknowledge(cpu, bank, 1)


@native
def eoir0_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_EOIR0_EL1."""
    complete(cpu, bank, value, 0)


@native
def eoir1_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_EOIR1_EL1."""
    complete(cpu, bank, value, 1)


@native
def dir_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_DIR_EL1: deactivation by itself; does nothing while completion includes it, nor for LPIs and special INTIDs."""
    intid: u64 = value & INTID
    if cpu.sysreg[bank + VMCR] & VEOIM == 0 or intid >= SPECIAL:
        return
    listed: u64 = find_active(cpu, bank, intid)
    if listed == LIST_REGISTERS:
        count_unlisted(cpu, bank)
    else:
        deactivate(cpu, bank, listed)


@native
def highest_pending(cpu: Ptr[CpuState], bank: u64, group: u64) -> u64:
    """ICC_HPPIR<n>: what an acknowledge could return if no priority held it back."""
    best: u64 = most_urgent(cpu, bank)
    if best == LIST_REGISTERS:
        return SPURIOUS
    lr: u64 = cpu.sysreg[bank + LR0 + best]
    return lr & INTID if lr >> GROUP & 1 == group else SPURIOUS


@native
def hppir0_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_HPPIR0_EL1."""
    return highest_pending(cpu, bank, 0)


@native
def hppir1_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_HPPIR1_EL1."""
    return highest_pending(cpu, bank, 1)


@native
def rpr_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_RPR_EL1."""
    return running_priority(cpu, bank)


# ---- controls -----------------------------------------------------------------------------------------------------------------


@native
def set_vmcr(cpu: Ptr[CpuState], bank: u64, mask: u64, lo: u64, value: u64) -> None:
    """Replace the bits `mask << lo` of ICH_VMCR_EL2."""
    cpu.sysreg[bank + VMCR] = cpu.sysreg[bank + VMCR] & ~(mask << lo) | (value & mask) << lo


@native
def pmr_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_PMR_EL1."""
    return cpu.sysreg[bank + VMCR] >> PMR & 0xFF


@native
def pmr_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_PMR_EL1: only the implemented bits are kept."""
    set_vmcr(cpu, bank, 0xFF, PMR, value & PRIORITY_BITS)


@native
def bpr0_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_BPR0_EL1."""
    return cpu.sysreg[bank + VMCR] >> BPR0 & 7


@native
def bpr0_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_BPR0_EL1: below the minimum it takes the minimum."""
    set_vmcr(cpu, bank, 7, BPR0, max(value & 7, u64(MIN_BPR0)))


@native
def bpr1_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_BPR1_EL1: with a common binary point, that of group 0 plus one, at most 7."""
    vmcr: u64 = cpu.sysreg[bank + VMCR]
    if vmcr & VCBPR != 0:
        return min((vmcr >> BPR0 & 7) + 1, u64(7))
    return vmcr >> BPR1 & 7


@native
def bpr1_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_BPR1_EL1: ignored with a common binary point; below the minimum it takes the minimum."""
    if cpu.sysreg[bank + VMCR] & VCBPR == 0:
        set_vmcr(cpu, bank, 7, BPR1, max(value & 7, u64(MIN_BPR1)))


CTLR_CONSTANT = 4 << 8 | 1 << 15
"""ICC_CTLR_EL1: five priority bits, 16-bit INTIDs, Aff3 may be non-zero in SGI registers."""


@native
def ctlr_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_CTLR_EL1: CBPR, EOImode and what is implemented."""
    vmcr: u64 = cpu.sysreg[bank + VMCR]
    return CTLR_CONSTANT | u64(vmcr & VCBPR != 0) | u64(vmcr & VEOIM != 0) << 1


@native
def ctlr_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_CTLR_EL1."""
    vmcr: u64 = cpu.sysreg[bank + VMCR] & ~(VCBPR | VEOIM)
    if value & 1 != 0:
        vmcr |= VCBPR
    if value & 2 != 0:
        vmcr |= VEOIM
    cpu.sysreg[bank + VMCR] = vmcr


@native
def igrpen0_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_IGRPEN0_EL1."""
    return cpu.sysreg[bank + VMCR] & 1


@native
def igrpen0_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_IGRPEN0_EL1."""
    set_vmcr(cpu, bank, 1, 0, value)


@native
def igrpen1_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_IGRPEN1_EL1."""
    return cpu.sysreg[bank + VMCR] >> 1 & 1


@native
def igrpen1_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_IGRPEN1_EL1."""
    set_vmcr(cpu, bank, 1, 1, value)


@native
def ap0r0_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_AP0R0_EL1."""
    return cpu.sysreg[bank + AP0R0]


@native
def ap0r0_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_AP0R0_EL1."""
    cpu.sysreg[bank + AP0R0] = value & 0xFFFF_FFFF


@native
def ap1r0_read(cpu: Ptr[CpuState], bank: u64) -> u64:
    """ICC_AP1R0_EL1."""
    return cpu.sysreg[bank + AP1R0]


@native
def ap1r0_write(cpu: Ptr[CpuState], bank: u64, value: u64) -> None:
    """ICC_AP1R0_EL1."""
    cpu.sysreg[bank + AP1R0] = value & 0xFFFF_FFFF
