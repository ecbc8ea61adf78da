"""The public x86 vCPU."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, ClassVar

from trapline.abi import x86
from trapline.abi.exits import Exit
from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import Structure
from trapline.abi.vcpu import KVM_GET_MP_STATE, KVM_SET_MP_STATE, MpStateArgument
from trapline.abi.x86_exits import DECODERS
from trapline.abi.x86_msr import KVM_GET_CPUID2, KVM_SET_CPUID2
from trapline.backends.vcpu import VcpuBase
from trapline.backends.x86.lists import cpuid_argument, fetch_cpuid
from trapline.backends.x86.registers import MsrMap, Registers
from trapline.errors import BadInput, KvmError
from trapline.x86_64.cpuid import Cpuid

if TYPE_CHECKING:
    from trapline.backends.x86.vm import X86Vm

DEFAULT_TIMEOUT = 60.0
"""Seconds that a run may take unless the vCPU's `timeout` is changed."""

REQUEST_INTERRUPT_WINDOW_OFFSET = 0
READY_FOR_INTERRUPT_OFFSET = 12
BREAKPOINTS = 4
DR7_ENABLE_LOCAL = 1


class Whole:
    """A structure that the kernel hands out and takes as a whole: reading gives a copy, assigning sets it."""

    def __init__(self, cls: type[Structure], get: Ioctl, set: Ioctl, doc: str) -> None:
        self.cls, self.get, self.set = cls, get, set
        self.__doc__ = doc

    def __get__(self, vcpu: X86Vcpu | None, owner: type) -> Any:
        if vcpu is None:
            return self
        value = self.cls()
        vcpu.ioctl(self.get, value)
        return value

    def __set__(self, vcpu: X86Vcpu, value: Any) -> None:
        vcpu.ioctl(self.set, value)


