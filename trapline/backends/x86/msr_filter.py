"""MSR filters: ranges with a verdict for each MSR, and the argument of KVM_X86_SET_MSR_FILTER."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from trapline.abi.x86_msr import MSR_FILTER_RANGES, MsrFilter, MsrFilterFlag
from trapline.errors import BadInput
from trapline.x86_64.msr import X2APIC_FIRST, X2APIC_LAST

BOTH = MsrFilterFlag.READ | MsrFilterFlag.WRITE
WORD = 8


@dataclass(frozen=True, slots=True)
class Range:
    """`count` MSRs from `base` on: those of `allowed` (numbers of MSRs) may be accessed, the others not.

    `kinds` says which accesses the range judges; of others it has no opinion.
    """

    base: int
    count: int = 1
    allowed: Collection[int] = field(default=())
    kinds: int = BOTH

    @property
    def bitmap(self) -> bytes:
        """One bit for each MSR, in whole words, as the kernel reads them."""
        bits = 0
        for index in self.allowed:
            if not self.base <= index < self.base + self.count:
                raise BadInput(f"MSR {index:#x} is not in the range of {self.count} from {self.base:#x}")
            bits |= 1 << index - self.base
        return bits.to_bytes(-(-self.count // (8 * WORD)) * WORD or WORD, "little")

    def judges(self, index: int, kind: int) -> bool | None:
        """What the range says of an access, None if nothing."""
        end = self.base + self.count
        if end >> 32 or not self.base <= index < end or not self.kinds & kind:
            return None
        return index in self.allowed


def verdict(ranges: Sequence[Range], default: int, index: int, kind: int) -> bool:
    """Whether a filter allows an access: the rule in one place, for tests and tools."""
    if X2APIC_FIRST <= index <= X2APIC_LAST:
        return True
    opinions = (judgement for each in ranges if (judgement := each.judges(index, kind)) is not None)
    return next(opinions, not default)


def filter_argument(ranges: Sequence[Range], default: int) -> Any:
    """The structure, with the bitmaps kept alive by it."""
    if len(ranges) > MSR_FILTER_RANGES:
        raise BadInput(f"a filter has at most {MSR_FILTER_RANGES} ranges, not {len(ranges)}")
    argument = MsrFilter(default)
    argument.bitmaps = [ctypes.create_string_buffer(each.bitmap, len(each.bitmap)) for each in ranges]
    for entry, each, bitmap in zip(argument.ranges, ranges, argument.bitmaps):
        entry.flags, entry.nmsrs, entry.base = int(each.kinds), each.count, each.base
        entry.bitmap = ctypes.addressof(bitmap)
    return argument
