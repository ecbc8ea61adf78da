"""The arm64 part of a vCPU: initialisation, reset, power states, and the loop that runs the guest."""

from __future__ import annotations

import ctypes
from errno import EINTR, EINVAL, EIO, ENOENT, ENOEXEC
from typing import TYPE_CHECKING, Any, Final

from trapline.abi.arm64 import REG_PC, Feature
from trapline.abi.exits import (
    DEVICE_IRQ_LEVEL_OFFSET,
    IMMEDIATE_EXIT_OFFSET,
    DeviceIrqLevel,
    InternalError,
    IntrExit,
    SystemEvent,
    SystemEventType,
    encode_exit,
)
from trapline.abi.vcpu import MpState
from trapline.arm64.regs import (
    CPTR_EL2,
    ELR_EL2,
    ESR_EL2,
    FAR_EL2,
    HCR_EL2,
    HCRX_EL2,
    ICC_SRE_EL2,
    ID_AA64ISAR2_EL1,
    MIDR_EL1,
    SPSR_EL2,
    VMPIDR_EL2,
    VPIDR_EL2,
    VTCR_EL2,
    VTTBR_EL2,
)
from trapline.errors import KvmError
from trapline.kvm.arm64 import debug, flags, onereg, psci, sysreg_exits, timer
from trapline.kvm.arm64.abort import NOT_PENDING, complete_mmio
from trapline.kvm.arm64.attributes import VcpuAttributes
from trapline.kvm.arm64.pmu import Pmu
from trapline.kvm.arm64.pvtime import PvTime
from trapline.kvm.arm64.syndrome import EC_SHIFT
from trapline.kvm.arm64.traps import TRAPS, unknown_trap
from trapline.kvm.requests import ALL, DEAD, RESET, SLEEP
from trapline.kvm.stats import count_time
from trapline.kvm.vcpu import check_immediate_exit
from trapline.sync import Lock

if TYPE_CHECKING:
    from trapline.kvm.arm64.vm import Arm64Vm
    from trapline.kvm.vcpu import Vcpu

PSTATE_EL1H_MASKED: Final = 0x3C5
MPIDR_RES1: Final = 1 << 31
ESR, ELR, SPSR, HCR = ESR_EL2.slot, ELR_EL2.slot, SPSR_EL2.slot, HCR_EL2.slot
INNER_SHAREABLE: Final = 1

GUEST_HCR: Final = HCR_EL2(
    VM=1, SWIO=1, PTW=1, FMO=1, IMO=1, AMO=1, FB=1, BSU=INNER_SHAREABLE, TWI=1, TID3=1, TSC=1, TIDCP=1, TACR=1, TSW=1, RW=1
)  # fmt: skip
"""What every guest runs under: stage 2 on, interrupts to the hypervisor, and traps of what it answers for itself."""

PIN_BITS: Final = (HCR_EL2.VI.mask, HCR_EL2.VF.mask)
"""The bits that assert a virtual interrupt when userspace plays the interrupt controller: IRQ and FIQ."""

UNEXPECTED_EXIT: Final = 4
"""Suberror of KVM_EXIT_INTERNAL_ERROR: the machine stopped for a reason that no guest can cause."""

PTRAUTH: Final = 1 << Feature.PTRAUTH_ADDRESS | 1 << Feature.PTRAUTH_GENERIC


