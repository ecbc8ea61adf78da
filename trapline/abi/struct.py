"""C structures of the KVM ABI, declared as annotated classes.

    @struct(size=16)
    class OneReg(Structure):
        id: u64
        addr: u64

is a `ctypes.Structure` with those fields, in C layout. The declared size is checked when the class is made, so that a slip
in a field's width cannot go unnoticed. (A decorator does it, because on CPython 3.11 `ctypes` cannot take a structure's fields in
`__init_subclass__`.)

An annotation may also say what a number means, as its third part: the IntEnum or IntFlag of its values, or one of the words of
`Meaning`. Traces print it by that, and the fuzzer chooses values by it. An address of the caller's has a fourth part, a `Pointee`: how
much memory it leads to, for those who note or repeat calls. A structure that is the head of a list says of what (`tail`).
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints


class Meaning(Enum):
    """What a number stands for where no enumeration says it."""

    USER = "an address of the calling process"
    GUEST = "a guest physical address"
    FD = "an open file"
    MADE = "the file that was made"
    PAGES = "a number of pages"
    REGISTER = "a register of the architecture, by its id"
    SLOT = "a memory slot: the address space in the upper half, the number in the lower"


@dataclass(frozen=True, slots=True)
class Pointee:
    """The memory that an address of the calling process leads to."""

    size: Callable[[Any, str, Mapping[int, int]], int]
    """How many bytes: by the structure, the kind of file asked, and the sizes of the VM's memory slots."""

    shared: bool = False
    """It is guest memory: KVM goes on using it after the call."""


PAGE = mmap.PAGESIZE


def bitmap_bytes(bits: int) -> int:
    """Bytes of a bitmap: whole words of 64 bits."""
    return (bits + 63) // 64 * 8


u8 = Annotated[int, ctypes.c_uint8]
u16 = Annotated[int, ctypes.c_uint16]
u32 = Annotated[int, ctypes.c_uint32]
u64 = Annotated[int, ctypes.c_uint64]
s32 = Annotated[int, ctypes.c_int32]
u8x8 = Annotated[Any, ctypes.c_uint8 * 8]
u8x12 = Annotated[Any, ctypes.c_uint8 * 12]
u8x15 = Annotated[Any, ctypes.c_uint8 * 15]
u8x16 = Annotated[Any, ctypes.c_uint8 * 16]
u8x36 = Annotated[Any, ctypes.c_uint8 * 36]
u8x64 = Annotated[Any, ctypes.c_uint8 * 64]
u32x3 = Annotated[Any, ctypes.c_uint32 * 3]
u32x7 = Annotated[Any, ctypes.c_uint32 * 7]
u32x8 = Annotated[Any, ctypes.c_uint32 * 8]
u64x4 = Annotated[Any, ctypes.c_uint64 * 4]
u64x16 = Annotated[Any, ctypes.c_uint64 * 16]

GuestAddress = Annotated[int, ctypes.c_uint64, Meaning.GUEST]
Fd = Annotated[int, ctypes.c_int32, Meaning.FD]
PageCount = Annotated[int, ctypes.c_uint32, Meaning.PAGES]
SlotId = Annotated[int, ctypes.c_uint32, Meaning.SLOT]

SlotMemory = Annotated[int, ctypes.c_uint64, Meaning.USER, Pointee(lambda region, kind, slots: region.memory_size, shared=True)]
SlotBitmap = Annotated[int, ctypes.c_uint64, Meaning.USER, Pointee(lambda log, kind, slots: bitmap_bytes(slots.get(log.slot, 0) // PAGE))]

T = TypeVar("T", bound="Structure")


def c_type(annotation: Any) -> type:
    """The ctypes type an annotation stands for: one of the names above, or another declared structure."""
    arguments = get_args(annotation)
    if arguments:
        return arguments[1]  # type: ignore[no-any-return]
    if isinstance(annotation, type) and issubclass(annotation, (ctypes.Structure, ctypes.Union)):
        return annotation
    raise TypeError(f"{annotation!r} has no C layout: use u8..u64 or a @struct class")


def struct(*, size: int, c_name: str, tail: tuple[str, Any] | None = None) -> Callable[[type[T]], type[T]]:
    """Lay out an annotated class as a C structure of `size` bytes, known to C as `struct c_name`.

    `tail`: the field that counts what follows the structure, and the type of one of those.
    """

    def declare(cls: type[T]) -> type[T]:
        hints = get_type_hints(cls, include_extras=True)
        own = cls.__dict__.get("__annotations__", {})
        cls._fields_ = [(name, c_type(hints[name])) for name in own]
        cls.c_name = c_name
        cls.meanings = MappingProxyType({name: parts[2] for name in own if len(parts := get_args(hints[name])) > 2})
        cls.pointees = MappingProxyType({name: parts[3] for name in own if len(parts := get_args(hints[name])) > 3})
        cls.tail = (tail[0], c_type(tail[1])) if tail is not None else None
        if ctypes.sizeof(cls) != size:
            raise TypeError(f"{cls.__name__}: {ctypes.sizeof(cls)} bytes, declared as {size}")
        return cls

    return declare


class Structure(ctypes.Structure):
    """Base of the declared structures."""

    c_name: ClassVar[str]
    meanings: ClassVar[Mapping[str, Any]]
    """What the numbers in the fields mean, where that is more than a number: an enumeration or a `Meaning`."""

    pointees: ClassVar[Mapping[str, Pointee]]
    """What fields that are addresses of the caller's lead to."""

    tail: ClassVar[tuple[str, type] | None]
    """What follows the structure: the field that counts it, and the type of one element."""

    def __repr__(self) -> str:
        """Field by field, numbers in hexadecimal, padding left out."""
        parts = []
        for name, *_ in self._fields_:
            if not name.startswith(("pad", "reserved")):
                field = getattr(self, name)
                parts.append(f"{name}={field:#x}" if isinstance(field, int) else f"{name}={list(field)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"
