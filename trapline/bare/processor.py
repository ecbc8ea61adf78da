"""One processor of a bare machine: reset, power, and the loop around compiled code.

The processor leaves compiled code only for what is outside of it: devices, firmware calls, its interrupt controller, sleep. Nothing
architectural happens on the way; it goes on where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.abi.exits import Exit as VcpuExit
from trapline.abi.exits import IntrExit, MmioExit
from trapline.arm64.exceptions import AbortSyndrome
from trapline.arm64.regs import (
    CNTHCTL_EL2,
    CPTR_EL2,
    HCR_EL2,
    ICC_SRE_EL2,
    ID_AA64MMFR1_EL1,
    ID_AA64PFR0_EL1,
    MIDR_EL1,
    MPIDR_EL1,
    TABLE,
    VMPIDR_EL2,
    VPIDR_EL2,
)
from trapline.arm64.state import EL2_ABSENT, EL2_GUEST
from trapline.arm64.sysreg_functions import LINE_HYP_PHYSICAL, LINE_HYP_VIRTUAL, LINE_MAINTENANCE, LINE_PHYSICAL, LINE_VIRTUAL
from trapline.bare import firmware
from trapline.engine.state import Exit
from trapline.sync import Lock

if TYPE_CHECKING:
    from trapline.bare.machine import BareVm

MPIDR_RES1: Final = 1 << 31
ALL_MASKED: Final = 15
DEVICE_READ: Final = -1
SGI1R: Final = TABLE["ICC_SGI1R_EL1"].encoding

PRIVATE_INTERRUPTS: Final = {
    LINE_VIRTUAL: 27,
    LINE_PHYSICAL: 30,
    LINE_HYP_PHYSICAL: 26,
    LINE_HYP_VIRTUAL: 28,
    LINE_MAINTENANCE: 25,
}
"""INTIDs of a processor's own lines, as the base system architecture recommends them."""


