"""LLVM IR for bit-vector expressions.

`Emitter` appends instructions to the basic block being written and returns the names of values. A node has up to three forms: an
integer of its width, a vector of its elements, and floating-point numbers (one, or a vector of them); conversions between them are
bitcasts, which LLVM folds into host SIMD.

A `likely` node ends the basic block: what follows it is in another one. Its unlikely side is emitted in a block of its own, where
nothing that is computed counts as known afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from trapline.bits.expr import Bits
from trapline.bits.ops import ELEMENTWISE, SHIFTS, STRUCTURAL

METADATA = "!0 = !{!\"branch_weights\", i32 100000, i32 1}\n!1 = !{!\"branch_weights\", i32 1, i32 100000}\n"
"""What a module must hold besides the text that is emitted: how much more likely one side of a branch is."""

LIKELY, UNLIKELY = "!prof !0", "!prof !1"
"""On a conditional branch: to its first label, to its second label."""

_VECTOR_ELEMENTS = (8, 16, 32, 64)
REAL = {32: "float", 64: "double"}
"""LLVM types of floating-point numbers by width."""
_VECTORS = ("vzext", "vsext", "vtrunc", "insert", "lookup")
"""Structural operators that compute vectors of `esize`."""
_BITWISE = ("xor", "and", "or")

_ROUNDING = {"fadd": "fadd", "fsub": "fsub", "fmul": "fmul", "fdiv": "fdiv", "fsqrt": "sqrt", "fmuladd": "fma"}
"""Operations that may round, and LLVM's names for them where the environment counts."""


def _strictly(name: str, mangled: str, args: list[str], t: str) -> str:
    """A template for an operation that rounds to nearest and leaves its mark in the host's flags."""
    operands = ", ".join([*args, 'metadata !"round.tonearest"', 'metadata !"fpexcept.strict"'])
    return f"call {t} @llvm.experimental.constrained.{name}.{mangled}({operands}) strictfp"


Form = tuple[str, int]
"""How a value is held: ("integer", 0), ("vector", element size) or ("real", element size)."""


def form_of(node: Bits) -> Form:
    """The form in which a node is computed."""
    if node.op == "item" and node.args[0].op == "likely":
        return form_of(node.args[0].args[1 + node.attr])
    if node.op == "convert":
        return ("vector" if node.attr[0].startswith("fpto") else "real", node.esize) if node.esize < node.width else ("integer", 0)
    if node.op in ELEMENTWISE and ELEMENTWISE[node.op].real and not ELEMENTWISE[node.op].compare:
        return "real", node.esize
    if node.op in _BITWISE and (inner := form_of(node.args[0]))[0] == "real":
        return inner
    if node.op in ELEMENTWISE and node.esize < node.width or node.op in _VECTORS:
        return "vector", node.esize
    return "integer", 0


def real_type(width: int, esize: int) -> str:
    """The LLVM type of `width` bits as floating-point numbers."""
    return REAL[esize] if width == esize else f"<{width // esize} x {REAL[esize]}>"


