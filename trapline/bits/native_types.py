"""Types, intrinsics and host functions of the native subset (see `native.py` for the language)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar


class NativeError(TypeError):
    """The source of a native function does not fit the subset; the message starts with file:line."""


class IntType:
    """A fixed-width integer; calling it converts a Python int by truncation to the width."""

    __slots__ = ("name", "width", "signed", "mask", "half", "llvm")

    def __init__(self, name: str, width: int, signed: bool):
        self.name = name
        self.width = width
        self.signed = signed
        self.mask = (1 << width) - 1
        self.half = 1 << (width - 1)
        self.llvm = f"i{width}"

    def __call__(self, value: int) -> int:
        value &= self.mask
        return value - (self.mask + 1) if self.signed and value & self.half else value

    def holds(self, value: int) -> bool:
        """Whether a literal may be written for this type (unsigned types take -1 for all ones, and ~ of any value)."""
        return -self.half <= value < self.half if self.signed else -self.mask - 1 <= value <= self.mask

    def __repr__(self) -> str:
        return self.name


class PtrType:
    """The address of a ctypes structure or array."""

    __slots__ = ("ctype",)
    llvm = "ptr"

    def __init__(self, ctype: Any):
        self.ctype = ctype

    def __call__(self, address: int) -> Any:
        return self.ctype.from_address(address)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PtrType) and other.ctype is self.ctype

    def __hash__(self) -> int:
        return hash(self.ctype)

    def accepts(self, other: object) -> bool:
        """Whether a pointer of type `other` may be used here (same structure, or one that extends it)."""
        return isinstance(other, PtrType) and issubclass(other.ctype, self.ctype)

    def __repr__(self) -> str:
        return f"Ptr[{self.ctype.__name__}]"


class _PtrMaker:
    """`Ptr[Structure]` names a pointer type; `Ptr[Structure](address)` makes a pointer of an address."""

    def __getitem__(self, ctype: Any) -> PtrType:
        return PtrType(ctype)


Type = IntType | PtrType
Return = Type | tuple[Type, ...] | None

if TYPE_CHECKING:
    _T = TypeVar("_T")
    # A type checker takes native values for what they are under CPython: ints, and structures.
    u1: TypeAlias = int
    u8: TypeAlias = int
    u16: TypeAlias = int
    u32: TypeAlias = int
    u64: TypeAlias = int
    u128: TypeAlias = int
    s8: TypeAlias = int
    s16: TypeAlias = int
    s32: TypeAlias = int
    s64: TypeAlias = int
    s128: TypeAlias = int
    Ptr = Annotated[_T, "pointer"]
else:
    u1, u8, u16, u32, u64, u128 = (IntType(f"u{width}", width, False) for width in (1, 8, 16, 32, 64, 128))
    s8, s16, s32, s64, s128 = (IntType(f"s{width}", width, True) for width in (8, 16, 32, 64, 128))
    Ptr = _PtrMaker()

U1: IntType
U64: IntType
S64: IntType
U1, U64, S64 = u1, u64, s64  # type: ignore[assignment]

SCALARS: dict[Any, IntType] = {
    ctypes.c_bool: u1,  # type: ignore[dict-item]
    **{getattr(ctypes, f"c_uint{width}"): kind for width, kind in ((8, u8), (16, u16), (32, u32), (64, u64))},  # type: ignore[misc]
    **{getattr(ctypes, f"c_int{width}"): kind for width, kind in ((8, s8), (16, s16), (32, s32), (64, s64))},  # type: ignore[misc]
}
"""Which integer type a ctypes scalar field reads as."""


class Intrinsic:
    """A function of the subset itself.

    `params` lists the types of the arguments; None stands for "any integer type, the same as the first such argument".
    `ret` None means no value, "same" the type of the first argument. `python` is called with the arguments, and with the
    width last if `sized`.
    """

    def __init__(
        self,
        name: str,
        params: Sequence[Type | None],
        ret: Type | str | None,
        python: Callable[..., Any],
        *,
        sized: bool = False,
        pure: bool = False,
    ):
        self.name = name
        self.params = tuple(params)
        self.ret = ret
        self.python = python
        self.sized = sized
        self.pure = pure

    def __call__(self, *args: int | ctypes.Structure) -> Any:
        if self.sized:
            raise TypeError(f"{self.name}() has a meaning inside @native functions only")
        return self.python(*args)

    def __repr__(self) -> str:
        return f"<intrinsic {self.name}>"


def _clz(x: int, width: int) -> int:
    return width - (x & ((1 << width) - 1)).bit_length()


def _ctz(x: int, width: int) -> int:
    return (x & -x).bit_length() - 1 if x else width


def _popcount(x: int, width: int) -> int:
    return (x & ((1 << width) - 1)).bit_count()


def _bswap(x: int, width: int) -> int:
    return int.from_bytes(x.to_bytes(width // 8, "little"), "big")


def _bitreverse(x: int, width: int) -> int:
    return int(f"{x:0{width}b}"[::-1], 2)


def _loader(ctype: Any) -> Callable[[int], int]:
    return lambda address: ctype.from_address(address).value  # type: ignore[no-any-return]


def _storer(ctype: Any) -> Callable[[int, int], None]:
    def store(address: int, value: int) -> None:
        ctype.from_address(address).value = value

    return store


def _cas64(address: int, old: int, new: int) -> int:
    cell = ctypes.c_uint64.from_address(address)
    seen = cell.value
    if seen == old:
        cell.value = new
    return seen


clz = Intrinsic("clz", (None,), "same", _clz, sized=True, pure=True)
ctz = Intrinsic("ctz", (None,), "same", _ctz, sized=True, pure=True)
popcount = Intrinsic("popcount", (None,), "same", _popcount, sized=True, pure=True)
bswap = Intrinsic("bswap", (None,), "same", _bswap, sized=True, pure=True)
bitreverse = Intrinsic("bitreverse", (None,), "same", _bitreverse, sized=True, pure=True)
minimum = Intrinsic("min", (None, None), "same", min, pure=True)
maximum = Intrinsic("max", (None, None), "same", max, pure=True)
load8 = Intrinsic("load8", (u64,), u8, _loader(ctypes.c_uint8))  # type: ignore[arg-type]
load16 = Intrinsic("load16", (u64,), u16, _loader(ctypes.c_uint16))  # type: ignore[arg-type]
load32 = Intrinsic("load32", (u64,), u32, _loader(ctypes.c_uint32))  # type: ignore[arg-type]
load64 = Intrinsic("load64", (u64,), u64, _loader(ctypes.c_uint64))  # type: ignore[arg-type]
store8 = Intrinsic("store8", (u64, u8), None, _storer(ctypes.c_uint8))  # type: ignore[arg-type]
store16 = Intrinsic("store16", (u64, u16), None, _storer(ctypes.c_uint16))  # type: ignore[arg-type]
store32 = Intrinsic("store32", (u64, u32), None, _storer(ctypes.c_uint32))  # type: ignore[arg-type]
store64 = Intrinsic("store64", (u64, u64), None, _storer(ctypes.c_uint64))  # type: ignore[arg-type]
cas64 = Intrinsic("cas64", (u64, u64, u64), u64, _cas64)  # type: ignore[arg-type]
fence = Intrinsic("fence", (), None, lambda: None)
addressof = Intrinsic("addressof", (PtrType(ctypes.Structure),), u64, ctypes.addressof)  # type: ignore[arg-type]

BUILTINS: dict[Any, Intrinsic] = {min: minimum, max: maximum}
"""Python's own functions that have a native meaning."""


