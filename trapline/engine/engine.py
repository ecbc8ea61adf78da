"""The software machine's processors: one engine holds the compiled code and what its vCPUs share."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trapline
from trapline.arm64.features import Features
from trapline.engine.cache import ObjectCache
from trapline.engine.clock import CLOCK
from trapline.engine.cpu import Cpu
from trapline.engine.haste import DECODER, SHAPES, linger
from trapline.engine.jit import Jit, source_key
from trapline.engine.shapes import QUICK, ShapeTable
from trapline.engine.state import (
    ALONE,
    MAX_CPUS,
    PAGE_BYTES,
    PAGE_HEADER,
    PAGE_INSNS,
    CodeTlb,
    EngineState,
    Posting,
    Shared,
)
from trapline.engine.stencil.arena import Templates
from trapline.engine.tier1.client import RegionCompiler
from trapline.engine.tier1.manager import Regions
from trapline.engine.timers import Timers
from trapline.engine.turn_cpu import TurnCpu, TurnTimers
from trapline.errors import NotSupported
from trapline.mapping import map_far

if TYPE_CHECKING:
    from trapline.engine.compiler import Compiler
    from trapline.turns import Turns

INDEX = "index.json"
TIER1 = "TRAPLINE_TIER1"
"""Environment variable: 0 leaves everything to the interpreter."""
PARANOID = "paranoid"
"""Its value for checking regions against the walker before they are trusted."""
CODE_PAGES = 6144
"""Predecoded pages an engine holds at most (32 KiB each, backed by memory as they are used)."""
MAP_ENTRIES = 4 * CODE_PAGES
LOOK_AHEAD = 96
"""Instructions after a missing shape whose shapes are compiled with it."""

class Entry:
    """Compiled functions that Python calls; vCPUs and shared structures are given by address."""

    def __init__(self, address: Callable[[str], int], assembler: dict[str, str]) -> None:
        def bind(symbol: str, result: type | None, *params: type) -> Callable[..., int]:
            return ctypes.CFUNCTYPE(result, *params)(address(symbol))

        u32, u64 = ctypes.c_uint32, ctypes.c_uint64
        self.enter = bind("trapline_enter", u32, u64)
        self.launch = bind("trapline_launch", u32, u64)
        self.proceed = bind("trapline_proceed", u32, u64)
        self.external_abort = bind("trapline_external_abort", None, u64)
        self.decode = bind("trapline_decode_word", u32, u32, u64)
        self.flush_all = bind("trapline_flush_all", None, u64)
        self.request_sync = bind("trapline_request_sync", None, u64, u64, u64, u64)
        self.reset_tlbs = bind("trapline_reset_tlbs", None, u64)
        self.lines = bind("trapline_lines", u32, u64)
        self.next_count = bind("trapline_next_count", u64, u64)
        self.set_alarm = bind("trapline_set_alarm", ctypes.c_bool, u64)
        self.wait_for_alarms = bind("trapline_wait_for_alarms", None, u64)
        self.stop_alarms = bind("trapline_stop_alarms", None, u64)
        self.fill = bind("trapline_fill", u64, u64, u64, u32)
        self.find_records = bind("trapline_find_records", u64, u64, u64)
        self.install = bind("trapline_install", ctypes.c_bool, u64, u64, u64, u64, u64, u64)
        if assembler:
            self.choose, self.assemble = (bind(assembler[name], u64, u64) for name in ("choose", "assemble"))
            self.publish = bind(assembler["publish"], u64, u64, u64)
        self.reset_records = bind("trapline_reset_records", None, u64, u64, u64, u64)
        self.post = bind("trapline_post", ctypes.c_bool, u64, u64, u64, u64)
        self.forget_posted = bind("trapline_forget_posted", None, u64)


class Posts:
    """Writes to devices that wait in a ring (`Posting`) until somebody takes them."""

    def __init__(self, entry: Entry, ring: int, capacity: int) -> None:
        self._entry = entry
        self._posting = Posting(ring, capacity)
        self.address = ctypes.addressof(self._posting)
        """For `EngineState.posting` of the vCPUs whose writes wait there."""

    def write(self, address: int, size: int, value: int) -> bool:
        """Add a write, and have such writes of the guest's added from now on without asking; False if there is no room."""
        return bool(self._entry.post(self.address, address, size, value))

    def forget(self) -> None:
        """Ask about every write again."""
        self._entry.forget_posted(self.address)


