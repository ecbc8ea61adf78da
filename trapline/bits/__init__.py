"""Bit vectors, and functions that run under CPython and LLVM alike.

The names below are imported when they are first asked for: native functions do without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trapline.bits.expr import Bits, Imm, Vec, call, cat, const, convert, lasting, likely, real, select

__all__ = ["Bits", "Imm", "Vec", "call", "cat", "const", "convert", "lasting", "likely", "real", "select"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trapline.bits import expr

    return getattr(expr, name)
