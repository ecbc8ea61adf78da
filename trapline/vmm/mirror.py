"""Device registers that the guest reads from memory: no exit for a driver that asks again and again whether it may send."""

from __future__ import annotations

import ctypes
import mmap

from trapline.abi.vm import MEM_READONLY
from trapline.backends.memory import Slots
from trapline.errors import KvmError

PAGE = 4096
SLOT = 500
"""Number of the memory slot: far from those that `Vm.add_memory` chooses, and there on every KVM."""


class PageMirror:
    """A page of memory that can take the place of a device's window, for reads: writes still come to the device.

    That is a read-only memory slot. On a KVM that refuses it nothing is ever shown.
    """

    def __init__(self, vm: Slots, base: int) -> None:
        self._vm, self._base = vm, base
        self._page = mmap.mmap(-1, PAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._refused = mmap.PAGESIZE != PAGE
        self.words = memoryview(self._page).cast("I")

    def show(self) -> bool:
        """Let the guest read `words`; False if that cannot be."""
        if not self._refused:
            try:
                self._set(PAGE)
            except KvmError:
                self._refused = True
        return not self._refused

    def hide(self) -> None:
        """Have reads come to the device again; when this returns, all do."""
        self._set(0)

    def _set(self, size: int) -> None:
        self._vm.set_user_memory_region(SLOT, MEM_READONLY if size else 0, self._base, size, self._address)
