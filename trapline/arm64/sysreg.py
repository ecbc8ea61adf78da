"""How a system register is declared: one class is one row, and everything else is derived from the row.

    class TCR_EL1(Sysreg, enc=(3, 0, 2, 0, 2), vncr=0x120, at_el2="TCR_EL2", el12=True, after={"mmu"},
                  traps=(R @ HCR_EL2.TRVM, W @ HCR_EL2.TVM)):
        "Translation Control Register (EL1)."
        T0SZ = Field(5, 0)

A register is plain storage in `CpuState.sysreg[slot]` unless the row says otherwise: `read=` and `write=` name functions
(arm64/sysreg_functions.py, or the engine's), `alias=` names the register that holds the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import new_class
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from trapline.arm64.state import SYSREG_SLOTS
from trapline.errors import TableError
from trapline.registers import Condition, Field, Register, as_condition

if TYPE_CHECKING:
    from trapline.arm64.features import Features

Encoding = tuple[int, int, int, int, int]
"""(op0, op1, CRn, CRm, op2)."""

ONE_REG_SYSREG: Final = 0x6030_0000_0013_0000
"""Base of the KVM ONE_REG ids of 64-bit system registers."""

POISON: Final = 0x0BAD_5EED_0BAD_5EED
"""What a register whose reset value is architecturally UNKNOWN holds after reset."""


class Unknown:
    """An architecturally UNKNOWN reset value."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()

EFFECTS: Final = frozenset({"mmu", "ttbr", "pstate", "irq", "timer", "fp", "debug", "trap"})
"""What the engine must look at again after a write.

mmu     the translation regime's controls changed (SCTLR, TCR, MAIR, HCR, VTCR, VTTBR)
ttbr    only the address space changed: another table, another ASID
pstate  a PSTATE field that takes part in permission checks changed (PAN, SPSel, UAO, SSBS)
irq     a pending interrupt may now be taken, or no longer
timer   a timer's condition or deadline changed
fp      whether FP/SIMD instructions trap, or how they round, changed
debug   breakpoints, watchpoints or software step changed
trap    which accesses trap changed
"""


def encode(enc: Encoding) -> int:
    """The 16-bit id of an encoding: op0<<14 | op1<<11 | CRn<<7 | CRm<<3 | op2."""
    op0, op1, crn, crm, op2 = enc
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def decode(encoding: int) -> Encoding:
    """The inverse of `encode`."""
    return encoding >> 14 & 3, encoding >> 11 & 7, encoding >> 7 & 15, encoding >> 3 & 15, encoding & 7


def bits(*numbers: int | range) -> int:
    """A mask of the given bit numbers and ranges."""
    mask = 0
    for number in numbers:
        for bit in number if isinstance(number, range) else (number,):
            mask |= 1 << bit
    return mask


def generic_name(enc: Encoding) -> str:
    """The name every assembler accepts: S3_0_C15_C0_0."""
    op0, op1, crn, crm, op2 = enc
    return f"S{op0}_{op1}_C{crn}_C{crm}_{op2}"


def el12_name(name: str) -> str:
    """The name by which the host at EL2 reaches a register of EL1: SCTLR_EL12, CNTV_CTL_EL02."""
    stem, _, el = name.rpartition("_EL")
    return f"{stem}_EL{el}2"


@dataclass(frozen=True)
class Trap:
    """An access to a register goes to `target` with exception class `ec` when the condition holds."""

    reads: bool
    writes: bool
    when: Condition
    target: int
    from_els: tuple[int, ...]
    ec: int = 0x18
    feature: str | None = None
    """Only machines with this feature can have it."""

    def only(self, *els: int) -> Trap:
        """The same trap for accesses from these exception levels only."""
        return replace(self, from_els=els)

    def with_ec(self, ec: int) -> Trap:
        """The same trap, reported with another exception class."""
        return replace(self, ec=ec)

    def with_feature(self, feature: str) -> Trap:
        """The same trap, of machines with this feature only."""
        return replace(self, feature=feature)


