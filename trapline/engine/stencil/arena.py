"""Stencils in service: the templates of a configuration, and one engine's code made of them."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from trapline.engine.state import PAGE_GENERATION, PAGE_HEADER, PAGE_INSNS
from trapline.engine.stencil.template import (
    CALLED,
    CONSTANT,
    FUNCTION,
    NONE,
    SPECIAL,
    UNSUITED,
    Assembly,
    Template,
    bind,
    relocations_of,
)
from trapline.mapping import map_far, protect

if TYPE_CHECKING:
    from trapline.engine.cache import ObjectCache
    from trapline.engine.engine import Code, Engine

SUFFIX = ".stencils"
SPECIALS = frozenset(SPECIAL.values())
ARENA = 64 << 20
"""Bytes of code of one engine at most; when they are used up, what is not there yet stays with the interpreter."""
WINDOW = 512 << 10
"""Bytes that are writable at a time: more than a page of code can become."""
PAGE = 4096
NOTHING, WRITING, RUNNING = 0, mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_EXEC


class Templates:
    """The templates of a configuration by shape; more come from the compiler's process."""

    def __init__(self, count: int, code: Code) -> None:
        """The handlers that there are must be linked."""
        self.table = (ctypes.c_uint64 * count)()
        self.special: dict[int, int] = {}
        self._found: dict[int, tuple[int, list[str]]] = {}
        """Where the template of a shape is, and its book's native functions: those that nobody asked for yet."""
        self._code = code
        self._books: list[ctypes.Array[ctypes.c_char]] = []
        for name in code.cache.names():
            book = code.cache.get(name) if name.endswith(SUFFIX) else None
            if book is not None:
                self.add(book)

    def add(self, book: bytes) -> None:
        """Make a book's templates known."""
        memory = ctypes.create_string_buffer(book, len(book))
        self._books.append(memory)
        natives, templates = bind(ctypes.addressof(memory), book)
        for shape, template in templates:
            if shape in SPECIALS:
                self.special[shape] = template
                continue
            self._found[shape] = template, natives
            if self.table[shape] == NONE:
                self.table[shape] = 0  # it was asked for

    def link(self, shapes: Iterable[int]) -> bool:
        """Enter the templates of these shapes into the table; whether there was one."""
        done = False
        for shape in set(shapes):
            found = self._found.pop(shape, None)
            if found is not None:
                template, natives = found
                self.table[shape] = template if _link(template, natives, self._code) else NONE
                done = True
        return done

    def ask(self, shapes: Iterable[int]) -> list[int]:
        """Of these shapes, those that nobody asked for yet; now somebody did."""
        wanted = [shape for shape in sorted(set(shapes)) if not self.table[shape]]
        for shape in wanted:
            self.table[shape] = NONE
        return wanted

    def refused(self, shapes: Iterable[int]) -> None:
        """Nobody could be asked for these."""
        for shape in shapes:
            self.table[shape] = 0


def _link(template: int, natives: list[str], code: Code) -> bool:
    """Fill in the addresses of native functions; whether the template can be used."""
    if Template.from_address(template).flags & UNSUITED:
        return False
    for place in relocations_of(template):
        if place.kind == CALLED:
            name = natives[place.addend]
            if not code.shapes.knows([name]):
                return False
            place.kind, place.addend = CONSTANT, code.jit.address(name)
    return True


def store(cache: ObjectCache, shapes: list[int], book: bytes) -> None:
    """Keep a book for later runs."""
    cache.put(hashlib.sha256(repr(shapes).encode()).hexdigest()[:16] + SUFFIX, book)


