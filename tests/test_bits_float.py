"""Floating-point operators and `likely` of bit-vector expressions: the evaluator against compiled code."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable

import llvmlite.binding as llvm
import pytest
from fp_cases import random_float, special

from trapline.bits import Bits, Vec, call, cat, const, convert, likely, real
from trapline.bits.evaluate import Evaluator
from trapline.bits.native import emit_module, native, u64
from trapline.bits.ops import CONVERSIONS, ELEMENTWISE
from trapline.bits.to_llvm import METADATA, Emitter

OPERATORS = [name for name, op in ELEMENTWISE.items() if op.real]
ARITY = {"fsqrt": 1, "froundeven": 1, "ffloor": 1, "fceil": 1, "ftrunc": 1, "fround": 1, "fmuladd": 3}
INFINITY = {32: 0x7F80_0000, 64: 0x7FF0_0000_0000_0000}


class Inputs:
    """Three 128-bit inputs as leaves, and functions of them through both executions."""

    def __init__(self) -> None:
        self.leaves = [Bits("input", (), 128, attr=k) for k in range(3)]

    def low(self, width: int) -> list[Bits]:
        return [leaf.trunc(width) for leaf in self.leaves]

    def evaluate(self, node: Bits, values: list[int]) -> int:
        return int(Evaluator(lambda leaf: values[leaf.attr])(node))

    def compile(self, nodes: list[Bits]) -> Callable[[int, list[int]], int]:
        """One compiled function per node."""
        texts, natives = [], {}
        for k, node in enumerate(nodes):
            emit = Emitter(lambda leaf: load(leaf))

            def load(leaf: Bits, emit: Emitter = emit) -> str:
                pointer = emit.let(f"getelementptr i8, ptr %in, i64 {16 * leaf.attr}")
                return emit.let(f"load i128, ptr {pointer}, align 1")

            result = emit.let(f"zext i{node.width} {emit(node)} to i128") if node.width < 128 else emit(node)
            natives |= emit.natives
            lines = "\n".join([*emit.lines, f"store i128 {result}, ptr %out, align 1", "ret void"])
            texts.append(f"define void @f{k}(ptr %in, ptr %out) {{\nentry:\n{lines}\n}}\n")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly("\n".join(texts) + METADATA + (emit_module(list(natives.values())) if natives else ""))
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        functions = [kind(self._engine.get_function_address(f"f{k}")) for k in range(len(nodes))]

        def run(k: int, values: list[int]) -> int:
            data = ctypes.create_string_buffer(b"".join(v.to_bytes(16, "little") for v in values), 48)
            out = ctypes.create_string_buffer(16)
            functions[k](ctypes.addressof(data), ctypes.addressof(out))
            return int.from_bytes(out.raw, "little")

        return run


def lanes_of(value: int, esize: int, width: int) -> list[int | str]:
    """Elements as they may be compared: which NaN a result is depends on the host."""
    lanes = [value >> k & (1 << esize) - 1 for k in range(0, width, esize)]
    return ["NaN" if esize in INFINITY and lane & (1 << esize - 1) - 1 > INFINITY[esize] else lane for lane in lanes]


def random_inputs(rng: random.Random, esize: int) -> list[int]:
    def lane() -> int:
        return rng.choice(special(esize)) if rng.randrange(4) == 0 else random_float(rng, esize)

    return [sum(lane() << k for k in range(0, 128, esize)) for _ in range(3)]


@pytest.mark.parametrize("esize", [32, 64])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_operators(esize: int, width: int) -> None:
    if width < esize:
        return
    inputs, rng = Inputs(), random.Random(f"{esize} {width}")
    whole = inputs.low(width)
    operands = [v.lanes(esize) for v in whole] if width > esize else whole
    nodes = []
    for name in OPERATORS:
        result = real(name, *operands[: ARITY.get(name, 2)])
        nodes.append(result.bits if isinstance(result, Vec) else result)
    run = inputs.compile(nodes)
    for _ in range(200):
        values = random_inputs(rng, esize)
        for k, (name, node) in enumerate(zip(OPERATORS, nodes, strict=True)):
            if name in ("fmax", "fmin") and any("NaN" in lanes_of(v, esize, width) for v in values[:2]):
                continue
            unit = esize if node.width == width else node.width
            want, got = inputs.evaluate(node, values), run(k, values)
            assert lanes_of(got, unit, node.width) == lanes_of(want, unit, node.width), (name, [hex(v) for v in values])


SIZES = {
    "fpext": [(32, 64)],
    "fptrunc": [(64, 32)],
    "sitofp": [(32, 32), (32, 64), (64, 32), (64, 64)],
    "uitofp": [(32, 32), (32, 64), (64, 32), (64, 64)],
    "fptosi": [(32, 32), (32, 64), (64, 32), (64, 64)],
    "fptoui": [(32, 32), (32, 64), (64, 32), (64, 64)],
}


def fits(kind: str, value: int, source: int, target: int) -> bool:
    """Whether the result of a conversion is defined."""
    if not kind.startswith("fpto"):
        return True
    number = CONVERSIONS["fpext"](value, source, 64)
    real_value = ctypes.c_double.from_buffer(ctypes.c_uint64(number)).value
    low, high = (-(2 ** (target - 1)), 2 ** (target - 1)) if kind == "fptosi" else (-1, 2**target)
    return low < real_value < high


@pytest.mark.parametrize("kind", CONVERSIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_conversions(kind: str, count: int) -> None:
    inputs, rng = Inputs(), random.Random(f"{kind} {count}")
    cases = SIZES[kind]
    nodes = []
    for source, target in cases:
        operand = inputs.low(source * count)[0]
        result = convert(kind, operand.lanes(source) if count > 1 else operand, target)
        nodes.append(result.bits if isinstance(result, Vec) else result)
    run = inputs.compile(nodes)
    for _ in range(300):
        for k, (source, target) in enumerate(cases):
            values = random_inputs(rng, source)
            if rng.randrange(3) == 0 or "ito" in kind:
                values[0] = rng.getrandbits(128) >> rng.randrange(64)
            given = [values[0] >> s & (1 << source) - 1 for s in range(0, source * count, source)]
            if all(fits(kind, x, source, target) for x in given):
                want, got = inputs.evaluate(nodes[k], values), run(k, values)
                assert lanes_of(got, target, target * count) == lanes_of(want, target, target * count), (kind, source, target, given)


@native
def slowly(a: u64, b: u64) -> tuple[u64, u64]:
    return a * b, a ^ b


def test_likely_computes_one_side() -> None:
    inputs = Inputs()
    a, b, c = inputs.low(64)
    wide, other = inputs.leaves[0].lanes(32), inputs.leaves[1].lanes(32)
    product, mixed = call(slowly, a, b)
    ok = a.ult(b)
    x, y, z, w = likely(
        ok,
        (real("fadd", a, b), a + c, real("fmul", wide, other).bits, const(0, 1)),
        (product, mixed, (wide + other).bits, const(1, 1)),
    )
    # What the unlikely side used may be used after it, and one choice may feed the next.
    p, q = likely(c.ult(a), (real("fsub", x, b), y), (product + x, mixed - y))
    nodes = [x, y, z, w, p, q, cat(x, q ^ product), (z.lanes(32) + wide).bits, real("fmul", x, p) ^ mixed]
    run = inputs.compile(nodes)
    rng = random.Random(5)
    for _ in range(300):
        values = [rng.getrandbits(128) for _ in range(3)]
        values = [v & ~(0x4000_0000 * 0x1_0000_0001_0000_0001_0000_0001) for v in values]  # no NaN
        for k, node in enumerate(nodes):
            assert run(k, values) == inputs.evaluate(node, values), (k, [hex(v) for v in values])


def test_likely_evaluates_one_side() -> None:
    def leaf(node: Bits) -> int:
        assert node.attr == 0, "the other side was evaluated"
        return 7

    taken, other = Bits("input", (), 8, attr=0), Bits("input", (), 8, attr=1)
    assert Evaluator(leaf)(likely(const(1, 1), (taken,), (other,))[0]) == 7
    assert Evaluator(leaf)(likely(const(0, 1), (other,), (taken,))[0]) == 7


def test_widths_must_agree() -> None:
    with pytest.raises(TypeError):
        likely(const(1, 1), (const(0, 8),), (const(0, 16),))
