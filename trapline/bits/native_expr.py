"""Expressions of native functions: names, constants and types (`native_check.py` has the statements)."""

from __future__ import annotations

import ast
import builtins
import ctypes
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from trapline.bits import native_tree as t
from trapline.bits.native_types import (
    BUILTINS,
    SCALARS,
    U1,
    U64,
    Extern,
    Intrinsic,
    IntType,
    NativeError,
    PtrType,
)

if TYPE_CHECKING:
    from trapline.bits.native import NativeFunction

BINARY: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
    ast.BitAnd: ("&", operator.and_),
    ast.BitOr: ("|", operator.or_),
    ast.BitXor: ("^", operator.xor),
    ast.LShift: ("<<", operator.lshift),
    ast.RShift: (">>", operator.rshift),
}
COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[int, int], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
NOTHING = object()
"""What a name stands for that is not known at compile time."""


class ExpressionChecker:
    """What it takes to check the expressions of one function."""

    def __init__(self, native: NativeFunction[Any, Any]):
        self.native = native
        self.scope = native.scope
        code = native.function.__code__
        self.filename = code.co_filename
        self.node: ast.AST = ast.Pass(lineno=code.co_firstlineno)
        self.locals: dict[str, IntType | PtrType] = {}
        self.calls: dict[str, NativeFunction[Any, Any]] = {}
        self.externs: dict[str, Extern] = {}
        self.tables: dict[int, t.Table] = {}
        self.names: set[str] = set()
        self.assigned: set[str] | None = set()
        self.size = 0

    def fail(self, message: str, node: ast.AST | None = None) -> NoReturn:
        line = getattr(node or self.node, "lineno", 0)
        raise NativeError(f"{self.filename}:{line}: {self.native.__qualname__}: {message}")

    def expr(self, node: ast.expr) -> t.Expr:
        """The tree of an expression; its type is None if it is made of literals only."""
        self.size += 1
        static = self.static(node)
        if isinstance(static, int):
            return t.Const(None, int(static), isinstance(static, bool))
        if static is not NOTHING:
            self.fail(f"{ast.unparse(node)} is not an integer", node)
        handler = getattr(self, f"on_{type(node).__name__}", None)
        if handler is None:
            self.fail(f"{type(node).__name__} expressions are not in the subset: {ast.unparse(node)}", node)
        return handler(node)  # type: ignore[no-any-return]

    def typed(self, node: ast.expr, kind: IntType | PtrType) -> t.Expr:
        return self.coerce(self.expr(node), kind, node)

    def integer(self, node: ast.expr) -> t.Expr:
        value = self.expr(node)
        if value.type is not None and not isinstance(value.type, IntType):
            self.fail(f"{ast.unparse(node)} is {value.type or 'nothing'}, an integer is needed", node)
        return value

    def resolve(self, value: t.Expr, kind: IntType | PtrType | None = None) -> t.Expr:
        """Give a literal the type `kind`, or its default: u1 for truth values, u64 for the rest."""
        if value.type is not None:
            return value
        if kind is None and isinstance(value, t.Const) and value.value < 0:
            self.fail("a negative literal needs a type")
        return self.coerce(value, kind or (U1 if _is_boolean(value) else U64))

    def coerce(self, value: t.Expr, kind: Any, node: ast.AST | None = None) -> t.Expr:
        """Require type `kind`; literals take it."""
        if value.type is None:
            if not isinstance(kind, IntType):
                self.fail(f"an integer where {kind} is needed", node)
            return self.adapt(value, kind, node)
        if value.type is not kind and not (isinstance(kind, PtrType) and kind.accepts(value.type)):
            self.fail(f"{_text(node)}is {value.type}, {kind} is needed", node)
        return value

    def adapt(self, value: t.Expr, kind: IntType, node: ast.AST | None) -> t.Expr:
        value.type = kind
        match value:
            case t.Const():
                if not kind.holds(value.value):
                    self.fail(f"literal {value.value:#x} does not fit {kind}", node)
                value.value = kind(value.value)
            case t.Select():
                value.a, value.b = self.coerce(value.a, kind, node), self.coerce(value.b, kind, node)
            case t.Unary():
                value.a = self.coerce(value.a, kind, node)
            case t.Binary():
                value.a = self.coerce(value.a, kind, node)
                if value.op not in ("<<", ">>"):
                    value.b = self.coerce(value.b, kind, node)
            case _:
                self.fail("an integer type is needed", node)
        return value

    def same(self, a: t.Expr, b: t.Expr, node: ast.AST) -> None:
        """Both operands of one type; a literal takes the type of the other side."""
        if a.type is None and b.type is None:
            return
        if a.type is None:
            self.coerce(a, b.type, node)
        elif b.type is None:
            self.coerce(b, a.type, node)
        elif a.type is not b.type:
            self.fail(f"{ast.unparse(node)} mixes {a.type} and {b.type}", node)

    def condition(self, node: ast.expr) -> t.Expr:
        return self.truth(self.integer(node))

    def truth(self, value: t.Expr) -> t.Expr:
        if isinstance(value, t.Const):
            return t.Const(U1, int(value.value != 0), True)
        value = self.resolve(value)
        return value if value.type is U1 else t.Compare(U1, "!=", value, t.Const(value.type, 0))

    def on_Name(self, node: ast.Name) -> t.Expr:
        if node.id not in self.names:
            self.fail(f"{node.id} is not defined", node)
        if self.assigned is not None and node.id not in self.assigned:
            self.fail(f"{node.id} may be used before it is assigned", node)
        return t.Local(self.locals[node.id], node.id)

    def on_UnaryOp(self, node: ast.UnaryOp) -> t.Expr:
        if isinstance(node.op, ast.Not):
            test = self.condition(node.operand)
            return t.Const(None, 1 - test.value, True) if isinstance(test, t.Const) else t.Not(U1, test)
        a = self.integer(node.operand)
        if isinstance(node.op, ast.UAdd):
            return a
        op = "-" if isinstance(node.op, ast.USub) else "~"
        if isinstance(a, t.Const) and a.type is None:
            return t.Const(None, -a.value if op == "-" else ~a.value)
        return t.Unary(a.type, op, a)

    def on_BinOp(self, node: ast.BinOp) -> t.Expr:
        if type(node.op) not in BINARY:
            self.fail(f"operator of {ast.unparse(node)} is not in the subset", node)
        op, fold = BINARY[type(node.op)]
        a, b = self.integer(node.left), self.integer(node.right)
        if isinstance(a, t.Const) and isinstance(b, t.Const) and a.type is None and b.type is None:
            return t.Const(None, fold(a.value, b.value))
        if op in ("<<", ">>"):
            if isinstance(b, t.Const) and b.value < 0:
                self.fail("negative shift count", node)
            return t.Binary(a.type, op, a, self.resolve(b))
        self.same(a, b, node)
        return t.Binary(a.type, op, a, b)

    def on_BoolOp(self, node: ast.BoolOp) -> t.Expr:
        op = "and" if isinstance(node.op, ast.And) else "or"
        parts = list[t.Expr]()
        for part in node.values:
            value = self.condition(part)
            if isinstance(value, t.Const):
                if bool(value.value) == (op == "or"):
                    parts.append(value)
                    break
                continue
            parts.append(value)
        if not parts:
            return t.Const(None, int(op == "and"), True)
        if len(parts) == 1:
            only = parts[0]
            return t.Const(None, only.value, True) if isinstance(only, t.Const) else only
        return t.Logic(U1, op, parts)

    def on_IfExp(self, node: ast.IfExp) -> t.Expr:
        test = self.condition(node.test)
        if isinstance(test, t.Const):
            return self.expr(node.body if test.value else node.orelse)
        a, b = self.expr(node.body), self.expr(node.orelse)
        self.same(a, b, node)
        return t.Select(a.type, test, a, b)

    def on_Compare(self, node: ast.Compare) -> t.Expr:
        left, parts = node.left, list[t.Expr]()
        for op, right in zip(node.ops, node.comparators):
            if left is not node.left and not isinstance(left, (ast.Name, ast.Constant)):
                self.fail("the middle of a chained comparison must be a name or a literal", node)
            parts.append(self.comparison(op, left, right, node))
            left = right
        if all(isinstance(part, t.Const) for part in parts):
            return t.Const(None, int(all(part.value for part in parts if isinstance(part, t.Const))), True)
        return parts[0] if len(parts) == 1 else t.Logic(U1, "and", [self.truth(part) for part in parts])

    def comparison(self, op: ast.cmpop, left: ast.expr, right: ast.expr, node: ast.AST) -> t.Expr:
        a = self.integer(left)
        if isinstance(op, (ast.In, ast.NotIn)):
            values = [self.static(e) for e in right.elts] if isinstance(right, ast.Tuple) else self.static(right)
            if not isinstance(values, (list, tuple)) or not all(isinstance(value, int) for value in values):
                self.fail("`in` needs a tuple of constants", node)
            if isinstance(a, t.Const):
                return t.Const(None, int((a.value in values) is isinstance(op, ast.In)), True)
            a = self.resolve(a)
            constants = [t.Const(None, int(value)) for value in values]
            for constant in constants:
                self.adapt(constant, a.type, node)
            member = t.Member(U1, a, tuple(constant.value for constant in constants))
            return member if isinstance(op, ast.In) else t.Not(U1, member)
        if type(op) not in COMPARE:
            self.fail("this comparison is not in the subset", node)
        text, fold = COMPARE[type(op)]
        b = self.integer(right)
        if isinstance(a, t.Const) and isinstance(b, t.Const):
            return t.Const(None, int(fold(a.value, b.value)), True)
        self.same(a, b, node)
        if a.type is None:
            a, b = self.resolve(a), self.resolve(b)
        return t.Compare(U1, text, a, b)

    def on_Attribute(self, node: ast.Attribute) -> t.Expr:
        return self.load(self.place(node), node)

    def on_Subscript(self, node: ast.Subscript) -> t.Expr:
        table = self.static(node.value)
        if isinstance(table, (tuple, bytes)):
            return self.table_item(node, table)
        if isinstance(node.value, ast.Call):
            call, index = self.expr(node.value), self.static(node.slice)
            if isinstance(call, t.Call) and isinstance(call.type, tuple):
                if not isinstance(index, int) or not 0 <= index < len(call.type):
                    self.fail("index of a returned tuple must be a constant within it", node)
                return t.Pick(call.type[index], call, index)
        return self.load(self.place(node), node)

    def table_item(self, node: ast.Subscript, values: tuple[int, ...] | bytes) -> t.Expr:
        index = self.resolve(self.integer(node.slice))
        table = self.tables.get(id(values))
        if table is None:
            name = ast.unparse(node.value)
            element = self.element_type(name, values)
            if not all(isinstance(v, int) and element.holds(v) for v in values):
                self.fail(f"{name} is not a table of {element}", node)
            table = t.Table(f"{self.native.module}.{name}", name, element, tuple(element(v) for v in values))
            self.tables[id(values)] = table
        return t.TableItem(table.element, table, index)

    def element_type(self, name: str, values: tuple[int, ...] | bytes) -> IntType:
        """The annotation `tuple[u32, ...]` of the table, or u8 for bytes, or u64."""
        if isinstance(values, bytes):
            return SCALARS[ctypes.c_uint8]
        hint = self.scope.get("__annotations__", {}).get(name)
        hint = eval(hint, self.scope) if isinstance(hint, str) else hint
        element = next(iter(get_args(hint)), None)
        return element if isinstance(element, IntType) else U64

    def on_Call(self, node: ast.Call) -> t.Expr:
        callee = self.static(node.func)
        callee = BUILTINS.get(callee, callee) if callee.__hash__ else callee
        if isinstance(callee, IntType):
            return self.conversion(callee, node)
        if isinstance(callee, PtrType):
            (address,) = self.arguments(node, (U64,))
            return t.FromAddress(callee, address)
        if callee is bool:
            return self.truth(self.integer(self.only(node)))
        if callee is len:
            table = self.static(self.only(node))
            if isinstance(table, (tuple, bytes)):
                return t.Const(None, len(table))
        if isinstance(callee, Intrinsic):
            return self.intrinsic(callee, node)
        if isinstance(callee, Extern):
            self.externs[callee.symbol] = callee
            return t.Call(callee.ret, callee, self.arguments(node, callee.params))
        if hasattr(callee, "params_named"):
            self.calls[callee.symbol] = callee
            names = [name for name, _ in callee.params_named]
            return t.Call(callee.ret, callee, self.arguments(node, callee.params, names))
        self.fail(f"{ast.unparse(node.func)} is not a native function", node)

    def only(self, node: ast.Call) -> ast.expr:
        if len(node.args) != 1 or node.keywords:
            self.fail(f"{ast.unparse(node.func)}() takes one argument", node)
        return node.args[0]

    def conversion(self, kind: IntType, node: ast.Call) -> t.Expr:
        value = self.integer(self.only(node))
        if isinstance(value, t.Const):
            return t.Const(kind, kind(value.value))
        if value.type is None:
            return self.adapt(value, kind, node)
        return t.Convert(kind, value)

    def arguments(self, node: ast.Call, params: Any, names: list[str] | None = None) -> list[t.Expr]:
        given = list(node.args)
        keywords = {word.arg: word.value for word in node.keywords}
        for name in (names or [])[len(given) :]:
            if name in keywords:
                given.append(keywords.pop(name))
        if keywords or len(given) != len(params):
            self.fail(f"{ast.unparse(node.func)}() takes {len(params)} arguments", node)
        return [self.typed(arg, kind) for arg, kind in zip(given, params)]

    def intrinsic(self, callee: Intrinsic, node: ast.Call) -> t.Expr:
        if node.keywords or len(node.args) != len(callee.params):
            self.fail(f"{callee.name}() takes {len(callee.params)} arguments", node)
        generic = [self.integer(a) for a, kind in zip(node.args, callee.params) if kind is None]
        for other in generic[1:]:
            self.same(generic[0], other, node)
        generic = [self.resolve(value) for value in generic]
        if callee.name == "bswap" and generic[0].type.width % 16:
            self.fail(f"bswap() of {generic[0].type}", node)
        rest = iter(generic)
        args = [next(rest) if kind is None else self.typed(a, kind) for a, kind in zip(node.args, callee.params)]
        return t.Builtin(args[0].type if callee.ret == "same" else callee.ret, callee, args)

    # Structures

    def load(self, place: t.Place, node: ast.AST) -> t.Expr:
        kind = SCALARS.get(place.ctype)
        if kind is not None:
            return t.Load(kind, place)
        if issubclass(place.ctype, (ctypes.Structure, ctypes.Array)):
            return t.AddressOf(PtrType(place.ctype), place)
        self.fail(f"{ast.unparse(node)} has the unsupported type {place.ctype.__name__}", node)

    def place(self, node: ast.expr) -> t.Place:
        """Where `a.b[i].c` lives."""
        if isinstance(node, ast.Attribute):
            return self.member(self.place(node.value), node)
        if isinstance(node, ast.Subscript):
            return self.element(self.place(node.value), node)
        base = self.expr(node)
        if not isinstance(base.type, PtrType):
            self.fail(f"{ast.unparse(node)} is {base.type}, not a structure", node)
        return t.Place(base, base.type.ctype, align=ctypes.alignment(base.type.ctype))

    def member(self, place: t.Place, node: ast.Attribute) -> t.Place:
        ctype = next((f[1] for f in _fields(place.ctype) if f[0] == node.attr and len(f) == 2), None)
        if ctype is None:
            self.fail(f"{place.ctype.__name__} has no usable field {node.attr}", node)
        place.offset += getattr(place.ctype, node.attr).offset
        place.ctype = ctype
        place.path.append(node.attr)
        return place

    def element(self, place: t.Place, node: ast.Subscript) -> t.Place:
        if not issubclass(place.ctype, ctypes.Array):
            self.fail(f"{ast.unparse(node.value)} is not an array", node)
        index = self.integer(node.slice)
        length, stride = place.ctype._length_, ctypes.sizeof(place.ctype._type_)
        if isinstance(index, t.Const):
            if not 0 <= index.value < length:
                self.fail(f"index {index.value} outside {length} elements", node)
            index.type = U64
            place.offset += index.value * stride
        else:
            index = self.resolve(index)
            place.steps.append((index, stride))
        place.ctype = place.ctype._type_
        place.path.append(index)
        return place

    # Constants

    def static(self, node: ast.AST) -> Any:
        """The Python object an expression names if that is known at compile time, else NOTHING."""
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                if node.id in self.names:
                    return NOTHING
                return self.scope.get(node.id, getattr(builtins, node.id, NOTHING))
            case ast.Attribute():
                owner = self.static(node.value)
                if owner is NOTHING:
                    return NOTHING
                value = getattr(owner, node.attr, NOTHING)
                if value is NOTHING:
                    self.fail(f"{ast.unparse(node)} does not exist", node)
                return value
            case ast.Subscript():
                owner, key = self.static(node.value), self.static(node.slice)
                if owner is NOTHING or key is NOTHING:
                    return NOTHING
                try:
                    return owner[key]
                except (TypeError, LookupError):
                    self.fail(f"{ast.unparse(node)} does not exist", node)
        return NOTHING


def _fields(ctype: Any) -> list[tuple[Any, ...]]:
    """All `_fields_` of a structure, inherited ones included."""
    return [f for base in ctype.__mro__ for f in base.__dict__.get("_fields_", ())]


def _is_boolean(value: t.Expr) -> bool:
    match value:
        case t.Const():
            return value.boolean
        case t.Select():
            return _is_boolean(value.a) and _is_boolean(value.b)
    return False


def _text(node: ast.AST | None) -> str:
    return f"{ast.unparse(node)} " if isinstance(node, ast.expr) else "value "