class Stencils:
    """The code of one engine that is made of stencils. Assembling is for one thread at a time."""

    def __init__(self, engine: Engine, order: Callable[[list[int]], bool]) -> None:
        """`order(shapes)` has templates made; False if that is not possible now."""
        self._engine, self._order = engine, order
        self._lock = threading.Lock()
        self._memory = map_far(ARENA)
        base = ctypes.addressof(self._memory)
        self._start = base + -base % PAGE
        self._end = base + ARENA & -PAGE
        protect(self._start, self._end - self._start, NOTHING)
        self._next = self._first = self._start + PAGE  # the page before has the jumps to the glue
        self._assembly = Assembly()
        self._text = ctypes.create_string_buffer(PAGE)
        self._places = (ctypes.c_uint64 * PAGE_INSNS)()
        self._missing = (ctypes.c_uint64 * PAGE_INSNS)()
        self.instructions = 0
        """How many run as stencils, or did."""

    @property
    def span(self) -> tuple[int, int]:
        """Where stencils are, and what is reserved for them: first address and end."""
        return self._start, self._end

    def owns(self, handler: int) -> bool:
        """Whether a record's handler is a stencil of ours."""
        return self._start <= handler < self._end

    @property
    def has_plenty(self) -> bool:
        """Whether there is room even for pages that may not be worth it."""
        return self._next - self._start < ARENA // 2

    def forget(self) -> None:
        """Use the arena anew; no vCPU is in it, and no record refers to it."""
        with self._lock:
            self._next = self._first

    def assemble(self, records: int, text: Callable[[int], bytes | None]) -> int:
        """Have as many instructions of a page as possible run as stencils; how many more do."""
        with self._lock:
            return self._assemble(records, text)

    def _assemble(self, records: int, text: Callable[[int], bytes | None]) -> int:
        engine, assembly = self._engine, self._assembly
        entry = engine.entry
        if not self._ready():
            return 0
        assembly.generation = ctypes.c_uint64.from_address(records - PAGE_HEADER + PAGE_GENERATION).value
        code = text(records)  # after the generation: what changes from here on changes that too
        if code is None:
            return 0
        ctypes.memmove(self._text, code, PAGE)
        assembly.records = records
        assembly.out, assembly.limit = self._next, min(self._next + WINDOW, self._end)
        chosen = entry.choose(ctypes.addressof(assembly))
        if engine.code.templates.link(self._missing[: assembly.missing_count]):
            chosen = entry.choose(ctypes.addressof(assembly))
        self._ask(self._missing[: assembly.missing_count])
        if not chosen:
            return 0
        protect(self._next, assembly.limit - self._next, WRITING)
        end = entry.assemble(ctypes.addressof(assembly))
        if not end:
            return 0
        end += -end % PAGE
        protect(self._next, end - self._next, RUNNING)
        self._next = end
        done = int(entry.publish(engine.shared_address, ctypes.addressof(assembly)))
        self.instructions += done
        return done

    def _ask(self, shapes: Iterable[int]) -> None:
        templates = self._engine.code.templates
        wanted = templates.ask(shapes)
        if wanted and not self._order(wanted):
            templates.refused(wanted)

    def _ready(self) -> bool:
        """Whether there is what all code needs; the compiler's process sends it with the first templates."""
        assembly, templates = self._assembly, self._engine.code.templates
        if assembly.templates:  # set last
            return True
        if not templates.special:
            self._ask([0])
            return False
        jit = self._engine.code.jit
        protect(self._start, PAGE, WRITING)
        at = self._start
        for field in ("poll", "goto", "landing"):
            name = "trapline_goto_landing" if field == "landing" else f"trapline_{field}"
            setattr(assembly, field, at)
            at += _lay_far(templates.special[SPECIAL["far"]], at, jit.address(name))
        protect(self._start, PAGE, RUNNING)
        assembly.leave, assembly.slow = (templates.special[SPECIAL[name]] for name in ("leave", "slow_"))
        assembly.text, assembly.places = ctypes.addressof(self._text), ctypes.addressof(self._places)
        assembly.missing = ctypes.addressof(self._missing)
        assembly.handlers = ctypes.addressof(self._engine.code.shapes.handlers)
        assembly.templates = ctypes.addressof(templates.table)
        return True


def _lay_far(template: int, out: int, function: int) -> int:
    """Write a jump to a function of the host; its size, rounded up."""
    head = Template.from_address(template)
    places = relocations_of(template)
    ctypes.memmove(out, template + ctypes.sizeof(Template) + ctypes.sizeof(places), head.size)
    for place in places:
        assert place.kind == FUNCTION and place.width == 8
        ctypes.c_uint64.from_address(out + place.at).value = function + place.addend
    return int(head.size + 15 & -16)
