"""Stolen time: how long a vCPU was ready to run and did not get a processor, told to its guest in a structure in guest memory.

The structure (Arm's DEN0057) has 64 bytes: revision and attributes, zero, and at offset 8 the nanoseconds.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENXIO
from typing import TYPE_CHECKING, Final

from trapline.errors import KvmError

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

IPA_ATTR: Final = 0
SIZE: Final = 64
STOLEN_OFFSET: Final = 8
LOOK_NS: Final = 4_000_000
"""The host is asked at most once in so long: it takes as long as an exit."""


class PvTime:
    """One vCPU's stolen time, and the attribute that says where it is."""

    def __init__(self, vcpu: Arm64Vcpu) -> None:
        self._vcpu = vcpu
        self.base: int | None = None
        """Guest physical address of the structure."""
        self._delay = 0
        self._looked = 0
        self._started = False

    def has_attr(self, attr: int) -> None:
        """ENXIO for any but the address."""
        if attr != IPA_ATTR:
            raise KvmError(ENXIO)

    def attr_size(self, attr: int) -> int:
        """A guest physical address."""
        self.has_attr(attr)
        return 8

    def set_attr(self, attr: int, value: int) -> None:
        """Say where the structure is: aligned, in memory, and once."""
        if value % SIZE:
            raise KvmError(EINVAL)
        if self.base is not None:
            raise KvmError(EEXIST)
        if self._vcpu.core.vm.memslots.active.find(value) is None:
            raise KvmError(EINVAL)
        self.base = value

    def get_attr(self, attr: int) -> int:
        """Where it is; all ones if nowhere."""
        return (1 << 64) - 1 if self.base is None else self.base

    def start(self) -> int | None:
        """The guest asks for it: count from now. The address of the structure, None if there is none."""
        if self.base is None:
            return None
        world = self._vcpu.vm.machine.world
        self._delay, self._looked, self._started = world.run_delay(), world.clock.now(), True
        self._write(0, bytes(SIZE))
        return self.base

    def update(self) -> None:
        """KVM_RUN begins: add what was stolen since the last look."""
        if self.base is None:
            return
        world = self._vcpu.vm.machine.world
        now = world.clock.now()
        if not self._started:  # of a guest that was restored we do not know whether it has asked; Linux does not wait for that at all
            self._delay, self._looked, self._started = world.run_delay(), now, True
            return
        if now - self._looked < LOOK_NS:
            return
        self._looked = now
        before, self._delay = self._delay, world.run_delay()
        if self._delay > before:  # less: another thread runs the vCPU now
            try:
                stolen = int.from_bytes(self._vcpu.core.vm.memory.read(self.base + STOLEN_OFFSET, 8), "little")
            except KvmError:
                return
            self._write(STOLEN_OFFSET, (stolen + self._delay - before & (1 << 64) - 1).to_bytes(8, "little"))

    def _write(self, offset: int, data: bytes) -> None:
        """Write to the structure; that the memory is not there any more is the guest's loss."""
        assert self.base is not None
        try:
            self._vcpu.core.vm.memory.write(self.base + offset, data)
        except KvmError:
            return
