"""A typed subset of Python with two executions: CPython and LLVM.

    @native
    def average(a: u64, b: u64) -> u64:
        return (a & b) + ((a ^ b) >> 1)

Calling `average` runs it under CPython, with every operation wrapping at its width: that is the definition. `emit_module` turns
the same source into LLVM IR, with identical results.

Types: u1 u8 u16 u32 u64 u128, s8 to s128, structures (ctypes, by address) and `Ptr[S]`. bool is u1. A parameter needs an
annotation, a local has the type of its first assignment, literals take the type of the other operand (alone they are u64, truth
values u1). Different types never mix; `u32(x)` converts: truncation, zero extension of unsigned and sign extension of signed.
Statements: assignment (also to structure fields, to several targets and augmented), if, while, for over range(), break, continue,
return, calls; assert is ignored. An `if` whose test is constant is decided at compile time and the other arm is not looked at.
Operators: + - * // % & | ^ ~ << >>, comparisons, `in` (tuple of constants), and/or/not (the result is a truth value), x if c else y.
- A shift count may have any type and counts as unsigned; from the width on the result is 0, or the sign for signed >>.
- // and % of signed values round down as in Python; x // 0 is 0 and x % 0 is x; the lowest value // -1 wraps.
Functions: other native functions, `extern` ones, and clz ctz popcount bswap bitreverse min max bool len(table) addressof
load8..load64 store8..store64 cas64 fence. Memory functions take host addresses of any alignment (cas64: aligned).
Names outside the function that are ints (also attributes, `HCR_EL2.slot`) are constants; tuples or bytes of ints are tables that a
variable may index (element type from an annotation `tuple[u32, ...]`, else u64; bytes: u8).
There are no globals, no allocation, no exceptions, no recursion.

Errors in the source raise NativeError (a TypeError) with file and line at the first call or emission. What looks at sources is imported
then (a process that finds all its code compiled never does), LLVM itself by `compile_functions` only.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from trapline.bits.native_types import (
    Extern,
    IntType,
    NativeError,
    Ptr,
    PtrType,
    Return,
    Type,
    addressof,
    bitreverse,
    bswap,
    cas64,
    clz,
    ctz,
    extern,
    fence,
    load8,
    load16,
    load32,
    load64,
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

if TYPE_CHECKING:
    from trapline.bits import native_tree
    from trapline.bits.native_host import HostForm

__all__ = [
    "Extern", "IntType", "NativeError", "NativeFunction", "Ptr", "PtrType", "addressof", "bitreverse", "bswap", "cas64", "clz",
    "compile_functions", "ctz", "emit_module", "extern", "fence", "load8", "load16", "load32", "load64", "native", "popcount",
    "s8", "s16", "s32", "s64", "s128", "store8", "store16", "store32", "store64", "u1", "u8", "u16", "u32", "u64", "u128",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


class NativeFunction(Generic[P, R]):
    """A function of the subset. Its source is looked at when it is first called or emitted."""

    def __init__(
        self, function: Callable[P, R], name: str | None, enclosing: dict[str, Any], host: HostForm | None = None, seldom: bool = False
    ):
        assert isinstance(function, FunctionType)
        functools.update_wrapper(self, function)
        self.__qualname__: str = function.__qualname__
        self.function: FunctionType = function
        self.module = function.__module__
        self.name = name or re.sub(r"[^\w.]", "_", function.__qualname__)
        self._enclosing = enclosing
        self.host = host
        """What expressions may use instead of a call."""
        self.seldom = seldom
        """Whether callers are to be compiled as if it were never called."""

    @property
    def symbol(self) -> str:
        """The name in LLVM IR, without the @: module and name joined by dots; it never needs quotes."""
        return f"{self.module}.{self.name}"

    @functools.cached_property
    def scope(self) -> dict[str, Any]:
        """What names outside the function stand for: its globals, and around a nested function its closure."""
        function = self.function
        cells = zip(function.__code__.co_freevars, function.__closure__ or ())
        return {**function.__globals__, **self._enclosing, **{name: cell.cell_contents for name, cell in cells}}

    @functools.cached_property
    def _signature(self) -> tuple[list[tuple[str, Type]], Return]:
        from trapline.bits.native_check import signature

        return signature(self.function, self.scope)

    @property
    def params_named(self) -> list[tuple[str, Type]]:
        """Names and types of the parameters."""
        return self._signature[0]

    @property
    def params(self) -> tuple[Type, ...]:
        """Types of the parameters: IntType (with .width and .signed) or PtrType."""
        return tuple(kind for _, kind in self._signature[0])

    @property
    def ret(self) -> Return:
        """What is returned: None, a type, or a tuple of types."""
        return self._signature[1]

    @functools.cached_property
    def tree(self) -> native_tree.Function:
        """The checked source; raises NativeError."""
        from trapline.bits.native_check import check

        return check(self)

    @functools.cached_property
    def _python(self) -> Callable[..., Any]:
        from trapline.bits.native_python import compile_python

        return compile_python(self.tree)

    def python(self) -> Callable[..., Any]:
        """The CPython version, without conversion of arguments and results to their types."""
        if "_python" not in self.__dict__:
            _closure([self])
        return self._python

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        values: list[Any] = list(args) + [kwargs.pop(name) for name, _ in self.params_named[len(args) :] if name in kwargs]
        if kwargs or len(values) != len(self.params):
            raise TypeError(f"{self.__qualname__}() takes {len(self.params)} arguments")
        converted = [kind(value) if isinstance(kind, IntType) else value for kind, value in zip(self.params, values)]
        result = self.python()(*converted)
        ret = self.ret
        if isinstance(ret, tuple):
            return tuple(kind(v) if isinstance(kind, IntType) else v for kind, v in zip(ret, result))  # type: ignore[return-value]
        return ret(result) if isinstance(ret, IntType) else result  # type: ignore[return-value]

    def emit(self, linkage: str = "internal") -> str:
        """LLVM IR of this function alone; `emit_module` includes what it calls."""
        from trapline.bits.native_llvm import function_text

        return function_text(self.tree, linkage)

    def declare(self) -> str:
        """The LLVM `declare` line for callers in another module."""
        from trapline.bits.native_llvm import declaration

        return declaration(self.symbol, self.params, self.ret)

    def __repr__(self) -> str:
        return f"<native {self.symbol}>"


@overload
def native(function: Callable[P, R], /) -> NativeFunction[P, R]: ...
@overload
def native(
    *, name: str | None = None, host: HostForm | None = None, seldom: bool = False
) -> Callable[[Callable[P, R]], NativeFunction[P, R]]: ...
def native(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, host: HostForm | None = None, seldom: bool = False
) -> Any:
    """Make a native function. `name` replaces the function's own name in the symbol (for functions made by a factory).

    `host` is an instruction that some hosts have for it. `seldom` keeps a function that is hardly ever called out of its callers' way.
    """
    nested = sys._getframe(1)
    enclosing = {} if nested.f_code.co_name == "<module>" else dict(nested.f_locals)
    if function is None:
        return lambda f: NativeFunction(f, name, enclosing, host, seldom)
    return NativeFunction(function, name, enclosing, host, seldom)


def _closure(functions: Iterable[NativeFunction[Any, Any]]) -> list[native_tree.Function]:
    """The functions and all they call, callees first; NativeError if one calls itself."""
    done: dict[int, native_tree.Function] = {}
    active: list[NativeFunction[Any, Any]] = []

    def visit(function: NativeFunction[Any, Any]) -> None:
        if id(function) in done:
            return
        if function in active:
            cycle = " -> ".join(f.symbol for f in [*active[active.index(function) :], function])
            raise NativeError(f"{function.function.__code__.co_filename}: recursion: {cycle}")
        active.append(function)
        for callee in function.tree.calls:
            visit(callee)
        active.pop()
        done[id(function)] = function.tree

    for function in functions:
        visit(function)
    return list(done.values())


def emit_module(functions: Sequence[NativeFunction[Any, Any]], linkage: str = "internal") -> str:
    """LLVM IR of the functions and everything they call: definitions, tables, declarations of host functions.

    `linkage` applies to `functions` ("" for external, "internal", "linkonce_odr", ...); callees are internal. The text has no
    target lines: parse it alone or append it to another module, once per module.
    """
    from trapline.bits.native_llvm import module_text

    def wide() -> list[native_tree.Function]:
        from trapline.bits.native_wide import divide128

        return _closure([divide128])

    return module_text(_closure(functions), {function.symbol for function in functions}, linkage, wide)


def compile_functions(functions: Sequence[NativeFunction[Any, Any]], optimize: int = 1) -> dict[str, Callable[..., Any]]:
    """Compile with LLVM and return Python callables by function name (`fn.name`); structures are passed as instances."""
    from trapline.bits.native_jit import compile_module

    return compile_module(functions, emit_module(functions, ""), optimize)
