"""Finding hot code and having it compiled.

A thread looks up to a thousand times a second where the vCPUs are, at no cost to them but a poll. What it meets more than once goes
to the compiler's process, and comes back as a region that runs in place of the record it was met at.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
import weakref
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from trapline.engine.state import (
    GUARDED,
    ITLB_ENTRIES,
    PAGE_BYTES,
    PAGE_HEADER,
    PAGE_INSNS,
    RECORD_SIZE,
    SAMPLES,
    ItlbEntry,
)
from trapline.engine.stencil.arena import Stencils, Templates
from trapline.engine.tier1.built import Built
from trapline.engine.tier1.client import Order, Page
from trapline.engine.tier1.install import Linked, Texts, link
from trapline.engine.tier1.store import RegionStore
from trapline.engine.tier1.stored import StoredRegions

if TYPE_CHECKING:
    from trapline.engine.cpu import Cpu
    from trapline.engine.engine import Engine
    from trapline.engine.tier1.paranoid import ParanoidCpu

PERIOD, CALM_PERIOD, IDLE_PERIOD = 0.001, 0.008, 0.02
"""Seconds between looks: while vCPUs are met in the interpreter; at most while they are in regions; while none runs."""
HOT, COVERED = 2, 32
"""How often code is met before it is compiled; and code inside a loop that is compiled already, and will soon be entered again."""
WARM = 4
"""How often a page is met, if nothing on it is hot, before regions of earlier runs are linked: to link one takes a sample's time."""
SETTLED = 100
"""So many pages that are younger than one are enough for it to be laid out although it was not met."""
REGIONS = 8192
"""Regions that are linked into one process at most: guests that write code without end get no more than these."""
ORDERS = 256
"""Regions that wait for the compiler at most."""
SPOTS = 1 << 16
"""Spots that are remembered at most, for whatever reason: past that all are forgotten, and what is hot is met again."""


@dataclass(frozen=True, slots=True)
class Spot:
    """An instruction by its record: the page's records, and the index."""

    records: int
    index: int


Places = dict[Spot, tuple["Cpu", int]]
"""Where things were met: a vCPU and the virtual address of the page."""


