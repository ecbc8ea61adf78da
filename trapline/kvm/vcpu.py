"""A vCPU: its shared kvm_run, its mutex, and the calls every architecture has."""

from __future__ import annotations

import ctypes
import mmap
from errno import E2BIG, EINTR, EINVAL, EIO
from typing import TYPE_CHECKING, Any

from trapline.abi.arm64 import reg_bytes
from trapline.abi.exits import IMMEDIATE_EXIT_OFFSET, DirtyRingFull, IntrExit, encode_exit
from trapline.abi.ioctl import implements
from trapline.abi.memory import KVM_PRE_FAULT_MEMORY, PreFaultMemory
from trapline.abi.vcpu import (
    KVM_GET_MP_STATE,
    KVM_GET_ONE_REG,
    KVM_GET_REG_LIST,
    KVM_RUN,
    KVM_SET_MP_STATE,
    KVM_SET_ONE_REG,
    KVM_SET_SIGNAL_MASK,
    SIGSET_BYTES,
    MpStateArgument,
    OneReg,
    SignalMask,
)
from trapline.errors import KvmError
from trapline.host.shared import share_page
from trapline.host.signals import interruptions, pending
from trapline.host.user import PAGE_SHIFT, PAGE_SIZE, copy_from_user, copy_to_user
from trapline.kvm.coalesced import RING_PAGE
from trapline.kvm.device import DeviceOps
from trapline.kvm.dirty import DirtyRing
from trapline.kvm.requests import DIRTY_RING_SOFT_FULL
from trapline.kvm.stats import VCPU_STATS, Counters
from trapline.sync import Bits, Lock, current_task

if TYPE_CHECKING:
    from trapline.kvm.memslots import Memslot
    from trapline.kvm.vm import Vm

ADDRESSES = (1 << 64) - 1


class Vcpu:
    """One vCPU. `mutex` is held during every call on its file; `requests`, `signal` and `wait_queue` are for other threads."""

    def __init__(self, vm: Vm, vcpu_id: int, index: int) -> None:
        self.vm = vm
        self.system = vm.system
        self.id = vcpu_id
        self.stats_suffix = f"/vcpu-{vcpu_id}"
        self.index = index
        self.mutex = Lock("vcpu_mutex", protects="the vCPU's state; held during KVM_RUN")
        self.requests = Bits("requests")
        self.signal = False
        """A thread wants the vCPU's own thread back in userspace: what a pending signal is to Linux."""
        self.wait_queue = vm.system.arch.world.wait_queue("vcpu_sleep")
        self.run = mmap.mmap(-1, 2 * PAGE_SIZE)
        """kvm_run and what follows it, shared with userspace."""
        self.run32, self.run64 = memoryview(self.run).cast("I"), memoryview(self.run).cast("Q")
        """The same by words, which is the quickest way to one of them."""
        share_page(vm.coalesced.page, self.run, RING_PAGE)
        self.ring = DirtyRing(vm.tracking.ring_bytes) if vm.tracking.ring_bytes else None
        self.stats_list = (*VCPU_STATS, *vm.arch.vcpu_stats)
        self.stats = Counters(self.stats_list)
        self.sigset: int | None = None
        """Signals that are blocked during KVM_RUN instead of those that the thread blocks; None: those."""
        self.arch = vm.arch.create_vcpu(self)

    @property
    def attributes(self) -> DeviceOps:
        """The vCPU's device attributes."""
        return self.arch.attributes

    def mark_dirty(self, slot: Memslot, gpa: int) -> None:
        """A page that this vCPU faulted on is about to be writable."""
        if not slot.logging:
            return
        if self.ring is None:
            slot.mark_dirty(gpa)
            return
        self.ring.push(slot.id, (gpa - slot.gpa) >> PAGE_SHIFT)
        if self.ring.soft_full:
            self.requests.set(DIRTY_RING_SOFT_FULL)

    def ring_is_full(self) -> bool:
        """Whether userspace has to empty the ring first; then kvm_run says so. To be asked before the guest is entered."""
        if self.ring is None or not self.ring.soft_full:
            return False
        self.requests.set(DIRTY_RING_SOFT_FULL)
        encode_exit(self.run, DirtyRingFull())
        return True

    def interrupt(self) -> None:
        """Make KVM_RUN return to userspace soon: the running one, or else the next."""
        self.signal = True
        self.arch.kick()

    def interrupted(self) -> bool:
        """Whether userspace wants its thread back. Consumes the wish, as delivering a signal does."""
        if self.signal:
            self.signal = False
            self.stats.signal_exits += 1
            encode_exit(self.run, IntrExit())
            return True
        return False

    def release(self) -> None:
        """The vCPU's file was closed; the vCPU stays with its VM."""


