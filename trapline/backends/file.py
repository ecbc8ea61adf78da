"""What every public class that stands for a file of KVM's has: any declared call, by its name and its fields."""

from __future__ import annotations

from typing import Any

from trapline.abi.ioctl import Ioctl
from trapline.backends.base import Backend


class KvmFile:
    """A file and the backend that it belongs to."""

    backend: Backend
    file: int

    def ioctl(self, call: Ioctl, argument: Any = None, /, **fields: Any) -> int:
        """Make any declared call: with a number or structure, or with a structure made of these fields. Raises KvmError.

        `vm.ioctl(KVM_IRQ_LINE, irq=1 << 24 | 40, level=1)`. What a call fills in is in the structure that it was given:
        `state = KVM_GET_MP_STATE.make()`, `vcpu.ioctl(KVM_GET_MP_STATE, state)`.
        """
        if argument is None:
            argument = call.make(**fields)
        elif fields:
            raise TypeError(f"{call.name}: an argument, or fields of one, but not both")
        return self.backend.ioctl(self.file, call, argument)
