"""The A64 instructions, one module per group of the manual's encoding index."""

from __future__ import annotations

import importlib
import pkgutil

from trapline.arm64.insn import A64, InstructionSet


def load_a64() -> InstructionSet:
    """Import every module of this package, so that `A64` holds all declared instructions."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return A64
