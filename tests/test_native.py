"""Native functions: the CPython version and the LLVM version give equal results; errors are clear."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trapline.bits.native import (
    IntType,
    NativeError,
    NativeFunction,
    Ptr,
    addressof,
    bitreverse,
    bswap,
    cas64,
    clz,
    compile_functions,
    ctz,
    emit_module,
    extern,
    fence,
    load8,
    load16,
    load32,
    load64,
    native,
    popcount,
    s8,
    s16,
    s32,
    s64,
    s128,
    store8,
    store16,
    store32,
    store64,
    u1,
    u8,
    u16,
    u32,
    u64,
    u128,
)
from trapline.bits.native_wide import divide128

TYPES: list[Any] = [u1, u8, u16, u32, u64, u128, s8, s16, s32, s64, s128]
WORDS = (3, 1 << 63, 0, 0xFFFF_FFFF_FFFF_FFFF)
SMALL: tuple[s16, ...] = (-1, 5, 0x7FFF, -0x8000)
BYTES = b"\x00\xff\x80\x7f"
REG = SimpleNamespace(slot=2, MASK=0xF0, enabled=True)


class Pair(ctypes.Structure):
    _fields_ = [("lo", ctypes.c_uint64), ("hi", ctypes.c_uint64)]


class Base(ctypes.Structure):
    _fields_ = [
        ("pairs", Pair * 4),
        ("small", ctypes.c_uint8 * 8),
        ("word", ctypes.c_uint32),
        ("signed", ctypes.c_int16),
        ("flag", ctypes.c_bool),
        ("matrix", (ctypes.c_uint16 * 3) * 2),
    ]


class State(Base):
    _fields_ = [("extra", ctypes.c_uint64), ("link", ctypes.c_uint64)]


def values(kind: IntType, rng: random.Random) -> int:
    """A value that is often special: near zero, near the limits, a power of two."""
    choice = rng.randrange(6)
    if choice == 0:
        return kind(rng.choice([0, 1, 2, 3, -1, -2, kind.half, kind.half - 1, kind.half + 1]))
    if choice == 1:
        return kind(1 << rng.randrange(kind.width))
    return kind(rng.getrandbits(rng.randrange(1, kind.width + 1)) * rng.choice([1, -1]))


def agree(functions: list[NativeFunction[Any, Any]], runs: int = 200) -> None:
    """Both versions of functions with integer parameters, on random and special values."""
    compiled = compile_functions(functions)
    rng = random.Random(7)
    for function in functions:
        for _ in range(runs):
            args = [values(kind, rng) for kind in function.params]
            assert compiled[function.name](*args) == function(*args), (function, args)


def operators(T: Any) -> list[NativeFunction[Any, Any]]:
    """The operators at one type."""

    @native(name=f"arithmetic_{T}")
    def arithmetic(a: T, b: T) -> tuple[T, T, T, T, T]:
        return a + b, a - b, a * b, -a, ~b

    @native(name=f"bitwise_{T}")
    def bitwise(a: T, b: T) -> tuple[T, T, T, T]:
        return a & b, a | b, a ^ b, (a & 1) ^ ~b

    @native(name=f"shifts_{T}")
    def shifts(a: T, n: u8, m: u64, s: s32) -> tuple[T, T, T, T, T, T, T, T]:
        return a << n, a >> n, a << m, a >> m, a >> s, a << 1, a >> 1, a >> 200

    @native(name=f"shift_self_{T}")
    def shift_self(a: T, b: T) -> tuple[T, T, T]:
        return a << b, a >> b, a << (b & 1)

    @native(name=f"compare_{T}")
    def compare(a: T, b: T) -> tuple[u1, u1, u1, u1, u1, u1, u1, T]:
        return a == b, a != b, a < b, a <= b, a > b, a >= b, a == a, a if a < b else b

    @native(name=f"logic_{T}")
    def logic(a: T, b: T, c: u1) -> tuple[u1, u1, u1, u1]:
        return a and b, a or b, not a, (a or c) and not (b and c)

    @native(name=f"bounds_{T}")
    def bounds(a: T, b: T) -> tuple[T, T]:
        return min(a, b), max(a, b)

    @native(name=f"count_{T}")
    def count(a: T) -> tuple[T, T, T, T]:
        return clz(a), ctz(a), popcount(a), bitreverse(a)

    return [arithmetic, bitwise, shifts, shift_self, compare, logic, bounds, count]


def division(T: Any) -> NativeFunction[Any, Any]:
    @native(name=f"division_{T}")
    def divide(a: T, b: T) -> tuple[T, T]:
        return a // b, a % b

    return divide


def conversions(T: Any) -> NativeFunction[Any, Any]:
    @native(name=f"convert_{T}")
    def convert(a: T) -> tuple[u1, u8, u16, u32, u64, u128, s8, s16, s32, s64, s128]:
        return u1(a), u8(a), u16(a), u32(a), u64(a), u128(a), s8(a), s16(a), s32(a), s64(a), s128(a)

    return convert


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_operators(kind: IntType) -> None:
    agree([*operators(kind), conversions(kind)])


def test_division() -> None:
    agree([division(kind) for kind in TYPES if kind is not s128], 500)


def test_bswap() -> None:
    functions = []
    for T in TYPES:
        if T.width >= 16:

            @native(name=f"bswap_{T}")
            def swap(a: T) -> T:
                return bswap(a)

            functions.append(swap)
    agree(functions)
    assert functions[1](0x11223344) == 0x44332211


@pytest.mark.parametrize(
    "a, b, result", [(7, -2, (-4, -1)), (-7, 2, (-4, 1)), (5, 0, (0, 5)), (-(1 << 63), -1, (-(1 << 63), 0)), (6, 3, (2, 0))]
)
def test_signed_division_rounds_down(a: int, b: int, result: tuple[int, int]) -> None:
    divide = division(s64)
    assert divide(a, b) == result
    assert compile_functions([divide])[divide.name](a, b) == result


def test_divide128_against_python() -> None:
    rng = random.Random(3)
    compiled = compile_functions([divide128])["divide128"]
    for _ in range(2000):
        a, b = rng.getrandbits(rng.randrange(1, 129)), rng.getrandbits(rng.randrange(1, 129))
        assert compiled(a, b) == (divmod(a, b) if b else (0, a))
    for a, b in [((1 << 128) - 1, (1 << 64) - 1), ((1 << 127), (1 << 64) - 1), ((1 << 96) - 1 << 32, (1 << 64) - (1 << 32) + 1)]:
        assert compiled(a, b) == divide128(a, b) == divmod(a, b)


@native
def control_flow(a: u64, b: u64, n: u8) -> tuple[u64, u32]:
    total: u64 = 0
    steps: u32 = 0
    for i in range(a & 31, (a & 31) + (b & 15), 3):
        if i == 20:
            continue
        if total > 200:
            break
        total += i * i
        steps += 1
    for j in range(10, -10, -4):
        total ^= u64(j)
    while True:
        steps += 1
        if steps > u32(n & 15):
            last = total
            break
        elif total & 1:
            total = total * 3 + 1
        else:
            total >>= 1
    while b:
        b &= b - 1
        steps += 2
    return last, steps


@native
def range_limits(a: u8, b: u8) -> tuple[u32, u8]:
    rounds: u32 = 0
    seen: u8 = 0
    for i in range(a, b, 100):
        rounds += 1
        seen = i
    for i in range(b, a):
        rounds += 1
        seen ^= i
    for _ in range(255, b, -200):
        rounds += 1000
    return rounds, seen


@native
def early(a: s32) -> u8:
    if a < 0:
        return 1
    if 0 <= a < 10:
        return 2
    assert a >= 10
    return 3 if a in (10, 20, 30) else 4 if a not in (40, 50) else 5


@native
def constants(i: u8, x: u64) -> tuple[u64, s16, u8, u64, u64, u64]:
    picked = WORDS[i & 3]
    value = x | 1 << REG.slot
    if REG.enabled:
        value &= ~0xF
    else:
        value = no_such_name  # type: ignore[name-defined]  # noqa: F821
    return picked, SMALL[i & 3], BYTES[i & 3], value, x & REG.MASK, WORDS[1] + len(BYTES)


@native
def callee(a: u64, b: u64) -> tuple[u64, u64]:
    return b, a + b


@native
def callers(a: u64, b: u64) -> tuple[u64, u64, u64]:
    a, b = b, a
    low, _ = callee(a, b=b)
    x, y = callee(low, 1)
    return callee(x, y)[1], y, x


@native
def forward(a: u64) -> tuple[u64, u64]:
    return callee(a, 5)


@native
def mulhi(a: u64, b: u64) -> tuple[u64, s64]:
    signed = s128(s64(a)) * s128(s64(b))
    return u64((u128(a) * u128(b)) >> 64), s64(signed >> 64)


@native
def literals(a: u32, c: u1) -> tuple[u32, u64, u1, u32]:
    default = 5
    flag = False
    if a > 3:
        flag = c
    return a + (1 if c else 2), default << (a & 63), flag, 1 << (a & 31)


@native
def guarded(i: u8) -> u64:
    """The right side of `and` must not be evaluated when the left is false."""
    if i < 4 and WORDS[i] > 2:
        return WORDS[i]
    return WORDS[i] if i < 4 else 99


def test_statements() -> None:
    agree([control_flow, range_limits, early, constants, callers, forward, mulhi, literals, guarded], 1000)


def test_known_results() -> None:
    assert early(-5) == 1 and early(30) == 3 and early(31) == 4 and early(50) == 5
    assert callers(3, 4) == (5, 4, 1)
    assert mulhi(1 << 63, 4) == (2, -2)
    assert range_limits(0, 255) == (3, 200)


@native
def touch(state: State, i: u8, value: u64) -> u64:
    pair = state.pairs[i & 3]
    pair.hi = value
    pair.lo += 3
    state.small[i & 7] = u8(value)
    state.word, state.signed = u32(value >> 5), s16(value)
    state.flag = value > 100
    state.matrix[i & 1][2] ^= 0xFFFF
    helper(state, value)
    linked = Ptr[Pair](state.link)
    linked.lo, linked.hi = callee(value, 1)
    state.extra = addressof(pair) - addressof(state)
    return u64(state.signed) + u64(state.flag) + u64(state.small[7])


@native
def helper(base: Base, value: u64) -> None:
    if value & 1:
        return
    base.pairs[0].lo = ~base.pairs[3].hi


def test_structures() -> None:
    compiled = compile_functions([touch])["touch"]
    rng = random.Random(5)
    states, linked = (State(), State()), (Pair(), Pair())
    for state, pair in zip(states, linked):
        state.link = ctypes.addressof(pair)
    for _ in range(500):
        i, value = rng.randrange(256), values(u64, rng)  # type: ignore[arg-type]
        assert touch(states[0], i, value) == compiled(states[1], i, value)
        states[1].link = states[0].link
        assert bytes(states[0]) == bytes(states[1]) and bytes(linked[0]) == bytes(linked[1])
        states[1].link = ctypes.addressof(linked[1])
        assert states[0].extra == 16 * (i & 3)


@native
def memory(address: u64, value: u64) -> tuple[u64, u64]:
    store64(address + 1, value)
    store8(address, load8(address + 3))
    store16(address + 9, load16(address + 2))
    store32(address + 11, load32(address + 5) + 1)
    fence()
    first = cas64(address + 16, 0, value)
    second = cas64(address + 16, first, value + 1)
    return first, second ^ load64(address + 16)


def test_memory() -> None:
    compiled = compile_functions([memory])["memory"]
    buffers = (ctypes.c_uint64 * 4)(), (ctypes.c_uint64 * 4)()
    rng = random.Random(9)
    for _ in range(300):
        value = values(u64, rng)  # type: ignore[arg-type]
        assert memory(ctypes.addressof(buffers[0]), value) == compiled(ctypes.addressof(buffers[1]), value)
        assert bytes(buffers[0]) == bytes(buffers[1])


log: list[int] = []
host = extern("test_native_host", u8, (u64, u1, Ptr[Pair]), python=lambda a, b, pair: log.append(a) or (a + b + pair.lo) & 0xFF)


@native
def calls_host(a: u64, pair: Pair) -> u8:
    return host(a, a > 5, pair) + 1


def test_extern() -> None:
    assert "declare zeroext i8 @test_native_host(i64, i1 zeroext, ptr)" in emit_module([calls_host])
    compiled = compile_functions([calls_host])["calls_host"]
    for a in (1, 9, 255):
        assert calls_host(a, Pair(lo=7)) == compiled(a, Pair(lo=7)) == (a + (a > 5) + 8) & 0xFF
    assert log == [1, 1, 9, 9, 255, 255]


def test_symbols_and_signature() -> None:
    assert callers.symbol == f"{__name__}.callers"
    assert callers.params == (u64, u64) and callers.ret == (u64, u64, u64)
    assert callers.declare() == f"declare {{ i64, i64, i64 }} @{__name__}.callers(i64, i64)"
    text = emit_module([callers], "")
    assert f"define  {{ i64, i64, i64 }} @{__name__}.callers(" in text
    assert f"define internal {{ i64, i64 }} @{__name__}.callee(" in text
    assert callers.emit().startswith("define internal")


def bad_width(a: u64, b: u32) -> u64:
    return a + b


def bad_sign(a: u64, b: s64) -> u1:
    return a < b


def bad_return(a: u64) -> u32:
    return a


def bad_end(a: u64) -> u64:
    if a:
        return a


def bad_unassigned(a: u64) -> u64:
    if a:
        b = a
    return b


def bad_retype(a: u64) -> u64:
    b = u32(a)
    b = a
    return b


def bad_literal(a: u8) -> u8:
    return a + 256


def bad_name(a: u64) -> u64:
    return a + nothing  # type: ignore[name-defined]  # noqa: F821


def bad_call(a: u64) -> u64:
    return hash(a)


def bad_arguments(a: u64) -> u64:
    return callee(a)[0]  # type: ignore[call-arg]


def bad_field(state: State) -> u64:
    return state.nothing


def bad_index(state: State) -> u64:
    return state.pairs[4].lo


def bad_statement(a: u64) -> u64:
    with open("x"):
        return a


def bad_annotation(a: int, b) -> u64:
    return a


def bad_float(a: u64) -> u64:
    return a + 1.5


def bad_range(a: u64) -> u64:
    for i in range(a, -1, -1):
        a ^= i
    return a


@pytest.mark.parametrize(
    "function, message",
    [
        (bad_width, "a + b mixes u64 and u32"),
        (bad_sign, "a < b mixes u64 and s64"),
        (bad_return, "a is u64, u32 is needed"),
        (bad_end, "the end can be reached"),
        (bad_unassigned, "b may be used before it is assigned"),
        (bad_retype, "b is u32"),
        (bad_literal, "0x100 does not fit u8"),
        (bad_name, "nothing is not defined"),
        (bad_call, "hash is not a native function"),
        (bad_arguments, "takes 2 arguments"),
        (bad_field, "State has no usable field nothing"),
        (bad_index, "index 4 outside 4 elements"),
        (bad_statement, "With statements are not in the subset"),
        (bad_annotation, "is not a native type|needs a type annotation"),
        (bad_float, "1.5 is not an integer"),
        (bad_range, "negative bound"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(NativeError, match=message.replace("+", r"\+")) as caught:
        emit_module([native(function)])
    assert str(caught.value).startswith(f"{__file__}:")
    line = int(str(caught.value).split(":")[1])
    first = function.__code__.co_firstlineno
    assert first <= line <= first + 4


@native
def ping(a: u64) -> u64:
    return pong(a)


@native
def pong(a: u64) -> u64:
    return ping(a)


def test_recursion_is_refused() -> None:
    for attempt in (lambda: emit_module([ping]), lambda: ping(1)):
        with pytest.raises(NativeError, match="recursion: .*ping -> .*pong -> .*ping"):
            attempt()


def test_same_symbol_twice_is_refused() -> None:
    with pytest.raises(NativeError, match="two native functions"):
        emit_module([_made(1), _made(2)])


def _made(k: int) -> NativeFunction[Any, Any]:
    @native
    def made(a: u64) -> u64:
        return a + k

    return made


def test_traceback_shows_the_source() -> None:
    with pytest.raises(IndexError) as caught:
        past_the_end(200)
    assert caught.traceback[-1].path.name == "test_native.py"
    assert caught.traceback[-1].lineno + 1 == past_the_end.function.__code__.co_firstlineno + 3


@native
def past_the_end(i: u8) -> u64:
    i += 1
    return WORDS[i]


def test_import_does_not_load_llvm() -> None:
    code = "import sys, trapline.bits.native_wide; sys.exit(any('llvmlite' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
