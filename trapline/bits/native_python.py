"""Native functions under CPython: the typed tree as Python code in which every operation wraps at its width.

Unsigned values are ints from 0, signed ones are ints with a sign; u1 is 0, 1, False or True. The code keeps the line numbers of
the original source, so tracebacks and debuggers show that.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from trapline.bits import native_tree as t
from trapline.bits.native_types import Extern, IntType, PtrType


def _shl(x: int, count: int, kind: IntType) -> int:
    return kind(x << count) if count < kind.width else 0


def _div(a: int, b: int, kind: IntType) -> int:
    return kind(a // b) if b else 0


def _mod(a: int, b: int) -> int:
    return a % b if b else a


HELPERS: dict[str, Any] = {"_shl": _shl, "_div": _div, "_mod": _mod}


def compile_python(function: t.Function) -> Callable[..., Any]:
    """An ordinary Python function with the meaning of `function`; arguments must be in range already."""
    return _Writer(function).compile()


class _Writer:
    def __init__(self, function: t.Function):
        self.function = function
        self.scope: dict[str, Any] = dict(HELPERS)
        self.rows: list[tuple[int, str]] = []

    def compile(self) -> Callable[..., Any]:
        name = self.function.symbol.rpartition(".")[2]
        first = self.function.body[0].line if self.function.body else 1
        self.rows.append((first, f"def {name}({', '.join(param for param, _ in self.function.params)}):"))
        self.block(self.function.body, 1)
        tree = ast.parse("\n".join(text for _, text in self.rows))
        lines = [line for line, _ in self.rows]
        for node in ast.walk(tree):
            if hasattr(node, "lineno") and hasattr(node, "end_lineno"):
                node.lineno, node.end_lineno = lines[node.lineno - 1], lines[(node.end_lineno or node.lineno) - 1]
        exec(compile(tree, self.function.filename, "exec"), self.scope)
        return self.scope[name]  # type: ignore[no-any-return]

    def bind(self, hint: str, value: Any) -> str:
        """A global name for `value` in the generated code."""
        name = f"_{hint.replace('.', '_')}"
        while self.scope.setdefault(name, value) is not value:
            name += "_"
        return name

    # Statements

    def block(self, body: list[t.Stmt], depth: int) -> None:
        if not body:
            self.rows.append((self.rows[-1][0], "    " * depth + "pass"))
        for stmt in body:
            self.stmt(stmt, depth)

    def put(self, line: int, depth: int, text: str) -> None:
        self.rows.append((line, "    " * depth + text))

    def stmt(self, stmt: t.Stmt, depth: int) -> None:
        line = stmt.line
        match stmt:
            case t.Assign(targets=targets, values=values):
                left = ", ".join(self.target(target) for target in targets)
                self.put(line, depth, f"{left} = {', '.join(self.expr(value) for value in values)}")
            case t.Unpack(targets=targets, call=call):
                left = ", ".join(self.target(target) for target in targets)
                self.put(line, depth, f"{left} = {self.expr(call)}")
            case t.Effect(value=value):
                self.put(line, depth, self.expr(value))
            case t.If(test=test, then=then, orelse=orelse):
                self.put(line, depth, f"if {self.expr(test)}:")
                self.block(then, depth + 1)
                if orelse:
                    self.put(line, depth, "else:")
                    self.block(orelse, depth + 1)
            case t.While(test=test, body=body):
                self.put(line, depth, f"while {self.expr(test)}:")
                self.block(body, depth + 1)
            case t.For(name=name, start=start, stop=stop, step=step, body=body):
                self.put(line, depth, f"for {name} in range({self.expr(start)}, {self.expr(stop)}, {step}):")
                self.block(body, depth + 1)
            case t.Break():
                self.put(line, depth, "break")
            case t.Continue():
                self.put(line, depth, "continue")
            case t.Returns(values=values):
                self.put(line, depth, f"return {', '.join(self.expr(value) for value in values)}")

    def target(self, target: t.Target) -> str:
        if isinstance(target, t.Place):
            return self.place(target)
        return target or "_"

    # Expressions

    def expr(self, e: t.Expr) -> str:
        return getattr(self, f"on_{type(e).__name__}")(e)  # type: ignore[no-any-return]

    def on_Const(self, e: t.Const) -> str:
        return str(e.value) if e.value >= 0 else f"({e.value})"

    def on_Local(self, e: t.Local) -> str:
        return e.name

    def wrap(self, text: str, kind: IntType) -> str:
        if kind.signed:
            return f"((({text}) + {kind.half:#x} & {kind.mask:#x}) - {kind.half:#x})"
        return f"(({text}) & {kind.mask:#x})"

    def on_Unary(self, e: t.Unary) -> str:
        if e.op == "-":
            return self.wrap(f"-{self.expr(e.a)}", e.type)
        return f"(~{self.expr(e.a)})" if e.type.signed else f"({self.expr(e.a)} ^ {e.type.mask:#x})"

    def on_Binary(self, e: t.Binary) -> str:
        a, b, kind = self.expr(e.a), self.expr(e.b), e.type
        if e.op in ("+", "-", "*"):
            return self.wrap(f"{a} {e.op} {b}", kind)
        if e.op in ("&", "|", "^"):
            return f"({a} {e.op} {b})"
        if e.op == "//":
            return f"_div({a}, {b}, {self.bind(str(kind), kind)})"
        if e.op == "%":
            return f"_mod({a}, {b})"
        if e.b.type.signed and not isinstance(e.b, t.Const):
            b = f"({b} & {e.b.type.mask:#x})"
        if e.op == ">>":
            return f"({a} >> {b})"
        if isinstance(e.b, t.Const) and e.b.value < kind.width:
            return self.wrap(f"{a} << {b}", kind)
        return f"_shl({a}, {b}, {self.bind(str(kind), kind)})"

    def on_Compare(self, e: t.Compare) -> str:
        return f"({self.expr(e.a)} {e.op} {self.expr(e.b)})"

    def on_Member(self, e: t.Member) -> str:
        return f"({self.expr(e.a)} in {e.values})"

    def on_Logic(self, e: t.Logic) -> str:
        return "(" + f" {e.op} ".join(self.expr(part) for part in e.parts) + ")"

    def on_Not(self, e: t.Not) -> str:
        return f"(not {self.expr(e.a)})"

    def on_Select(self, e: t.Select) -> str:
        return f"({self.expr(e.a)} if {self.expr(e.test)} else {self.expr(e.b)})"

    def on_Convert(self, e: t.Convert) -> str:
        old, new = e.a.type, e.type
        if new.width > old.width and (new.signed or not old.signed):
            return f"({self.expr(e.a)} + 0)"
        return self.wrap(self.expr(e.a), new)

    def on_Builtin(self, e: t.Builtin) -> str:
        args = [self.expr(arg) for arg in e.args]
        width = e.args[0].type.width if e.intrinsic.sized else 0
        call = self.bind(e.intrinsic.name, e.intrinsic.python)
        if not e.intrinsic.sized:
            return f"{call}({', '.join(args)})"
        if e.type.signed:
            args[0] = f"({args[0]} & {e.type.mask:#x})"
        return self.wrap(f"{call}({', '.join(args)}, {width})", e.type)

    def on_Call(self, e: t.Call) -> str:
        target = e.target
        python = target if isinstance(target, Extern) else target.python()
        return f"{self.bind(target.symbol, python)}({', '.join(self.expr(arg) for arg in e.args)})"

    def on_Pick(self, e: t.Pick) -> str:
        return f"{self.expr(e.call)}[{e.index}]"

    def on_TableItem(self, e: t.TableItem) -> str:
        return f"{self.bind(e.table.symbol, e.table.values)}[{self.expr(e.index)}]"

    def on_Load(self, e: t.Load) -> str:
        return self.place(e.place)

    def on_AddressOf(self, e: t.AddressOf) -> str:
        return self.place(e.place)

    def on_FromAddress(self, e: t.FromAddress) -> str:
        assert isinstance(e.type, PtrType)
        return f"{self.bind(e.type.ctype.__name__, e.type.ctype)}.from_address({self.expr(e.a)})"

    def place(self, place: t.Place) -> str:
        text = self.expr(place.base)
        for step in place.path:
            text += f".{step}" if isinstance(step, str) else f"[{self.expr(step)}]"
        return text