@dataclass(frozen=True)
class Direction:
    """Reads, writes or both; `R @ HCR_EL2.TRVM` is a trap of reads."""

    reads: bool
    writes: bool

    def __matmul__(self, when: Field | Condition) -> Trap:
        condition = as_condition(when)
        to_el1 = all(test.register.__name__.endswith("_EL1") for test in condition.tests)
        return Trap(self.reads, self.writes, condition, 1 if to_el1 else 2, (0,) if to_el1 else (0, 1))


R: Final = Direction(True, False)
W: Final = Direction(False, True)
RW: Final = Direction(True, True)

LOWEST_EL: Final = (1, 1, 1, 0, 2, 2, 3, 1)
"""Lowest exception level that may use an encoding with this op1."""


class Sysreg(Register):
    """A system register: its encoding, fields, reset, access rules, traps and redirections."""

    enc: ClassVar[Encoding]
    encoding: ClassVar[int]
    name: ClassVar[str]
    mnemonic: ClassVar[str]
    one_reg_id: ClassVar[int]
    slot: ClassVar[int]
    feature: ClassVar[str | None]
    present: ClassVar[Callable[[Features], bool] | None]
    access: ClassVar[Literal["RW", "RO", "WO"]]
    read_el: ClassVar[int]
    write_el: ClassVar[int]
    reset: ClassVar[int | Unknown]
    write_mask: ClassVar[int]
    res1: ClassVar[int]
    read: ClassVar[str | None]
    write: ClassVar[str | None]
    alias: ClassVar[str | None]
    after: ClassVar[frozenset[str]]
    traps: ClassVar[tuple[Trap, ...]]
    at_el2: ClassVar[str | None]
    el12: ClassVar[bool]
    vncr: ClassVar[int | None]

    def __init_subclass__(
        cls,
        *,
        enc: Encoding,
        name: str | None = None,
        feature: str | None = None,
        present: Callable[[Features], bool] | None = None,
        access: Literal["RW", "RO", "WO"] = "RW",
        el: int | None = None,
        write_el: int | None = None,
        reset: int | Unknown = UNKNOWN,
        write_mask: int | None = None,
        res1: int = 0,
        read: str | None = None,
        write: str | None = None,
        alias: str | None = None,
        after: Iterable[str] = (),
        traps: Iterable[Trap] = (),
        at_el2: str | None = None,
        el12: bool = False,
        vncr: int | None = None,
        mnemonic: str | None = None,
        **keywords: Any,
    ) -> None:
        """Declare a register.

        enc         (op0, op1, CRn, CRm, op2)
        feature     the register exists only with this FEAT_ name (without the prefix); `present` is a finer test
        access, el, write_el   direction, lowest EL (default: what op1 says), lowest EL for writes when it differs
        reset       value after reset; `features.reset_values` overrides it for ID registers
        write_mask  bits that MSR changes (default all); `res1` bits always read as 1
        read, write names of functions that implement the access instead of plain storage
        alias       name of the register whose storage this one shares
        after       words of `EFFECTS`
        traps       conditions on which an access goes to EL1 or EL2
        at_el2, el12, vncr   register used instead at EL2 with E2H=1; the _EL12/_EL02 name exists; VNCR page offset
        """
        super().__init_subclass__(**keywords)
        if enc == (0, 0, 0, 0, 0):
            raise TableError(f"{cls.__name__} has no encoding")
        cls.enc = enc
        cls.encoding = encode(enc)
        cls.name = name or cls.__name__
        cls.mnemonic = mnemonic or cls.name
        cls.one_reg_id = ONE_REG_SYSREG | cls.encoding
        cls.feature = feature
        cls.present = present
        cls.access = access
        cls.read_el = LOWEST_EL[enc[1]] if el is None else el
        cls.write_el = cls.read_el if write_el is None else write_el
        cls.reset = reset
        cls.write_mask = (1 << cls.width) - 1 if write_mask is None else write_mask
        cls.res1 = res1
        cls.read = read
        cls.write = write
        cls.alias = alias
        cls.after = frozenset(after)
        cls.traps = tuple(traps)
        cls.at_el2 = at_el2
        cls.el12 = el12
        cls.vncr = vncr
        if unknown := cls.after - EFFECTS:
            raise TableError(f"{cls.name}: unknown effects {sorted(unknown)}")
        if access == "RO" and (write or after):
            raise TableError(f"{cls.name} is read-only but says what a write does")

    @classmethod
    def reset_value(cls) -> int:
        """Value after reset: the declared one, or poison where the architecture says UNKNOWN."""
        value = POISON & cls.write_mask if isinstance(cls.reset, Unknown) else cls.reset
        return value | cls.res1

    @classmethod
    def written(cls, old: int, value: int) -> int:
        """What storage holds after an MSR of `value`: bits outside the mask keep, RES1 bits are 1."""
        return (old & ~cls.write_mask) | (value & cls.write_mask) | cls.res1

    @classmethod
    def exists(cls, features: Features) -> bool:
        """Does a machine with these features have the register?"""
        if cls.feature is not None and cls.feature not in features:
            return False
        return cls.present is None or cls.present(features)


