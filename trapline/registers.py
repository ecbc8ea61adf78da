"""One notation for everything made of bit fields: system registers, syndromes, descriptors, device registers.

    class Control(Register, width=32):
        "Control register."
        ENABLE = Field(0)
        MODE = Field(3, 1)

    Control.MODE.mask           0xE                     the class gives the field
    Control(0x7).MODE           3                       an instance gives the field's value
    Control(MODE=2, ENABLE=1)   Control(0x5: ENABLE=1 MODE=2)
    Control(5).replace(MODE=0)  Control(0x1: ENABLE=1)

A register value is an `int`, so it goes wherever a number goes; arithmetic on it gives plain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, overload

from trapline.errors import TableError


class Field:
    """Bits `hi` down to `lo` of a register (one bit if `lo` is left out)."""

    __slots__ = ("hi", "lo", "name", "owner")

    def __init__(self, hi: int, lo: int | None = None) -> None:
        self.hi = hi
        self.lo = hi if lo is None else lo
        self.name = ""
        self.owner: type[Register] | None = None
        if not 0 <= self.lo <= self.hi:
            raise TableError(f"field bits [{hi}:{lo}] are in the wrong order")

    def __set_name__(self, owner: type[Register], name: str) -> None:
        self.name = name
        self.owner = owner

    @property
    def width(self) -> int:
        """Number of bits."""
        return self.hi - self.lo + 1

    @property
    def ones(self) -> int:
        """The largest value the field holds."""
        return (1 << self.width) - 1

    @property
    def mask(self) -> int:
        """The field's bits in their place in the register."""
        return self.ones << self.lo

    def extract(self, register: int) -> int:
        """The field's value in `register`."""
        return (register >> self.lo) & self.ones

    def insert(self, register: int, value: int) -> int:
        """`register` with this field set to `value`; ValueError if it does not fit."""
        return (register & ~self.mask) | self(value)

    def __call__(self, value: int) -> int:
        """`value` moved to the field's place, everything else zero."""
        if not 0 <= value <= self.ones:
            raise ValueError(f"{value:#x} does not fit in {self!r}")
        return value << self.lo

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Field: ...
    @overload
    def __get__(self, instance: Register, owner: type[Any]) -> int: ...
    def __get__(self, instance: Register | None, owner: type[Any]) -> Field | int:
        return self if instance is None else self.extract(instance)

    def __set__(self, instance: Register, value: int) -> None:
        raise AttributeError(f"register values do not change: use replace({self.name}=...)")

    def __repr__(self) -> str:
        bits = f"{self.hi}" if self.hi == self.lo else f"{self.hi}:{self.lo}"
        owner = self.owner.__name__ + "." if self.owner else ""
        return f"{owner}{self.name}[{bits}]"

    def equals(self, value: int) -> Condition:
        """The condition that this field holds `value`."""
        if self.owner is None:
            raise TableError(f"{self!r} belongs to no register")
        return Condition((Test(self.owner, self.mask, self(value)),))

    def __invert__(self) -> Condition:
        """The condition that this one-bit field is 0."""
        return self._bit(0)

    def __and__(self, other: Field | Condition) -> Condition:
        return as_condition(self) & other

    def _bit(self, value: int) -> Condition:
        if self.width != 1:
            raise TableError(f"{self!r} is not one bit: say which value with equals()")
        return self.equals(value)


@dataclass(frozen=True)
class Test:
    """True when the bits `mask` of a register have the value `value`."""

    __test__: ClassVar[bool] = False

    register: type[Register]
    mask: int
    value: int


@dataclass(frozen=True)
class Condition:
    """A conjunction of tests on register fields: `HCR_EL2.TGE & ~SCTLR_EL1.UCT`."""

    tests: tuple[Test, ...]

    def __and__(self, other: Field | Condition) -> Condition:
        return Condition(self.tests + as_condition(other).tests)

    def holds(self, read: Any) -> bool:
        """Evaluate with `read(register_class) -> int`."""
        return all(read(test.register) & test.mask == test.value for test in self.tests)

    def __repr__(self) -> str:
        return " & ".join(f"{t.register.__name__}[{t.mask:#x}]=={t.value:#x}" for t in self.tests)


def as_condition(what: Field | Condition) -> Condition:
    """A one-bit field stands for the condition that it is 1."""
    return what if isinstance(what, Condition) else what._bit(1)


class Register(int):
    """The value of a register, with its fields by name."""

    width: ClassVar[int] = 64
    fields: ClassVar[tuple[Field, ...]] = ()

    def __init_subclass__(cls, *, width: int | None = None, overlap: bool = False, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if width is not None:
            cls.width = width
        for base in cls.__mro__[1:]:
            for name, field in vars(base).items():
                if isinstance(field, Field) and name not in vars(cls):
                    copy = Field(field.hi, field.lo)
                    setattr(cls, name, copy)
                    copy.__set_name__(cls, name)
        found = [field for field in vars(cls).values() if isinstance(field, Field)]
        cls.fields = tuple(sorted(found, key=lambda field: field.lo))
        seen = 0
        for field in cls.fields:
            if field.hi >= cls.width:
                raise TableError(f"{field!r} is outside the register's {cls.width} bits")
            if field.mask & seen and not overlap:
                raise TableError(f"{field!r} overlaps another field")
            seen |= field.mask

    def __new__(cls, value: int = 0, **fields: int) -> Self:
        word = value & ((1 << cls.width) - 1)
        for name, field_value in fields.items():
            word = cls.field(name).insert(word, field_value)
        return super().__new__(cls, word)

    @classmethod
    def field(cls, name: str) -> Field:
        """The field called `name`; AttributeError if there is none."""
        found = getattr(cls, name, None)
        if not isinstance(found, Field):
            raise AttributeError(f"{cls.__name__} has no field {name}")
        return found

    @classmethod
    def fields_mask(cls) -> int:
        """All bits that belong to some field."""
        mask = 0
        for field in cls.fields:
            mask |= field.mask
        return mask

    def replace(self, **fields: int) -> Self:
        """The same value with some fields changed."""
        return type(self)(int(self), **fields)

    def decode(self) -> dict[str, int]:
        """All fields and their values, lowest bit first."""
        return {field.name: field.extract(self) for field in self.fields}

    def __repr__(self) -> str:
        shown = " ".join(f"{name}={value:#x}" if value > 9 else f"{name}={value}" for name, value in self.decode().items() if value)
        rest = int(self) & ~self.fields_mask()
        if rest and self.fields:
            shown += f" (other bits {rest:#x})"
        return f"{type(self).__name__}({int(self):#x}{': ' + shown.strip() if shown.strip() else ''})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else repr(self)
