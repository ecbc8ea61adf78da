"""Putting regions into service: linking them, and having records run them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from trapline.engine.state import PAGE_GENERATION, PAGE_HEADER, RECORD_SIZE

if TYPE_CHECKING:
    from trapline.engine.engine import Code, Engine
    from trapline.engine.tier1.built import Built

PAGE = 4096


class Texts:
    """Reads guest code by way of the kernel: the memory may be unmapped by another thread, which must not end this process."""

    def __init__(self) -> None:
        self._memory = open("/proc/self/mem", "rb", buffering=0)

    def read(self, records: int) -> bytes | None:
        """The 4 KiB of instructions of a predecoded page; None if the memory is gone."""
        code = ctypes.c_uint64.from_address(records - PAGE_HEADER).value
        try:
            text = os.pread(self._memory.fileno(), PAGE, code)
        except OSError:
            return None
        return text if len(text) == PAGE else None


class Layout(Protocol):
    """Where the pages around an entry are."""

    def records(self, distance: int) -> int | None: ...


def link(regions: Iterable[Built], code: Code) -> list[Linked]:
    """Link regions, all at once; those are left out that call native functions which are not there."""
    with code.lock:
        needed = list(regions)
        natives = code.shapes.stored_natives({symbol for built in needed for symbol in built.natives})
        usable = [built for built in needed if code.shapes.knows(set(built.natives) - natives.keys())]
        # Another engine may have linked one; it is then at one of the places at a time.
        fresh = {built.tag: built for built in usable if built.tag not in code.regions}
        code.shapes.link(natives, [built.code for built in fresh.values()])
        code.regions |= fresh.keys()
        return [Linked(built, code) for built in usable]


class Linked:
    """A region's code in this process."""

    def __init__(self, built: Built, code: Code) -> None:
        """`link` has linked it."""
        self.built = built
        self.address = code.jit.address(f"region_{built.tag}")
        data = code.jit.address(f"instance_{built.tag}")
        self._facts: Any = (ctypes.c_uint64 * (2 * len(built.pages))).from_address(data)
        self._others = (ctypes.c_uint64 * len(built.entries)).from_address(data + ctypes.sizeof(self._facts))

    def install(self, engine: Engine, layout: Layout, texts: Texts) -> set[int]:
        """Run this region at its entries; at which it is run now. None if the code is not what it was made from, or not where it was."""
        built = self.built
        words, facts = {}, []
        for page in built.pages:
            records = layout.records(page)
            if records is None:
                return set()
            generation = ctypes.c_uint64.from_address(records - PAGE_HEADER + PAGE_GENERATION).value
            text = texts.read(records)  # after the generation: what changes from here on changes that too
            if text is None:
                return set()
            facts += [generation, records]
            words[page] = memoryview(text).cast("I")
        if any(words[page][index] != word for page, index, word in built.words):
            return set()
        handlers = engine.code.shapes.handlers
        for k, index in enumerate(built.entries):
            self._others[k] = handlers[engine.entry.decode(words[0][index], index)] or engine.shared.undecoded
        self._facts[1::2] = [0] * len(built.pages)  # no page: a vCPU may be looking at this very moment
        self._facts[::2] = facts[::2]
        self._facts[1::2] = facts[1::2]
        generation, records = facts[:2]
        return {index for k, index in enumerate(built.entries) if self._enter_at(engine, records, generation, index, self._others[k])}

    def runs_at(self, records: int, index: int) -> bool:
        """Whether an instruction of a page is the way into this region at the moment."""
        return ctypes.c_uint64.from_address(records + index * RECORD_SIZE).value == self.address

    def _enter_at(self, engine: Engine, records: int, generation: int, index: int, handler: int) -> bool:
        """Have a record run the region in place of its handler."""
        if self.runs_at(records, index):
            return True
        record = records + index * RECORD_SIZE
        current = ctypes.c_uint64.from_address(record).value
        regions = engine.regions
        if current != handler and (regions is None or not regions.stencils.owns(current)) or current == engine.shared.undecoded:
            return False
        target = self.address
        if regions is not None and regions.checker is not None:
            regions.checker.follow(record, self, handler)
            target = engine.check_address
        return bool(engine.entry.install(engine.shared_address, record, current, target, records, generation))
