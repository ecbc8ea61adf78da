"""The public vCPU: run it, read and write its registers, kick it."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trapline.abi import arm64
from trapline.abi.caps import Cap
from trapline.abi.device import KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR, DeviceAttr
from trapline.abi.exits import (
    DECODERS,
    EXIT_REASON_OFFSET,
    IMMEDIATE_EXIT_OFFSET,
    DeviceIrqLevel,
    Exit,
    IntrExit,
    KvmRun,
    MmioExit,
    ViewDecoder,
    decode_unknown,
)
from trapline.abi.memory import PAGE
from trapline.abi.vcpu import (
    KVM_GET_MP_STATE,
    KVM_GET_ONE_REG,
    KVM_GET_REG_LIST,
    KVM_SET_MP_STATE,
    KVM_SET_ONE_REG,
    MpState,
    MpStateArgument,
    OneReg,
    reg_list,
)
from trapline.backends.file import KvmFile
from trapline.backends.made import Made
from trapline.backends.rings import CoalescedRing, DirtyRing
from trapline.backends.statistics import Statistics
from trapline.errors import KvmError, NotSupported, Timeout

if TYPE_CHECKING:
    from trapline.backends.guest_debug import Watchpoint
    from trapline.backends.objects import Vm, VmBase

REGISTER_IDS = {
    **{f"x{n}": arm64.reg_x(n) for n in range(31)},
    **{f"v{n}": arm64.reg_v(n) for n in range(32)},
    "sp": arm64.REG_SP,
    "pc": arm64.REG_PC,
    "pstate": arm64.REG_PSTATE,
    "sp_el1": arm64.REG_SP_EL1,
    "elr_el1": arm64.REG_ELR_EL1,
    "spsr_el1": arm64.reg_spsr(0),
    "fpsr": arm64.REG_FPSR,
    "fpcr": arm64.REG_FPCR,
}
"""ONE_REG ids of the core registers, by the names that `Registers` gives them."""


class Registers:
    """A vCPU's core registers as attributes: `x0`..`x30`, `sp` (SP_EL0), `sp_el1`, `pc`, `pstate`, `v0`..`v31`, and so on.

    Each access is one KVM_GET_ONE_REG or KVM_SET_ONE_REG.
    """

    __slots__ = ("_vcpu",)
    _vcpu: Vcpu

    def __init__(self, vcpu: Vcpu) -> None:
        object.__setattr__(self, "_vcpu", vcpu)

    def __getattr__(self, name: str) -> int:
        reg_id = REGISTER_IDS.get(name)
        if reg_id is None:
            raise AttributeError(f"no register {name!r}")
        return self._vcpu.get_one_reg(reg_id)

    def __setattr__(self, name: str, value: int) -> None:
        reg_id = REGISTER_IDS.get(name)
        if reg_id is None:
            raise AttributeError(f"no register {name!r}")
        self._vcpu.set_one_reg(reg_id, value)

    def __dir__(self) -> Iterator[str]:
        return iter(REGISTER_IDS)

    def dump(self) -> dict[str, int]:
        """The general registers by name."""
        return {name: self._vcpu.get_one_reg(reg_id) for name, reg_id in REGISTER_IDS.items() if not name.startswith("v")}


class _Exits(dict[int, Any]):
    """Exits by reason: those that are views of kvm_run are here, the others are made when they are asked for."""

    def __init__(self, decoders: Mapping[int, Callable[[Any], Exit]], run: Any) -> None:
        super().__init__((reason, decode(run)) for reason, decode in decoders.items() if isinstance(decode, ViewDecoder))
        self._decoders, self._run = decoders, run

    def __missing__(self, reason: int) -> Exit:
        decode = self._decoders.get(reason)
        return decode(self._run) if decode is not None else decode_unknown(self._run)


class VcpuBase(KvmFile):
    """What vCPUs of all architectures share. A vCPU runs in the thread that calls `run`."""

    decoders: ClassVar[Mapping[int, Callable[[Any], Exit]]] = DECODERS
    """What makes an exit of kvm_run, by reason."""

    def __init__(self, vm: VmBase[Any], file: int, vcpu_id: int) -> None:
        self.vm = vm
        self.id = vcpu_id
        self.file = file
        self._backend = self.backend = vm.backend
        self._ioctl = vm.backend.ioctl
        self._buffer = vm.backend.map_run(file)
        self.kvm_run = KvmRun.from_buffer(self._buffer)
        """The shared structure itself, for tools that need more than the exits."""
        self._reason = memoryview(self._buffer)[EXIT_REASON_OFFSET : EXIT_REASON_OFFSET + 4].cast("I")
        self._exits = _Exits(self.decoders, self._buffer)
        self._enter = vm.backend.bare_runner(file)
        self._thread = 0
        """Which thread ran it last."""
        self._kicked = self._barked = False
        self._watchdog = vm.system.watchdog
        self._timeout: float | None = None
        self._limit: float | None = None
        """Of the run that is on."""
        self._watched: float | None = None
        """What the watchdog was told."""

    @property
    def has_run(self) -> bool:
        """Whether `run` was ever called."""
        return self._thread != 0

    def statistics(self) -> Statistics:
        """What KVM counts of this vCPU. To be closed by the caller."""
        return Statistics(self._backend, self.file)

    def run(self, timeout: float | None = None) -> Exit:
        """Run the guest until something needs userspace, and return what. Raises KvmError.

        A guest that runs for `timeout` seconds (else `self.timeout`; None is for ever) without an exit is stopped a little later, and
        Timeout raised. Nothing of its state is lost: it can be looked at, or run on.
        """
        if timeout is not None:
            return self._run_within(timeout)
        if get_ident() != self._thread:
            self._enter_thread()
        # Little but the call itself: KVM's exits can be as short as what is done here.
        enter = self._enter
        while True:
            try:
                exit = self._go_on(self._backend.run_failure()) if enter() else self._exits[self._reason[0]]
            except KvmError as error:
                exit = self._go_on(error)
            if type(exit) is MmioExit or not (exit.has_policies and self._answered(exit)):
                return exit

    def _answered(self, exit: Exit) -> bool:
        """Whether somebody has answered an exit who was asked to before the vCPU ran."""
        return False

    def exits(self) -> Iterator[Exit]:
        """`run` again and again, in one thread: `for exit in vcpu.exits(): match exit: ...`. The quickest way to run a vCPU."""
        enter, exits, reason = self._enter, self._exits, self._reason
        self._enter_thread()
        while True:
            try:
                exit = self._go_on(self._backend.run_failure()) if enter() else exits[reason[0]]
            except KvmError as error:
                exit = self._go_on(error)
            yield exit

    def _enter_thread(self) -> None:
        self._thread = get_ident()
        self._backend.entering(self.file)

    def _run_within(self, timeout: float) -> Exit:
        if timeout != self._watched:
            self._watched = timeout
            self._watchdog.set(self._bark, timeout)
        self._limit = timeout
        try:
            return self.run()
        finally:
            self._limit = self._timeout

    def _go_on(self, error: KvmError) -> Exit:
        """The rest of a run that failed or was interrupted."""
        since = monotonic()
        while True:
            if error.errno != errno.EINTR:
                raise error
            if self._kicked:
                self._kicked = False
                self._buffer[IMMEDIATE_EXIT_OFFSET] = 0
                return IntrExit()
            if not self._barked:
                return IntrExit()
            self._barked = False
            if self._limit is not None and monotonic() - since >= self._limit:
                raise Timeout(f"{self!r} ran for {self._limit:g} s without an exit{self.whereabouts()}") from None
            try:
                if not self._enter():
                    return self._exits[self._reason[0]]
                error = self._backend.run_failure()
            except KvmError as failure:
                error = failure

    @property
    def timeout(self) -> float | None:
        """Seconds a run may take unless it is told otherwise; None is for ever."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._timeout = self._limit = self._watched = value
        self._watchdog.set(self._bark, value)

    def whereabouts(self) -> str:
        """Where the guest is, for error messages."""
        return ""

    def _bark(self) -> None:
        """The watchdog's part: interrupt a run, which then looks how long it has been on. Without one nothing happens."""
        self._barked = True
        self._backend.kick(self.file)

    def kick(self) -> None:
        """Make `run` return `IntrExit` soon: the running one or else the next. Safe from any thread."""
        self._buffer[IMMEDIATE_EXIT_OFFSET] = 1
        self._kicked = True
        if (file := self.file) >= 0:
            self._backend.kick(file)

    @property
    def immediate_exit(self) -> bool:
        """While set, `run` completes a pending MMIO and returns `IntrExit` without entering the guest."""
        return bool(self._buffer[IMMEDIATE_EXIT_OFFSET])

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._buffer[IMMEDIATE_EXIT_OFFSET] = int(value)

    @cached_property
    def dirty_ring(self) -> DirtyRing:
        """The pages this vCPU has written, on a VM with `enable_dirty_rings`."""
        if not self.vm.dirty_ring_size:
            raise NotSupported("the VM has no dirty rings: enable_dirty_rings comes before the first vCPU")
        return DirtyRing(self._backend.map_ring(self.file, self.vm.dirty_ring_size))

    @cached_property
    def coalesced(self) -> CoalescedRing:
        """Writes to the VM's coalesced zones."""
        page = self.vm.check_extension(Cap.COALESCED_MMIO)
        if not page:
            raise NotSupported(f"the {self._backend.name} backend does not coalesce writes")
        return CoalescedRing(memoryview(self._buffer)[page * PAGE : (page + 1) * PAGE])

    def set_attr(self, group: int, attr: int, value: int | bytes, width: int = 4) -> None:
        """Write an attribute of the vCPU (`arm64.VcpuGroup`); an int is passed as `width` bytes."""
        set_attr(self._backend, self.file, group, attr, value, width)
        self.vm.note(Made.of("vCPU attribute", self.id, int(group), int(attr), value, width))

    def get_attr(self, group: int, attr: int, size: int = 4) -> int:
        """Read an attribute of the vCPU."""
        return get_attr(self._backend, self.file, group, attr, size)

    def has_attr(self, group: int, attr: int) -> bool:
        """Whether the attribute exists."""
        return has_attr(self._backend, self.file, group, attr)

    def close(self) -> None:
        """Close the vCPU's file. Its kvm_run stays readable."""
        if self.file >= 0:
            self._watchdog.set(self._bark, None)
            file, self.file = self.file, -1
            self._backend.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Vcpu {self.id}>"