class Extern:
    """A host function that compiled code calls by symbol name; `python` stands in for it under CPython."""

    def __init__(self, name: str, ret: Type | None, params: Sequence[Type], python: Callable[..., Any] | None):
        self.symbol = name
        self.ret = ret
        self.params = tuple(params)
        self.python = python

    def __call__(self, *args: Any) -> Any:
        if self.python is None:
            raise NotImplementedError(f"host function {self.symbol} has no Python version")
        return self.python(*args)

    def declaration(self) -> str:
        """The LLVM `declare` line; narrow integers are extended as the C convention wants."""
        params = ", ".join(f"{p.llvm} {extension(p)}".rstrip() for p in self.params)
        ret = "void" if self.ret is None else f"{extension(self.ret)} {self.ret.llvm}".lstrip()
        return f"declare {ret} @{self.symbol}({params}) nounwind"


def extern(name: str, ret: Any, args: Sequence[Any] = (), python: Callable[..., Any] | None = None) -> Extern:
    """Declare the host function `name`; its address is given to the JIT by whoever compiles the module."""
    return Extern(name, as_type(ret) if ret is not None else None, [as_type(arg) for arg in args], python)


def extension(kind: Type) -> str:
    """The parameter attribute a C compiler would use for a narrow integer."""
    if isinstance(kind, PtrType) or kind.width >= 32:
        return ""
    return "signext" if kind.signed else "zeroext"


def as_type(annotation: Any) -> Type:
    """The native type an annotation object stands for; TypeError if it is none."""
    if isinstance(annotation, (IntType, PtrType)):
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, (ctypes.Structure, ctypes.Array)):
        return PtrType(annotation)
    if annotation is bool:
        return U1
    raise TypeError(f"{annotation!r} is not a native type")
