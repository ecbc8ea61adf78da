"""Every call that takes a structure, with an address at which there is none."""

from __future__ import annotations

from errno import EFAULT

from tests.conformance.frame import Cases
from trapline.abi.arm64_vm import KVM_GET_REGS, KVM_TRANSLATE
from trapline.abi.ioctl import Ioctl
from trapline.abi.tables import calls
from trapline.abi.vcpu import KVM_SET_SIGNAL_MASK

case = Cases(__name__)

ADDRESSES = {"a null pointer": 0, "a page that is never mapped": 0x1000, "an address of the kernel": 0xFFFF_8000_0000_0000}

REFUSED_BEFORE = (KVM_GET_REGS,)
"""A call that fails before it looks at its argument."""


def unreadable(call: Ioctl) -> None:
    """A case for each address that no structure can have."""
    generic = call.arch == "" and call.number != KVM_TRANSLATE.number
    kind = "vcpu" if "device" in call.kinds else call.kinds[0]
    for cause, address in ADDRESSES.items():
        if address or call is not KVM_SET_SIGNAL_MASK:
            case(call, EFAULT, cause, lambda t, address=address: t(call, address, on=getattr(t, kind)), generic, needs=call.cap)


for declared in calls("arm64"):
    if declared.struct is not None and declared not in REFUSED_BEFORE:
        unreadable(declared)
