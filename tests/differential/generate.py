"""Random blocks of instructions that every implementation must execute alike.

Registers by role: x0 to x22 and x30 are operands and results; x23 to x25 index registers that keep their values; x26 to x28 and
SP point into the memory window, and only address writeback moves them, which the generator follows; x29 is the driver's.
CONSTRAINED UNPREDICTABLE forms are left out where words are made, each by the rule in `Template` that names it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.differential.program import LITERALS, POINTER_START
from tests.differential.templates import REACH, Template, Variant, make_template
from tests.oracles import RUN_BY_NOBODY
from trapline.arm64 import effects as fx
from trapline.arm64.features import Features
from trapline.arm64.insn import Insn
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE

FREE = (*range(23), 30, 31)
LOW, HIGH = 256, 768
"""Where in the window pointers may be: accesses reach REACH further."""

NOT_IN_PROGRAMS = {"system": "privileged, or answers that identify the machine: tests/test_exceptions*, test_sysreg*, test_debug*"}
"""Groups left out, and why."""

NO_KEYS = {"pauth": "no known keys at EL0: see --oracle system"}
"""The same for oracles that cannot be told the keys of pointer authentication."""

NAMED_NOT = {
    "eret": "returns from an exception: tests/test_exceptions*",
    "exception_return_authenticated": "returns from an exception: tests/test_exceptions*",
    "drps": "UNDEFINED: there is no external debug",
    "yield_": "as NOP, but QEMU's monitor notices",
    "hint": "generated with numbers that no one has allocated",
    "compare_and_swap_pair_reserved": "UNDEFINED",
    "add_sub_extended_register_reserved": "UNDEFINED",
    "logical_immediate_reserved": "UNDEFINED",
    "load_authenticated": "an authenticated address: tests/test_isa_int_pauth",
}
SYSTEM_DATA = ("nop", "yield_", "hint", "data_barrier", "isb", "sb", "cfinv", "axflag", "xaflag", "speculative_store_bypass_barrier")
"""Instructions of the system group that are data instructions at EL0."""

MOVES = {
    "mrs NZCV": (0xD53B_4200, True), "msr NZCV": (0xD51B_4200, False), "mrs FPCR": (0xD53B_4400, True),
    "mrs FPSR": (0xD53B_4420, True), "msr FPSR": (0xD51B_4420, False),
}  # fmt: skip
"""Moves of the system registers of floating point and flags: the word without Rt, and whether Rt is written."""

ADR = 0x1000_0000
CLREX = 0xD503_3F5F
UBFX_28 = 0xD340_6C00
"""UBFX Xd, Xn, #0, #28."""
MOVE_FROM_SP = 0x9100_03E0
"""MOV Xd, SP."""
RESTORE_SP = 0x9100_0000 | POINTER_START[31] - POINTER_START[26] << 10 | 26 << 5 | 31
"""ADD SP, X26, #n: SP points to where it began."""
PACIA, PACIZA = 0xDAC1_0000, 0xDAC1_23E0
"""With the key in bit 10."""
AUTHENTICATED = ("branch_authenticated", "branch_authenticated_zero", "return_authenticated")
ATTEMPTS = 40
"""How often operands are drawn for a shape before it is given up."""
EVEN = 16
"""Words of every instruction at least that one pass has, however few shapes the instruction has."""

EXCLUSIVES = {
    "load_exclusive": "store_exclusive", "store_exclusive": "load_exclusive",
    "load_exclusive_pair": "store_exclusive_pair", "store_exclusive_pair": "load_exclusive_pair",
}  # fmt: skip
"""Instructions that come in pairs, and their partners."""

assert max(POINTER_START.values()) < HIGH and REACH + HIGH <= 1024

Key = tuple[str, int]
"""An instruction's name and a shape of it."""


@dataclass
class Block:
    """Words, and which of them are executed for certain: their place and shape."""

    words: list[int] = field(default_factory=list)
    certain: list[tuple[int, Key]] = field(default_factory=list)

    def add(self, word: int, key: Key | None = None) -> None:
        if key is not None:
            self.certain.append((len(self.words), key))
        self.words.append(word)


