"""Random blocks of instructions that every implementation must execute alike.

Registers by role: x0 to x22 and x30 are operands and results; x23 to x25 index registers that keep their values; x26 to x28 and
SP point into the memory window, and only address writeback moves them, which the generator follows; x29 is the driver's.
CONSTRAINED UNPREDICTABLE forms are left out where words are made, each by the rule in `Template` that names it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping

from tests.differential.program import POINTER_START
from tests.differential.templates import REACH, Template, Variant, make_template
from trapline.arm64 import effects as fx
from trapline.arm64.features import Features
from trapline.arm64.insn import Insn
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE

FREE = (*range(23), 30, 31)
LOW, HIGH = 256, 768
"""Where in the window pointers may be: accesses reach REACH further."""

NOT_IN_PROGRAMS = {
    "pauth": "the algorithm is implementation defined; the walker test covers it",
    "system": "privileged, or answers that identify the machine",
}
"""Groups left out, and why."""

NOT_IN_ORACLES = {"FEAT_CSSC"}
"""Features that neither oracle has."""

NAMED_NOT = {
    "hint": "generated with numbers that no one has allocated",
    "compare_and_swap_pair_reserved": "UNDEFINED",
    "add_sub_extended_register_reserved": "UNDEFINED",
    "logical_immediate_reserved": "UNDEFINED",
}
SYSTEM_DATA = ("nop", "yield_", "hint", "data_barrier", "isb", "sb", "cfinv", "axflag", "xaflag", "speculative_store_bypass_barrier")
"""Instructions of the system group that are data instructions at EL0."""

MOVES = {
    "mrs NZCV": (0xD53B_4200, True), "msr NZCV": (0xD51B_4200, False), "mrs FPCR": (0xD53B_4400, True),
    "mrs FPSR": (0xD53B_4420, True), "msr FPSR": (0xD51B_4420, False),
}  # fmt: skip
"""Moves of the system registers of floating point and flags: the word without Rt, and whether Rt is written."""

ADR = 0x1000_0000
REGISTER_BRANCHES = (0xD61F_0000, 0xD63F_0000, 0xD65F_0000)
CLREX = 0xD503_3F5F
UBFX_28 = 0xD340_6C00
"""UBFX Xd, Xn, #0, #28."""

assert max(POINTER_START.values()) < HIGH and REACH + HIGH <= 1024


