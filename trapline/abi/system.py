"""Calls answered by /dev/kvm itself."""

from __future__ import annotations

from trapline.abi.ioctl import ioctl

API_VERSION = 12


@ioctl("system", 0x00, EINVAL="the argument is not zero")
def KVM_GET_API_VERSION(system):  # type: ignore[no-untyped-def]
    """Return the version of this interface, which has been 12 since it was declared stable."""


@ioctl(
    "system",
    0x01,
    makes="vm",
    EINVAL="the type has unknown bits, or asks for fewer than 32 or for more IPA bits than there are",
    ENOMEM="no memory for the VM",
)
def KVM_CREATE_VM(system, kind):  # type: ignore[no-untyped-def]
    """Make a virtual machine without memory or vCPUs and return its file. The type's low byte is the number of IPA bits (0: 40)."""


@ioctl(("system", "vm"), 0x03, EINVAL="the answer depends on a VM and none was asked")
def KVM_CHECK_EXTENSION(target, cap):  # type: ignore[no-untyped-def]
    """Return 0 if a capability is absent or unknown, else 1 or the number it stands for."""


@ioctl("system", 0x04, EINVAL="the argument is not zero")
def KVM_GET_VCPU_MMAP_SIZE(system):  # type: ignore[no-untyped-def]
    """Return how many bytes of a vCPU's file are to be mapped: struct kvm_run and what follows it."""
