"""CPUID: what a guest's instruction answers, as a table that can be read, changed and given to a vCPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from trapline.errors import BadInput


@dataclass(slots=True)
class Leaf:
    """One row: the answer for EAX = `function` and, where `indexed`, ECX = `index`."""

    function: int
    index: int = 0
    indexed: bool = False
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


FEATURES: dict[str, tuple[int, int, str, int]] = {
    "fpu": (1, 0, "edx", 0), "tsc": (1, 0, "edx", 4), "msr": (1, 0, "edx", 5), "pae": (1, 0, "edx", 6), "cx8": (1, 0, "edx", 8),
    "apic": (1, 0, "edx", 9), "sep": (1, 0, "edx", 11), "pge": (1, 0, "edx", 13), "cmov": (1, 0, "edx", 15), "pat": (1, 0, "edx", 16),
    "mmx": (1, 0, "edx", 23), "fxsr": (1, 0, "edx", 24), "sse": (1, 0, "edx", 25), "sse2": (1, 0, "edx", 26),
    "sse3": (1, 0, "ecx", 0), "ssse3": (1, 0, "ecx", 9), "cx16": (1, 0, "ecx", 13), "pcid": (1, 0, "ecx", 17), "sse4_1": (1, 0, "ecx", 19),
    "sse4_2": (1, 0, "ecx", 20), "x2apic": (1, 0, "ecx", 21), "movbe": (1, 0, "ecx", 22), "popcnt": (1, 0, "ecx", 23),
    "tsc_deadline": (1, 0, "ecx", 24), "aes": (1, 0, "ecx", 25), "xsave": (1, 0, "ecx", 26), "avx": (1, 0, "ecx", 28),
    "rdrand": (1, 0, "ecx", 30), "hypervisor": (1, 0, "ecx", 31),
    "fsgsbase": (7, 0, "ebx", 0), "tsc_adjust": (7, 0, "ebx", 1), "bmi1": (7, 0, "ebx", 3), "avx2": (7, 0, "ebx", 5),
    "smep": (7, 0, "ebx", 7), "bmi2": (7, 0, "ebx", 8), "erms": (7, 0, "ebx", 9), "rdseed": (7, 0, "ebx", 18), "adx": (7, 0, "ebx", 19),
    "smap": (7, 0, "ebx", 20), "umip": (7, 0, "ecx", 2), "la57": (7, 0, "ecx", 16),
    "syscall": (0x8000_0001, 0, "edx", 11), "nx": (0x8000_0001, 0, "edx", 20), "pdpe1gb": (0x8000_0001, 0, "edx", 26),
    "rdtscp": (0x8000_0001, 0, "edx", 27), "lm": (0x8000_0001, 0, "edx", 29),
}  # fmt: skip
"""Feature names as in /proc/cpuinfo: function, index, register, bit."""

MAX_BASIC, MAX_EXTENDED, KVM_SIGNATURE, KVM_FEATURES = 0, 0x8000_0000, 0x4000_0000, 0x4000_0001


class Cpuid:
    """A CPUID table: `cpuid[1].ecx`, `cpuid[7, 0].ebx`, `"nx" in cpuid`, `cpuid.without("nx")`."""

    def __init__(self, leaves: Iterable[Leaf] = ()) -> None:
        self.leaves = list(leaves)

    def __getitem__(self, key: int | tuple[int, int]) -> Leaf:
        function, index = (key, 0) if isinstance(key, int) else key
        for leaf in self.leaves:
            if leaf.function == function and (not leaf.indexed or leaf.index == index):
                return leaf
        raise KeyError(f"no CPUID leaf {function:#x} index {index}")

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)

    def __contains__(self, feature: str) -> bool:
        """Whether a feature's bit is set."""
        function, index, register, bit = self._place(feature)
        try:
            return bool(getattr(self[function, index], register) >> bit & 1)
        except KeyError:
            return False

    @property
    def features(self) -> list[str]:
        """The features of `FEATURES` that are set."""
        return [name for name in FEATURES if name in self]

    @property
    def vendor(self) -> str:
        """The twelve letters of leaf 0."""
        leaf = self[MAX_BASIC]
        return b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.edx, leaf.ecx)).decode("ascii", "replace")

    @property
    def hypervisor(self) -> str:
        """The twelve letters of leaf 0x40000000, "" where no hypervisor announces itself."""
        try:
            leaf = self[KVM_SIGNATURE]
        except KeyError:
            return ""
        return b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.ecx, leaf.edx)).rstrip(b"\0").decode("ascii", "replace")

    def without(self, *features: str) -> Cpuid:
        """A copy that lacks these features."""
        return self._changed(features, False)

    def having(self, *features: str) -> Cpuid:
        """A copy that announces these features. Whether the vCPU has them is another matter."""
        return self._changed(features, True)

    def _changed(self, features: Iterable[str], value: bool) -> Cpuid:
        copy = Cpuid(replace(leaf) for leaf in self.leaves)
        for feature in features:
            function, index, register, bit = self._place(feature)
            leaf = copy[function, index]
            setattr(leaf, register, getattr(leaf, register) & ~(1 << bit) | value << bit)
        return copy

    @staticmethod
    def _place(feature: str) -> tuple[int, int, str, int]:
        if feature not in FEATURES:
            raise BadInput(f"no CPUID feature {feature!r} is known here: there are {', '.join(FEATURES)}")
        return FEATURES[feature]
