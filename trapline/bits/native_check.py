"""From the source of a native function to its typed tree: names, types, definite assignment."""

from __future__ import annotations

import ast
import builtins
import ctypes
import functools
import linecache
import operator
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from trapline.bits import native_tree as t
from trapline.bits.native_types import (
    BUILTINS,
    S64,
    SCALARS,
    U1,
    U64,
    Extern,
    Intrinsic,
    IntType,
    NativeError,
    PtrType,
    Return,
    as_type,
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

Assigned = set[str] | None
"""Locals certainly assigned at a point; None where control cannot arrive."""


@functools.lru_cache(maxsize=None)
def _functions(filename: str) -> dict[int, ast.FunctionDef]:
    """The function definitions of a file by their first line (that of the first decorator)."""
    tree = ast.parse("".join(linecache.getlines(filename)), filename)
    return {
        min([node.lineno, *(d.lineno for d in node.decorator_list)]): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def signature(function: FunctionType, scope: dict[str, Any]) -> tuple[list[tuple[str, IntType | PtrType]], Return]:
    """Parameter names with types, and what is returned."""
    code = function.__code__
    where = f"{code.co_filename}:{code.co_firstlineno}: {function.__qualname__}"
    hints = function.__annotations__

    def resolve(name: str) -> Any:
        if name not in hints:
            raise NativeError(f"{where}: {name} needs a type annotation")
        hint = hints[name]
        try:
            return eval(hint, scope) if isinstance(hint, str) else hint
        except NameError as error:
            raise NativeError(f"{where}: annotation of {name}: {error}") from None

    try:
        params = [(name, as_type(resolve(name))) for name in code.co_varnames[: code.co_argcount]]
        ret = resolve("return")
        if ret is None:
            return params, None
        if parts := get_args(ret):
            return params, tuple(as_type(part) for part in parts)
        return params, as_type(ret)
    except NativeError:
        raise
    except TypeError as error:
        raise NativeError(f"{where}: {error}") from None


def check(native: NativeFunction[Any, Any]) -> t.Function:
    """Parse and check a native function."""
    return _Checker(native).function()


class _Checker:
    def __init__(self, native: NativeFunction[Any, Any]):
        self.native = native
        self.scope = native.scope
        code = native.function.__code__
        self.filename = code.co_filename
        self.node: ast.AST = _functions(self.filename).get(code.co_firstlineno) or ast.Pass(lineno=code.co_firstlineno)
        self.locals: dict[str, IntType | PtrType] = {}
        self.written: set[str] = set()
        self.calls: dict[str, NativeFunction[Any, Any]] = {}
        self.externs: dict[str, Extern] = {}
        self.tables: dict[int, t.Table] = {}
        self.breaks: list[list[Assigned]] = []
        self.assigned: Assigned = set()
        self.size = 0

    def fail(self, message: str, node: ast.AST | None = None) -> NoReturn:
        line = getattr(node or self.node, "lineno", 0)
        raise NativeError(f"{self.filename}:{line}: {self.native.__qualname__}: {message}")

    # Functions and statements

    def function(self) -> t.Function:
        definition = self.node
        if not isinstance(definition, ast.FunctionDef):
            self.fail("source not found")
        arguments = definition.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults or arguments.posonlyargs:
            self.fail("only plain positional parameters without defaults")
        params, ret = self.native.params_named, self.native.ret
        self.locals.update(params)
        self.names = {n.id for n in ast.walk(definition) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.names.update(self.locals)
        self.assigned = {name for name, _ in params}
        body = self.block(definition.body)
        if self.assigned is not None and ret is not None:
            self.fail(f"the end can be reached without returning {ret}")
        return t.Function(
            self.native.symbol,
            self.filename,
            params,
            ret,
            self.locals,
            body,
            list(self.calls.values()),
            list(self.externs.values()),
            list(self.tables.values()),
            self.written,
            self.size,
        )

    def block(self, nodes: list[ast.stmt]) -> list[t.Stmt]:
        out: list[t.Stmt] = []
        for node in nodes:
            if self.assigned is None:
                break
            handler = getattr(self, f"do_{type(node).__name__}", None)
            if handler is None:
                self.fail(f"{type(node).__name__} statements are not in the subset", node)
            self.node = node
            out.extend(handler(node))
        return out

    def do_Pass(self, node: ast.Pass) -> list[t.Stmt]:
        return []

    def do_Assert(self, node: ast.Assert) -> list[t.Stmt]:
        return []

    def do_Expr(self, node: ast.Expr) -> list[t.Stmt]:
        if isinstance(node.value, ast.Constant):
            return []
        value = self.expr(node.value)
        if not isinstance(value, (t.Call, t.Builtin)):
            self.fail("an expression statement must be a call", node)
        return [t.Effect(node.lineno, value)]

    def do_Return(self, node: ast.Return) -> list[t.Stmt]:
        ret = self.native.ret
        self_assigned, values = self.assigned, list[t.Expr]()
        if node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
            if ret is not None:
                self.fail(f"must return {ret}", node)
        elif ret is None:
            self.fail("has no return type but returns a value", node)
        elif isinstance(ret, tuple):
            if isinstance(node.value, ast.Tuple):
                if len(node.value.elts) != len(ret):
                    self.fail(f"returns {len(node.value.elts)} values instead of {len(ret)}", node)
                values = [self.typed(part, kind) for part, kind in zip(node.value.elts, ret)]
            else:
                value = self.expr(node.value)
                if not isinstance(value, t.Call) or value.type != ret:
                    self.fail(f"must return {ret}", node)
                values = [value]
        else:
            values = [self.typed(node.value, ret)]
        assert self_assigned is not None
        self.assigned = None
        return [t.Returns(node.lineno, values)]

    def do_Assign(self, node: ast.Assign) -> list[t.Stmt]:
        if len(node.targets) != 1:
            self.fail("one target per assignment", node)
        target = node.targets[0]
        if not isinstance(target, ast.Tuple):
            return [self.assign(node.lineno, target, node.value)]
        if isinstance(node.value, ast.Tuple):
            if len(node.value.elts) != len(target.elts):
                self.fail("as many values as targets are needed", node)
            values = [self.resolve(self.expr(v), self.hint(d)) for d, v in zip(target.elts, node.value.elts)]
            targets = [self.target(d, v.type) for d, v in zip(target.elts, values)]
            return [t.Assign(node.lineno, targets, values)]
        call = self.expr(node.value)
        if not isinstance(call, t.Call) or not isinstance(call.type, tuple):
            self.fail("only a call that returns several values can be unpacked", node)
        if len(call.type) != len(target.elts):
            self.fail(f"{len(call.type)} values for {len(target.elts)} targets", node)
        return [t.Unpack(node.lineno, [self.target(d, kind) for d, kind in zip(target.elts, call.type)], call)]

    def do_AnnAssign(self, node: ast.AnnAssign) -> list[t.Stmt]:
        if not isinstance(node.target, ast.Name) or node.value is None:
            self.fail("an annotated assignment declares and sets one local", node)
        kind = self.static(node.annotation)
        if isinstance(node.annotation, ast.Constant) and isinstance(node.annotation.value, str):
            kind = eval(node.annotation.value, self.scope)
        if not isinstance(kind, (IntType, PtrType)):
            self.fail("the annotation must be a native type", node)
        if self.locals.setdefault(node.target.id, kind) is not kind:
            self.fail(f"{node.target.id} is already {self.locals[node.target.id]}", node)
        return [self.assign(node.lineno, node.target, node.value)]

    def do_AugAssign(self, node: ast.AugAssign) -> list[t.Stmt]:
        source = ast.copy_location(ast.BinOp(_as_load(node.target), node.op, node.value), node)
        return [self.assign(node.lineno, node.target, source)]

    def assign(self, line: int, target: ast.expr, source: ast.expr) -> t.Stmt:
        value = self.resolve(self.expr(source), self.hint(target))
        return t.Assign(line, [self.target(target, value.type)], [value])

    def hint(self, target: ast.expr) -> IntType | PtrType | None:
        """The type a target already has, for literals on the right."""
        if isinstance(target, ast.Name):
            return self.locals.get(target.id)
        kind = SCALARS.get(self.place(target).ctype)
        if kind is None:
            self.fail("only scalar fields can be assigned", target)
        return kind

    def target(self, node: ast.expr, kind: Any) -> t.Target:
        if not isinstance(node, ast.Name):
            if self.hint(node) != kind:
                self.fail(f"{kind} assigned to a field of type {self.hint(node)}", node)
            return self.place(node)
        if node.id == "_":
            return None
        if not isinstance(kind, (IntType, PtrType)):
            self.fail(f"{node.id} cannot hold {kind}", node)
        known = self.locals.setdefault(node.id, kind)
        if known is not kind and not (isinstance(known, PtrType) and known.accepts(kind)):
            self.fail(f"{node.id} is {known}, cannot hold {kind}", node)
        assert self.assigned is not None
        self.assigned.add(node.id)
        self.written.add(node.id)
        return node.id

    def do_If(self, node: ast.If) -> list[t.Stmt]:
        test = self.condition(node.test)
        if isinstance(test, t.Const):
            return self.block(node.body if test.value else node.orelse)
        assert self.assigned is not None
        before = set(self.assigned)
        then = self.block(node.body)
        after_then, self.assigned = self.assigned, before
        orelse = self.block(node.orelse)
        self.assigned = _merge(after_then, self.assigned)
        return [t.If(node.lineno, test, then, orelse)]

    def do_While(self, node: ast.While) -> list[t.Stmt]:
        if node.orelse:
            self.fail("no else on loops", node)
        test = self.condition(node.test)
        assert self.assigned is not None
        before = set(self.assigned)
        endless = isinstance(test, t.Const) and test.value != 0
        body, left = self.loop(node.body)
        self.assigned = functools.reduce(_merge, left, None if endless else before)
        return [t.While(node.lineno, test, body)]

    def do_For(self, node: ast.For) -> list[t.Stmt]:
        call = node.iter
        if node.orelse or not isinstance(node.target, ast.Name):
            self.fail("loops are `for name in range(...)` without else", node)
        if not isinstance(call, ast.Call) or self.static(call.func) is not range or not 1 <= len(call.args) <= 3:
            self.fail("loops are `for name in range(...)`", node)
        bounds = [self.expr(arg) for arg in call.args]
        step = bounds.pop() if len(bounds) == 3 else t.Const(None, 1)
        if not isinstance(step, t.Const) or step.value == 0:
            self.fail("the step of range() must be a constant other than 0", node)
        start, stop = bounds if len(bounds) == 2 else (t.Const(None, 0), bounds[0])
        negative = any(isinstance(bound, t.Const) and bound.value < 0 for bound in (start, stop))
        kind = start.type or stop.type or self.locals.get(node.target.id) or (S64 if negative else U64)
        if not isinstance(kind, IntType) or (negative and not kind.signed):
            self.fail("range() with a negative bound needs a signed type", node)
        start, stop = self.coerce(start, kind), self.coerce(stop, kind)
        assert self.assigned is not None
        before = set(self.assigned)
        self.target(node.target, kind)
        body, left = self.loop(node.body)
        self.assigned = functools.reduce(_merge, left, before)
        return [t.For(node.lineno, node.target.id, kind, start, stop, step.value, body)]

    def loop(self, nodes: list[ast.stmt]) -> tuple[list[t.Stmt], list[Assigned]]:
        self.breaks.append([])
        body = self.block(nodes)
        return body, self.breaks.pop()

    def do_Break(self, node: ast.Break) -> list[t.Stmt]:
        self.breaks[-1].append(self.assigned)
        self.assigned = None
        return [t.Break(node.lineno)]

    def do_Continue(self, node: ast.Continue) -> list[t.Stmt]:
        self.assigned = None
        return [t.Continue(node.lineno)]

    # Expressions

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
            member = t.Member(U1, a, tuple(self.adapt(t.Const(None, int(v)), a.type, node).value for v in values))
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


def _merge(a: Assigned, b: Assigned) -> Assigned:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _is_boolean(value: t.Expr) -> bool:
    match value:
        case t.Const():
            return value.boolean
        case t.Select():
            return _is_boolean(value.a) and _is_boolean(value.b)
    return False


def _as_load(node: ast.expr) -> ast.expr:
    """The target of an augmented assignment, as an expression that reads it."""
    load = ast.Load()
    match node:
        case ast.Name():
            return ast.copy_location(ast.Name(node.id, load), node)
        case ast.Attribute():
            return ast.copy_location(ast.Attribute(node.value, node.attr, load), node)
        case ast.Subscript():
            return ast.copy_location(ast.Subscript(node.value, node.slice, load), node)
    return node


def _text(node: ast.AST | None) -> str:
    return f"{ast.unparse(node)} " if isinstance(node, ast.expr) else "value "
