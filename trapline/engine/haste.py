"""What a first start compiles in a hurry, and what is made of it when the guest has gone.

Most of the time that LLVM takes for handlers and predecoder goes into good code. A process that finds nothing in the cache makes them
without that, in a third of the time, and keeps them under names of their own. The compiler's process makes the good ones for the next
start; code that gets hot runs as stencils and regions either way.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from trapline.engine.cache import ObjectCache
from trapline.engine.shapes import QUICK, Batch

if TYPE_CHECKING:
    from trapline.engine.compiler import Compiler
    from trapline.engine.jit import Jit

DECODER, SHAPES = "decoder.o", ".shapes"


def linger() -> float:
    """Seconds for which the compiler's process works on regions, at most, after the guest has gone: $TRAPLINE_LINGER, or 20."""
    return float(os.environ.get("TRAPLINE_LINGER", "20"))


GROUP = 256
"""Shapes that are compiled together when there is time: two seconds. An object costs a start as much as thirty handlers in it."""
FEW = 64
"""Batches smaller than half of that which a start may find before they are made into larger ones."""


def improve(cache: ObjectCache, compiler: Compiler, jit: Jit, deadline: float) -> None:
    """Make good code of what was made in a hurry, and few objects of many, until `deadline` in `time.monotonic()` seconds."""
    names = cache.names()
    if DECODER + QUICK in names and DECODER not in names:
        cache.put(DECODER, jit.compile(compiler.decoder_text(), speed=0))
    good = [set(numbers) for numbers in shapes_of(cache, SHAPES)]
    small = [numbers for numbers in good if 2 * len(numbers) < GROUP]
    large = set[int]().union(*(numbers for numbers in good if 2 * len(numbers) >= GROUP))
    wanted = set[int]().union(*shapes_of(cache, SHAPES + QUICK)) - set[int]().union(*good)
    if len(small) > FEW:
        wanted = wanted.union(*small) - large
    again = sorted(wanted)
    for start in range(0, len(again), GROUP):
        if time.monotonic() > deadline:
            return
        numbers = again[start : start + GROUP]
        text, natives = compiler.module(numbers)
        batch = Batch(numbers, sorted(natives), jit.compile(text))
        cache.put(batch.tag + SHAPES, batch.pack())


def shapes_of(cache: ObjectCache, suffix: str) -> list[list[int]]:
    """The shapes in each batch of a kind."""
    stored = (cache.get(name) for name in cache.names() if name.endswith(suffix))
    return [Batch.unpack(data).numbers for data in stored if data is not None]
