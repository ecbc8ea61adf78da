"""Region objects: from the words around a hot instruction to machine code."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

from trapline.arm64.decode import Decoder
from trapline.arm64.features import Features
from trapline.arm64.record import Recorder
from trapline.bits.to_llvm import declare_intrinsics
from trapline.engine.cache import ObjectCache
from trapline.engine.compiler import Compiler, slot
from trapline.engine.haste import improve
from trapline.engine.jit import Jit
from trapline.engine.shapes import NATIVE
from trapline.engine.stencil.extract import extract
from trapline.engine.stencil.template import UNSUITED, Template
from trapline.engine.tier1.built import Built
from trapline.engine.tier1.emit import RegionEmitter
from trapline.engine.tier1.homes import at_home
from trapline.engine.tier1.regions import Met, Place, Region, supported

WORTHWHILE = 4
"""A region of fewer instructions is not made: entering it would cost what it saves."""
RECORDINGS = 4096
"""Words whose meaning is remembered: guests can make any number of them."""

Pages = Callable[[int], bytes | None]
"""The 4 KiB of instructions that lie so many pages after the entry's; None if they are not at hand. Zeros (UDF #0) stand for
instructions that never ran."""


class RegionBuilder:
    """Makes regions for one set of features."""

    def __init__(self, features: Features, cache: ObjectCache) -> None:
        self._compiler = Compiler(features, counting=False)
        self._decoder = Decoder(self._compiler.isa)
        self._features = features
        self._jit = Jit()
        self._cache = cache

    @functools.lru_cache(RECORDINGS)  # noqa: B019 - a builder lives as long as its process
    def _recording(self, word: int) -> Recorder | None:
        """What a word does; None if that is the interpreter's business."""
        insn = self._decoder.decode(word)
        if insn is None or insn.feature is not None and insn.feature not in self._features:
            return None
        recording = insn.record_word(word, slot)
        return recording if supported(recording) else None

    def explore(self, index: int, pages: Pages, met: Met = lambda page: (), exact: bool = False) -> Region | None:
        """The region of the instruction at `index` of page 0; None if there is nothing to gain. `exact`: it is entered there."""
        known: dict[int, bytes | None] = {}

        def fetch(place: Place) -> tuple[int, Recorder | None] | None:
            page, at = place
            if page not in known:
                known[page] = pages(page)
            text = known[page]
            if text is None:
                return None
            word = int.from_bytes(text[4 * at : 4 * at + 4], "little")
            return (word, self._recording(word)) if word else None

        region = Region((0, index), fetch, met, exact)
        return region if region.size >= WORTHWHILE else None

    def text(self, region: Region) -> tuple[str, str, dict[str, object]]:
        """Tag, IR and native functions of a region."""
        words = sorted((*i.place, i.word) for i in region.instructions)
        tag = hashlib.sha256(repr((region.entries, words)).encode()).hexdigest()[:16]
        emitter = RegionEmitter(region, tag)
        body = emitter.text()
        declared = [f.declare() for f in emitter.natives.values()]  # type: ignore[attr-defined]
        parts = [body, *declared, *declare_intrinsics(emitter.intrinsics), *emitter.declarations()]
        return tag, "\n".join(parts), emitter.natives

    def stencils(self, shapes: list[int]) -> bytes:
        """Templates of shapes, empty ones of those that cannot have any."""
        text, called = self._compiler.stencils(shapes)
        natives: list[str] = []
        found = dict(extract(self._jit.compile_absolute(text), natives))
        none = [bytes(Template(shape=shape, flags=UNSUITED)) for shape in shapes if f"s{shape}" not in found]
        self._keep(called)
        return b"".join([" ".join(natives).encode(), b"\n", *found.values(), *none])

    def build(self, region: Region) -> Built:
        """Compile a region, its native functions into the cache."""
        tag, text, natives = self.text(region)
        code = self._jit.compile_once_through(text) if at_home(region) else self._jit.compile(text)
        self._keep(natives)
        words = tuple(sorted((*i.place, i.word) for i in region.instructions))
        entries = tuple(index for _, index in region.entries)
        return Built(tag, entries, tuple(region.pages), words, tuple(sorted(natives)), region.loops, code)

    def improve(self, deadline: float) -> None:
        """Make good code of what was made in haste, until `deadline` in `time.monotonic()` seconds."""
        improve(self._cache, self._compiler, self._jit, deadline)

    def _keep(self, natives: dict[str, Any]) -> None:
        """Have native functions in the cache."""
        for symbol, function in natives.items():
            if self._cache.get(symbol + NATIVE) is None:
                self._cache.put(symbol + NATIVE, self._jit.compile(self._compiler.native_text(function)))