def register(name: str, doc: str, enc: Encoding, **row: Any) -> type[Sysreg]:
    """Declare a register that has no fields of its own: families numbered 0 to n, reserved ID registers."""
    return new_class(name, (Sysreg,), {"enc": enc, **row}, lambda body: body.update(__doc__=doc, __module__=__name__))


class SysregTable:
    """All system registers: checked, and each with its place in `CpuState.sysreg`."""

    def __init__(self, registers: Iterable[type[Sysreg]]) -> None:
        self.by_encoding: dict[int, type[Sysreg]] = {}
        self.by_name: dict[str, type[Sysreg]] = {}
        for reg in sorted(registers, key=lambda reg: reg.encoding):
            if reg.encoding in self.by_encoding:
                raise TableError(f"{reg.name} and {self.by_encoding[reg.encoding].name} share encoding {reg.enc}")
            if reg.name in self.by_name:
                raise TableError(f"{reg.name} is declared twice")
            self.by_encoding[reg.encoding] = reg
            self.by_name[reg.name] = reg
        self._assign_slots()
        self._check_references()
        self.el12: dict[int, type[Sysreg]] = {encode((reg.enc[0], 5, *reg.enc[2:])): reg for reg in self if reg.el12}
        if clash := self.el12.keys() & self.by_encoding.keys():
            raise TableError(f"_EL12 names collide with {[self.by_encoding[key].name for key in clash]}")

    def _assign_slots(self) -> None:
        """Slots follow the encodings' order, so that they depend on nothing but the set of declared registers."""
        own = [reg for reg in self if reg.alias is None]
        if len(own) > SYSREG_SLOTS:
            raise TableError(f"{len(own)} registers do not fit in {SYSREG_SLOTS} slots")
        for slot, reg in enumerate(own):
            reg.slot = slot
        for reg in self:
            if reg.alias is not None:
                reg.slot = self[reg.alias].slot

    def _check_references(self) -> None:
        for reg in self:
            if reg.at_el2 is not None and reg.at_el2 not in self.by_name:
                raise TableError(f"{reg.name}.at_el2 names {reg.at_el2}, which does not exist")
            for trap in reg.traps:
                for test in trap.when.tests:
                    if self.by_name.get(test.register.__name__) is not test.register:
                        raise TableError(f"{reg.name} traps on {test.register.__name__}, which is not in the table")

    def __iter__(self) -> Iterator[type[Sysreg]]:
        return iter(self.by_encoding.values())

    def __len__(self) -> int:
        return len(self.by_encoding)

    def __getitem__(self, key: str | int | Encoding) -> type[Sysreg]:
        """By name, by 16-bit encoding or by (op0, op1, CRn, CRm, op2); KeyError if there is none."""
        if isinstance(key, str):
            return self.by_name[key]
        return self.by_encoding[encode(key) if isinstance(key, tuple) else key]

    def get(self, key: str | int | Encoding) -> type[Sysreg] | None:
        """Like indexing, or None."""
        try:
            return self[key]
        except KeyError:
            return None


def registers_in(*modules: Any) -> list[type[Sysreg]]:
    """The registers declared in modules: classes, and tuples of classes for numbered families."""
    found: dict[str, type[Sysreg]] = {}
    for module in modules:
        for value in vars(module).values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, type) and issubclass(item, Sysreg) and item is not Sysreg:
                    if found.setdefault(item.__name__, item) is not item:
                        raise TableError(f"{item.__name__} is declared twice")
    return list(found.values())
