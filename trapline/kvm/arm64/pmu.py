"""The guest's performance monitors (PMUv3p5): registers that trap, and counters that count what this machine can count.

Cycles are nanoseconds that the vCPU spent in the guest: a processor at 1 GHz. Instructions are counted by machines that count them
anyway, which are the deterministic ones; there a cycle is an instruction. Software increments are counted always. The counters are
brought up to date when somebody looks, and when an alarm says that one has overflowed. Filters by exception level are kept, and a
counter that counts at neither EL0 nor EL1 stands still; one that counts at one of them counts both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EBUSY, EEXIST, EINVAL, ENODEV, ENXIO
from typing import TYPE_CHECKING, Any, Final

from trapline.abi.arm64 import PmuAttr
from trapline.abi.arm64_vm import PmuEventFilter
from trapline.arm64.regs.pmu import PMCR_EL0, PMUSERENR_EL0
from trapline.errors import KvmError

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu
    from trapline.kvm.arm64.vm import Arm64Vm

VERSION: Final = 6
"""ID_AA64DFR0_EL1.PMUVer of PMUv3 for Armv8.5: 64-bit event counters."""
EVENT_COUNTERS: Final = 6
CYCLES: Final = 31
"""Number of the cycle counter."""
SW_INCR, INST_RETIRED, CPU_CYCLES, CHAIN, STALL_FRONTEND, STALL_BACKEND = 0x00, 0x08, 0x11, 0x1E, 0x23, 0x24
EVENTS: Final = 1 << 16
WORD: Final = (1 << 64) - 1
NOT_AT_EL1, NOT_AT_EL0 = 1 << 31, 1 << 30
TYPE_MASK: Final = NOT_AT_EL1 | NOT_AT_EL0 | EVENTS - 1
FILTER_MASK: Final = NOT_AT_EL1 | NOT_AT_EL0
PMU_ID: Final = 0
"""The machine's only PMU, for KVM_ARM_VCPU_PMU_V3_SET_PMU."""
ALLOW, DENY = 0, 1
HORIZON_NS: Final = 1 << 42
"""More than an hour: nobody is in the guest for so long without an exit, so no alarm is needed for later."""

KEPT: Final = PMCR_EL0.E.mask | PMCR_EL0.X.mask | PMCR_EL0.DP.mask | PMCR_EL0.LP.mask
LC: Final = PMCR_EL0.LC.mask
E: Final = PMCR_EL0.E.mask
FIRST_SPI: Final = 32
USER_EN, USER_SW, USER_CR, USER_ER = PMUSERENR_EL0.EN.mask, PMUSERENR_EL0.SW.mask, PMUSERENR_EL0.CR.mask, PMUSERENR_EL0.ER.mask


class VmPmu:
    """What the PMUs of a VM's vCPUs have in common."""

    def __init__(self, vm: Arm64Vm) -> None:
        self.vm = vm
        self.counters = EVENT_COUNTERS
        self._denied: bytearray | None = None
        """One byte for each event that a filter mentions or implies."""

    def add_filter(self, base: int, count: int, action: int) -> None:
        """Allow or deny a range of events. The first filter says what becomes of the others: the opposite."""
        if self.vm.has_run:
            raise KvmError(EBUSY)
        if base + count > EVENTS or action not in (ALLOW, DENY):
            raise KvmError(EINVAL)
        if self._denied is None:
            self._denied = bytearray([int(action == ALLOW)]) * EVENTS
        self._denied[base : base + count] = bytes([action]) * count

    def allows(self, event: int) -> bool:
        """Whether an event may be counted."""
        return self._denied is None or not self._denied[event]

    def events(self) -> Iterator[int]:
        """Events that are there."""
        counted = [INST_RETIRED] if self.vm.machine.counts_instructions else []
        known = [SW_INCR, CPU_CYCLES, CHAIN, STALL_FRONTEND, STALL_BACKEND, *counted]
        return (event for event in known if self.allows(event))

    def event_mask(self, first: int) -> int:
        """PMCEID<n>_EL0: the events from `first` on, one bit each."""
        return sum(1 << event - first for event in self.events() if first <= event < first + 32)


