"""Instructions of the host that do what a native function does.

A native function may name one. Expressions that call the function use it where the host has it; the function is the definition
everywhere, and what runs on other hosts.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from dataclasses import dataclass

Let = Callable[[str], str]
"""Appends an instruction and returns the name of its value."""


@functools.cache
def host_features() -> frozenset[str]:
    """What LLVM calls the features of this processor, if it is an x86-64."""
    if platform.machine() != "x86_64":
        return frozenset()
    import llvmlite.binding as llvm

    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


@dataclass(frozen=True)
class HostForm:
    """How a call is written if the host has `feature`: `emit(let, arguments)` returns the value that the call would have."""

    feature: str
    emit: Callable[[Let, list[str]], str]

    @property
    def available(self) -> bool:
        """Whether this host has the instruction."""
        return self.feature in host_features()


PAIR = "<2 x i64>"


def join(let: Let, low: str, high: str) -> str:
    """Two 64-bit values as a vector."""
    first = let(f"insertelement {PAIR} poison, i64 {low}, i64 0")
    return let(f"insertelement {PAIR} {first}, i64 {high}, i64 1")


def split(let: Let, vector: str) -> str:
    """A vector as the two results of a function."""
    low, high = (let(f"extractelement {PAIR} {vector}, i64 {k}") for k in range(2))
    first = let(f"insertvalue {{i64, i64}} poison, i64 {low}, 0")
    return let(f"insertvalue {{i64, i64}} {first}, i64 {high}, 1")


def on_vectors(feature: str, body: Callable[..., str]) -> HostForm:
    """The form of a function of pairs of u64 that returns such a pair: `body(let, *vectors)` gives the vector."""

    def emit(let: Let, args: list[str]) -> str:
        return split(let, body(let, *(join(let, args[k], args[k + 1]) for k in range(0, len(args), 2))))

    return HostForm(feature, emit)
