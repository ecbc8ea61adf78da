"""The GICv3 as an in-kernel device: what user space configures through device attributes."""

from __future__ import annotations

from errno import E2BIG, EBUSY, EEXIST, EINVAL, ENXIO
from typing import Final

from trapline.abi.arm64 import VgicAddr, VgicCtrl, VgicGroup
from trapline.errors import KvmError
from trapline.registers import Field, Register

from .core import VgicV3
from .dist import FRAME_SIZE
from .redist import REDIST_SIZE
from .state import PRIVATE_IRQS, Region

FRAME_ALIGNMENT: Final = 0x1_0000
NR_IRQS_STEP: Final = 32
NR_IRQS_LIMIT: Final = 1024


class RedistRegion(Register, width=64):
    """The value of the attribute that adds a range for redistributors."""

    index = Field(11, 0)
    flags = Field(15, 12)
    base = Field(51, 16)
    count = Field(63, 52)


class VgicV3Device(VgicV3):
    """A GICv3 with the attribute groups ADDR, NR_IRQS and CTRL. Register access by attribute is not there."""

    def attr_size(self, group: int, attr: int) -> int:
        """Bytes of an attribute's value; KvmError(ENXIO) if there is none."""
        if group == VgicGroup.ADDR and attr in (VgicAddr.V3_DIST, VgicAddr.V3_REDIST, VgicAddr.V3_REDIST_REGION):
            return 8
        if group == VgicGroup.NR_IRQS:
            return 4
        if group == VgicGroup.CTRL and attr == VgicCtrl.INIT:
            return 0
        raise KvmError(ENXIO)

    def has_attr(self, group: int, attr: int) -> None:
        """KvmError(ENXIO) unless the attribute exists."""
        self.attr_size(group, attr)

    def set_attr(self, group: int, attr: int, value: int) -> None:
        """Place a frame, choose the number of interrupts, or finish the set-up."""
        self.attr_size(group, attr)
        if group == VgicGroup.CTRL:
            with self.vm.stop_vcpus():
                self.init()
        elif group == VgicGroup.NR_IRQS:
            self._set_nr_irqs(value)
        else:
            with self.lock:
                self._set_address(attr, value)

    def get_attr(self, group: int, attr: int, value: int) -> int:
        """Read an attribute; `value` holds the index of the region that is asked for."""
        self.attr_size(group, attr)
        if group == VgicGroup.NR_IRQS:
            return self.nr_irqs
        if group != VgicGroup.ADDR:
            raise KvmError(ENXIO)
        if attr == VgicAddr.V3_DIST:
            return (1 << 64) - 1 if self.dist_base is None else self.dist_base
        if attr == VgicAddr.V3_REDIST:
            return self.regions[0].base if self.legacy_region else (1 << 64) - 1
        for region in self.regions:
            if region.index == RedistRegion(value).index:
                return RedistRegion(index=region.index, base=region.base >> 16, count=region.count)
        raise KvmError(ENXIO)

    def _set_nr_irqs(self, count: int) -> None:
        if not 2 * PRIVATE_IRQS <= count <= NR_IRQS_LIMIT or count % NR_IRQS_STEP:
            raise KvmError(EINVAL)
        with self.lock:
            if self.initialized or self.nr_irqs:
                raise KvmError(EBUSY)
            self.nr_irqs = count

    def _set_address(self, attr: int, value: int) -> None:
        """Place the distributor or add a region for redistributors; the lock is held."""
        if attr == VgicAddr.V3_DIST:
            if self.dist_base is not None:
                raise KvmError(EEXIST)
            self._check_range(value, FRAME_SIZE)
            self.set_dist_base(value)
        elif attr == VgicAddr.V3_REDIST:
            if self.regions:
                raise KvmError(EEXIST if self.legacy_region else EINVAL)
            self._check_range(value, REDIST_SIZE)
            self.add_region(Region(base=value, count=0, index=0), legacy=True)
        else:
            self._add_counted_region(RedistRegion(value))

    def _add_counted_region(self, wanted: RedistRegion) -> None:
        base, size = wanted.base << 16, wanted.count * REDIST_SIZE
        if self.legacy_region or wanted.flags or not wanted.count or wanted.index != len(self.regions):
            raise KvmError(EINVAL)
        self._check_range(base, size)
        for region in self.regions:
            if base < region.base + region.count * REDIST_SIZE and region.base < base + size:
                raise KvmError(EINVAL)
        self.add_region(Region(base=base, count=wanted.count, index=wanted.index))

    def _check_range(self, base: int, size: int) -> None:
        if base % FRAME_ALIGNMENT:
            raise KvmError(EINVAL)
        if base + size > 1 << self.vm.ipa_bits:
            raise KvmError(E2BIG)
