"""Calls answered by a vCPU's file, and their structures."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import always, ioctl
from trapline.abi.struct import Meaning, Pointee, Structure, struct, u8, u32, u64


class MpState(IntEnum):
    """What a vCPU does when KVM_RUN is called."""

    RUNNABLE = 0
    STOPPED = 5
    SUSPENDED = 10


RegisterValue = Annotated[int, ctypes.c_uint64, Meaning.USER, Pointee(lambda reg, kind, slots: 1 << (reg.id >> 52 & 0xF))]


@struct(size=16, c_name="kvm_one_reg")
class OneReg(Structure):
    id: Annotated[int, ctypes.c_uint64, Meaning.REGISTER]
    addr: RegisterValue


@struct(size=4, c_name="kvm_mp_state")
class MpStateArgument(Structure):
    mp_state: Annotated[int, ctypes.c_uint32, MpState]


@struct(size=4, c_name="kvm_signal_mask", tail=("len", u8))
class SignalMask(Structure):
    """The head of the mask: `len` bytes follow. `signal_mask` makes a whole one."""

    len: u32


@struct(size=8, c_name="kvm_reg_list", tail=("n", u64))
class RegList(Structure):
    """The head of the list: `n` ids of 8 bytes follow. `reg_list` makes a whole one."""

    n: u64


SIGSET_BYTES = 8


def signal_mask(signals: Iterable[int]) -> Any:
    """A KVM_SET_SIGNAL_MASK argument that blocks these signals during KVM_RUN."""

    class WholeSignalMask(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("len", ctypes.c_uint32), ("sigset", ctypes.c_uint64)]

    return WholeSignalMask(SIGSET_BYTES, sum(1 << number - 1 for number in signals))


def reg_list(room: int) -> Any:
    """A KVM_GET_REG_LIST argument with room for that many ids: fields `n` and `reg`."""

    class SizedRegList(ctypes.Structure):
        _fields_ = [("n", ctypes.c_uint64), ("reg", ctypes.c_uint64 * room)]

    return SizedRegList(room)


@ioctl(
    "vcpu",
    0x80,
    guest=always,
    EINTR="a signal, a kick or kvm_run.immediate_exit ended the run",
    ENOEXEC="the vCPU was never initialised",
    EINVAL="the argument is not zero, the vCPU's devices are not configured consistently, or a system register access has no valid answer",
    ENXIO="the interrupt controller is not configured",
    EBUSY="the interrupt controller's addresses clash",
    ENOSYS="an access to a device carries no syndrome and KVM_CAP_ARM_NISV_TO_USER is off",
    EFAULT="guest memory is not backed by accessible user memory, or the fault is of a kind that cannot be served",
    EIO="the VM is dead",
    EPERM="the vCPU's features are not finalised",
)
def KVM_RUN(vcpu):  # type: ignore[no-untyped-def]
    """Run the guest until something needs userspace; kvm_run says what. A pending MMIO or hypercall is completed first."""


@ioctl("vcpu", 0x8B, SignalMask, "W", nullable=True, EINVAL="the mask is not 8 bytes long", EFAULT="the mask cannot be read")
def KVM_SET_SIGNAL_MASK(vcpu, mask):  # type: ignore[no-untyped-def]
    """Say which signals are blocked during KVM_RUN, instead of those that the thread blocks. A null pointer: none said."""


@ioctl("vcpu", 0x98, MpStateArgument, "R", cap=Cap.MP_STATE)
def KVM_GET_MP_STATE(vcpu, state):  # type: ignore[no-untyped-def]
    """Read whether the vCPU is runnable, stopped (PSCI off) or suspended."""


@ioctl("vcpu", 0x99, MpStateArgument, "W", cap=Cap.MP_STATE, EINVAL="unknown state")
def KVM_SET_MP_STATE(vcpu, state):  # type: ignore[no-untyped-def]
    """Make the vCPU runnable, stopped or suspended."""


@ioctl(
    "vcpu",
    0xAB,
    OneReg,
    "W",
    cap=Cap.ONE_REG,
    ENOENT="no such register",
    EINVAL="the id is malformed",
    ENOEXEC="the vCPU was never initialised",
    EFAULT="the value cannot be written",
    EPERM="the register exists after finalisation only",
)
def KVM_GET_ONE_REG(vcpu, reg):  # type: ignore[no-untyped-def]
    """Read one register, named by its id, into user memory."""


@ioctl(
    "vcpu",
    0xAC,
    OneReg,
    "W",
    cap=Cap.ONE_REG,
    ENOENT="no such register",
    EINVAL="the id is malformed, or the register cannot hold the value",
    ENOEXEC="the vCPU was never initialised",
    EFAULT="the value cannot be read",
    EBUSY="the register is fixed once the VM has run",
    EPERM="the register exists after finalisation only",
)
def KVM_SET_ONE_REG(vcpu, reg):  # type: ignore[no-untyped-def]
    """Write one register, named by its id, from user memory."""


@ioctl(
    "vcpu",
    0xB0,
    RegList,
    "RW",
    cap=Cap.ONE_REG,
    E2BIG="the list is too short: its n now holds the number needed",
    ENOEXEC="the vCPU was never initialised",
    EPERM="the vCPU's features are not finalised",
)
def KVM_GET_REG_LIST(vcpu, registers):  # type: ignore[no-untyped-def]
    """List the ids of all registers of this vCPU."""
