"""Finding hot code and having it compiled.

A thread looks a thousand times a second where the vCPUs are, at no cost to them but a poll. What it meets more than once goes
to the compiler's process, and comes back as a region that runs in place of the record it was met at.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.engine.state import (
    GUARDED,
    ITLB_ENTRIES,
    PAGE_BYTES,
    PAGE_HEADER,
    RECORD_SIZE,
    SAMPLES,
    ItlbEntry,
)
from trapline.engine.tier1.built import Built
from trapline.engine.tier1.client import Order
from trapline.engine.tier1.install import Linked, Texts
from trapline.engine.tier1.store import RegionStore

if TYPE_CHECKING:
    from trapline.engine.cpu import Cpu
    from trapline.engine.engine import Engine
    from trapline.engine.tier1.paranoid import ParanoidCpu

PERIOD, IDLE_PERIOD = 0.001, 0.02
"""Seconds between looks: while a vCPU runs, and while none does."""
ATTENTIVE, PATIENT = 0.005, 0.02
"""Seconds between the compiler's thread's rounds: while stored regions wait for their code to be run, and else."""
HOT = 2
"""How often code is met before it is compiled."""
REGIONS = 8192
"""Regions of one engine at most."""


@dataclass(frozen=True, slots=True)
class Spot:
    """An instruction by its record: the page's records, and the index."""

    records: int
    index: int


class Regions:
    """The regions of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.installed: dict[Spot, Linked] = {}
        self.samples: Counter[str] = Counter()
        """How many samples met the interpreter, and how many a region."""
        self.checker: ParanoidCpu | None = None
        """Who checks regions before they are put into service, if anybody does."""
        self._texts = Texts()
        self._counts: Counter[Spot] = Counter()
        self._hopeless: set[Spot] = set()
        self._wanted: dict[Spot, tuple[Cpu, int]] = {}
        self._seen = [0] * 64
        self._ordered: dict[Spot, int] = {}
        self._stored: dict[int, list[Built]] | None = None
        """What earlier runs compiled, by the word of its entry."""
        self._bound: dict[Spot, Built] = {}
        self._scanned = 0
        self._ready = threading.Condition()
        self._closed = False
        for target, name in ((_watch, "trapline-profiler"), (_compile, "trapline-tier1")):
            threading.Thread(target=target, args=(weakref.ref(self),), name=name, daemon=True).start()

    def close(self) -> None:
        """Stop the threads."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    # -- the profiler's thread -------------------------------------------------------------------------------------------
    def look(self) -> float | None:
        """Ask where the vCPUs are and note what they answered before; the seconds to sleep, None when closed."""
        if self._closed:
            return None
        running = False
        for cpu in list(self.engine.cpus):
            state = cpu.state
            if state.running:
                running = True
                self._collect(cpu)
                state.poll_sample = 1
        return PERIOD if running else IDLE_PERIOD

    def _collect(self, cpu: Cpu) -> None:
        state = cpu.state
        count = state.sampled
        for k in range(max(self._seen[cpu.index], count - SAMPLES), count):
            sample = state.samples[k % SAMPLES]
            self._note(cpu, sample.pc, sample.records, bool(sample.in_region))
        self._seen[cpu.index] = count

    def _note(self, cpu: Cpu, pc: int, records: int, in_region: bool) -> None:
        self.samples["region" if in_region else "interpreter"] += 1
        if in_region or not records:
            return
        spot = Spot(records, (pc & 4095) >> 2)
        self._counts[spot] += 1
        if self._counts[spot] < HOT or spot in self._hopeless or len(self.installed) >= REGIONS:
            return
        with self._ready:
            self._wanted[spot] = (cpu, pc & -4096)
            self._ready.notify()

    # -- the compiler's thread -------------------------------------------------------------------------------------------
    def work(self) -> bool:
        """Serve the wishes, the hottest first; False when closed."""
        if self._stored is None:
            self._stored = {}
            for built in RegionStore(self.engine.code.cache).all():
                self._stored.setdefault(_entry_word(built), []).append(built)
        with self._ready:
            if self._closed:
                return False
            wanted, self._wanted = self._wanted, {}
        self._bind()
        self._attach()
        for spot in sorted(wanted, key=lambda s: -self._counts[s]):
            self._serve(spot, *wanted[spot])
        return True

    def waiting(self) -> tuple[threading.Condition, float]:
        """What to wait for before the next `work`, and how many seconds at most."""
        return self._ready, ATTENTIVE if self._bound else PATIENT

    def _serve(self, spot: Spot, cpu: Cpu, va: int) -> None:
        """Put a spot's region into service again, or order it."""
        heat = self._counts[spot]
        number = self._ordered.get(spot)
        if number is not None:
            self.engine.code.region_compiler.hotter(number, heat)
            return
        pages = Pages(cpu, va, spot.records, self._texts)
        known = self.installed.get(spot)
        if known is not None and known.install(self.engine, pages, self._texts):
            return
        text = pages.text(0)
        if text is None:
            return
        word = int.from_bytes(text[4 * spot.index : 4 * spot.index + 4], "little")
        shape = self.engine.entry.decode(word, spot.index)
        order = Order(pages.text, functools.partial(_deliver, weakref.ref(self), spot, pages))
        number = self.engine.code.region_compiler.order(heat, spot.index, shape, order)
        if number is not None:
            self._ordered[spot] = number

    def arrived(self, spot: Spot, pages: Pages, built: Built | None) -> None:
        """The compiler is done with a spot (on the client's thread)."""
        if built is not None and not self._closed:
            linked = Linked(built, self.engine.code)
            if linked.usable and linked.install(self.engine, pages, self._texts):
                self.installed[spot] = linked
        elif built is None:
            self._hopeless.add(spot)
        self._ordered.pop(spot, None)

    def _bind(self) -> None:
        """Find the pages that stored regions belong to."""
        shared = self.engine.shared
        if shared.code_next < shared.code_start + self._scanned * PAGE_BYTES:
            self._scanned = 0  # the arena was emptied
        if not self._stored:
            return
        entries = frozenset(self._stored)
        start = shared.code_start + self._scanned * PAGE_BYTES
        for page in range(start, shared.code_next, PAGE_BYTES):
            self._scanned += 1
            records = page + PAGE_HEADER
            text = self._texts.read(records)
            if text is None:
                continue
            words = memoryview(text).cast("I")
            for word in entries.intersection(words):  # a page at a time: whoever loops here keeps the vCPUs out of Python
                for built in self._stored[word]:
                    if words[built.entry] == word and all(words[i] == w for p, i, w in built.words if p == 0):
                        self._bound[Spot(records, built.entry)] = built

    def _attach(self) -> None:
        """Put stored regions into service whose code is being run by now."""
        undecoded = self.engine.shared.undecoded
        run = [spot for spot in self._bound if ctypes.c_uint64.from_address(spot.records + spot.index * RECORD_SIZE).value != undecoded]
        if not run:
            return
        places = {}
        for cpu in self.engine.cpus:
            if not cpu.state.itlb:
                continue  # it has not been started yet
            table = memoryview((ItlbEntry * ITLB_ENTRIES).from_address(cpu.state.itlb)).cast("B").cast("Q")
            for tag, records in zip(table[::2].tolist(), table[1::2].tolist(), strict=True):
                places[records] = (cpu, tag & ~GUARDED)
        for spot in run:
            place = places.get(spot.records)
            if place is None:
                continue
            pages = Pages(*place, spot.records, self._texts)
            built = self._bound[spot]
            if any(pages.records(p) is None for p in built.pages):
                continue
            del self._bound[spot]
            linked = Linked(built, self.engine.code)
            if linked.usable and linked.install(self.engine, pages, self._texts):
                self.installed[spot] = linked


