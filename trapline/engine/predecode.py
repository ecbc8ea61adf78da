"""The predecoder: instruction words to shape numbers, as compiled code.

The decode tree of `arm64.decode` becomes nested switches. A shape number is dense per pattern: the pattern's base plus the
packed shape fields, times two, plus one for a direct branch that leaves its page. Number 0 means UNDEFINED.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from trapline.arm64 import effects as fx
from trapline.arm64.decode import Leaf, Node, build_tree
from trapline.arm64.insn import BitField, Insn, InstructionSet
from trapline.bits import Bits, Imm
from trapline.bits.to_llvm import Emitter
from trapline.engine.state import PAGE_INSNS


@dataclass(frozen=True, slots=True)
class Shape:
    """A resolved shape number."""

    insn: Insn
    number: int
    far: bool


class ShapeSpace:
    """Numbers all shapes of an instruction set."""

    def __init__(self, isa: InstructionSet) -> None:
        self.insns = isa.candidates()
        self.bases: list[int] = []
        total = 1
        for insn in self.insns:
            self.bases.append(total)
            total += 1 << insn.shape_bits
        self.count = 2 * total
        self._base = {id(i): b for i, b in zip(self.insns, self.bases, strict=True)}

    def base(self, insn: Insn) -> int:
        return self._base[id(insn)]

    def resolve(self, number: int) -> Shape | None:
        """The shape that a number stands for; None if it is UNDEFINED."""
        plain, far = number >> 1, bool(number & 1)
        if plain == 0:
            return None
        k = bisect.bisect_right(self.bases, plain) - 1
        insn, shape = self.insns[k], plain - self.bases[k]
        return Shape(insn, shape, far) if insn.allows(shape) else None


ARGUMENTS = "i32 %word, i64 %index"
FUNCTION_WEIGHT = 64
"""How many candidates the functions have that the decoder is made of: LLVM takes three times as long for one that has all."""


def weight(node: Node) -> int:
    """How many candidates are below a node."""
    return len(node.candidates) if isinstance(node, Leaf) else sum(map(weight, node.cases.values()))


class PredecoderEmitter:
    """Emits `trapline_decode_word(word, index) -> shape number`, `index` being the instruction's place in its page."""

    def __init__(self, space: ShapeSpace, isa: InstructionSet, direct_branches: dict[str, Imm | int]) -> None:
        self.space = space
        self.tree = build_tree(isa.candidates())
        self.lines: list[str] = []
        self.globals: list[str] = []
        self.functions: list[str] = []
        self._direct = direct_branches
        self._count = 0

    def text(self) -> str:
        """The module's IR."""
        self._function("i32 @trapline_decode_word", self.tree)
        return "\n".join([*self.globals, *self.functions])

    def _function(self, name: str, node: Node) -> None:
        """A function that decodes what is below a node."""
        outer, self.lines = self.lines, []
        self._body(node, "entry")
        body, self.lines = "\n".join(self.lines), outer
        self.functions.append(f"define {name}({ARGUMENTS}) {{\n{body}\nundefined:\n  ret i32 0\n}}\n")

    def _fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def _node(self, node: Node, label: str, around: int) -> None:
        """Decode what is below a node, in a function of its own if it is small enough for one and all `around` it is not."""
        if not weight(node) <= FUNCTION_WEIGHT < around:
            self._body(node, label)
            return
        name = "fastcc i32 @" + self._fresh("decode")
        self._function("internal " + name, node)
        self.lines += [f"{label}:", f"%{label}_shape = tail call {name}({ARGUMENTS})", f"ret i32 %{label}_shape"]

    def _body(self, node: Node, label: str) -> None:
        self.lines.append(f"{label}:")
        if isinstance(node, Leaf):
            self._leaf(node)
            return
        tested = "%" + self._fresh("t")
        self.lines.append(f"{tested} = and i32 %word, {node.mask}")
        labels = {value: self._fresh("n") for value in node.cases}
        arms = " ".join(f"i32 {value}, label %{name}" for value, name in labels.items())
        self.lines.append(f"switch i32 {tested}, label %undefined [ {arms} ]")
        for value, child in node.cases.items():
            self._node(child, labels[value], weight(node))

    def _leaf(self, leaf: Leaf) -> None:
        for insn in leaf.candidates:
            following = self._fresh("next")
            matched = self._fresh("match")
            masked, same = "%" + self._fresh("m"), "%" + self._fresh("c")
            self.lines.append(f"{masked} = and i32 %word, {insn.pattern.mask}")
            self.lines.append(f"{same} = icmp eq i32 {masked}, {insn.pattern.value}")
            self.lines.append(f"br i1 {same}, label %{matched}, label %{following}")
            self.lines.append(f"{matched}:")
            shape = self._pack(insn)
            if insn.where is not None and len(leaf.candidates) > 1:
                self._test_where(insn, shape, following)
            self._return(insn, shape)
            self.lines.append(f"{following}:")
        self.lines.append("br label %undefined")

    def _pack(self, insn: Insn) -> str:
        total = "0"
        for f in insn.shape_fields:
            shifted, masked = "%" + self._fresh("s"), "%" + self._fresh("f")
            self.lines.append(f"{shifted} = lshr i32 %word, {f.lo}")
            self.lines.append(f"{masked} = and i32 {shifted}, {(1 << f.width) - 1}")
            if total == "0":
                total = masked
                continue
            moved, joined = "%" + self._fresh("u"), "%" + self._fresh("j")
            self.lines.append(f"{moved} = shl i32 {total}, {f.width}")
            self.lines.append(f"{joined} = or i32 {moved}, {masked}")
            total = joined
        for f, value in insn.splits:
            total = self._append_split(f, value, total)
        return total

    def _append_split(self, f: BitField, value: int, total: str) -> str:
        """Shift in a bit that tells whether an operand has its special value."""
        mask = (1 << f.width) - 1 << f.lo
        masked, same, bit, moved, joined = ("%" + self._fresh("x") for _ in range(5))
        self.lines += [
            f"{masked} = and i32 %word, {mask}",
            f"{same} = icmp eq i32 {masked}, {value << f.lo}",
            f"{bit} = zext i1 {same} to i32",
            f"{moved} = shl i32 {total}, 1",
            f"{joined} = or i32 {moved}, {bit}",
        ]
        return joined

    def _test_where(self, insn: Insn, shape: str, otherwise: str) -> None:
        """Look the shape up in a table of what the `where` condition allows."""
        size = 1 << insn.shape_bits
        name = "@" + self._fresh("allowed")
        bits = ", ".join(f"i8 {int(insn.allows(k))}" for k in range(size))
        self.globals.append(f"{name} = private constant [{size} x i8] [{bits}]")
        pointer, value, ok, go = (self._fresh(x) for x in ("wp", "wv", "wo", "allowed"))
        self.lines += [
            f"%{pointer} = getelementptr i8, ptr {name}, i32 {shape}",
            f"%{value} = load i8, ptr %{pointer}",
            f"%{ok} = icmp ne i8 %{value}, 0",
            f"br i1 %{ok}, label %{go}, label %{otherwise}",
            f"{go}:",
        ]

    def _return(self, insn: Insn, shape: str) -> None:
        number, doubled = "%" + self._fresh("r"), "%" + self._fresh("d")
        self.lines.append(f"{number} = add i32 {shape}, {self.space.base(insn)}")
        self.lines.append(f"{doubled} = shl i32 {number}, 1")
        delta = self._direct.get(insn.name + insn.pattern.text)
        if delta is None:
            self.lines.append(f"ret i32 {doubled}")
            return
        emitter = Emitter(_word_leaf, prefix=self._fresh("b") + "_")
        distance = emitter(delta.bits) if isinstance(delta, Imm) else str(delta)
        self.lines += emitter.lines
        names = ["%" + self._fresh("g") for _ in range(5)]
        self.lines += [
            f"{names[0]} = ashr i64 {distance}, 2",
            f"{names[1]} = add i64 {names[0]}, %index",
            f"{names[2]} = icmp uge i64 {names[1]}, {PAGE_INSNS}",
            f"{names[3]} = zext i1 {names[2]} to i32",
            f"{names[4]} = or i32 {doubled}, {names[3]}",
            f"ret i32 {names[4]}",
        ]