class Emitter:
    """Emits expressions as LLVM IR text.

    `leaf(node)` emits a leaf and returns its value's name. Values are remembered by node identity, so emitted nodes are kept.
    `natives` collects the symbols of the native functions that were called. With `decline`, that label is where the rare sides of
    `likely` nodes go instead of being computed; `declined` tells whether one did. With `lasting`, conditions that last are not
    tested but collected there. `strict`: the host's flags will tell whether anything was rounded, so what may round is computed exactly
    where the expression says, and conditions that stand for that are taken for granted.
    """

    def __init__(
        self,
        leaf: Callable[[Bits], str],
        prefix: str = "v",
        decline: str | None = None,
        lasting: list[Bits] | None = None,
        strict: bool = False,
    ) -> None:
        self.lines: list[str] = []
        self.natives: dict[str, object] = {}
        self.intrinsics: set[str] = set()
        self.declined = False
        self._leaf, self._prefix, self._decline, self._lasting, self._strict = leaf, prefix, decline, lasting, strict
        self._count = 0
        self._scalar: dict[int, str] = {}
        self._vector: dict[tuple[int, int], str] = {}
        self._real: dict[tuple[int, int], str] = {}
        self._chosen: dict[int, list[str]] = {}
        self._kept: list[Bits] = []

    def add(self, text: str) -> None:
        """Append one instruction or label."""
        self.lines.append(text)

    def name(self) -> str:
        self._count += 1
        return f"%{self._prefix}{self._count}"

    def let(self, text: str) -> str:
        """Append `text` as the value of a fresh name."""
        name = self.name()
        self.lines.append(f"{name} = {text}")
        return name

    def set(self, node: Bits, value: str) -> None:
        """Give a leaf (an effect's result) its value."""
        self._scalar[id(node)] = value

    def __call__(self, node: Bits) -> str:
        """The value of `node` as `i<width>`."""
        key = id(node)
        found = self._scalar.get(key)
        if found is None:
            found = self._scalar[key] = self._integer(node)
            self._kept.append(node)
        return found

    # -- forms -----------------------------------------------------------------------------------------------------------
    def _integer(self, node: Bits) -> str:
        if node.op == "const":
            return str(node.attr)
        if node.op in ELEMENTWISE:
            op = ELEMENTWISE[node.op]
            source = node.args[0].width
            if op.real and not op.compare:
                real = self.real(node, node.esize)
                return self.let(f"bitcast {real_type(node.width, node.esize)} {real} to i{node.width}")
            if op.compare and node.width == 1:
                return self._scalar_op(node, source)
            if node.esize == node.width and not op.compare:
                return self._scalar_op(node, node.width)
            return self._as_integer(self.vector(node, node.esize), node.width, node.esize)
        structural = getattr(self, "_emit_" + node.op, None)
        return structural(node) if structural else self._leaf(node)

    def vector(self, node: Bits, esize: int) -> str:
        """The value of `node` as `<n x i<esize>>`."""
        key = (id(node), esize)
        if key not in self._vector:
            self._vector[key] = self._make_vector(node, esize)
            self._kept.append(node)
        return self._vector[key]

    def _make_vector(self, node: Bits, esize: int) -> str:
        count = node.width // esize
        vtype = f"<{count} x i{esize}>"
        if node.op == "const":
            mask = (1 << esize) - 1
            return "<" + ", ".join(f"i{esize} {node.attr >> k * esize & mask}" for k in range(count)) + ">"
        if node.op in ("vzext", "vsext", "vtrunc") and node.esize == esize:
            source = self.vector(node.args[0], node.attr)
            return self.let(f"{node.op[1:]} <{count} x i{node.attr}> {source} to {vtype}")
        if node.op in ELEMENTWISE and node.esize == esize and node.width == node.args[0].width:
            return self._vector_op(node, vtype, count)
        form = form_of(node)
        if form[0] == "real":
            return self.let(f"bitcast {real_type(node.width, form[1])} {self.real(node, form[1])} to {vtype}")
        if node.op == "convert" and node.esize == esize:
            return self._converted(node)
        if node.op == "item" and form == ("vector", esize):
            return self._item(node)
        if node.op == "insert" and node.esize == esize:
            value, index, lane = node.args
            return self.let(f"insertelement {vtype} {self.vector(value, esize)}, i{esize} {self(lane)}, i8 {self(index)}")
        if node.op == "lookup" and esize == 8:
            return self._look_up(node)
        if node.op == "cat" and all(a.width == esize for a in node.args):
            if len({id(a) for a in node.args}) == 1:
                first = self.let(f"insertelement {vtype} poison, i{esize} {self(node.args[0])}, i64 0")
                return self.let(f"shufflevector {vtype} {first}, {vtype} poison, <{count} x i32> zeroinitializer")
            row = "poison"
            for k, part in enumerate(reversed(node.args)):
                row = self.let(f"insertelement {vtype} {row}, i{esize} {self(part)}, i64 {k}")
            return row
        return self.let(f"bitcast i{node.width} {self(node)} to {vtype}")

    def real(self, node: Bits, esize: int) -> str:
        """The value of `node` as floating-point numbers of `esize` bits: one, or a vector of them."""
        key = (id(node), esize)
        if key not in self._real:
            self._real[key] = self._make_real(node, esize)
            self._kept.append(node)
        return self._real[key]

    def _make_real(self, node: Bits, esize: int) -> str:
        t = real_type(node.width, esize)
        if node.op == "item" and form_of(node) == ("real", esize):
            return self._item(node)
        if node.op == "convert" and not node.attr[0].startswith("fpto") and node.esize == esize:
            return self._converted(node)
        if node.op in ELEMENTWISE and (op := ELEMENTWISE[node.op]).real and not op.compare and node.esize == esize:
            mangled = (f"v{node.width // esize}" if esize < node.width else "") + f"f{esize}"
            return self._row(node.op, t, mangled, [self.real(a, esize) for a in node.args])
        if esize < node.width:
            return self.let(f"bitcast <{node.width // esize} x i{esize}> {self.vector(node, esize)} to {t}")
        return self.let(f"bitcast i{node.width} {self(node)} to {t}")

    def _as(self, node: Bits, form: Form) -> str:
        kind, esize = form
        return self(node) if kind == "integer" else self.real(node, esize) if kind == "real" else self.vector(node, esize)

    def _as_integer(self, vector: str, width: int, esize: int) -> str:
        return self.let(f"bitcast <{width // esize} x i{esize}> {vector} to i{width}")

    # -- elementwise -----------------------------------------------------------------------------------------------------
    def _row(self, op: str, t: str, mangled: str, args: list[str]) -> str:
        template = ELEMENTWISE[op].llvm
        if self._strict and op in _ROUNDING:
            template = _strictly(_ROUNDING[op], "{m}", [f"{{t}} {{{k}}}" for k in range(len(args))], "{t}")
        text = template.format(*args, t=t, m=mangled)
        if "@llvm." in text:
            self.intrinsics.add(f"{text.partition('@')[2].partition('(')[0]}|{t}|{template}")
        return self.let(text)

    def _scalar_op(self, node: Bits, width: int) -> str:
        if ELEMENTWISE[node.op].real:
            return self._row(node.op, REAL[width], f"f{width}", [self.real(a, width) for a in node.args])
        args = [self(a) for a in node.args]
        t = f"i{width}"
        if node.op in SHIFTS and not _below_width(node.args[1], width):
            return self._guarded_shift(node.op, t, t, str(width), str(width - 1), args)
        if node.op in ("udiv", "sdiv"):
            return self._divide(node.op, t, width, args)
        return self._row(node.op, t, t, args)

    def _vector_op(self, node: Bits, vtype: str, count: int) -> str:
        op = ELEMENTWISE[node.op]
        if op.compare:
            return self.let(f"sext <{count} x i1> {self._compared(node)} to {vtype}")
        if op.real:
            return self.let(f"bitcast {real_type(node.width, node.esize)} {self.real(node, node.esize)} to {vtype}")
        args = [self.vector(a, node.esize) for a in node.args]
        mangled = f"v{count}i{node.esize}"
        if node.op in SHIFTS:
            width = f"i{node.esize}"
            splat = "<" + ", ".join([f"{width} {node.esize}"] * count) + ">"
            last = "<" + ", ".join([f"{width} {node.esize - 1}"] * count) + ">"
            return self._guarded_shift(node.op, vtype, mangled, splat, last, args)
        return self._row(node.op, vtype, mangled, args)

    def _compared(self, node: Bits) -> str:
        """A comparison of lanes as `<n x i1>`."""
        esize, count = node.esize, node.width // node.esize
        if not ELEMENTWISE[node.op].real:
            return self._row(node.op, f"<{count} x i{esize}>", "", [self.vector(a, esize) for a in node.args])
        holds = self._row(node.op, real_type(node.width, esize), "", [self.real(a, esize) for a in node.args])
        return self.let(f"insertelement <1 x i1> poison, i1 {holds}, i64 0") if count == 1 else holds

    def _mask(self, node: Bits, esize: int) -> str:
        """Lanes that are all ones or all zero as `<n x i1>`."""
        if node.esize == esize and node.op in ELEMENTWISE:
            if ELEMENTWISE[node.op].compare:
                return self._compared(node)
            if node.op in _BITWISE:
                a, b = (self._mask(a, esize) for a in node.args)
                return self.let(f"{node.op} <{node.width // esize} x i1> {a}, {b}")
        return self.let(f"icmp slt <{node.width // esize} x i{esize}> {self.vector(node, esize)}, zeroinitializer")

    def _guarded_shift(self, op: str, t: str, mangled: str, width: str, last: str, args: list[str]) -> str:
        """A shift whose count may reach the width, which LLVM leaves undefined."""
        value, count = args
        cond_type = "i1" if not t.startswith("<") else t.replace(t[t.index("i") : -1], "i1")
        fits = self.let(f"icmp ult {t} {count}, {width}")
        zero = "zeroinitializer" if t.startswith("<") else "0"
        safe = self.let(f"select {cond_type} {fits}, {t} {count}, {t} {last if op == 'ashr' else zero}")
        shifted = self.let(f"{op} {t} {value}, {safe}")
        if op == "ashr":
            return shifted
        return self.let(f"select {cond_type} {fits}, {t} {shifted}, {t} {zero}")

    def _divide(self, op: str, t: str, width: int, args: list[str]) -> str:
        a, b = args
        zero = self.let(f"icmp eq {t} {b}, 0")
        bad = zero
        if op == "sdiv":
            minimum = self.let(f"icmp eq {t} {a}, {1 << width - 1}")
            minus = self.let(f"icmp eq {t} {b}, -1")
            overflow = self.let(f"and i1 {minimum}, {minus}")
            bad = self.let(f"or i1 {zero}, {overflow}")
        divisor = self.let(f"select i1 {bad}, {t} 1, {t} {b}")
        quotient = self.let(f"{op} {t} {a}, {divisor}")
        return self.let(f"select i1 {zero}, {t} 0, {t} {quotient}")

    # -- structural ------------------------------------------------------------------------------------------------------
    def _emit_slice(self, node: Bits) -> str:
        source = node.args[0]
        aligned = node.width in _VECTOR_ELEMENTS and node.attr % node.width == 0 and source.width in (64, 128, 256, 512)
        vectors = source.op in ELEMENTWISE and source.esize < source.width or source.op in _VECTORS
        if aligned and vectors:
            vector = self.vector(source, node.width)
            return self.let(
                f"extractelement <{source.width // node.width} x i{node.width}> {vector}, i64 {node.attr // node.width}"
            )
        value = self(source)
        if node.attr:
            value = self.let(f"lshr i{source.width} {value}, {node.attr}")
        return self.let(f"trunc i{source.width} {value} to i{node.width}")

    def _emit_cat(self, node: Bits) -> str:
        widths = {a.width for a in node.args}
        esize = node.args[0].width
        if len(widths) == 1 and esize in _VECTOR_ELEMENTS and node.width in (64, 128):
            return self._as_integer(self.vector(node, esize), node.width, esize)
        total, shift = "", 0
        for part in reversed(node.args):
            value = self(part)
            if part.width < node.width:
                value = self.let(f"zext i{part.width} {value} to i{node.width}")
            if shift:
                value = self.let(f"shl i{node.width} {value}, {shift}")
            total = self.let(f"or i{node.width} {total}, {value}") if total else value
            shift += part.width
        return total

    def _emit_zext(self, node: Bits) -> str:
        return self.let(f"zext i{node.args[0].width} {self(node.args[0])} to i{node.width}")

    def _emit_sext(self, node: Bits) -> str:
        return self.let(f"sext i{node.args[0].width} {self(node.args[0])} to i{node.width}")

    def _emit_select(self, node: Bits) -> str:
        cond, a, b = (self(x) for x in node.args)
        return self.let(f"select i1 {cond}, i{node.width} {a}, i{node.width} {b}, !unpredictable !{{}}")

    def _resized(self, node: Bits) -> str:
        return self._as_integer(self.vector(node, node.esize), node.width, node.esize)

    _emit_vzext = _emit_vsext = _emit_vtrunc = _emit_insert = _emit_lookup = _resized

    def _emit_extract(self, node: Bits) -> str:
        value, index = node.args
        lanes = f"<{value.width // node.width} x i{node.width}>"
        return self.let(f"extractelement {lanes} {self.vector(value, node.width)}, i8 {self(index)}")

    def _look_up(self, node: Bits) -> str:
        """Byte by byte, as LLVM wants to see it where the host has an instruction for all 16."""
        t = "<16 x i8>"
        entries, indexes = (self.vector(a, 8) for a in node.args)
        inside = self.let(f"icmp ult {t} {indexes}, splat (i8 16)")
        safe = self.let(f"and {t} {indexes}, splat (i8 15)")
        found = "poison"
        for k in range(16):
            index = self.let(f"zext i8 {self.let(f'extractelement {t} {safe}, i64 {k}')} to i64")
            byte = self.let(f"extractelement {t} {entries}, i64 {index}")
            found = self.let(f"insertelement {t} {found}, i8 {byte}, i64 {k}")
        return self.let(f"select <16 x i1> {inside}, {t} {found}, {t} zeroinitializer")

    def _emit_call(self, node: Bits) -> str:
        fn = node.attr
        if fn.host is not None and fn.host.available:
            return fn.host.emit(self.let, [self(a) for a in node.args])
        self.natives[fn.symbol] = fn
        rets = fn.ret if isinstance(fn.ret, tuple) else (fn.ret,)
        ret = f"i{rets[0].width}" if not isinstance(fn.ret, tuple) else "{" + ", ".join(f"i{r.width}" for r in rets) + "}"
        args = ", ".join(f"i{a.width} {self(a)}" for a in node.args)
        return self.let(f'call {ret} @"{fn.symbol}"({args}) nounwind willreturn memory(none)')

    def _emit_all(self, node: Bits) -> str:
        count = node.args[0].width // node.attr
        mask = self.let(f"bitcast <{count} x i1> {self._mask(node.args[0], node.attr)} to i{count}")
        return self.let(f"icmp eq i{count} {mask}, -1")

    def _emit_lasting(self, node: Bits) -> str:
        if self._lasting is None:
            return self(node.args[0])
        if self._strict and node.attr:
            return "true"
        self._lasting.append(node.args[0])
        return "true"

    def _emit_convert(self, node: Bits) -> str:
        count = node.width // node.esize
        result = self._converted(node)
        if count == 1 and node.attr[0].startswith("fpto"):
            return result
        t = f"<{count} x i{node.esize}>" if node.attr[0].startswith("fpto") else real_type(node.width, node.esize)
        return self.let(f"bitcast {t} {result} to i{node.width}")

    def _converted(self, node: Bits) -> str:
        """A conversion in the form that it has by itself."""
        kind, source = node.attr
        argument, count = node.args[0], node.width // node.esize
        integers = [f"i{size}" if count == 1 else f"<{count} x i{size}>" for size in (source, node.esize)]
        from_real, to_real = kind.startswith("fp"), not kind.startswith("fpto")
        value = self.real(argument, source) if from_real else self(argument) if count == 1 else self.vector(argument, source)
        old = real_type(argument.width, source) if from_real else integers[0]
        new = real_type(node.width, node.esize) if to_real else integers[1]
        if self._strict and kind in ("fptrunc", "sitofp", "uitofp"):
            lanes = f"v{count}" if count > 1 else ""
            names = f"{lanes}f{node.esize}.{lanes}{'f' if from_real else 'i'}{source}"
            template = _strictly(kind, names, [f"{old} {{0}}"], new)
            self.intrinsics.add(f"{template.partition('@')[2].partition('(')[0]}|{new}|{template}")
            return self.let(template.format(value))
        return self.let(f"{kind} {old} {value} to {new}")

    # -- choice ----------------------------------------------------------------------------------------------------------
    def _item(self, node: Bits) -> str:
        """One value of a `likely` node, in the form of its likely side."""
        whole = node.args[0]
        if id(whole) not in self._chosen:
            self._chosen[id(whole)] = self._choose(whole)
            self._kept.append(whole)
        return self._chosen[id(whole)][node.attr]

    def _choose(self, node: Bits) -> list[str]:
        count, rare = node.attr
        quick, slow = node.args[1 : 1 + count], node.args[1 + count :]
        forms = [form_of(a) for a in quick]
        fast = [self._as(a, form) for a, form in zip(quick, forms, strict=True)]
        if rare and self._decline is not None:
            self.declined = True
            done = self.name()[1:]
            self.add(f"br i1 {self(node.args[0])}, label %{done}, label %{self._decline}, {LIKELY}")
            self.add(f"{done}:")
            return fast
        for leaf in leaves(slow):  # what reads the machine's state may keep what it read
            self(leaf)
        cond = self(node.args[0])
        begin, cold, after, done = (f"{self.name()[1:]}.{hint}" for hint in ("quick", "slow", "slowed", "chosen"))
        self.add(f"br label %{begin}")
        self.add(f"{begin}:")
        self.add(f"br i1 {cond}, label %{done}, label %{cold}, {LIKELY}")
        self.add(f"{cold}:")
        self.add("call void @llvm.sideeffect()")  # or LLVM finds it cheap and computes it in any case
        known = [(memo, len(memo)) for memo in (self._scalar, self._vector, self._real, self._chosen)]
        other = [self._as(a, form) for a, form in zip(slow, forms, strict=True)]
        for memo, length in known:
            while len(memo) > length:
                memo.popitem()
        self.add(f"br label %{after}")
        self.add(f"{after}:")
        self.add(f"br label %{done}")
        self.add(f"{done}:")
        values = []
        for a, form, x, y in zip(quick, forms, fast, other, strict=True):
            values.append(self.let(f"phi {_type(a.width, form)} [ {x}, %{begin} ], [ {y}, %{after} ]"))
        return values

    def _emit_item(self, node: Bits) -> str:
        if node.args[0].op == "likely":
            kind, esize = form_of(node)
            value = self._item(node)
            if kind == "integer":
                return value
            return self.let(f"bitcast {_type(node.width, (kind, esize))} {value} to i{node.width}")
        fn = node.args[0].attr
        struct = "{" + ", ".join(f"i{r.width}" for r in fn.ret) + "}"
        return self.let(f"extractvalue {struct} {self(node.args[0])}, {node.attr}")