def _entry_word(built: Built) -> int:
    """The word at a region's entry."""
    return next(word for page, index, word in built.words if page == 0 and index == built.entry)


class Pages:
    """The code pages around one, as a vCPU has them mapped at the moment."""

    def __init__(self, cpu: Cpu, va: int, records: int, texts: Texts) -> None:
        self._cpu, self._va, self._texts = cpu, va, texts
        self._known: dict[int, int | None] = {0: records}

    def records(self, distance: int) -> int | None:
        """Predecoded records of the page so many pages further; None if the vCPU has none there."""
        if distance not in self._known:
            va = self._va + (distance << 12) & (1 << 64) - 1
            entry = ItlbEntry.from_address(self._cpu.state.itlb + (va >> 12 & ITLB_ENTRIES - 1) * ctypes.sizeof(ItlbEntry))
            self._known[distance] = entry.records if entry.tag & ~GUARDED == va else None
        return self._known[distance]

    def text(self, distance: int) -> bytes | None:
        """The page's instructions."""
        records = self.records(distance)
        return None if records is None else self._texts.read(records)


def _deliver(reference: weakref.ref[Regions], spot: Spot, pages: Pages, built: Built | None) -> None:
    regions = reference()
    if regions is not None:
        regions.arrived(spot, pages, built)


def _watch(reference: weakref.ref[Regions]) -> None:
    while True:
        regions = reference()
        pause = None if regions is None else regions.look()
        if pause is None:
            return
        del regions
        time.sleep(pause)


def _compile(reference: weakref.ref[Regions]) -> None:
    while True:
        regions = reference()
        if regions is None or not regions.work():
            return
        ready, pause = regions.waiting()
        del regions  # who waits keeps no machine alive
        with ready:
            ready.wait(pause)
