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


def improve(cache: ObjectCache, compiler: Compiler, jit: Jit, deadline: float) -> None:
    """Make good code of what was made in a hurry, until `deadline` in `time.monotonic()` seconds."""
    names = cache.names()
    for name in [name for name in names if name.endswith(QUICK) and name.removesuffix(QUICK) not in names]:
        if time.monotonic() > deadline:
            return
        good = name.removesuffix(QUICK)
        if good == DECODER:
            cache.put(good, jit.compile(compiler.decoder_text(), speed=0))
        elif (data := cache.get(name)) is not None:
            batch = Batch.unpack(data)
            cache.put(good, Batch(batch.numbers, batch.natives, jit.compile(compiler.module(batch.numbers)[0])).pack())
