"""Device attributes: one way to configure and read in-kernel devices, vCPUs and VMs."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from trapline.abi.arm64 import VgicGroup
from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import Meaning, Pointee, Structure, struct, u32, u64

ATTRIBUTE_BYTES: Mapping[tuple[str, int], int] = MappingProxyType({
    ("device", VgicGroup.DIST_REGS): 4,
    ("device", VgicGroup.CPU_REGS): 4,
    ("device", VgicGroup.NR_IRQS): 4,
    ("device", VgicGroup.CTRL): 0,
    ("device", VgicGroup.REDIST_REGS): 4,
    ("device", VgicGroup.LEVEL_INFO): 4,
    ("device", VgicGroup.MAINT_IRQ): 4,
    ("vm", 0): 24,
})  # fmt: skip
"""How large the values of a group are, by the kind of file, where it is not 8 bytes (or less: nobody minds the rest)."""


AttributeValue = Annotated[
    int, ctypes.c_uint64, Meaning.USER, Pointee(lambda attr, kind, slots: ATTRIBUTE_BYTES.get((kind, attr.group), 8))
]


@struct(size=24, c_name="kvm_device_attr")
class DeviceAttr(Structure):
    flags: u32
    group: u32
    attr: u64
    addr: AttributeValue


@ioctl(
    ("device", "vcpu", "vm"),
    0xE1,
    DeviceAttr,
    "W",
    cap=Cap.DEVICE_CTRL,
    guest=lambda attr: attr.group == VgicGroup.CTRL,
    ENXIO="unknown group or attribute, or it cannot be used in this state",
    EPERM="the device has no attributes to write",
    EFAULT="the value cannot be read",
    EINVAL="the value is not valid",
    EEXIST="the attribute is set already",
    EBUSY="it is too late, or vCPUs are running",
    ENODEV="the device lacks what the attribute needs",
    ENOENT="the CPU interface has no such register",
    E2BIG="an address lies beyond the VM's IPA size",
    ENOMEM="no memory for what the attribute configures",
)
def KVM_SET_DEVICE_ATTR(device, attr):  # type: ignore[no-untyped-def]
    """Write an attribute; the value is read from user memory at `addr`."""


@ioctl(
    ("device", "vcpu", "vm"),
    0xE2,
    DeviceAttr,
    "W",
    cap=Cap.DEVICE_CTRL,
    ENXIO="unknown group or attribute, or it cannot be used in this state",
    EPERM="the device has no attributes to read",
    EFAULT="the value cannot be written",
    EINVAL="the attribute names something that does not exist",
    EBUSY="vCPUs are running",
    ENODEV="the device lacks what the attribute needs",
    ENOENT="nothing was configured under this index, or the CPU interface has no such register",
)
def KVM_GET_DEVICE_ATTR(device, attr):  # type: ignore[no-untyped-def]
    """Read an attribute into user memory at `addr`."""


@ioctl(
    ("device", "vcpu", "vm"),
    0xE3,
    DeviceAttr,
    "W",
    cap=Cap.DEVICE_CTRL,
    ENXIO="unknown group or attribute",
    EPERM="the device has no attributes",
    EINVAL="the attribute names a vCPU that does not exist",
)
def KVM_HAS_DEVICE_ATTR(device, attr):  # type: ignore[no-untyped-def]
    """Succeed if the attribute exists. Nothing is read or written."""
