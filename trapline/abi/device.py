"""Device attributes: one way to configure and read in-kernel devices, vCPUs and VMs."""

from __future__ import annotations

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import Structure, UserAddress, struct, u32, u64


@struct(size=24, c_name="kvm_device_attr")
class DeviceAttr(Structure):
    flags: u32
    group: u32
    attr: u64
    addr: UserAddress


@ioctl(
    ("device", "vcpu", "vm"),
    0xE1,
    DeviceAttr,
    "W",
    cap=Cap.DEVICE_CTRL,
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