def _word_leaf(node: Bits) -> str:
    if node.op == "word":
        return "%word"
    raise ValueError(f"{node!r} is not known when an instruction is decoded")


def direct_branch(insn: Insn, shape: int, slot: object) -> Imm | int | None:
    """The distance of a direct branch, if the instruction is one."""
    recording = insn.record_shape(shape, slot)  # type: ignore[arg-type]
    for effect in recording.effects:
        if isinstance(effect, fx.Branch):
            return effect.delta
    return None


def fill_text(name: str, slots: list[tuple[int, int, Bits]]) -> tuple[str, dict[str, object], set[str]]:
    """IR of a fill function: write each slot's decode-time value into the record. Also natives and intrinsics it uses."""
    emitter = Emitter(_word_leaf)
    for offset, size, expr in slots:
        value = emitter(expr)
        if expr.width > 8 * size:
            value = emitter.let(f"trunc i{expr.width} {value} to i{8 * size}")
        elif expr.width < 8 * size:
            value = emitter.let(f"zext i{expr.width} {value} to i{8 * size}")
        pointer = emitter.let(f"getelementptr i8, ptr %rec, i64 {offset}")
        emitter.add(f"store i{8 * size} {value}, ptr {pointer}, align {size}")
    body = "\n".join(emitter.lines)
    return f"define void @{name}(i32 %word, ptr %rec) {{\n{body}\nret void\n}}\n", emitter.natives, emitter.intrinsics