class Findings:
    """What the profiler's thread tells the compiler's thread."""

    def __init__(self) -> None:
        self._met: Places = {}
        self._hot: Places = {}
        self._changed = threading.Condition()
        self.closed = False

    def add(self, spot: Spot, cpu: Cpu, va: int, hot: bool) -> None:
        """The interpreter was met at a spot; `va` is the virtual address of its page. `hot`: not for the first time."""
        with self._changed:
            self._met[Spot(spot.records, 0)] = cpu, va
            if hot:
                self._hot[spot] = cpu, va
            self._changed.notify()

    def take(self) -> tuple[Places, Places] | None:
        """Wait for something new: the pages that were met and the spots that are hot; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._met or self.closed)
            found = self._met, self._hot
            self._met, self._hot = {}, {}
            return None if self.closed else found

    def close(self) -> None:
        """Nothing more will be found."""
        with self._changed:
            self.closed = True
            self._changed.notify()


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
        self._covered: set[Spot] = set()
        """Instructions in loops that regions run."""
        self._landings: defaultdict[int, set[int]] = defaultdict(set)
        """Where branches on a page were met to go."""
        self._seen = [0] * 64
        self._period = PERIOD
        self._ordered: dict[Spot, Ordered] = {}
        """What the compiler was asked for. It knows the spots alone: an order does not keep a machine alive."""
        self.stencils = Stencils(engine, functools.partial(_order_stencils, weakref.ref(self)))
        self._pages: Counter[int] = Counter()
        """How often the interpreter was met on a page."""
        self._due: dict[int, int] = {}
        """How often it must have been met before its page is laid out again."""
        self._settled = 0
        """Pages from this address on were not looked at yet (0: none was)."""
        self._again: set[int] = set()
        """Pages that may gain from templates that have arrived."""
        self._stored: StoredRegions | None = None
        self._findings = Findings()
        weakref.finalize(self, self._findings.close).atexit = False  # type: ignore[misc]
        for target, name in ((_watch, "trapline-profiler"), (_compile, "trapline-tier1")):
            threading.Thread(target=target, args=(weakref.ref(self), self._findings), name=name, daemon=True).start()

    def close(self) -> None:
        """Stop the threads."""
        self._findings.close()

    # -- the profiler's thread -------------------------------------------------------------------------------------------
    def look(self) -> float | None:
        """Ask where the vCPUs are and note what they answered before; the seconds to sleep, None when closed."""
        if self._findings.closed:
            return None
        running = False
        self._period = min(self._period * 2, CALM_PERIOD)
        for cpu in list(self.engine.cpus):
            state = cpu.state
            if state.running:
                running = True
                self._collect(cpu)
                state.poll_sample = 1
        return self._period if running else IDLE_PERIOD

    def _collect(self, cpu: Cpu) -> None:
        state = cpu.state
        count = state.sampled
        for k in range(max(self._seen[cpu.index], count - SAMPLES), count):
            sample = state.samples[k % SAMPLES]
            self._note(cpu, sample.pc, sample.records, bool(sample.in_region))
        self._seen[cpu.index] = count

    def _note(self, cpu: Cpu, pc: int, records: int, in_region: bool) -> None:
        spot = Spot(records, (pc & 4095) >> 2)
        landed = records and not in_region
        if self._runs(spot):
            in_region = True  # about to be entered
        self.samples["region" if in_region else "interpreter"] += 1
        if len(self._counts) >= SPOTS:
            self._counts.clear()
            self._landings.clear()
            self._covered.clear()
        if landed:
            self._landings[records].add(spot.index)
        if in_region or not records:
            return
        self._period = PERIOD
        self._pages[records] += 1
        self._counts[spot] += 1
        enough = COVERED if spot in self._covered else HOT
        hot = self._counts[spot] >= enough and spot not in self._hopeless
        if hot or self._stored is None or self._stored.has_news(records):
            self._findings.add(spot, cpu, pc & -4096, hot)

    # -- the compiler's thread -------------------------------------------------------------------------------------------
    def work(self, met: Places, hot: Places) -> None:
        """Put into service again what earlier runs made of the pages that are warm, and have made what is hot, the hottest first."""
        if self._stored is None:
            self._stored = StoredRegions(RegionStore(self.engine.code.cache).all().values())
        warm = {spot.records for spot in hot}
        for spot, place in met.items():
            if self._pages[spot.records] >= WARM or spot.records in warm:
                self._put_back(spot.records, *place)
        self._assemble(spot.records for spot in met)
        self.lay_out_settled()
        for spot in sorted(hot, key=lambda s: -self._counts[s]):
            self._serve(spot, *hot[spot])

    def _assemble(self, met: Iterable[int]) -> None:
        """Lay out pages from stencils. They fill up: each is done again after twice as many samples."""
        again, self._again = self._again, set()
        for records in {*again, *(r for r in met if self._pages[r] >= self._due.get(r, 1))}:
            self._due[records] = 2 * self._pages[records]
            self.stencils.assemble(records, self._texts.read)

    def lay_out_settled(self) -> None:
        """Lay out pages that nobody met, once most of what will run there has: much of a guest is in no place for a sample's time."""
        shared = self.engine.shared
        if shared.code_next < self._settled:
            self._settled = 0  # all pages were forgotten
            self._due.clear()
        at = self._settled or shared.code_start
        while at + SETTLED * PAGE_BYTES < shared.code_next and self.stencils.has_plenty:
            records = at + PAGE_HEADER
            if records not in self._due:
                self._due[records] = 1
                self.stencils.assemble(records, self._texts.read)
            at += PAGE_BYTES
        self._settled = at

    def reassemble(self) -> None:
        """There are more templates: look at all pages again (on the client's thread)."""
        self._again = set(self._pages)

    def _put_back(self, records: int, cpu: Cpu, va: int) -> None:
        """Put into service what earlier runs compiled of a page."""
        assert self._stored is not None
        waiting = self._stored.waiting(records, self._texts)
        if not waiting or not self._room:
            return
        pages = Pages(self.engine, cpu, va, records, self._texts)
        ready: list[Built] = []
        left: list[Built] = []
        taken: set[int] = set()
        for built in waiting:
            entry = built.entries[0]
            if not self._decoded(records, entry) or any(pages.records(p) is None for p in built.pages):
                left.append(built)
            elif entry not in taken and not self._runs(Spot(records, entry)):  # else linking it would gain little
                ready.append(built)
                taken.update(built.entries)
        for linked in link(ready[: self._room], self.engine.code):
            self._install(pages, linked)
        waiting[:] = left

    def _decoded(self, records: int, index: int) -> bool:
        handler = ctypes.c_uint64.from_address(records + index * RECORD_SIZE).value
        return bool(handler != self.engine.shared.undecoded)

    def _runs(self, spot: Spot) -> bool:
        """Whether a region runs at a spot at the moment."""
        linked = self.installed.get(spot)
        return linked is not None and linked.runs_at(spot.records, spot.index)

    @property
    def _room(self) -> int:
        """How many more regions may be linked."""
        return max(0, REGIONS - len(self.engine.code.regions))

    def _serve(self, spot: Spot, cpu: Cpu, va: int) -> None:
        """Put a spot's region into service again, or order it."""
        heat = self._counts[spot]
        ordered = self._ordered.get(spot)
        if ordered is not None:
            self.engine.code.region_compiler.hotter(ordered.number, heat)
            return
        pages = Pages(self.engine, cpu, va, spot.records, self._texts, self._landings)
        known = self.installed.get(spot)
        if known is not None and spot.index in known.install(self.engine, pages, self._texts):
            return
        if len(self._ordered) >= ORDERS or not self._room:
            return
        ordered = self._ordered[spot] = Ordered(pages)
        order = Order(functools.partial(_see, weakref.ref(self), spot), functools.partial(_deliver, weakref.ref(self), spot))
        exact = spot in self._covered  # a loop that has a region is left, or entered, here
        number = self.engine.code.region_compiler.order(heat, spot.index, exact, order)
        if number is not None:
            ordered.number = number
        else:
            self._ordered.pop(spot, None)

    def _install(self, pages: Pages, linked: Linked) -> None:
        built = linked.built
        indices = linked.install(self.engine, pages, self._texts)
        if not indices:
            return
        homes = {page: records for page in built.pages if (records := pages.records(page)) is not None}
        self.installed |= {Spot(homes[0], index): linked for index in indices}
        if built.loops:
            inside = {Spot(homes[page], index) for page, index, _ in built.words if page in homes}
            if len(self._covered) >= SPOTS:
                self._covered.clear()
            self._covered |= inside
            for spot in inside:
                self._counts.pop(spot, None)  # what was met until now says nothing of the region
            for spot in inside.intersection(list(self._ordered)):
                ordered = self._ordered.pop(spot, None)
                if ordered is not None:  # the other thread may have been quicker
                    self.engine.code.region_compiler.forget(ordered.number)

    def seen(self, spot: Spot, distance: int) -> Page:
        """A page near a spot that was ordered (on the client's thread)."""
        ordered = self._ordered.get(spot)
        return ordered.pages.seen(distance) if ordered is not None else (None, ())

    def arrived(self, spot: Spot, built: Built | None) -> None:
        """The compiler is done with a spot (on the client's thread)."""
        ordered = self._ordered.pop(spot, None)
        if ordered is None:
            return  # it was taken back
        if built is not None and not self._findings.closed and self._room:
            for linked in link([built], self.engine.code):
                self._install(ordered.pages, linked)
        elif built is None:
            if len(self._hopeless) >= SPOTS:
                self._hopeless.clear()
            self._hopeless.add(spot)


