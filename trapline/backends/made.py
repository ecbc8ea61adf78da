"""How a VM came to be: the calls that made it what it is and that no other call gives back, noted as they succeed.

KVM has no call that lists a VM's capabilities, vCPU features or devices. A snapshot holds these notes and repeats the calls in order,
and so does not need to know what a VM may be made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from trapline.abi.arm64 import VgicCtrl, VgicGroup

SET_ONCE: frozenset[tuple[int, int | None]] = frozenset(
    {(VgicGroup.ADDR, None), (VgicGroup.NR_IRQS, None), (VgicGroup.MAINT_IRQ, None), (VgicGroup.CTRL, VgicCtrl.INIT)}
)
"""Attributes of devices that say what the device is; all others are what it holds at the moment."""


@dataclass(frozen=True, slots=True)
class Made:
    """One step: what was done (a name of `snapshot/rebuild.py`'s table) and with what: numbers, strings, None, lists of those."""

    what: str
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, what: str, *arguments: Any) -> Self:
        """A step; bytes among its arguments become hexadecimal digits."""
        return cls(what, tuple(argument.hex() if isinstance(argument, bytes) else argument for argument in arguments))

    def plain(self) -> list[Any]:
        """As JSON has it."""
        return [self.what, *self.arguments]

    @classmethod
    def from_plain(cls, row: Sequence[Any]) -> Self:
        """The reverse."""
        return cls(str(row[0]), tuple(row[1:]))