class Vcpu(VcpuBase):
    """One virtual arm64 CPU."""

    vm: Vm
    level = 1
    """The exception level of the guest's operating system."""

    def __init__(self, vm: Vm, file: int, vcpu_id: int) -> None:
        super().__init__(vm, file, vcpu_id)
        self.regs = Registers(self)

    def _answered(self, exit: Exit) -> bool:
        """By a policy of `vm.sysregs`, or by `vm.identify`."""
        return self.vm.answers(exit, self)

    def set_id_register(self, name: str, value: int | None = None, **fields: int) -> None:
        """Change what all of the VM's vCPUs say of themselves, before the VM runs: `vcpu.set_id_register("ID_AA64ISAR0_EL1", RNDR=0)`.

        NotSupported, with a line that names the field, for what this KVM does not do.
        """
        from trapline.backends.identity import set_id_register

        set_id_register(self, name, value, fields)

    def exits(self) -> Iterator[Exit]:
        """`run` again and again."""
        while True:
            yield self.run()

    @property
    def device_irq_level(self) -> DeviceIrqLevel:
        """Outputs of timers and PMU, where userspace is the interrupt controller: `run` returns IntrExit when they change."""
        return DeviceIrqLevel(self.kvm_run.device_irq_level)

    def init(self, features: Iterable[int] = (arm64.Feature.PSCI_0_2,), target: int = arm64.TARGET_GENERIC_V8) -> None:
        """Choose features (`arm64.Feature`) and reset the vCPU."""
        request = arm64.VcpuInit()
        request.target = target
        chosen = sorted({int(feature) for feature in features})
        for feature in chosen:
            request.features[feature // 32] |= 1 << feature % 32
        self._ioctl(self.file, arm64.KVM_ARM_VCPU_INIT, request)
        self.vm.note(Made.of("features", self.id, chosen, target))

    def get_one_reg(self, reg_id: int) -> int:
        """The value of the register with this id."""
        value = (ctypes.c_uint8 * arm64.reg_bytes(reg_id))()
        self._ioctl(self.file, KVM_GET_ONE_REG, OneReg(reg_id, ctypes.addressof(value)))
        return int.from_bytes(value, "little")

    def set_one_reg(self, reg_id: int, value: int) -> None:
        """Set the register with this id."""
        size = arm64.reg_bytes(reg_id)
        data = (ctypes.c_uint8 * size).from_buffer_copy((value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        self._ioctl(self.file, KVM_SET_ONE_REG, OneReg(reg_id, ctypes.addressof(data)))

    def reg_list(self) -> list[int]:
        """The ids of all registers."""
        room = reg_list(0)
        try:
            self._ioctl(self.file, KVM_GET_REG_LIST, room)
        except KvmError as error:
            if error.errno != errno.E2BIG:
                raise
        full = reg_list(room.n)
        self._ioctl(self.file, KVM_GET_REG_LIST, full)
        return list(full.reg)

    @property
    def mp_state(self) -> MpState:
        """Runnable, stopped (off) or suspended."""
        state = MpStateArgument()
        self._ioctl(self.file, KVM_GET_MP_STATE, state)
        return MpState(state.mp_state)

    @mp_state.setter
    def mp_state(self, value: MpState) -> None:
        self._ioctl(self.file, KVM_SET_MP_STATE, MpStateArgument(value))

    def inject_external_abort(self) -> None:
        """Make a synchronous external data abort pending: what an access to nowhere raises on silicon."""
        events = arm64.VcpuEvents()  # type: ignore[call-arg]
        events.ext_dabt_pending = 1
        self._ioctl(self.file, arm64.KVM_SET_VCPU_EVENTS, events)

    def set_guest_debug(
        self,
        *,
        enable: bool = True,
        single_step: bool = False,
        software_breakpoints: bool = False,
        breakpoints: Sequence[int] = (),
        watchpoints: Sequence[Watchpoint] = (),
    ) -> None:
        """Say what stops the guest with a `DebugExit` from the next `run` on; each call replaces what was asked for before.

        `single_step`: after each instruction. `software_breakpoints`: at BRK instructions, which the caller has put there.
        `breakpoints`: before the instruction at one of these virtual addresses is executed, at EL1 or EL0. `watchpoints`: before
        an access. How many there are is what KVM_CAP_GUEST_DEBUG_HW_BPS and _WPS say; more are ignored. With `enable=False` the
        guest is not debugged any more.
        """
        from trapline.backends.guest_debug import guest_debug

        argument = guest_debug(single_step, software_breakpoints, breakpoints, watchpoints) if enable else arm64.GuestDebug()
        self._ioctl(self.file, arm64.KVM_SET_GUEST_DEBUG, argument)


def set_attr(backend: Any, file: int, group: int, attr: int, value: int | bytes, width: int = 8) -> None:
    """KVM_SET_DEVICE_ATTR on any file that has attributes."""
    data = value.to_bytes(width, "little") if isinstance(value, int) else bytes(value)
    buffer = ctypes.create_string_buffer(data, max(len(data), 1))
    backend.ioctl(file, KVM_SET_DEVICE_ATTR, DeviceAttr(0, group, attr, ctypes.addressof(buffer)))


def get_attr(backend: Any, file: int, group: int, attr: int, size: int = 8) -> int:
    """KVM_GET_DEVICE_ATTR on any file that has attributes."""
    buffer = (ctypes.c_uint8 * size)()
    backend.ioctl(file, KVM_GET_DEVICE_ATTR, DeviceAttr(0, group, attr, ctypes.addressof(buffer)))
    return int.from_bytes(buffer, "little")


def has_attr(backend: Any, file: int, group: int, attr: int) -> bool:
    """KVM_HAS_DEVICE_ATTR as a truth value."""
    try:
        backend.ioctl(file, KVM_HAS_DEVICE_ATTR, DeviceAttr(0, group, attr, 0))
    except KvmError as error:
        if error.errno in (errno.ENXIO, errno.EPERM):
            return False
        raise
    return True
