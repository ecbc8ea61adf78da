"""Native functions as LLVM IR text (LLVM 20 and later: opaque pointers, intrinsics need no declaration).

Calling convention: plain C; integers by their width (u1 is i1, no extension attributes), structures by address, several results
as a literal structure `{ i64, i32 }`. Nothing here needs LLVM itself: the text is for whoever has a compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

from trapline.bits import native_tree as t
from trapline.bits.native_types import SCALARS, Extern, IntType, NativeError, Return, Type, extension

INLINE_SIZE = 24
"""Functions with at most this many expression nodes are always inlined."""

WIDE_DIVISION = "trapline.bits.native_wide.divide128"
"""What divides u128: no processor does, and compilers would call a library."""

PREDICATES = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
PLAIN = {"+": "add", "-": "sub", "*": "mul", "&": "and", "|": "or", "^": "xor"}


def llvm_return(ret: Return) -> str:
    """The LLVM type of what a function returns."""
    if ret is None:
        return "void"
    return "{ " + ", ".join(part.llvm for part in ret) + " }" if isinstance(ret, tuple) else ret.llvm


def declaration(symbol: str, params: Iterable[Type], ret: Return) -> str:
    """The `declare` line of a native function defined in another module."""
    return f"declare {llvm_return(ret)} @{symbol}({', '.join(p.llvm for p in params)})"


def table_text(table: t.Table) -> str:
    """The global variable of a constant table."""
    items = ", ".join(f"{table.element.llvm} {value}" for value in table.values)
    return f"@{table.symbol} = private unnamed_addr constant [{len(table.values)} x {table.element.llvm}] [{items}]"


def function_text(function: t.Function, linkage: str = "internal") -> str:
    """The definition of one function, without what it calls."""
    return _Emitter(function).emit(linkage)


def module_text(functions: Iterable[t.Function], roots: set[str], linkage: str, wide: Callable[[], list[t.Function]]) -> str:
    """Definitions of `functions`, the tables they use and declarations of host functions.

    `wide` gives the functions for the division of u128, if one is needed.
    """
    tables: dict[str, t.Table] = {}
    declared: dict[str, str] = {}
    bodies = list[str]()
    seen: dict[str, t.Function] = {}
    queue = list(functions)
    for function in queue:
        if seen.setdefault(function.symbol, function) is not function:
            raise NativeError(f"{function.filename}: two native functions are called {function.symbol}")
        for table in function.tables:
            if tables.setdefault(table.symbol, table).values != table.values:
                raise NativeError(f"{function.filename}: two tables are called {table.symbol}")
        for host in function.externs:
            declared[host.symbol] = host.declaration()
        emitter = _Emitter(function)
        bodies.append(emitter.emit(linkage if function.symbol in roots else "internal"))
        if emitter.wide_division and WIDE_DIVISION not in {other.symbol for other in queue}:
            queue.extend(wide())
    return "\n".join([*map(table_text, tables.values()), *declared.values(), *bodies]) + "\n"


class _Emitter:
    def __init__(self, function: t.Function):
        self.function = function
        self.lines: list[str] = []
        self.count = 0
        self.label = "entry"
        self.loops: list[tuple[str, str]] = []
        self.hidden: list[str] = []
        self.wide_division = False

    # Building blocks

    def emit(self, linkage: str) -> str:
        function = self.function
        memory = {name: kind for name, kind in function.locals.items() if name in function.assigned}
        self.memory = memory
        for name, kind in function.params:
            if name in memory:
                self.put(f"store {kind.llvm} %p.{name}, ptr %v.{name}")
        if self.block(function.body):
            self.put("ret void" if function.ret is None else "unreachable")
        params = ", ".join(f"{kind.llvm} %p.{name}" for name, kind in function.params)
        attributes = "nounwind noinline" if function.seldom else "nounwind alwaysinline" if function.size <= INLINE_SIZE else "nounwind"
        head = f"define {linkage} {llvm_return(function.ret)} @{function.symbol}({params}) {attributes} {{\nentry:"
        slots = [f"  %v.{name} = alloca {kind.llvm}" for name, kind in memory.items()]
        return "\n".join([head, *slots, *self.hidden, *self.lines, "}"])

    def put(self, text: str) -> None:
        self.lines.append("  " + text)

    def let(self, text: str) -> str:
        """A new SSA value."""
        self.count += 1
        name = f"%t.{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def fresh(self, hint: str) -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def slot(self, kind: Type) -> str:
        """A stack slot of its own (moved into the entry block)."""
        self.count += 1
        name = f"%s.{self.count}"
        self.hidden.append(f"  {name} = alloca {kind.llvm}")
        return name

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.label = label

    def jump(self, label: str) -> None:
        self.put(f"br label %{label}")

    def branch(self, test: str, yes: str, no: str) -> None:
        self.put(f"br i1 {test}, label %{yes}, label %{no}")

    def call_intrinsic(self, name: str, kind: IntType, args: list[str], flag: str = "") -> str:
        full = f"llvm.{name}.{kind.llvm}"  # LLVM knows its intrinsics: a declaration could only clash
        words = [f"{kind.llvm} {arg}" for arg in args] + ([f"i1 {flag}"] if flag else [])
        return self.let(f"call {kind.llvm} @{full}({', '.join(words)})")

    # Statements: each returns whether control can go on after it

    def block(self, body: list[t.Stmt]) -> bool:
        return all(getattr(self, f"do_{type(stmt).__name__}")(stmt) for stmt in body)

    def store(self, target: t.Target, value: str, kind: Type) -> None:
        if isinstance(target, t.Place):
            address, align = self.address(target)
            if kind.llvm == "i1":
                value, stored = self.let(f"zext i1 {value} to i8"), "i8"
            else:
                stored = kind.llvm
            self.put(f"store {stored} {value}, ptr {address}, align {align}")
        elif target is not None:
            self.put(f"store {kind.llvm} {value}, ptr %v.{target}")

    def do_Assign(self, s: t.Assign) -> bool:
        for target, value, e in [(d, self.expr(e), e) for d, e in zip(s.targets, s.values)]:
            self.store(target, value, e.type)
        return True

    def do_Unpack(self, s: t.Unpack) -> bool:
        whole, text = self.expr(s.call), llvm_return(s.call.type)
        parts = [None if target is None else self.let(f"extractvalue {text} {whole}, {i}") for i, target in enumerate(s.targets)]
        for target, part, kind in zip(s.targets, parts, s.call.type):
            if part is not None:
                self.store(target, part, kind)
        return True

    def do_Effect(self, s: t.Effect) -> bool:
        self.expr(s.value)
        return True

    def do_If(self, s: t.If) -> bool:
        then, end = self.fresh("then"), self.fresh("endif")
        orelse = self.fresh("else") if s.orelse else end
        self.branch(self.expr(s.test), then, orelse)
        goes_on = not s.orelse
        for label, body in ((then, s.then), (orelse, s.orelse)):
            if label == end:
                break
            self.start(label)
            if self.block(body):
                self.jump(end)
                goes_on = True
        if goes_on:
            self.start(end)
        return goes_on

    def do_While(self, s: t.While) -> bool:
        head, body, end = self.fresh("while"), self.fresh("body"), self.fresh("endwhile")
        self.jump(head)
        self.start(head)
        self.branch(self.expr(s.test), body, end)
        self.start(body)
        self.loops.append((head, end))
        if self.block(s.body):
            self.jump(head)
        self.loops.pop()
        self.start(end)
        return True

    def do_For(self, s: t.For) -> bool:
        kind, ty = s.kind, s.kind.llvm
        body, step, more, end = (self.fresh(hint) for hint in ("body", "step", "more", "endfor"))
        counter, sign = self.slot(kind), "s" if kind.signed else "u"
        self.put(f"store {ty} {self.expr(s.start)}, ptr {counter}")
        stop = self.expr(s.stop)
        if not isinstance(s.stop, t.Const):
            held = self.slot(kind)
            self.put(f"store {ty} {stop}, ptr {held}")
            stop = self.let(f"load {ty}, ptr {held}")
        up = s.step > 0
        first = self.let(f"load {ty}, ptr {counter}")
        self.branch(self.let(f"icmp {sign}{'lt' if up else 'gt'} {ty} {first}, {stop}"), body, end)
        self.start(body)
        current = self.let(f"load {ty}, ptr {counter}")
        self.store(None if s.name == "_" else s.name, current, kind)
        self.loops.append((step, end))
        if self.block(s.body):
            self.jump(step)
        self.loops.pop()
        # The counter may not pass `stop` (it could wrap), so the distance that is left decides.
        self.start(step)
        left = self.let(f"sub {ty} {stop}, {current}" if up else f"sub {ty} {current}, {stop}")
        stride = min(abs(s.step), kind.mask)
        self.branch(self.let(f"icmp ugt {ty} {left}, {stride}"), more, end)
        self.start(more)
        following = self.let(f"{'add' if up else 'sub'} {ty} {current}, {stride}")
        self.put(f"store {ty} {following}, ptr {counter}")
        self.jump(body)
        self.start(end)
        return True

    def do_Break(self, s: t.Break) -> bool:
        self.jump(self.loops[-1][1])
        return False

    def do_Continue(self, s: t.Continue) -> bool:
        self.jump(self.loops[-1][0])
        return False

    def do_Returns(self, s: t.Returns) -> bool:
        ret = self.function.ret
        text = llvm_return(ret)
        if not s.values:
            self.put("ret void")
        elif isinstance(ret, tuple) and len(s.values) == len(ret) and not isinstance(s.values[0].type, tuple):
            whole = "poison"
            for i, (value, kind) in enumerate(zip([self.expr(v) for v in s.values], ret)):
                whole = self.let(f"insertvalue {text} {whole}, {kind.llvm} {value}, {i}")
            self.put(f"ret {text} {whole}")
        else:
            self.put(f"ret {text} {self.expr(s.values[0])}")
        return False

    # Expressions: each returns an operand

    def expr(self, e: t.Expr) -> str:
        return getattr(self, f"on_{type(e).__name__}")(e)  # type: ignore[no-any-return]

    def on_Const(self, e: t.Const) -> str:
        return ("true" if e.value else "false") if e.type.width == 1 else str(e.value)

    def on_Local(self, e: t.Local) -> str:
        if e.name in self.memory:
            return self.let(f"load {e.type.llvm}, ptr %v.{e.name}")
        return f"%p.{e.name}"

    def on_Unary(self, e: t.Unary) -> str:
        a = self.expr(e.a)
        return self.let(f"sub {e.type.llvm} 0, {a}" if e.op == "-" else f"xor {e.type.llvm} {a}, -1")

    def on_Binary(self, e: t.Binary) -> str:
        kind = e.type
        if e.op in PLAIN:
            a = self.expr(e.a)
            return self.let(f"{PLAIN[e.op]} {kind.llvm} {a}, {self.expr(e.b)}")
        if e.op in ("<<", ">>"):
            return self.shift(e)
        a, b = self.expr(e.a), self.expr(e.b)
        constant = e.b.value if isinstance(e.b, t.Const) else 0
        return self.signed_division(e.op, kind, a, b) if kind.signed else self.division(e.op, kind, a, b, constant)

    def shift(self, e: t.Binary) -> str:
        kind, ty = e.type, e.type.llvm
        a = self.expr(e.a)
        op = "shl" if e.op == "<<" else "ashr" if kind.signed else "lshr"
        if isinstance(e.b, t.Const):
            count = min(e.b.value, kind.width)
            if count == kind.width:
                if op != "ashr":
                    return self.on_Const(t.Const(kind, 0))
                count -= 1
            return self.let(f"{op} {ty} {a}, {count}")
        b, counts = self.expr(e.b), e.b.type
        if counts.mask < kind.width:
            return self.let(f"{op} {ty} {a}, {self.cast(b, counts, kind, signed=False)}")
        inside = self.let(f"icmp ult {counts.llvm} {b}, {kind.width}")
        amount = self.cast(b, counts, kind, signed=False)
        if op == "ashr":
            amount = self.let(f"select i1 {inside}, {ty} {amount}, {ty} {kind.width - 1}")
            return self.let(f"ashr {ty} {a}, {amount}")
        shifted = self.let(f"{op} {ty} {a}, {amount}")
        return self.let(f"select i1 {inside}, {ty} {shifted}, {ty} {self.on_Const(t.Const(kind, 0))}")

    def division(self, op: str, kind: IntType, a: str, b: str, constant: int) -> str:
        ty = kind.llvm
        if kind.width == 128:
            self.wide_division = True
            both = self.let(f"call {{ i128, i128 }} @{WIDE_DIVISION}(i128 {a}, i128 {b})")
            return self.let(f"extractvalue {{ i128, i128 }} {both}, {0 if op == '//' else 1}")
        name = "udiv" if op == "//" else "urem"
        if constant:
            return self.let(f"{name} {ty} {a}, {b}")
        zero = self.let(f"icmp eq {ty} {b}, 0")
        safe = self.let(f"select i1 {zero}, {ty} 1, {ty} {b}")
        result = self.let(f"{name} {ty} {a}, {safe}")
        return self.let(f"select i1 {zero}, {ty} {'0' if op == '//' else a}, {ty} {result}")

    def signed_division(self, op: str, kind: IntType, a: str, b: str) -> str:
        """Floor division: the remainder has the sign of the divisor. The most negative value // -1 wraps."""
        ty = kind.llvm
        if kind.width == 128:
            raise NativeError(f"{self.function.filename}: {self.function.symbol}: no division of s128")
        zero = self.let(f"icmp eq {ty} {b}, 0")
        lowest = self.let(f"icmp eq {ty} {a}, {-kind.half}")
        minus = self.let(f"icmp eq {ty} {b}, -1")
        wraps = self.let(f"and i1 {lowest}, {minus}")
        special = self.let(f"or i1 {zero}, {wraps}")
        safe = self.let(f"select i1 {special}, {ty} 1, {ty} {b}")
        rest = self.let(f"srem {ty} {a}, {safe}")
        inexact = self.let(f"icmp ne {ty} {rest}, 0")
        mixed = self.let(f"icmp slt {ty} {self.let(f'xor {ty} {rest}, {safe}')}, 0")
        adjust = self.let(f"and i1 {inexact}, {mixed}")
        if op == "//":
            quotient = self.let(f"sdiv {ty} {a}, {safe}")
            floored = self.let(f"add {ty} {quotient}, {self.let(f'sext i1 {adjust} to {ty}')}")
            return self.let(f"select i1 {zero}, {ty} 0, {ty} {floored}")
        floored = self.let(f"add {ty} {rest}, {self.let(f'select i1 {adjust}, {ty} {safe}, {ty} 0')}")
        return self.let(f"select i1 {zero}, {ty} {a}, {ty} {floored}")

    def on_Compare(self, e: t.Compare) -> str:
        a, b = self.expr(e.a), self.expr(e.b)
        if not isinstance(e.a.type, IntType):
            raise NativeError(f"{self.function.filename}: {self.function.symbol}: pointers cannot be compared")
        predicate = PREDICATES[e.op]
        if e.op not in ("==", "!="):
            predicate = ("s" if e.a.type.signed else "u") + predicate
        return self.let(f"icmp {predicate} {e.a.type.llvm} {a}, {b}")

    def on_Member(self, e: t.Member) -> str:
        a, result = self.expr(e.a), "false"
        for value in e.values:
            result = self.let(f"or i1 {result}, {self.let(f'icmp eq {e.a.type.llvm} {a}, {value}')}")
        return result

    def on_Not(self, e: t.Not) -> str:
        return self.let(f"xor i1 {self.expr(e.a)}, true")

    def on_Logic(self, e: t.Logic) -> str:
        result = self.expr(e.parts[0])
        for part in e.parts[1:]:
            if _cheap(part):
                result = self.let(f"{e.op} i1 {result}, {self.expr(part)}")
                continue
            rest, end, before = self.fresh(e.op), self.fresh("end"), self.label
            self.branch(result, *((rest, end) if e.op == "and" else (end, rest)))
            self.start(rest)
            other = self.expr(part)
            after = self.label
            self.jump(end)
            self.start(end)
            short = "false" if e.op == "and" else "true"
            result = self.let(f"phi i1 [ {short}, %{before} ], [ {other}, %{after} ]")
        return result

    def on_Select(self, e: t.Select) -> str:
        test, ty = self.expr(e.test), e.type.llvm
        if _cheap(e.a) and _cheap(e.b):
            a = self.expr(e.a)
            return self.let(f"select i1 {test}, {ty} {a}, {ty} {self.expr(e.b)}")
        yes, no, end = self.fresh("yes"), self.fresh("no"), self.fresh("end")
        self.branch(test, yes, no)
        arms = list[str]()
        for label, arm in ((yes, e.a), (no, e.b)):
            self.start(label)
            value = self.expr(arm)
            arms.append(f"[ {value}, %{self.label} ]")
            self.jump(end)
        self.start(end)
        return self.let(f"phi {ty} {', '.join(arms)}")

    def on_Convert(self, e: t.Convert) -> str:
        return self.cast(self.expr(e.a), e.a.type, e.type, e.a.type.signed)

    def cast(self, value: str, old: IntType, new: IntType, signed: bool) -> str:
        if old.width == new.width:
            return value
        op = "trunc" if new.width < old.width else "sext" if signed else "zext"
        return self.let(f"{op} {old.llvm} {value} to {new.llvm}")

    def on_Builtin(self, e: t.Builtin) -> str:
        args, name, kind = [self.expr(arg) for arg in e.args], e.intrinsic.name, e.type
        if name.startswith(("load", "store")):
            ty = f"i{name.lstrip('loadstre')}"
            address = self.let(f"inttoptr i64 {args[0]} to ptr")
            if name.startswith("load"):
                return self.let(f"load {ty}, ptr {address}, align 1")
            self.put(f"store {ty} {args[1]}, ptr {address}, align 1")
            return ""
        if name == "cas64":
            address = self.let(f"inttoptr i64 {args[0]} to ptr")
            pair = self.let(f"cmpxchg ptr {address}, i64 {args[1]}, i64 {args[2]} seq_cst seq_cst, align 8")
            return self.let(f"extractvalue {{ i64, i1 }} {pair}, 0")
        if name == "fence":
            self.put("fence seq_cst")
            return ""
        if name == "addressof":
            return self.let(f"ptrtoint ptr {args[0]} to i64")
        if name.startswith("float_"):
            return self.host_float(name.removeprefix("float_"), kind, args)
        if name in ("min", "max"):
            return self.call_intrinsic(f"{'s' if kind.signed else 'u'}{name}", kind, args)
        names = {"clz": "ctlz", "ctz": "cttz", "popcount": "ctpop"}
        return self.call_intrinsic(names.get(name, name), kind, args, "false" if name in ("clz", "ctz") else "")

    def host_float(self, name: str, kind: IntType, args: list[str]) -> str:
        """An operation of `native_float`."""
        real = {32: "float", 64: "double"}[kind.width]
        values = [f"{real} {self.let(f'bitcast {kind.llvm} {arg} to {real}')}" for arg in args]
        intrinsic = {"sqrt": "sqrt", "muladd": "fma"}.get(name)
        if intrinsic:
            result = self.let(f"call {real} @llvm.{intrinsic}.f{kind.width}({', '.join(values)})")
        else:
            result = self.let(f"f{name} {values[0]}, {values[1].split()[1]}")
        return self.let(f"bitcast {real} {result} to {kind.llvm}")

    def on_Call(self, e: t.Call) -> str:
        host = isinstance(e.target, Extern)
        args = [f"{kind.llvm} {extension(kind) + ' ' if host else ''}{self.expr(arg)}" for arg, kind in zip(e.args, e.target.params)]
        ret: Any = e.target.ret
        attribute = extension(ret) + " " if host and ret is not None else ""
        text = f"call {attribute.lstrip()}{llvm_return(ret)} @{e.target.symbol}({', '.join(args)})"
        if ret is None:
            self.put(text)
            return ""
        return self.let(text)

    def on_Pick(self, e: t.Pick) -> str:
        whole = self.expr(e.call)
        return self.let(f"extractvalue {llvm_return(e.call.type)} {whole}, {e.index}")

    def on_TableItem(self, e: t.TableItem) -> str:
        index = self.wide(e.index)
        address = self.let(f"getelementptr {e.type.llvm}, ptr @{e.table.symbol}, i64 {index}")
        return self.let(f"load {e.type.llvm}, ptr {address}")

    def wide(self, index: t.Expr) -> str:
        """An index as i64."""
        kind: IntType = index.type
        value = self.expr(index)
        if kind.width == 64:
            return value
        return self.let(f"{'trunc' if kind.width > 64 else 'sext' if kind.signed else 'zext'} {kind.llvm} {value} to i64")

    def on_Load(self, e: t.Load) -> str:
        address, align = self.address(e.place)
        if e.type.llvm == "i1":
            return self.let(f"trunc i8 {self.let(f'load i8, ptr {address}, align {align}')} to i1")
        return self.let(f"load {e.type.llvm}, ptr {address}, align {align}")

    def on_AddressOf(self, e: t.AddressOf) -> str:
        return self.address(e.place)[0]

    def on_FromAddress(self, e: t.FromAddress) -> str:
        return self.let(f"inttoptr i64 {self.expr(e.a)} to ptr")

    def address(self, place: t.Place) -> tuple[str, int]:
        """The address of a place and the alignment it is known to have."""
        pointer, align = self.expr(place.base), place.align
        if place.offset:
            pointer = self.let(f"getelementptr i8, ptr {pointer}, i64 {place.offset}")
            align = min(align, place.offset & -place.offset)
        for index, stride in place.steps:
            pointer = self.let(f"getelementptr [{stride} x i8], ptr {pointer}, i64 {self.wide(index)}")
            align = min(align, stride & -stride)
        size = ctypes.sizeof(place.ctype) if place.ctype in SCALARS else align
        return pointer, min(align, size)


def _cheap(e: t.Expr) -> bool:
    """Whether evaluating `e` early costs little and can do no harm."""
    match e:
        case t.Const() | t.Local():
            return True
        case t.Unary(a=a) | t.Convert(a=a) | t.Not(a=a):
            return _cheap(a)
        case t.Compare(a=a, b=b):
            return _cheap(a) and _cheap(b)
        case t.Binary(op=op, a=a, b=b):
            return op not in ("//", "%") and _cheap(a) and _cheap(b)
    return False
