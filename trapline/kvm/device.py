"""Device attributes: the calls that configure in-kernel devices, vCPUs and VMs."""

from __future__ import annotations

from errno import EPERM
from typing import Any, Protocol

from trapline.abi.device import KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR, DeviceAttr
from trapline.abi.ioctl import implements
from trapline.errors import KvmError
from trapline.host.user import copy_from_user, copy_to_user


class DeviceOps(Protocol):
    """What has attributes. Values are numbers; `attr_size` says how many bytes user memory holds (0: none is touched)."""

    def attr_size(self, group: int, attr: int) -> int:
        """Bytes of the attribute's value; KvmError(ENXIO) if there is no such attribute."""

    def set_attr(self, group: int, attr: int, value: int) -> None:
        """Write the attribute."""

    def get_attr(self, group: int, attr: int, value: int) -> int:
        """Read the attribute; `value` is what user memory held before (some attributes take an index there)."""

    def has_attr(self, group: int, attr: int) -> None:
        """KvmError(ENXIO) unless the attribute exists."""


class Device:
    """The file of an in-kernel device. The device itself belongs to its VM."""

    def __init__(self, attributes: DeviceOps) -> None:
        self.attributes: DeviceOps | None = attributes

    def release(self) -> None:
        """Closed."""


def _attributes(target: Any) -> DeviceOps:
    attributes: DeviceOps | None = target.attributes
    if attributes is None:
        raise KvmError(EPERM)
    return attributes


@implements(KVM_SET_DEVICE_ATTR)
def set_device_attr(target: Any, attr: DeviceAttr) -> int:
    """Read the value from user memory and hand it over."""
    attributes = _attributes(target)
    value = copy_from_user(attr.addr, attributes.attr_size(attr.group, attr.attr))
    attributes.set_attr(attr.group, attr.attr, int.from_bytes(value, "little"))
    return 0


@implements(KVM_GET_DEVICE_ATTR)
def get_device_attr(target: Any, attr: DeviceAttr) -> int:
    """Fetch the value and write it to user memory."""
    attributes = _attributes(target)
    size = attributes.attr_size(attr.group, attr.attr)
    before = int.from_bytes(copy_from_user(attr.addr, size), "little")
    value = attributes.get_attr(attr.group, attr.attr, before)
    copy_to_user(attr.addr, value.to_bytes(size, "little"))
    return 0


@implements(KVM_HAS_DEVICE_ATTR)
def has_device_attr(target: Any, attr: DeviceAttr) -> int:
    """Only whether it exists."""
    _attributes(target).has_attr(attr.group, attr.attr)
    return 0