class X86Vcpu(VcpuBase):
    """One virtual x86 CPU: starts in real mode at the reset vector, unless told otherwise.

    `regs` are the general registers. `sregs`, `fpu` and the like are structures: change a copy and assign it.
    """

    decoders: ClassVar[Any] = DECODERS
    vm: X86Vm

    sregs = Whole(x86.Sregs, x86.KVM_GET_SREGS, x86.KVM_SET_SREGS, "Segments, descriptor tables and control registers.")
    sregs2 = Whole(x86.Sregs2, x86.KVM_GET_SREGS2, x86.KVM_SET_SREGS2, "The same with PAE's page directory pointers.")
    fpu = Whole(x86.Fpu, x86.KVM_GET_FPU, x86.KVM_SET_FPU, "x87 and SSE registers.")
    debugregs = Whole(x86.DebugRegs, x86.KVM_GET_DEBUGREGS, x86.KVM_SET_DEBUGREGS, "The guest's own DR0 to DR7.")
    xcrs = Whole(x86.Xcrs, x86.KVM_GET_XCRS, x86.KVM_SET_XCRS, "Extended control registers.")
    lapic = Whole(x86.LapicState, x86.KVM_GET_LAPIC, x86.KVM_SET_LAPIC, "The in-kernel local APIC.")
    events = Whole(x86.VcpuEvents, x86.KVM_GET_VCPU_EVENTS, x86.KVM_SET_VCPU_EVENTS, "Pending exceptions, interrupts and NMIs.")

    def __init__(self, vm: X86Vm, file: int, vcpu_id: int) -> None:
        super().__init__(vm, file, vcpu_id)
        self.regs = Registers(self)
        self.msrs = MsrMap(vm.backend, file)
        self.timeout = DEFAULT_TIMEOUT

    def whereabouts(self) -> str:
        """RIP, for error messages."""
        try:
            return f" (now at {self.regs.rip:#x}); its `timeout` says how long it may"
        except KvmError:
            return ""

    @property
    def xsave(self) -> bytearray:
        """The XSAVE area: 4096 bytes, or as many as the VM's KVM_CAP_XSAVE2 says."""
        size = max(self.vm.xsave_size, x86.XSAVE_SIZE)
        area = (ctypes.c_uint8 * size)()
        self.ioctl(x86.KVM_GET_XSAVE2 if self.vm.xsave_size else x86.KVM_GET_XSAVE, area)
        return bytearray(area)

    @xsave.setter
    def xsave(self, value: bytes) -> None:
        size = max(self.vm.xsave_size, x86.XSAVE_SIZE)
        if len(value) != size:
            raise BadInput(f"the XSAVE area has {size} bytes, not {len(value)}")
        self.ioctl(x86.KVM_SET_XSAVE, (ctypes.c_uint8 * size).from_buffer_copy(value))

    @property
    def xcr0(self) -> int:
        """Which components XSAVE saves."""
        xcrs = self.xcrs
        return next((int(entry.value) for entry in xcrs.xcrs[: xcrs.nr_xcrs] if entry.xcr == 0), 0)

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        xcrs = x86.Xcrs()
        xcrs.nr_xcrs = 1
        xcrs.xcrs[0].value = value
        self.xcrs = xcrs

    @property
    def cpuid(self) -> Cpuid:
        """What the guest's CPUID instruction answers."""
        return fetch_cpuid(self._backend, self.file, KVM_GET_CPUID2)

    @cpuid.setter
    def cpuid(self, value: Cpuid) -> None:
        self.ioctl(KVM_SET_CPUID2, cpuid_argument(value))

    @property
    def mp_state(self) -> x86.MpState:
        """Whether the vCPU runs, is halted or waits to be started; only with an in-kernel local APIC is it not RUNNABLE."""
        state = MpStateArgument()
        self.ioctl(KVM_GET_MP_STATE, state)
        return x86.MpState(state.mp_state)

    @mp_state.setter
    def mp_state(self, value: x86.MpState) -> None:
        self.ioctl(KVM_SET_MP_STATE, MpStateArgument(value))

    @property
    def request_interrupt_window(self) -> bool:
        """While set, `run` returns IrqWindowOpen as soon as the guest could take an interrupt."""
        return bool(self._buffer[REQUEST_INTERRUPT_WINDOW_OFFSET])

    @request_interrupt_window.setter
    def request_interrupt_window(self, value: bool) -> None:
        self._buffer[REQUEST_INTERRUPT_WINDOW_OFFSET] = int(value)

    @property
    def ready_for_interrupt(self) -> bool:
        """Whether `interrupt` would have been delivered at once when `run` returned."""
        return bool(self._buffer[READY_FOR_INTERRUPT_OFFSET])

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt; for VMs whose interrupt controller is userspace's."""
        self.ioctl(x86.KVM_INTERRUPT, x86.Interrupt(vector))

    def nmi(self) -> None:
        """Queue a non-maskable interrupt."""
        self.ioctl(x86.KVM_NMI)

    def translate(self, linear: int) -> int | None:
        """The guest physical address of a linear one as the vCPU would translate it now; None where it would fault."""
        translation = x86.Translation(linear)
        self.ioctl(x86.KVM_TRANSLATE, translation)
        return int(translation.physical_address) if translation.valid else None

    def set_guest_debug(self, *, enable: bool = True, single_step: bool = False, software: bool = False, breakpoints: Any = ()) -> None:
        """Say what stops the guest with a `DebugExit` from the next `run` on; each call replaces what was asked for before.

        `single_step`: after each instruction. `software`: at INT3. `breakpoints`: before the instruction at up to four addresses.
        """
        if len(breakpoints) > BREAKPOINTS:
            raise BadInput(f"there are {BREAKPOINTS} breakpoints")
        flags = x86.GuestDebugFlag
        argument = x86.GuestDebug()
        if enable:
            argument.control = flags.ENABLE | flags.SINGLESTEP * single_step | flags.USE_SW_BP * software
            argument.control |= flags.USE_HW_BP * bool(breakpoints)
        for n, address in enumerate(breakpoints):
            argument.debugreg[n] = address
            argument.debugreg[7] |= DR7_ENABLE_LOCAL << 2 * n
        self.ioctl(x86.KVM_SET_GUEST_DEBUG, argument)

    def explain(self, exit: Exit) -> str:
        """What an exit means, with the guest's state where that is of use: for people."""
        from trapline.backends.x86.report import explain

        return explain(self, exit)