class Generator:
    """Makes blocks; counts what it used."""

    def __init__(
        self,
        features: Features | None = None,
        avoid: Mapping[str, Callable[[dict[str, int]], bool]] | None = None,
        only: str = "",
    ) -> None:
        """`only` is a regular expression: blocks then hold instructions whose names contain it, and moves of FPCR and the like."""
        self.features = features or Features()
        self.counts: Counter[str] = Counter()
        self.templates: dict[str, list[Template]] = {}
        self.unused: dict[str, str] = {}
        self._avoid = avoid or {}
        isa = load_a64()
        self._over: dict[str, list[Insn]] = {}
        for insn in isa.candidates():
            for name in insn.over:
                self._over.setdefault(name, []).append(insn)
        for insn in isa.candidates():
            if insn.feature in NOT_IN_ORACLES:
                self.unused[insn.name] = "in no oracle"
            elif insn.feature is None or insn.feature in self.features:
                self._add(insn)
        self._slow = {"exclusive": self._exclusives, "branch": self._branch, "register branch": self._register_branch,
                      "move": self._move}  # fmt: skip
        if only:
            self._slow = {"move": self._move}
        by_group: dict[str, list[list[Template]]] = {}
        for name, ts in self.templates.items():
            if name not in self._special and re.search(only, name):
                by_group.setdefault(ts[0].insn.group, []).append(ts)
        self._groups = list(by_group.values())
        assert self._groups, f"no instruction is called {only!r}"

    _special = frozenset({"load_exclusive", "store_exclusive", "load_exclusive_pair", "store_exclusive_pair"})

    def _add(self, insn: Insn) -> None:
        if insn.group in NOT_IN_PROGRAMS and insn.name not in SYSTEM_DATA:
            self.unused[insn.name] = NOT_IN_PROGRAMS[insn.group]
            return
        avoid = self._avoid.get(insn.name, lambda shape: False)
        shapes = [k for k in range(1 << insn.shape_bits) if insn.allows(k) and not avoid(insn.shape_values(k))]
        made = [t for t in (make_template(insn, k) for k in shapes) if t is not None]
        if not made:
            self.unused[insn.name] = "wrong in the oracle" if not shapes else NAMED_NOT.get(insn.name, "raises an exception")
        elif insn.group == "branches":
            self._branches = [*getattr(self, "_branches", ()), *(t for t in made if _is_direct(t))]
        else:
            self.templates.setdefault(insn.name, []).extend(made)

    def missing(self) -> list[str]:
        """Instructions that could be in programs and were not so far."""
        names = set(self.templates) | {t.insn.name for t in self._branches} | set(MOVES)
        return sorted(names - self.counts.keys())

    # -- words -----------------------------------------------------------------------------------------------------------
    def block(self, rng: random.Random, length: int) -> list[int]:
        """`length` random words."""
        self._pointers = dict(POINTER_START)
        self._shadow = 0
        words: list[int] = []
        while len(words) < length:
            left = length - len(words)
            choice = rng.randrange(24)
            if choice < 4 and left > 8 and not self._shadow:
                words += rng.choice(list(self._slow.values()))(rng)
                continue
            word = self._plain(rng)
            if word is not None:
                words.append(word)
                self._shadow = max(0, self._shadow - 1)
        return words

    def _plain(self, rng: random.Random) -> int | None:
        template = rng.choice(rng.choice(rng.choice(self._groups)))
        word = self._word(template, rng)
        if word is not None:
            self.counts[template.insn.name] += 1
        return word

    def _word(self, t: Template, rng: random.Random, at: tuple[int, Variant] | None = None) -> int | None:
        word = t.base
        step_of = None
        if t.pointer is not None:
            place = at or self._place(t, rng)
            if place is None:
                return None
            pointer, variant = place
            word |= variant.bits | pointer << t.pointer.lo
            if variant.step is not None:
                step_of = pointer
        results = [rng.choice(FREE) for _ in t.results]
        if t.sp_results:
            results = [r % 31 for r in results]
        if t.insn.name == "compare_and_swap_pair":
            results = [2 * rng.randrange(11)]
        sources = [rng.choice((rng.randrange(29), 30, 31)) for _ in t.sources]
        if t.insn.name == "compare_and_swap_pair":
            sources = [2 * rng.randrange(14)]
        vectors = [rng.randrange(32) for _ in t.vectors]
        taken = [*results, *vectors] if t.is_load else [*results, *sources]
        if t.apart and len(set(taken)) < len(taken) or step_of is not None and step_of in sources:
            return None
        if t.apart and not t.is_load and t.pointer is not None and (word >> t.pointer.lo & 31) in results:
            return None
        for fields, numbers in ((t.results, results), (t.sources, sources), (t.vectors, vectors)):
            for f, number in zip(fields, numbers, strict=True):
                word |= number << f.lo
        for f in t.immediates:
            word |= self._immediate(t, f.width, rng) << f.lo
        if any(other.matches(word) for other in self._over.get(t.insn.name, ())):
            return None
        if step_of is not None:
            self._pointers[step_of] += variant.step or 0
        return word

    def _immediate(self, t: Template, width: int, rng: random.Random) -> int:
        top = (1 << width) - 1
        if t.insn.name == "hint":
            return rng.randrange(40, 128)
        if t.insn.group.startswith("load_store") and width == 19:  # literals: within the program, aligned
            return rng.randrange(-16, 32) & top
        return rng.choice((0, 1, top, top >> 1, rng.getrandbits(width), rng.getrandbits(width), rng.getrandbits(width)))

    def _place(self, t: Template, rng: random.Random) -> tuple[int, Variant] | None:
        """A pointer and an address form that stays inside the window."""
        variant = rng.choice(t.variants)
        if variant.step is not None and self._shadow:
            return None
        pointer = 26 if t.aligned else rng.choice((26, 27, 28, 31))
        if variant.step is not None and pointer in (26, 31):
            if pointer == 26 or variant.step % 16:
                pointer = rng.choice((27, 28))
        offset = self._pointers[pointer]
        if variant.step is not None and not LOW <= offset + variant.step <= HIGH:
            return None
        return pointer, variant

    # -- sequences -------------------------------------------------------------------------------------------------------
    def _exclusives(self, rng: random.Random) -> list[int]:
        """Load exclusive, something, store exclusive; sometimes with the monitor cleared between."""
        kind = rng.choice(("", "_pair"))
        loads, stores = self.templates["load_exclusive" + kind], self.templates["store_exclusive" + kind]
        first = rng.choice(loads)
        size = first.variants[0].high
        second = rng.choice([t for t in stores if t.variants[0].high == size])
        place = (26, Variant(0, 0, size, None))
        a, b = self._word(first, rng, place), self._word(second, rng, place)
        if a is None or b is None:
            return []
        middle = [CLREX] if rng.randrange(5) == 0 else [w for w in (self._register_only(rng),) if w is not None]
        self.counts[first.insn.name] += 1
        self.counts[second.insn.name] += 1
        return [a, *middle, b]

    def _register_only(self, rng: random.Random) -> int | None:
        t = rng.choice(rng.choice(rng.choice(self._groups)))
        if t.pointer is not None or t.variants or t.insn.name == "yield_":  # YIELD clears QEMU's monitor
            return None
        return self._word(t, rng)

    def _branch(self, rng: random.Random) -> list[int]:
        """A direct branch over up to three instructions; they follow as ordinary ones."""
        t = rng.choice(self._branches)
        offset = next(f for f in t.immediates if f.width >= 14)
        distance = rng.randrange(1, 5)
        word = self._word(t, rng)
        if word is None:
            return []
        self._shadow = distance
        self.counts[t.insn.name] += 1
        mask = (1 << offset.width) - 1
        return [word & ~(mask << offset.lo) | distance << offset.lo]

    def _register_branch(self, rng: random.Random) -> list[int]:
        register = rng.choice(FREE[:-1])
        distance = rng.randrange(2, 5)
        self._shadow = distance
        self.counts["register branch"] += 1
        return [ADR | distance << 5 | register, rng.choice(REGISTER_BRANCHES) | register << 5]

    def _move(self, rng: random.Random) -> list[int]:
        name = rng.choice(list(MOVES))
        word, written = MOVES[name]
        self.counts[name] += 1
        if name == "msr FPSR":  # its AArch32 flags are RES0 here and exist in the oracles
            register = rng.choice(FREE[:-1])
            return [UBFX_28 | rng.randrange(32) << 5 | register, word | register]
        return [word | (rng.choice(FREE) if written else rng.randrange(32))]


def _is_direct(t: Template) -> bool:
    recording = t.insn.record_word(t.base, lambda name: TABLE[name].slot)
    return any(isinstance(e, fx.Branch) and e.delta is not None for e in recording.effects)