class Code:
    """Compiled code of one configuration: the runtime, the predecoder and the handlers."""

    def __init__(self, features: Features, counting: bool) -> None:
        self.jit = Jit()
        self.features, self.counting = features, counting
        self.cache = ObjectCache(source_key(Path(trapline.__file__).parent, repr(features)))
        self.lock = threading.Lock()
        self.haste = not counting and os.environ.get(TIER1) is None and linger() > 0
        """Whether the compiler's process will improve what is made in haste."""
        self.regions: set[str] = set()
        """Tags of the regions that are linked."""
        index = self._index()
        self._load("clock.o", lambda: CLOCK)
        for name in ("trapline_system_counter", "trapline_random"):
            self.jit.define(name, self.jit.address(name))
        self._load("runtime.o", lambda: self.compiler.runtime_text())
        self._exports = {name: self.jit.address(symbol) for name, symbol in index["exports"].items()}
        for name, address in self._exports.items():
            self.jit.define(name, address)
        suffix = ".counting" if counting else SHAPES
        self.shapes = ShapeTable(index["count"], self.jit, self.cache, lambda: self.compiler, suffix, self.haste)
        self._load_decoder()
        self._load("glue.o", lambda: self.compiler.glue_text())
        self.shapes.load()
        if not counting:
            self._load("assembler.o", lambda: self.compiler.assembler_text())
        assembler = {} if counting else index["assembler"]
        self.entry = Entry(lambda symbol: self._exports.get(symbol) or self.jit.address(symbol), assembler)
        self.templates = Templates(index["count"], self)

    @functools.cached_property
    def compiler(self) -> Compiler:
        """What makes code that the cache lacks; it brings the whole instruction set with it."""
        from trapline.engine.compiler import Compiler

        return Compiler(self.features, self.counting)

    @functools.cached_property
    def region_compiler(self) -> RegionCompiler:
        """The process that compiles regions."""
        return RegionCompiler(self)

    def _index(self) -> dict[str, Any]:
        """Facts about the compiled code that would otherwise need the declarations: number of shapes, exported names."""
        stored = self.cache.get(INDEX)
        if stored is not None:
            return json.loads(stored)  # type: ignore[no-any-return]
        index = {"count": self.compiler.space.count, "exports": self.compiler.exports, "assembler": self.compiler.assembler}
        self.cache.put(INDEX, json.dumps(index).encode())
        return index

    def _load(self, name: str, text: Callable[[], str], speed: int = 2) -> None:
        data = self.cache.get(name)
        if data is None:
            data = self.jit.compile(text(), speed)
            self.cache.put(name, data)
        self.jit.load(data)

    def _load_decoder(self) -> None:
        if self.haste and self.cache.get(DECODER) is None:
            data = self.cache.get(DECODER + QUICK)
            if data is None:
                data = self.jit.compile_in_haste(self.compiler.decoder_text())
                self.cache.put(DECODER + QUICK, data)
            self.jit.load(data)
        else:
            self._load(DECODER, lambda: self.compiler.decoder_text(), speed=0)

    def compile_words(self, words: list[tuple[int, int]]) -> None:
        """Make handlers for (word, index in page) pairs, all that lack one."""
        with self.lock:
            self.shapes.compile(self.entry.decode(word, index) for word, index in words)


@functools.cache
def code_for(features: Features, counting: bool) -> Code:
    """The compiled code for a set of features: loaded once in a process."""
    return Code(features, counting)