class Pmu:
    """One vCPU's PMU."""

    def __init__(self, vcpu: Arm64Vcpu) -> None:
        self.vcpu = vcpu
        self.shared: VmPmu = vcpu.vm.pmu
        self.created = False
        """KVM_ARM_VCPU_PMU_V3_INIT was made."""
        self.irq: int | None = None
        self._world = vcpu.vm.machine.world
        self._counts = vcpu.vm.machine.counts_instructions
        self.running = False
        """Whether anything is counted while the guest runs."""
        self._in_guest = 0
        self.line = False
        """The overflow interrupt's level."""
        self._rung = False
        self._cancel: Callable[[], None] | None = None
        self.reset()

    def reset(self) -> None:
        """What a processor's reset leaves."""
        self.control = 0
        self.enabled = self.overflowed = self.interrupts = self.selected = self.user = 0
        self.types = [0] * 32
        self.values = [0] * 32
        self._seen = self._now()
        self.changed()

    # --- counting ------------------------------------------------------------------------------------------------------------

    @property
    def mask(self) -> int:
        """One bit for each counter."""
        return 1 << CYCLES | (1 << self.shared.counters) - 1

    def enter(self) -> Any:
        """Run the guest, and note for how long."""
        self._answer_alarm()
        if self._cancel is None:
            self._set_alarm()
        start = 0 if self._counts else self._world.clock.now()
        exit = self.vcpu.cpu.enter()
        if not self._counts:
            self._in_guest += self._world.clock.now() - start
        self._answer_alarm()
        return exit

    def _answer_alarm(self) -> None:
        if self._rung:
            self._rung, self._cancel = False, None
            self.update()

    def _now(self) -> int:
        """Cycles so far. Where instructions are counted, that is what they are."""
        return int(self.vcpu.state.icount) if self._counts else self._in_guest

    def _counting(self, number: int) -> bool:
        """Whether a counter advances with time."""
        if not self.enabled >> number & 1 or self.types[number] & FILTER_MASK == FILTER_MASK:
            return False
        event = CPU_CYCLES if number == CYCLES else self.types[number] & EVENTS - 1
        timed = event == CPU_CYCLES or (event == INST_RETIRED and self._counts)
        return timed and self.shared.allows(event)

    def _bits(self, number: int) -> int:
        """How many bits of a counter have to overflow."""
        return 64 if number == CYCLES or self.control & PMCR_EL0.LP.mask else 32

    def advance(self, number: int, count: int) -> None:
        """Add to a counter."""
        before = self.values[number]
        after = before + count
        bits = self._bits(number)
        self.values[number] = after & WORD
        if overflows := (after >> bits) - (before >> bits):
            self.overflowed |= 1 << number
            self._chain(number + 1, overflows)

    def _chain(self, number: int, count: int) -> None:
        """The counter before an odd one has overflowed."""
        if not number & 1 or number >= self.shared.counters or not self.enabled >> number & 1:
            return
        if self.types[number] & EVENTS - 1 == CHAIN and self.types[number] & FILTER_MASK != FILTER_MASK and self.shared.allows(CHAIN):
            self.advance(number, count)

    def update(self) -> None:
        """Bring counters and the interrupt line up to date."""
        now = self._now()
        passed, self._seen = now - self._seen, now
        if passed > 0 and self.running:
            for number in (*range(self.shared.counters), CYCLES):
                if self._counting(number):
                    self.advance(number, passed)
        self._drive()

    def changed(self) -> None:
        """A register was written: drive the line, and look anew when the next counter overflows."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        self._rung = False
        self.running = bool(self.enabled and self.control & E)
        self._drive()

    def _drive(self) -> None:
        level = bool(self.overflowed & self.interrupts & self.enabled and self.control & E)
        vgic = self.vcpu.vm.vgic
        if level == self.line:
            return
        self.line = level
        if vgic is not None and self.irq is not None:
            vgic.inject(self.vcpu if self.irq < FIRST_SPI else None, self.irq, level, by=self.vcpu)

    def _set_alarm(self) -> None:
        """Have the vCPU leave the guest when the first counter with an interrupt overflows, if it is in the guest until then."""
        watched = [n for n in (*range(self.shared.counters), CYCLES) if self.interrupts >> n & 1 and self._counting(n)]
        if watched and not self.line:
            left = min((1 << (bits := self._bits(n))) - (self.values[n] & (1 << bits) - 1) for n in watched) - (self._now() - self._seen)
            if left < HORIZON_NS:
                self._cancel = self._world.call_at(self._world.clock.now() + max(0, left), self._ring)

    def _ring(self) -> None:
        """Called by the clock, on whatever thread."""
        self._rung = True
        self.vcpu.kick()

    # --- starting ------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """KVM_RUN for the first time: EINVAL unless userspace has configured it."""
        has_gic = self.vcpu.vm.vgic is not None
        if not self.created or has_gic != (self.irq is not None):
            raise KvmError(EINVAL)

    def set_counters(self, count: int) -> None:
        """How many event counters there are, for all vCPUs."""
        if self.vcpu.vm.has_run:
            raise KvmError(EBUSY)
        if count > EVENT_COUNTERS:
            raise KvmError(EINVAL)
        self.shared.counters = count


class PmuAttributes:
    """Attribute group PMU_V3_CTRL of a vCPU."""

    SIZES: Final = {PmuAttr.IRQ: 4, PmuAttr.INIT: 0, PmuAttr.FILTER: 8, PmuAttr.SET_PMU: 4, PmuAttr.SET_NR_COUNTERS: 4}

    def __init__(self, vcpu: Arm64Vcpu) -> None:
        self._vcpu = vcpu

    def has_attr(self, attr: int) -> None:
        """ENXIO for an attribute that there is not, or without a PMU."""
        if self._vcpu.pmu is None or attr not in self.SIZES:
            raise KvmError(ENXIO)

    def attr_size(self, attr: int) -> int:
        """Bytes of the value; none is looked at without a PMU."""
        if self._vcpu.pmu is None:
            return 0
        if attr not in self.SIZES:
            raise KvmError(ENXIO)
        return self.SIZES[PmuAttr(attr)]

    def set_attr(self, attr: int, value: int) -> None:
        """Configure the PMU, until it is initialised."""
        pmu, vm = self._vcpu.pmu, self._vcpu.vm
        if pmu is None:
            raise KvmError(ENODEV)
        if pmu.created:
            raise KvmError(EBUSY)
        match attr:
            case PmuAttr.IRQ:
                self._set_irq(pmu, value)
            case PmuAttr.INIT:
                self._init(pmu)
            case PmuAttr.FILTER:
                wanted: Any = PmuEventFilter.from_buffer_copy(value.to_bytes(8, "little"))
                with vm.config_lock:
                    vm.pmu.add_filter(wanted.base_event, wanted.nevents, wanted.action)
            case PmuAttr.SET_PMU:
                if vm.has_run:
                    raise KvmError(EBUSY)
                if value != PMU_ID:
                    raise KvmError(ENXIO)
            case PmuAttr.SET_NR_COUNTERS:
                with vm.config_lock:
                    pmu.set_counters(value)

    def get_attr(self, attr: int) -> int:
        """Only the interrupt can be read."""
        pmu = self._vcpu.pmu
        if attr != PmuAttr.IRQ:
            raise KvmError(ENXIO)
        if self._vcpu.vm.vgic is None:
            raise KvmError(EINVAL)
        if pmu is None:
            raise KvmError(ENODEV)
        if pmu.irq is None:
            raise KvmError(ENXIO)
        return pmu.irq

    def _set_irq(self, pmu: Pmu, irq: int) -> None:
        """A PPI is the same on all vCPUs, an SPI another on each."""
        vm = self._vcpu.vm
        if vm.vgic is None or not 16 <= irq < 1020:
            raise KvmError(EINVAL)
        others = [other.pmu.irq for other in vm.vcpus if other.pmu is not None and other.pmu.irq is not None]
        if any(other != irq if irq < FIRST_SPI else other == irq for other in others):
            raise KvmError(EINVAL)
        if pmu.irq is not None:
            raise KvmError(EBUSY)
        pmu.irq = irq

    def _init(self, pmu: Pmu) -> None:
        vm = self._vcpu.vm
        if vm.vgic is not None:
            if not vm.vgic.initialized:
                raise KvmError(ENODEV)
            if pmu.irq is None:
                raise KvmError(ENXIO)
            if pmu.irq in vm.timer.ppis[:2]:
                raise KvmError(EEXIST)
        pmu.created = True
