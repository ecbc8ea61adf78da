"""From the source of a native function to its typed tree: names, types, definite assignment."""

from __future__ import annotations

import ast
import functools
import linecache
from types import FunctionType
from typing import TYPE_CHECKING, Any, get_args

from trapline.bits import native_tree as t
from trapline.bits.native_expr import ExpressionChecker
from trapline.bits.native_types import (
    S64,
    SCALARS,
    U64,
    IntType,
    NativeError,
    PtrType,
    Return,
    as_type,
)

if TYPE_CHECKING:
    from trapline.bits.native import NativeFunction

Assigned = set[str] | None
"""Locals certainly assigned at a point; None where control cannot arrive."""


@functools.cache
def _functions(filename: str) -> dict[int, ast.FunctionDef]:
    """The function definitions of a file by their first line (that of the first decorator)."""
    tree = ast.parse("".join(linecache.getlines(filename)), filename)
    return {
        min([node.lineno, *(d.lineno for d in node.decorator_list)]): node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
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


class _Checker(ExpressionChecker):
    """Statements."""

    def __init__(self, native: NativeFunction[Any, Any]):
        super().__init__(native)
        self.written: set[str] = set()
        self.breaks: list[list[Assigned]] = []

    def function(self) -> t.Function:
        definition = _functions(self.filename).get(self.native.function.__code__.co_firstlineno)
        if definition is None:
            self.fail("source not found")
        self.node = definition
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
            self.native.seldom,
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
        values = list[t.Expr]()
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
        before: Assigned = set(self.assigned)
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


def _merge(a: Assigned, b: Assigned) -> Assigned:
    if a is None or b is None:
        return b if a is None else a
    return a & b


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