def _type(width: int, form: Form) -> str:
    """The LLVM type of a value in a form."""
    kind, esize = form
    return f"i{width}" if kind == "integer" else real_type(width, esize) if kind == "real" else f"<{width // esize} x i{esize}>"


def nodes(roots: Iterable[Bits]) -> Iterator[Bits]:
    """All parts of expressions, each once."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if not _is_leaf(node):
            stack += node.args


def leaves(roots: Iterable[Bits]) -> Iterator[Bits]:
    """The leaves of expressions."""
    return filter(_is_leaf, nodes(roots))


def _is_leaf(node: Bits) -> bool:
    return node.op not in ELEMENTWISE and node.op not in STRUCTURAL


def _below_width(count: Bits, width: int) -> bool:
    """Whether a shift count is known to stay below the width."""
    if count.op == "decoded" and count.attr is not None:
        return 0 <= count.attr[0] and count.attr[1] < width
    return bool(count.op == "const" and count.attr < width)


def declare_intrinsics(intrinsics: set[str]) -> list[str]:
    """Declarations for the LLVM intrinsics that emitters collected."""
    lines = []
    for name, t, template in sorted(entry.split("|") for entry in intrinsics):
        args = template.partition("(")[2].rpartition(")")[0]
        kinds = [t if a.startswith("{t}") else a.rpartition(" ")[0] for a in args.split(", ")]
        lines.append(f"declare {t} @{name}({', '.join(kinds)})")
    return lines