class Arm64Vcpu:
    """One vCPU on one processor of the machine.

    While the guest is not running its PC and PSTATE are in ELR_EL2 and SPSR_EL2, as a hypervisor at EL2 finds them.
    """

    vm: Arm64Vm
    psci_version: int
    sysreg: Any
    """The storage of system registers, by `Sysreg.slot`."""
    x: Any
    """General registers; entry 31 always reads zero and is never written."""

    def __init__(self, core: Vcpu, vm: Arm64Vm) -> None:
        self.core = core
        self.vm = vm
        self.id = core.id
        self.index = core.index
        self.affinity = core.id & 0xF | (core.id >> 4 & 0xFF) << 8 | (core.id >> 12 & 0xFF) << 16
        self.mpidr = self.affinity | MPIDR_RES1
        self.cpu: Any = vm.machine.processors.take()
        self.state = self.cpu.state
        self.sysreg = self.state.sysreg
        self.x = self.state.x
        posts = core.vm.coalesced.posts
        self.state.posting = posts.address if posts is not None else 0
        vm.machine.world.keep(f"RNDR of vCPU {self.id}", lambda: int(self.state.random), lambda value: setattr(self.state, "random", value))
        self.debug = debug.DebugState()
        self.pvtime = PvTime(self)
        self.attributes = VcpuAttributes(self)
        self.pmu: Pmu | None = None
        self.registers: dict[int, onereg.Access] = {}
        """What there is for KVM_GET_ONE_REG, by id, once the features are known."""
        self.spare_registers: dict[int, int] = {}
        self.initialized = False
        self.features = 0
        self.has_run = False
        self.in_guest = False
        self.pins = self.pins_shown = 0
        """Asserted pins, as bits of HCR_EL2, and those that are set there."""
        self.pending_mmio = NOT_PENDING
        """Syndrome of the access that userspace is completing."""
        self.pending_sysreg: sysreg_exits.Access | None = None
        """The access to a system register that userspace is completing."""
        self.timer_lines = 0
        self.look_at_timers = True
        self.psci_version = psci.VERSION_0_1
        self.power_lock = Lock("power_lock", protects="mp_state, reset_entry")
        self.mp_state = MpState.RUNNABLE
        self.reset_entry: tuple[int, int] | None = None
        """Where PSCI CPU_ON wants the vCPU to start, and the value for X0."""

    # --- power ---------------------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Wake the vCPU if it sleeps; make it leave the guest if it is there. Others have said why before they call this."""
        self.core.wait_queue.wake()
        if self.in_guest:
            self.cpu.kick()

    def power_state(self) -> int:
        """KVM_GET_MP_STATE."""
        return self.mp_state

    def set_power_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        if state not in MpState._value2member_map_:
            raise KvmError(EINVAL)
        with self.power_lock:
            self.mp_state = MpState(state)
        if state != MpState.RUNNABLE:
            self.core.requests.set(SLEEP)

    def power_off(self, tell: bool) -> None:
        """Stop the vCPU: it leaves the guest and sleeps until it is turned on. `tell` when another thread runs it."""
        with self.power_lock:
            self.mp_state = MpState.STOPPED
        self.core.requests.set(SLEEP)
        if tell:
            self.kick()

    # --- initialisation ------------------------------------------------------------------------------------------------------

    def init(self, target: int, features: int, power_off: bool) -> None:
        """KVM_ARM_VCPU_INIT after its argument was checked."""
        vm = self.vm
        with vm.config_lock:
            if self.initialized:
                if features != self.features:
                    raise KvmError(EINVAL)
            elif vm.vcpu_features is not None and vm.vcpu_features != features:
                raise KvmError(EINVAL)
            vm.vcpu_features = self.features = features
            self.initialized = True
            if self.pmu is None and features >> Feature.PMU_V3 & 1:
                self.pmu = Pmu(self)
            self.registers = onereg.registers(vm.machine.features, self.pmu is not None, bool(features & PTRAUTH))
        if self.has_run:
            vm.forget_code()
        self.core.requests.take(RESET)
        self.reset_entry = None
        self.psci_version = psci.LATEST if features >> Feature.PSCI_0_2 & 1 else psci.VERSION_0_1
        self.reset()
        self.set_power_state(MpState.STOPPED if power_off else MpState.RUNNABLE)

    def reset(self) -> None:
        """Architectural reset, and the registers with which the hypervisor rules this guest."""
        state, sysreg = self.state, self.sysreg
        running = self.debug.guest_values is not None
        debug.put(self)
        for array in (self.x, state.v, state.sp_el):
            ctypes.memset(ctypes.addressof(array), 0, ctypes.sizeof(array))
        storage = ctypes.addressof(sysreg)
        for slot, values in self.vm.machine.reset_runs:
            ctypes.memmove(storage + 8 * slot, values, len(values))
        hcr = GUEST_HCR
        if self.features & PTRAUTH:
            hcr = hcr.replace(API=1, APK=1)
        if self.vm.flags.any() & flags.WRITABLE_IMP_ID_REGS:
            hcr = hcr.replace(TID1=1)
        sysreg[HCR] = hcr
        self.pins_shown = 0
        sysreg[HCRX_EL2.slot] = HCRX_EL2(MSCEn=1)
        sysreg[CPTR_EL2.slot] = CPTR_EL2.reset_value()
        sysreg[VPIDR_EL2.slot] = self.vm.id_values()[MIDR_EL1.encoding]
        sysreg[VMPIDR_EL2.slot] = self.mpidr
        sysreg[VTTBR_EL2.slot] = self.vm.mmu.vttbr
        sysreg[VTCR_EL2.slot] = self.vm.mmu.vtcr
        sysreg[ELR] = 0
        sysreg[SPSR] = PSTATE_EL1H_MASKED
        timer.reset(self)
        debug.reset(self)
        self.spare_registers.clear()
        if self.pmu is not None:
            self.pmu.reset()
        if running:
            debug.load(self)
        self.cpu.request_flush()
        self.pending_mmio, self.pending_sysreg = NOT_PENDING, None
        self.look_at_timers = True
        if self.vm.vgic is not None:
            self.vm.vgic.reset_vcpu(self)

    def apply_reset(self) -> None:
        """Take the start that PSCI CPU_ON left for this vCPU, if it did."""
        if not self.core.requests.take(RESET):
            return
        with self.power_lock:
            entry, self.reset_entry = self.reset_entry, None
        if entry is not None:
            self.reset()
            self.sysreg[ELR], self.x[0] = entry

    def _first_run(self) -> None:
        """What is done once, before a vCPU enters the guest for the first time."""
        if self.vm.vgic is not None:
            self.vm.vgic.first_run(self)
        self.vm.timer.check()
        timer.first_run(self)
        if self.pmu is not None:
            self.pmu.check()
        registers = int(self.vm.has_gic_registers)
        self.sysreg[ICC_SRE_EL2.slot] = ICC_SRE_EL2(self.sysreg[ICC_SRE_EL2.slot]).replace(Enable=registers)
        with self.vm.config_lock:
            ids = self.vm.id_values()
            self.vm.flags.set(flags.HAS_RUN_ONCE)
        self.sysreg[VPIDR_EL2.slot] = ids[MIDR_EL1.encoding]
        self.sysreg[HCRX_EL2.slot] = HCRX_EL2(MSCEn=int(ID_AA64ISAR2_EL1(ids.get(ID_AA64ISAR2_EL1.encoding, 0)).MOPS != 0))
        self.has_run = True

    # --- registers -----------------------------------------------------------------------------------------------------------

    def require_initialized(self) -> None:
        """ENOEXEC before KVM_ARM_VCPU_INIT; afterwards, a start left by CPU_ON takes effect before anything looks at it."""
        if not self.initialized:
            raise KvmError(ENOEXEC)
        self.apply_reset()

    def read_register(self, reg_id: int) -> int:
        """KVM_GET_ONE_REG."""
        self.require_initialized()
        return onereg.read(self, reg_id)

    def check_register(self, reg_id: int) -> None:
        """The part of KVM_SET_ONE_REG that comes before the value is fetched."""
        self.require_initialized()
        onereg.check_id(reg_id)

    def write_register(self, reg_id: int, value: int) -> None:
        """KVM_SET_ONE_REG."""
        onereg.write(self, reg_id, value)
        if reg_id == REG_PC:
            self.pending_sysreg = None  # the guest goes on elsewhere
        self.cpu.request_flush()  # it may have been a register that translation depends on
        self.look_at_timers = True

    def register_ids(self) -> list[int]:
        """KVM_GET_REG_LIST."""
        self.require_initialized()
        return onereg.list_ids(self)

    def map_ahead(self, gpa: int) -> int:
        """The part of KVM_PRE_FAULT_MEMORY that is stage 2's."""
        if not self.initialized:
            raise KvmError(ENOEXEC)
        core, mmu = self.core, self.vm.mmu
        while not (mapped := mmu.mapped(gpa)):
            slots = core.vm.memslots.active
            slot = slots.find(gpa)
            if slot is None:
                raise KvmError(ENOENT)
            mmu.handle_fault(slots, slot, gpa, False, False, core.mark_dirty)
        return mapped

    def set_pin(self, number: int, level: bool) -> None:
        """Drive the IRQ (0) or FIQ (1) pin, when userspace is the interrupt controller."""
        bit = PIN_BITS[number]
        with self.power_lock:
            self.pins = self.pins | bit if level else self.pins & ~bit
        self.kick()

    # --- running -------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """KVM_RUN: complete what userspace was asked for, then run the guest until userspace is needed again."""
        if not self.initialized:
            raise KvmError(ENOEXEC)
        if not self.has_run:
            self._first_run()
        debug.load(self)
        try:
            self._run()
        finally:
            debug.put(self)
            if self.vm.vgic is None:
                if not timer.none_matters(self):
                    timer.update_lines(self)
                self.core.run[DEVICE_IRQ_LEVEL_OFFSET] = self._device_levels()

    def _run(self) -> None:
        """The part of KVM_RUN during which registers may be userspace's."""
        core = self.core
        if self.pending_mmio != NOT_PENDING:
            complete_mmio(self)
        elif self.pending_sysreg is not None:
            sysreg_exits.complete(self)
        if core.run[IMMEDIATE_EXIT_OFFSET]:
            check_immediate_exit(core)
        self.pvtime.update()
        cpu, sysreg, vgic, requests = self.cpu, self.sysreg, self.vm.vgic, core.requests
        pmu, stats = self.pmu, core.stats
        while True:
            # From here on a kick reaches the processor, so what is asked for after this look still ends the guest's run.
            self.in_guest = True
            if core.signal or requests.any():
                self.in_guest = False
                if self._answer_others():
                    continue
                return
            if self.look_at_timers or self.timer_lines:
                # A timer that rises stops the guest, also right at its entry; one that falls does not, so high lines are watched.
                timer.update_lines(self)
            if vgic is not None:
                vgic.flush(self)
            else:
                if self._device_levels() != core.run[DEVICE_IRQ_LEVEL_OFFSET]:
                    self.in_guest = False
                    encode_exit(core.run, IntrExit())  # userspace, which is the interrupt controller, has to see this
                    raise KvmError(EINTR)
                if self.pins != self.pins_shown:
                    self.pins_shown = pins = self.pins
                    sysreg[HCR] = sysreg[HCR] & ~(PIN_BITS[0] | PIN_BITS[1]) | pins
            exit = cpu.enter() if pmu is None or not pmu.running else pmu.enter()
            kind = exit.kind
            self.in_guest = False
            stats.exits += 1
            if vgic is not None:
                vgic.sync(self)
            self.look_at_timers = kind == "irq"
            if kind == "sync":
                esr = sysreg[ESR] & 0xFFFF_FFFF
                handler = TRAPS.get(esr >> EC_SHIFT, unknown_trap)
                if not handler(self, esr):
                    return
            elif kind == "serror":
                pc, far = sysreg[ELR], sysreg[FAR_EL2.slot]
                encode_exit(core.run, InternalError(UNEXPECTED_EXIT, (sysreg[ESR], pc, far)))
                return

    def _answer_others(self) -> bool:
        """Do what other threads asked for. True to go on, False when kvm_run holds an exit; KvmError(EINTR) for a signal."""
        core = self.core
        if core.interrupted():
            raise KvmError(EINTR)
        pending = core.requests.take(ALL & ~RESET)
        if pending & DEAD:
            raise KvmError(EIO)
        if pending & SLEEP:
            self._sleep_while_off()
            if self.mp_state == MpState.SUSPENDED:
                return self._sleep_while_suspended()
        self.apply_reset()
        return not core.ring_is_full()

    def _sleep_while_suspended(self) -> bool:
        """Sleep until an interrupt is pending, and tell userspace; it alone ends the suspension."""
        self.wait_for_interrupt()
        self.core.requests.set(SLEEP)
        if not self._interrupt_pending():
            return True
        encode_exit(self.core.run, SystemEvent(SystemEventType.WAKEUP, ()))
        return False

    def _sleep_while_off(self) -> None:
        """Sleep until the vCPU is runnable. A signal ends the sleep but not the state."""
        core = self.core
        while self.mp_state == MpState.STOPPED:
            core.wait_queue.prepare()
            if core.signal or core.vm.dead:
                core.requests.set(SLEEP)
                return
            if self.mp_state == MpState.STOPPED:
                core.wait_queue.wait()

    def wait_for_interrupt(self, until: int | None = None) -> bool:
        """Sleep until an interrupt is pending for the guest, a timer fires, another thread wants something, or `until`, in host
        monotonic nanoseconds. False if only another thread ended it."""
        stats, clock = self.core.stats, self.vm.machine.world.clock
        begin = clock.now()
        stats.blocking = 1
        try:
            return self._wait_for_interrupt(until)
        finally:
            stats.blocking = 0
            waited = max(0, clock.now() - begin)
            stats.halt_wakeup += 1
            stats.halt_wait_ns += waited
            count_time(stats.halt_wait_hist, waited)

    def _wait_for_interrupt(self, until: int | None) -> bool:
        core = self.core
        while True:
            core.wait_queue.prepare()
            if core.signal or core.requests.any():
                timer.update_lines(self)
                return self._interrupt_pending()
            timer.update_lines(self)
            if self._interrupt_pending():
                return True
            if until is not None and self.vm.machine.world.clock.now() >= until:
                return True
            deadlines = [at for at in (until, self.cpu.next_timer_deadline()) if at is not None]
            core.wait_queue.wait(min(deadlines, default=None))

    def _interrupt_pending(self) -> bool:
        """Whether an interrupt would wake the guest, as far as the timers' outputs were looked at."""
        vgic = self.vm.vgic
        if vgic is not None:
            return bool(self.pins or vgic.pending(self))
        return bool(self.pins or self._device_levels() != self.core.run[DEVICE_IRQ_LEVEL_OFFSET])

    def _device_levels(self) -> int:
        """Outputs of the devices that are the kernel's, as `DeviceIrqLevel` bits: the timers' come in that order."""
        return self.timer_lines | (DeviceIrqLevel.PMU if self.pmu is not None and self.pmu.line else 0)

    def destroy(self) -> None:
        """The VM is gone, and KVM_RUN is refused from now on."""
        self.initialized = False
        self.state.posting = 0
        self.vm.machine.processors.give_back(self.cpu)