class Processor:
    """A processor. `run` belongs to one thread; `kick`, `interrupt`, `power_on` may come from any."""

    def __init__(self, machine: BareVm, number: int) -> None:
        self.machine = machine
        self.id = self.index = number
        self.affinity = number & 0xF | (number >> 4 & 0xFF) << 8 | number >> 12 << 16
        self.mpidr = self.affinity | MPIDR_RES1
        self.cpu = machine.engine.create_cpu()
        self.state = self.cpu.state
        self.sysreg = self.state.sysreg
        self.lines = 0
        """Private lines as the interrupt controller knows them."""
        self.is_on = False
        self._lock = Lock("power", protects="is_on, _start")
        self._start: tuple[int, int] | None = None
        self._queue = machine.world.wait_queue("processor")
        self._signal = False
        self._inside = False
        self._fresh = True
        """It has not run since its reset."""
        self._pending: MmioExit | None = None
        self._abort = False

    # ---- power --------------------------------------------------------------------------------------------------------------

    def power_on(self, entry: int, context: int) -> bool:
        """Start at `entry` with `context` in X0; False if the processor is on already."""
        with self._lock:
            if self.is_on:
                return False
            self.is_on = True
            self._start = entry, context
        self.kick()
        return True

    def power_off(self) -> None:
        """Stop; called by the processor's own thread."""
        with self._lock:
            self.is_on = False

    def reset(self, entry: int = 0, context: int = 0) -> None:
        """What a reset and the firmware after it leave: the highest exception level there is, everything masked."""
        state, sysreg, machine = self.state, self.sysreg, self.machine
        self.cpu.reset()
        for n in range(31):
            state.x[n] = 0
        for vector in state.v:
            vector.lo = vector.hi = 0
        for n in range(len(state.sp_el)):
            state.sp_el[n] = 0
        state.sp = state.n = state.z = state.c = state.v_flag = state.il = state.pan = state.uao = state.btype = 0
        state.el2 = EL2_GUEST if machine.el2 else EL2_ABSENT
        state.el, state.spsel, state.daif = (2 if machine.el2 else 1), 1, ALL_MASKED
        state.pc, state.x[0] = entry, context
        sysreg[MPIDR_EL1.slot] = self.mpidr
        sysreg[VMPIDR_EL2.slot] = self.mpidr
        sysreg[VPIDR_EL2.slot] = sysreg[MIDR_EL1.slot]
        if not machine.el2:
            # Nobody can write these: what they say must be what the processor does without an EL2.
            sysreg[HCR_EL2.slot] = HCR_EL2.reset_value()
            sysreg[CPTR_EL2.slot] = CPTR_EL2.reset_value()
            sysreg[CNTHCTL_EL2.slot] = CNTHCTL_EL2(EL1PCTEN=1, EL1PCEN=1)
            sysreg[ICC_SRE_EL2.slot] = ICC_SRE_EL2(sysreg[ICC_SRE_EL2.slot]).replace(Enable=1)
            sysreg[ID_AA64PFR0_EL1.slot] = ID_AA64PFR0_EL1(sysreg[ID_AA64PFR0_EL1.slot]).replace(EL2=0)
            sysreg[ID_AA64MMFR1_EL1.slot] = ID_AA64MMFR1_EL1(sysreg[ID_AA64MMFR1_EL1.slot]).replace(VH=0)
            if "PAuth" in machine.engine.features:
                sysreg[HCR_EL2.slot] |= HCR_EL2(API=1, APK=1)
        self._drive(0)
        self.cpu.request_flush()
        if machine.gic is not None:
            machine.gic.reset_vcpu(self)
        self._fresh = True

    # ---- from other threads -------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Have the processor look at its interrupt controller and its power state."""
        self._queue.wake()
        if self._inside:
            self.cpu.kick()

    def interrupt(self) -> None:
        """Make `run` return IntrExit soon: the running one or else the next."""
        self._signal = True
        self.kick()

    # ---- running ------------------------------------------------------------------------------------------------------------

    def run(self) -> VcpuExit:
        """Run until the machine's user is needed."""
        if self._pending is not None:
            self._complete(self._pending)
        cpu = self.cpu
        while True:
            self._inside = True
            if self._signal:
                self._inside = self._signal = False
                return IntrExit()
            if self._start is not None or not self.is_on:
                self._inside = False
                self._wait_for_power()
                continue
            self._drive(cpu.timer_lines())
            gic = self.machine.gic
            if gic is not None:
                gic.flush(self)
            self.state.poll_irq = 1
            code = cpu.run_here(self._fresh)
            self._fresh = False
            self._inside = False
            if gic is not None:
                gic.sync(self)
            exit = self._serve(code)
            if exit is not None:
                return exit

    def _serve(self, code: int) -> VcpuExit | None:
        """Do what compiled code left for. Returns what the machine's user has to do."""
        match code:
            case Exit.DEVICE:
                return self._device()
            case Exit.WAIT:
                self.wait_for_interrupt()
            case Exit.FIRMWARE:
                return firmware.call(self)
            case Exit.SGI:
                group = int(self.state.result_hi == SGI1R)
                if self.machine.gic is not None:
                    self.machine.gic.write_sgi1r(self, self.state.result, group)
            case Exit.ATTEND | Exit.TIMER:
                pass
            case _:
                raise AssertionError(f"unknown exit {code}")
        return None

    def _drive(self, lines: int) -> None:
        """Put the processor's own lines on its private interrupts."""
        changed = lines ^ self.lines
        if not changed:
            return
        self.lines = lines
        gic = self.machine.gic
        if gic is None:
            return
        for line, intid in PRIVATE_INTERRUPTS.items():
            if changed & line:
                gic.inject(self, intid, bool(lines & line), by=self)

    def wait_for_interrupt(self) -> None:
        """Sleep until an interrupt is pending, or somebody wants the processor."""
        while True:
            self._queue.prepare()
            if self._signal or self._start is not None:
                return
            self._drive(self.cpu.timer_lines())
            if self.machine.gic is not None and self.machine.gic.pending(self):
                return
            self._queue.wait(self.cpu.next_timer_deadline())

    def _wait_for_power(self) -> None:
        """Sleep while the processor is off; then take the start that `power_on` left."""
        while True:
            self._queue.prepare()
            if self._signal:
                return
            with self._lock:
                start, self._start = self._start, None
            if start is not None:
                self.reset(*start)
                return
            self._queue.wait()

    # ---- devices ------------------------------------------------------------------------------------------------------------

    def _device(self) -> VcpuExit | None:
        """A load or store outside memory: the interrupt controller's, or one for the machine's user."""
        state = self.state
        address, syndrome = state.device_address, AbortSyndrome(state.device_syndrome)
        size = 1 << syndrome.SAS
        gic = self.machine.gic
        mine = gic is not None and gic.contains(address)
        if syndrome.WnR:
            value = state.x[syndrome.SRT] & (1 << 8 * size) - 1
            if mine and gic is not None:
                gic.mmio(self, address, True, size, value)
                state.pc += 4
                return None
            self._pending = MmioExit(address, value.to_bytes(8, "little")[:size], size, True)
        elif mine and gic is not None:
            self._load(syndrome, gic.mmio(self, address, False, size))
            return None
        else:
            self._pending = MmioExit(address, bytes(size), size, False)
        return self._pending

    def abort(self) -> None:
        """Nobody answers the access that `run` returned: it ends in an external abort."""
        self._abort = True

    def _complete(self, exit: MmioExit) -> None:
        """Finish the access that the last exit reported."""
        self._pending = None
        if self._abort:
            self._abort = False
            self.cpu.external_abort()
        elif exit.is_write:
            self.state.pc += 4
        else:
            self._load(AbortSyndrome(self.state.device_syndrome), exit.value)

    def _load(self, syndrome: AbortSyndrome, value: int) -> None:
        """Put loaded data into the register, extended as the instruction says, and go to the next instruction."""
        bits = 8 << syndrome.SAS
        value &= (1 << bits) - 1
        if syndrome.SSE and value >> bits - 1:
            value |= -1 << bits
        if syndrome.SRT != 31:
            self.state.x[syndrome.SRT] = value & (0xFFFF_FFFF_FFFF_FFFF if syndrome.SF else 0xFFFF_FFFF)
        self.state.pc += 4

    def close(self) -> None:
        """The machine is gone."""
        self.is_on = False