class Engine:
    """Processors that share memory, compiled code and predecoded pages."""

    def __init__(self, features: Features | None = None, counting: bool = False, turns: Turns | None = None) -> None:
        """`counting`: count retired instructions. `turns`: be deterministic, which needs counting."""
        self.features = features if features is not None else Features()
        self.code = code_for(self.features, counting or turns is not None)
        self.entry = self.code.entry
        self.reset_values = {reg.slot: int(value) for reg, value in self.features.reset_values().items()}
        self.turns = turns
        self._states: list[EngineState] = []
        self.cpus: list[Cpu] = []
        self.paused = False
        """Set while one PE needs all others to stay outside compiled code."""
        self._lock = threading.Lock()
        self._stop = threading.Lock()
        self._arena = map_far(CODE_PAGES * PAGE_BYTES, huge=True)
        self._map = (ctypes.c_uint64 * (2 * MAP_ENTRIES))()
        self._no_code = CodeTlb()
        ctypes.memset(ctypes.addressof(self._no_code), 0xFF, ctypes.sizeof(self._no_code))  # no page has such a tag
        self.shared = Shared()
        self.shared_address = ctypes.addressof(self.shared)
        self.timers: Timers | TurnTimers = Timers(self.entry, self.shared, self._states) if turns is None else TurnTimers()
        self.regions: Regions | None = None
        """Tier 1, from the first vCPU on; none where instructions are counted or TRAPLINE_TIER1 is 0."""
        self._prepare()

    def _prepare(self) -> None:
        with self.code.lock:  # another engine's regions may be linked at this moment
            self._fill_in_addresses()

    def _fill_in_addresses(self) -> None:
        shared, jit, shapes = self.shared, self.code.jit, self.code.shapes
        shared.handlers = ctypes.addressof(shapes.handlers)
        shared.fills = ctypes.addressof(shapes.fills)
        shared.undecoded = jit.address("trapline_undecoded")
        self.check_address = jit.address("trapline_check")
        shared.page_end = jit.address("trapline_page_end")
        shared.lone = jit.address("trapline_lone")
        shared.no_code = ctypes.addressof(self._no_code)
        shared.map = ctypes.addressof(self._map)
        shared.map_mask = MAP_ENTRIES - 1
        base = ctypes.addressof(self._arena)
        shared.code_start = shared.code_next = base + -base % 64
        shared.code_end = base + ctypes.sizeof(self._arena)

    def create_cpu(self) -> Cpu:
        """A new PE, at EL2 and stopped. It stays with the engine: who is done with it may reset it and use it again."""
        with self._lock:
            if len(self.cpus) == MAX_CPUS:
                raise NotSupported(f"a software machine has at most {MAX_CPUS} processors")
            if self.regions is None and not self.code.counting and os.environ.get(TIER1) != "0":
                self.regions = Regions(self)
            index = len(self.cpus)
            cpu = self._make_cpu(index)
            self.cpus.append(cpu)
            self._states.append(cpu.state)
            self.shared.cpus[cpu.index] = cpu.address
            self.shared.cpu_count = len(self.cpus)
            return cpu

    def _make_cpu(self, index: int) -> Cpu:
        if self.turns is not None:
            return TurnCpu(self, index, self.turns)
        if self.regions is not None and os.environ.get(TIER1) == PARANOID:
            from trapline.engine.tier1.paranoid import ParanoidCpu

            self.regions.checker = checker = ParanoidCpu(self, index)
            return checker
        return Cpu(self, index)

    def compile_for(self, cpu: Cpu) -> None:
        """Compile the handler that `cpu` lacks at its pc, and those that follow in its page."""
        state = cpu.state
        first = (state.pc & 4095) >> 2
        code = ctypes.c_uint64.from_address(state.records - PAGE_HEADER).value
        last = min(first + LOOK_AHEAD, PAGE_INSNS)
        words = (ctypes.c_uint32 * PAGE_INSNS).from_address(code)
        alone = state.missing_alone
        self.code.compile_words([(words[k], ALONE if alone else k) for k in range(first, last)])

    def create_posts(self, ring: int, capacity: int) -> Posts | None:
        """A ring at this address for writes that wait; None where every access has to be seen when it happens."""
        return None if self.code.counting else Posts(self.entry, ring, capacity)

    # -- maintenance by the hypervisor -----------------------------------------------------------------------------------
    def tlbi_vmalls12e1(self, vmid: int) -> None:
        """Forget all translations, on every PE, and wait until none is in use."""
        for cpu in self.cpus:
            cpu.request_flush()
        for cpu in self.cpus:
            cpu.wait_flush()

    def tlbi_ipas2e1is(self, vmid: int, ipa: int, size: int) -> None:
        """Forget translations of a range of intermediate physical addresses (here: all)."""
        self.tlbi_vmalls12e1(vmid)

    def drop_code(self, host_addr: int, size: int) -> None:
        """Forget instructions decoded from a range of host memory, which is about to hold something else."""
        start, end = host_addr & -4096, host_addr + size
        for page in memoryview(self._map).cast("B").cast("Q")[::2].tolist():
            if start <= page < end:
                records = self.entry.find_records(self.shared_address, page)
                self.entry.reset_records(self.shared_address, records, 0, PAGE_INSNS)

    def flush_code(self, cpu: Cpu) -> None:
        """The code arena is full: stop every other PE, forget all predecoded pages, go on."""
        cpu.state.running = 0
        with self._stop:
            self.paused = True
            others = [c for c in self.cpus if c is not cpu]
            for other in others:
                while other.state.running:
                    other.kick()
                    os.sched_yield()
            if self.shared.code_next + PAGE_BYTES > self.shared.code_end:
                ctypes.memset(ctypes.addressof(self._map), 0, ctypes.sizeof(self._map))
                self.shared.code_next = self.shared.code_start
                for each in (cpu, *others):
                    self.entry.flush_all(each.address)
                if self.regions is not None:
                    self.regions.stencils.forget()
            self.paused = False
        cpu.state.running = 1

    def wait_for_others(self, cpu: Cpu) -> None:
        """Stand aside while `flush_code` is at work."""
        while self.paused:
            cpu.state.running = 0
            with self._stop:
                pass
            cpu.state.running = 1

    def close(self) -> None:
        """Stop the engine's threads."""
        if self.regions is not None:
            self.regions.close()
        self.timers.close()
