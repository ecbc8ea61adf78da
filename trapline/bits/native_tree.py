"""The typed tree of a native function: what the checker makes and the two backends read.

Every expression knows its type. `type` is None only while the checker still has to decide what a literal is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trapline.bits.native_types import Extern, Intrinsic, IntType, PtrType, Return

if TYPE_CHECKING:
    from trapline.bits.native import NativeFunction


@dataclass(slots=True)
class Expr:
    """An expression; `type` is an IntType, a PtrType, or for calls whatever the function returns."""

    type: Any


@dataclass(slots=True)
class Const(Expr):
    value: int
    boolean: bool = False


@dataclass(slots=True)
class Local(Expr):
    name: str


@dataclass(slots=True)
class Unary(Expr):
    """`-` or `~`."""

    op: str
    a: Expr


@dataclass(slots=True)
class Binary(Expr):
    """`+ - * // % & | ^ << >>`."""

    op: str
    a: Expr
    b: Expr


@dataclass(slots=True)
class Compare(Expr):
    op: str
    a: Expr
    b: Expr


@dataclass(slots=True)
class Member(Expr):
    """`a in (constants)`."""

    a: Expr
    values: tuple[int, ...]


@dataclass(slots=True)
class Logic(Expr):
    """Short-circuit `and` or `or` of u1 operands."""

    op: str
    parts: list[Expr]


@dataclass(slots=True)
class Not(Expr):
    a: Expr


@dataclass(slots=True)
class Select(Expr):
    test: Expr
    a: Expr
    b: Expr


@dataclass(slots=True)
class Convert(Expr):
    a: Expr


@dataclass(slots=True)
class Builtin(Expr):
    intrinsic: Intrinsic
    args: list[Expr]


@dataclass(slots=True)
class Call(Expr):
    target: NativeFunction[Any, Any] | Extern
    args: list[Expr]


@dataclass(slots=True)
class Pick(Expr):
    """One value of a call that returns several."""

    call: Call
    index: int


@dataclass(slots=True)
class Table:
    """A constant table: a module-level tuple or bytes."""

    symbol: str
    name: str
    element: IntType
    values: tuple[int, ...]


@dataclass(slots=True)
class TableItem(Expr):
    table: Table
    index: Expr


@dataclass(slots=True)
class Place:
    """A piece of a structure: base pointer, constant offset, and variable indices with their strides in bytes.

    `path` repeats the same steps as the source wrote them: attribute names and index expressions.
    """

    base: Expr
    ctype: Any
    offset: int = 0
    steps: list[tuple[Expr, int]] = field(default_factory=list)
    path: list[str | Expr] = field(default_factory=list)
    align: int = 1


@dataclass(slots=True)
class Load(Expr):
    place: Place


@dataclass(slots=True)
class AddressOf(Expr):
    """A pointer to a nested structure or array."""

    place: Place


@dataclass(slots=True)
class FromAddress(Expr):
    """`Ptr[S](address)`."""

    a: Expr


@dataclass(slots=True)
class Stmt:
    line: int


Target = str | Place | None
"""Where a value goes: a local, a structure field, or nowhere (`_`)."""


@dataclass(slots=True)
class Assign(Stmt):
    """All values are computed before any target is written."""

    targets: list[Target]
    values: list[Expr]


@dataclass(slots=True)
class Unpack(Stmt):
    targets: list[Target]
    call: Call


@dataclass(slots=True)
class Effect(Stmt):
    value: Expr


@dataclass(slots=True)
class If(Stmt):
    test: Expr
    then: list[Stmt]
    orelse: list[Stmt]


@dataclass(slots=True)
class While(Stmt):
    test: Expr
    body: list[Stmt]


@dataclass(slots=True)
class For(Stmt):
    """`for name in range(start, stop, step)`; `step` is a constant other than 0."""

    name: str
    kind: IntType
    start: Expr
    stop: Expr
    step: int
    body: list[Stmt]


@dataclass(slots=True)
class Break(Stmt):
    pass


@dataclass(slots=True)
class Continue(Stmt):
    pass


@dataclass(slots=True)
class Returns(Stmt):
    """`return` of nothing, of values, or of a call that returns several."""

    values: list[Expr]


@dataclass(slots=True)
class Function:
    """A checked function."""

    symbol: str
    filename: str
    params: list[tuple[str, IntType | PtrType]]
    ret: Return
    locals: dict[str, IntType | PtrType]
    body: list[Stmt]
    calls: list[NativeFunction[Any, Any]]
    externs: list[Extern]
    tables: list[Table]
    assigned: set[str]
    size: int
    seldom: bool
