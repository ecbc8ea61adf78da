"""Which parts of a snapshot an architecture has its own of: what is read, and how it goes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from trapline.backends.snapshot import state, x86
from trapline.backends.snapshot.order import Ordered
from trapline.backends.snapshot.restore import Restore


@dataclass(frozen=True, slots=True)
class Architecture:
    """`save` gives a VM's state as plain values; `restore` takes that, a VM made like it, and the snapshot with its memory."""

    save: Callable[[Any], dict[str, Any]]
    restore: type[Ordered]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {"arm64": Architecture(state.save, Restore), "x86_64": Architecture(x86.save, x86.X86Restore)}
)
"""By the names that VMs and systems have for theirs."""
