"""The software machine's processors: one engine holds the compiled code and what its vCPUs share."""

from __future__ import annotations

import ctypes
import functools
import mmap
import threading
from collections.abc import Callable
from pathlib import Path

import trapline
from trapline.arm64.features import Features
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE
from trapline.arm64.sysreg_functions import FUNCTIONS
from trapline.bits.native import emit_module
from trapline.engine import codemap, glue, runtime, slow, system, tlb
from trapline.engine.access import specialise
from trapline.engine.cpu import Cpu
from trapline.engine.jit import Jit, ObjectCache, source_key
from trapline.engine.shapes import ShapeTable
from trapline.engine.state import MAX_CPUS, PAGE_BYTES, PAGE_HEADER, PAGE_INSNS, Shared
from trapline.engine.timers import Timers
from trapline.errors import NotSupported

CODE_PAGES = 8192
"""Predecoded pages an engine holds at most (32 KiB each, backed by memory as they are used)."""
MAP_ENTRIES = 4 * CODE_PAGES
LOOK_AHEAD = 96
"""Instructions after a missing shape whose shapes are compiled with it."""

CALLED = (
    runtime.lookup, runtime.service, runtime.begin, runtime.continue_, runtime.fp_exception, runtime.raise_, runtime.lines,
    runtime.next_count, slow.slow_host, slow.slow_store, system.after, tlb.flush_all,
    tlb.request_sync, codemap.find_records, codemap.reset_records,
)  # fmt: skip
"""Native functions that handlers, glue and Python call as `trapline_<name>`."""

SYSTEM = tuple(
    getattr(system, name)
    for name in (
        "mrs", "msr", "sys", "sysl", "trap_el2", "sysreg_trap", "msr_imm", "eret", "eret_auth", "pac_trap", "wfi", "wfe", "sev",
        "sevl", "clrex", "dsb", "tlbi", "ic_ivau", "ic_iallu", "at", "sp_alignment",
    )
)  # fmt: skip
"""System operations, called as `trapline_sys_<name>`."""

class Entry:
    """Compiled functions that Python calls; vCPUs and shared structures are given by address."""

    def __init__(self, jit: Jit) -> None:
        def bind(symbol: str, result: type | None, *params: type) -> Callable[..., int]:
            return ctypes.CFUNCTYPE(result, *params)(jit.address(symbol))

        u32, u64 = ctypes.c_uint32, ctypes.c_uint64
        self.enter = bind("trapline_enter", u32, u64)
        self.proceed = bind("trapline_proceed", u32, u64)
        self.decode = bind("trapline_decode_word", u32, u32, u64)
        self.flush_all = bind(tlb.flush_all.symbol, None, u64)
        self.request_sync = bind(tlb.request_sync.symbol, None, u64)
        self.lines = bind(runtime.lines.symbol, u32, u64)
        self.next_count = bind(runtime.next_count.symbol, u64, u64)
        self.find_records = bind(codemap.find_records.symbol, u64, u64, u64)
        self.reset_records = bind(codemap.reset_records.symbol, None, u64, u64, u64, u64)


class Code:
    """Compiled code of one configuration: the runtime, the predecoder and the handlers."""

    def __init__(self, features: Features, counting: bool) -> None:
        self.jit = Jit()
        self.features = features
        key = source_key(Path(trapline.__file__).parent, repr(sorted(features)))
        self.cache = ObjectCache(key)
        self.lock = threading.Lock()
        self._load("clock.o", lambda: glue.CLOCK)
        self.jit.define("trapline_system_counter", self.jit.address("trapline_system_counter"))
        self._load("runtime.o", lambda: emit_module((*CALLED, *SYSTEM), ""))
        for prefix, functions in (("trapline_", CALLED), ("trapline_sys_", SYSTEM)):
            for function in functions:
                self.jit.define(prefix + function.name.rstrip("_"), self.jit.address(function.symbol))
        isa = specialise(load_a64(), FUNCTIONS, features)
        self.shapes = ShapeTable(isa, self.jit, self.cache, _slot, features.__contains__, counting)
        self._load("decoder.o", self.shapes.decoder_text, speed=0)
        self._load("glue.o", glue.text)
        self.shapes.load()
        self.entry = Entry(self.jit)

    def _load(self, name: str, text: Callable[[], str], speed: int = 2) -> None:
        data = self.cache.get(name)
        if data is None:
            data = self.jit.compile(text(), speed)
            self.cache.put(name, data)
        self.jit.load(data)

    def compile_words(self, words: list[tuple[int, int]]) -> None:
        """Make handlers for (word, index in page) pairs, all that lack one."""
        with self.lock:
            self.shapes.compile(self.entry.decode(word, index) for word, index in words)


def _slot(name: str) -> int:
    return TABLE[name].slot


@functools.cache
def code_for(features: Features, counting: bool) -> Code:
    """The compiled code for a set of features: loaded once in a process."""
    return Code(features, counting)


class Engine:
    """Processors that share memory, compiled code and predecoded pages."""

    def __init__(self, features: Features | None = None, counting: bool = False) -> None:
        self.features = features if features is not None else Features()
        self.code = code_for(self.features, counting)
        self.entry = self.code.entry
        self.reset_values = {reg.slot: int(value) for reg, value in self.features.reset_values().items()}
        self.timers = Timers()
        self.cpus: list[Cpu] = []
        self._lock = threading.Lock()
        self._arena = mmap.mmap(-1, CODE_PAGES * PAGE_BYTES)
        self._map = (ctypes.c_uint64 * (2 * MAP_ENTRIES))()
        self.shared = Shared()
        self.shared_address = ctypes.addressof(self.shared)
        self._prepare()

    def _prepare(self) -> None:
        shared, jit, shapes = self.shared, self.code.jit, self.code.shapes
        shared.handlers = ctypes.addressof(shapes.handlers)
        shared.fills = ctypes.addressof(shapes.fills)
        shared.undecoded = jit.address("trapline_undecoded")
        shared.page_end = jit.address("trapline_page_end")
        shared.map = ctypes.addressof(self._map)
        shared.map_mask = MAP_ENTRIES - 1
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._arena))
        shared.code_start = shared.code_next = base + -base % 64
        shared.code_end = base + len(self._arena)

    def create_cpu(self) -> Cpu:
        """A new PE, at EL2 and stopped."""
        with self._lock:
            if len(self.cpus) == MAX_CPUS:
                raise NotSupported(f"a software machine has at most {MAX_CPUS} processors")
            cpu = Cpu(self, len(self.cpus))
            self.cpus.append(cpu)
            self.shared.cpus[cpu.index] = cpu.address
            self.shared.cpu_count = len(self.cpus)
            return cpu

    def compile_for(self, cpu: Cpu) -> None:
        """Compile the handler that `cpu` lacks at its pc, and those that follow in its page."""
        state = cpu.state
        first = (state.pc & 4095) >> 2
        code = ctypes.c_uint64.from_address(state.records - PAGE_HEADER).value
        last = min(first + LOOK_AHEAD, PAGE_INSNS)
        words = (ctypes.c_uint32 * PAGE_INSNS).from_address(code)
        self.code.compile_words([(words[k], k) for k in range(first, last)])

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
        """The code arena is full: stop every PE, forget all predecoded pages, start again."""
        raise NotSupported(f"the guest runs code from more than {CODE_PAGES} pages")

    def close(self) -> None:
        """Stop the timer thread and let the PEs go."""
        self.timers.close()
        self.shared.cpu_count = 0
        self.cpus.clear()