class Generator:
    """Makes blocks out of every shape there is."""

    def __init__(
        self,
        features: Features | None = None,
        avoid: Mapping[str, Callable[[dict[str, int]], bool]] | None = None,
        only: str = "",
        groups: Mapping[str, str] = NO_KEYS,
    ) -> None:
        """`only` is a regular expression: blocks then hold instructions whose names contain it. `groups` are left out, and why."""
        self.features = features or Features()
        self.templates: dict[str, list[Template]] = {}
        self.unused: dict[str, str] = {}
        """Instructions that are in no block, and why."""
        self.skipped: Counter[str] = Counter()
        """How many shapes of an instruction are left out because the oracle has them wrong."""
        self.given_up: Counter[Key] = Counter()
        """Shapes for which no operands were found."""
        self._avoid = avoid or {}
        self._groups = {**NOT_IN_PROGRAMS, **groups}
        isa = load_a64()
        self._over: dict[str, list[Insn]] = {}
        for insn in isa.candidates():
            for name in insn.over:
                self._over.setdefault(name, []).append(insn)
        for insn in isa.candidates():
            if insn.feature in RUN_BY_NOBODY:
                self.unused[insn.name] = f"in no oracle: {RUN_BY_NOBODY[insn.feature]}"
            elif insn.feature is None or insn.feature in self.features:
                self._add(insn)
        self._deck: list[Template | str] = []
        for name, ts in self.templates.items():
            if re.search(only, name):
                self._deck += ts * -(-EVEN // len(ts))
        self._deck += [name for name in MOVES if re.search(only, name)] * EVEN
        assert self._deck, f"no instruction is called {only!r}"
        self._plain = [t for ts in self.templates.values() for t in ts if self._maker(t) == self._alone]

    def _add(self, insn: Insn) -> None:
        if insn.group in self._groups and insn.name not in SYSTEM_DATA:
            self.unused[insn.name] = self._groups[insn.group]
            return
        avoid = self._avoid.get(insn.name, lambda shape: False)
        allowed = [k for k in range(1 << insn.shape_bits) if insn.allows(k)]
        shapes = [k for k in allowed if not avoid(insn.shape_values(k))]
        self.skipped[insn.name] += len(allowed) - len(shapes)
        made = [t for t in (make_template(insn, k) for k in shapes) if t is not None and not self._taken(insn, t)]
        if made:
            self.templates.setdefault(insn.name, []).extend(made)
        else:
            self.unused[insn.name] = "wrong in the oracle" if not shapes else NAMED_NOT[insn.name]

    def _taken(self, insn: Insn, t: Template) -> bool:
        """Whether a shape without operands is another instruction's."""
        return not insn.operand_fields and any(other.matches(t.base) for other in self._over.get(insn.name, ()))

    def keys(self) -> Iterator[Key]:
        """Every shape that blocks can have."""
        yield from {(deal.insn.name, deal.shape) if isinstance(deal, Template) else (deal, 0) for deal in self._deck}

    # -- blocks ----------------------------------------------------------------------------------------------------------
    def blocks(self, rng: random.Random, length: int) -> Iterator[Block]:
        """A pass: blocks of about `length` words that have every shape at least once, in random order."""
        deck = rng.sample(self._deck, len(self._deck))
        while deck:
            yield self.block(rng, length, deck)

    def block(self, rng: random.Random, length: int, deck: list[Template | str] | None = None) -> Block:
        """About `length` words from the end of a deck."""
        deck = deck if deck is not None else rng.choices(self._deck, k=length)
        self._pointers = dict(POINTER_START)
        block = Block()
        while deck and len(block.words) < length:
            deal = deck.pop()
            make = self._move if isinstance(deal, str) else self._maker(deal)
            for _ in range(ATTEMPTS):
                if make(deal, block, rng):  # type: ignore[arg-type]
                    break
            else:
                self.given_up[(deal.insn.name, deal.shape) if isinstance(deal, Template) else (deal, 0)] += 1
        return block

    def _maker(self, t: Template) -> Callable[[Template, Block, random.Random], bool]:
        if t.insn.name in EXCLUSIVES:
            return self._exclusives
        if t.insn.group == "branches":
            return self._branch if _is_direct(t) else self._register_branch
        return self._authenticated if t.insn.name in AUTHENTICATED else self._alone

    def _word(self, t: Template, rng: random.Random, at: tuple[int, Variant] | None = None, to_sp: bool = False) -> int | None:
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
        results = [_register(rng, FREE, ()) for _ in t.results]
        if t.sp_results:
            results = [31 if to_sp else r % 31 for r in results]
        if t.insn.name == "compare_and_swap_pair":
            results = [2 * rng.randrange(11)]
        sources: list[int] = []
        for _ in t.sources:
            sources.append(_register(rng, SOURCES, (*results, *sources)))
        if t.insn.name == "compare_and_swap_pair":
            sources = [2 * rng.randrange(14)]
        vectors: list[int] = []
        for _ in t.vectors:
            vectors.append(_register(rng, VECTORS, vectors))
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
            return rng.choice(LITERALS) & top
        return rng.choice((0, 1, top, top >> 1, rng.getrandbits(width), rng.getrandbits(width), rng.getrandbits(width)))

    def _place(self, t: Template, rng: random.Random, fixed: bool = False) -> tuple[int, Variant] | None:
        """A pointer and an address form that stays inside the window; with `fixed`, one that does not move the pointer."""
        variant = rng.choice(t.variants)
        if variant.step is not None and fixed:
            return None
        pointer = 26 if t.aligned else rng.choice((26, 27, 28, 31))
        if variant.step is not None and pointer in (26, 31):
            if pointer == 26 or variant.step % 16:
                pointer = rng.choice((27, 28))
        offset = self._pointers[pointer]
        if variant.step is not None and not LOW <= offset + variant.step <= HIGH:
            return None
        return pointer, variant

    # -- what is made of a shape -----------------------------------------------------------------------------------------
    def _alone(self, t: Template, block: Block, rng: random.Random) -> bool:
        to_sp = t.sp_results and t.pointer is None and rng.randrange(6) == 0
        word = self._word(t, rng, to_sp=to_sp)
        if word is None:
            return False
        block.add(word, _key(t))
        if to_sp:
            block.add(MOVE_FROM_SP | rng.choice(FREE[:-1]))
            block.add(RESTORE_SP)
            self._pointers[31] = POINTER_START[31]
        return True

    def _shadow(self, block: Block, rng: random.Random, count: int) -> None:
        """Words that a branch may leave out."""
        while count:
            t = rng.choice(self._plain)
            place = self._place(t, rng, fixed=True) if t.pointer is not None else None
            word = None if t.pointer is not None and place is None else self._word(t, rng, place)
            if word is not None:
                block.add(word)
                count -= 1

    def _exclusives(self, t: Template, block: Block, rng: random.Random) -> bool:
        """Load exclusive, something, store exclusive; sometimes with the monitor cleared between."""
        size = t.variants[0].high
        partner = rng.choice([p for p in self.templates[EXCLUSIVES[t.insn.name]] if p.variants[0].high == size])
        pair = (t, partner) if t.is_load else (partner, t)
        place = (26, Variant(0, 0, size, None))
        words = [self._word(each, rng, place) for each in pair]
        middle = CLREX if rng.randrange(5) == 0 else self._register_only(rng)
        if None in words:
            return False
        for each, word in zip(pair, words, strict=True):
            assert word is not None
            block.add(word, _key(each))
            if each.is_load and middle is not None:
                block.add(middle)
        return True

    def _register_only(self, rng: random.Random) -> int | None:
        t = rng.choice(self._plain)
        if t.pointer is not None or t.variants or t.insn.name == "yield_":  # YIELD clears QEMU's monitor
            return None
        return self._word(t, rng)

    def _branch(self, t: Template, block: Block, rng: random.Random) -> bool:
        """A direct branch over up to three instructions; the register of a test is any."""
        offset = next(f for f in t.immediates if f.width >= 14)
        distance = rng.randrange(1, 5)
        word = self._word(t, rng)
        if word is None:
            return False
        mask = (1 << offset.width) - 1
        block.add(word & ~(mask << offset.lo) | distance << offset.lo, _key(t))
        self._shadow(block, rng, distance - 1)
        return True

    def _register_branch(self, t: Template, block: Block, rng: random.Random) -> bool:
        register, distance = rng.choice(FREE[:-1]), rng.randrange(2, 5)
        block.add(ADR | distance << 5 | register)
        block.add(t.base | register << 5, _key(t))
        self._shadow(block, rng, distance - 2)
        return True

    def _authenticated(self, t: Template, block: Block, rng: random.Random) -> bool:
        """A branch with authentication, to an address that was signed by the same key; LR is signed for SP."""
        fields = {f.name: f for f in t.insn.pattern.fields}
        register = rng.choice(FREE[:-2]) if "Rn" in fields else 30
        modifier = rng.choice([n for n in SOURCES if n != register]) if "Rm" in fields else 31
        distance = rng.randrange(3, 6)
        zero = t.insn.name == "branch_authenticated_zero"
        sign = PACIZA | register if zero else PACIA | modifier << 5 | register
        block.add(ADR | distance << 5 | register)
        block.add(sign | fields["key"].of(t.base) << 10)
        word = t.base
        for name, number in (("Rn", register), ("Rm", modifier)):
            if name in fields:
                word |= number << fields[name].lo
        block.add(word, _key(t))
        self._shadow(block, rng, distance - 3)
        return True

    def _move(self, name: str, block: Block, rng: random.Random) -> bool:
        word, written = MOVES[name]
        register = rng.choice(FREE) if written else rng.randrange(32)
        if name == "msr FPSR":  # its AArch32 flags are RES0 here and exist in the oracles
            register = rng.choice(FREE[:-1])
            block.add(UBFX_28 | rng.randrange(32) << 5 | register)
        block.add(word | register, (name, 0))
        return True


SOURCES, VECTORS = (*range(29), 30, 31), tuple(range(32))


def _register(rng: random.Random, numbers: Sequence[int], taken: Sequence[int]) -> int:
    """A register, often one that the word names already."""
    return rng.choice(taken) if taken and rng.randrange(6) == 0 else rng.choice(numbers)


def _key(t: Template) -> Key:
    return t.insn.name, t.shape


def _is_direct(t: Template) -> bool:
    recording = t.insn.record_word(t.base, lambda name: TABLE[name].slot)
    return any(isinstance(e, fx.Branch) and e.delta is not None for e in recording.effects)