class Pages:
    """The code pages around one, as a vCPU has them mapped at the moment."""

    def __init__(
        self, engine: Engine, cpu: Cpu, va: int, records: int, texts: Texts, landings: Mapping[int, Collection[int]] = MappingProxyType({})
    ) -> None:
        """`landings` says by records where branches were met to go."""
        self._undecoded, self._landings = engine.shared.undecoded, landings
        self._cpu, self._va, self._texts = cpu, va, texts
        self._known: dict[int, int | None] = {0: records}

    def records(self, distance: int) -> int | None:
        """Predecoded records of the page so many pages further; None if the vCPU has none there."""
        if distance not in self._known:
            va = self._va + (distance << 12) & (1 << 64) - 1
            entry = ItlbEntry.from_address(self._cpu.state.itlb + (va >> 12 & ITLB_ENTRIES - 1) * ctypes.sizeof(ItlbEntry))
            self._known[distance] = entry.records if entry.tag & ~GUARDED == va else None
        return self._known[distance]

    def seen(self, distance: int) -> Page:
        """The page's instructions, zeros in place of those that never ran, and those that were branched to."""
        records = self.records(distance)
        text = None if records is None else self._texts.read(records)
        if records is None or text is None:
            return None, ()
        handlers = (ctypes.c_uint64 * (PAGE_INSNS * RECORD_SIZE // 8)).from_address(records)[:: RECORD_SIZE // 8]
        words = zip(memoryview(text).cast("I"), handlers, strict=True)
        ran = array("I", [0 if handler == self._undecoded else word for word, handler in words]).tobytes()
        return ran, tuple(self._landings.get(records, ()))


@dataclass(eq=False, slots=True)
class Ordered:
    """A region that was asked for: the pages around its spot, and the order's number, 0 while it is being placed."""

    pages: Pages
    number: int = 0


def _see(reference: weakref.ref[Regions], spot: Spot, distance: int) -> Page:
    regions = reference()
    return (None, ()) if regions is None else regions.seen(spot, distance)


def _deliver(reference: weakref.ref[Regions], spot: Spot, built: Built | None) -> None:
    regions = reference()
    if regions is not None:
        regions.arrived(spot, built)


def _watch(reference: weakref.ref[Regions], findings: Findings) -> None:
    while True:
        regions = reference()
        pause = None if regions is None else regions.look()
        if pause is None:
            return
        del regions
        time.sleep(pause)


def _compile(reference: weakref.ref[Regions], findings: Findings) -> None:
    while (found := findings.take()) is not None:
        regions = reference()  # not while it waits: that would keep alive a machine that nobody holds
        if regions is None:
            return
        regions.work(*found)
        del regions, found  # it names vCPUs


def _order_stencils(reference: weakref.ref[Regions], shapes: list[int]) -> bool:
    regions = reference()
    if regions is None:
        return False
    deliver = functools.partial(_add_templates, regions.engine.code.templates, reference)
    return regions.engine.code.region_compiler.order_stencils(shapes, deliver)


def _add_templates(templates: Templates, reference: weakref.ref[Regions], book: bytes) -> None:
    templates.add(book)
    regions = reference()
    if regions is not None:
        regions.reassemble()