@implements(KVM_RUN)
def run(vcpu: Vcpu, argument: int) -> int:
    """Run until an exit."""
    if argument:
        raise KvmError(EINVAL)
    with vcpu.mutex:
        if vcpu.vm.dead:
            raise KvmError(EIO)
        signals, blocked = interruptions(), vcpu.sigset
        is_main = current_task() == signals.main
        if is_main:
            signals.call = vcpu.interrupt, blocked or 0  # here, what Python has a handler for interrupts the run
        try:
            if blocked is not None and pending(blocked):
                vcpu.signal = True
            vcpu.arch.run()
        finally:
            if is_main:
                signals.call = None
    return 0


@implements(KVM_PRE_FAULT_MEMORY)
def pre_fault_memory(vcpu: Vcpu, memory: PreFaultMemory) -> int:
    """Map a range piece by piece, as reads of the guest's would. The structure says what is left; only the first piece can fail."""
    wanted = memory.size
    if memory.flags or (memory.gpa | wanted) % PAGE_SIZE or (memory.gpa + wanted) & ADDRESSES <= memory.gpa:
        raise KvmError(EINVAL)
    with vcpu.mutex:
        try:
            while memory.size:
                if vcpu.signal:
                    raise KvmError(EINTR)
                done = min(memory.size, vcpu.arch.map_ahead(memory.gpa))
                memory.gpa += done
                memory.size -= done
        except KvmError:
            if memory.size == wanted:
                raise
    return 0


@implements(KVM_SET_SIGNAL_MASK)
def set_signal_mask(vcpu: Vcpu, mask: SignalMask | None) -> int:
    """Note which signals do not interrupt KVM_RUN."""
    sigset = None
    if mask is not None:
        if mask.len != SIGSET_BYTES:
            raise KvmError(EINVAL)
        sigset = int.from_bytes(copy_from_user(ctypes.addressof(mask) + ctypes.sizeof(SignalMask), SIGSET_BYTES), "little")
    with vcpu.mutex:
        vcpu.sigset = sigset
    return 0


def check_immediate_exit(vcpu: Vcpu) -> None:
    """EINTR if userspace asked not to enter the guest at all."""
    if vcpu.run[IMMEDIATE_EXIT_OFFSET]:
        vcpu.signal = False
        raise KvmError(EINTR)


@implements(KVM_GET_MP_STATE)
def get_mp_state(vcpu: Vcpu, state: MpStateArgument) -> int:
    """Read the power state."""
    with vcpu.mutex:
        state.mp_state = vcpu.arch.power_state()
    return 0


@implements(KVM_SET_MP_STATE)
def set_mp_state(vcpu: Vcpu, state: MpStateArgument) -> int:
    """Set the power state."""
    with vcpu.mutex:
        vcpu.arch.set_power_state(state.mp_state)
    return 0


@implements(KVM_GET_ONE_REG)
def get_one_reg(vcpu: Vcpu, request: OneReg) -> int:
    """Fetch a register and write it to user memory."""
    with vcpu.mutex:
        value = vcpu.arch.read_register(request.id)
    copy_to_user(request.addr, value.to_bytes(reg_bytes(request.id), "little"))
    return 0


@implements(KVM_SET_ONE_REG)
def set_one_reg(vcpu: Vcpu, request: OneReg) -> int:
    """Read a value from user memory and store it in a register."""
    with vcpu.mutex:
        vcpu.arch.check_register(request.id)
        value = int.from_bytes(copy_from_user(request.addr, reg_bytes(request.id)), "little")
        vcpu.arch.write_register(request.id, value)
    return 0


@implements(KVM_GET_REG_LIST)
def get_reg_list(vcpu: Vcpu, registers: Any) -> int:
    """Fill the caller's list, or say how long it has to be."""
    with vcpu.mutex:
        ids = vcpu.arch.register_ids()
    room, registers.n = registers.n, len(ids)
    if room < len(ids):
        raise KvmError(E2BIG)
    base = ctypes.addressof(registers) + ctypes.sizeof(ctypes.c_uint64)
    copy_to_user(base, b"".join(value.to_bytes(8, "little") for value in ids))
    return 0
