"""Structures as plain data and back, by their declarations: what logs of calls are made of.

A structure is a dict of its fields, those that are zero left out. Numbers with a known meaning, and those of 64 bits, are text as traces
have it ("LOG_DIRTY_PAGES|0x10", "0x40000000"); arrays of bytes and unions are hexadecimal, other arrays lists, without
zeros at their end.
What follows a structure that is the head of a list is its element `TAIL`; bytes that no declaration covers are `REST`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

from trapline.abi.caps import Cap, c_name
from trapline.abi.struct import Pointee, Structure
from trapline.abi.text import value_text

TAIL, REST = "...", "more"
WIDE = 8
"""Numbers of so many bytes are text: not every reader of JSON has 64 bits."""

CAPS = MappingProxyType({c_name(cap): cap.value for cap in Cap})


def number_to_data(value: int, meaning: Any, size: int) -> int | str:
    """A number as data."""
    return value_text(value, meaning) if meaning is not None else hex(value) if size == WIDE else value


def number_from_data(data: int | str, meaning: Any) -> int:
    """A number again. ValueError for text that means none."""
    if isinstance(data, int):
        return data
    names: Any = {}
    if meaning is Cap:
        names = CAPS
    elif isinstance(meaning, type) and issubclass(meaning, Enum):
        names = {name: member.value for name, member in meaning.__members__.items()}
    return sum(names[word] if word in names else int(word, 0) for word in data.split("|"))


def structure_to_data(value: Any) -> dict[str, Any]:
    """A structure's fields."""
    meanings = value.meanings if isinstance(value, Structure) else {}
    data = {}
    for name, kind, *_ in value._fields_:
        made = _to_data(getattr(value, name), kind, meanings.get(name))
        if made not in (0, "0", "0x0", "", [], {}):
            data[name] = made
    return data


def _to_data(value: Any, kind: Any, meaning: Any = None) -> Any:
    if issubclass(kind, ctypes.Structure):
        return structure_to_data(value)
    if not issubclass(kind, (ctypes.Array, ctypes.Union)):
        return number_to_data(value, meaning, ctypes.sizeof(kind))
    if issubclass(kind, ctypes.Union) or kind._type_ is ctypes.c_uint8:
        return bytes(value).rstrip(b"\0").hex()
    listed = [_to_data(element, kind._type_) for element in value]
    while listed and listed[-1] in (0, "0x0", "", [], {}):
        listed.pop()
    return listed


def fill_from_data(value: Any, data: dict[str, Any]) -> None:
    """Set a structure's fields; those that the data leaves out keep what they hold. KeyError for one that there is not."""
    meanings = value.meanings if isinstance(value, Structure) else {}
    kinds = {name: kind for name, kind, *_ in value._fields_}
    for name, made in data.items():
        kind = kinds[name]
        if issubclass(kind, ctypes.Structure):
            fill_from_data(getattr(value, name), made)
        elif issubclass(kind, ctypes.Array):
            _fill_array(getattr(value, name), kind, made)
        elif issubclass(kind, ctypes.Union):
            setattr(value, name, kind.from_buffer_copy(bytes.fromhex(made).ljust(ctypes.sizeof(kind), b"\0")))
        else:
            setattr(value, name, number_from_data(made, meanings.get(name)))


def _fill_array(array: Any, kind: Any, made: Any) -> None:
    if kind._type_ is ctypes.c_uint8:
        data = bytes.fromhex(made)
        array[: len(data)] = data
        return
    for index, element in enumerate(made):
        if issubclass(kind._type_, ctypes.Structure):
            fill_from_data(array[index], element)
        elif issubclass(kind._type_, ctypes.Array):
            _fill_array(array[index], kind._type_, element)
        else:
            array[index] = number_from_data(element, None)


def tail_bytes(value: Structure) -> int:
    """How many bytes follow a structure, as it says itself."""
    return int(getattr(value, value.tail[0]) * ctypes.sizeof(value.tail[1])) if value.tail is not None else 0


def tail_type(struct: type[Structure]) -> Any:
    """The type of one element of what follows."""
    assert struct.tail is not None
    return struct.tail[1]


def argument_to_data(struct: type[Structure], content: bytes) -> dict[str, Any]:
    """An argument's bytes, the structure and what follows it, as data."""
    size = ctypes.sizeof(struct)
    value = struct.from_buffer_copy(content)
    data = structure_to_data(value)
    end = size
    if (tail := tail_bytes(value)) and len(content) >= size + tail:
        kind = tail_type(struct) * (tail // ctypes.sizeof(tail_type(struct)))
        data[TAIL] = _to_data(kind.from_buffer_copy(content, size), kind)
        end += tail
    if content[end:]:
        data[REST] = [len(content) - end, content[end:].rstrip(b"\0").hex()]
    return data


def argument_from_data(struct: type[Structure], data: dict[str, Any]) -> bytes:
    """The bytes again."""
    value = struct()
    fill_from_data(value, {name: made for name, made in data.items() if name not in (TAIL, REST)})
    content = bytes(value)
    if TAIL in data:
        kind = tail_type(struct) * (tail_bytes(value) // ctypes.sizeof(tail_type(struct)))
        array = kind()
        _fill_array(array, kind, data[TAIL])
        content += bytes(array)
    if REST in data:
        size, rest = data[REST]
        content += bytes.fromhex(rest).ljust(size, b"\0")
    return content


class Pointer(NamedTuple):
    """An address of the caller's within an argument."""

    path: str
    """The field, with those around it: "ranges.0.bitmap"."""

    offset: int
    """Where in the argument the address is."""

    address: int
    pointee: Pointee
    inside: Any
    """The structure that it is a field of."""


def pointers(value: Any, path: str = "", offset: int = 0) -> Iterator[Pointer]:
    """The addresses of the caller's in a structure and those inside it."""
    pointees = value.pointees if isinstance(value, Structure) else {}
    for name, kind, *_ in value._fields_:
        place = offset + getattr(type(value), name).offset
        if name in pointees:
            yield Pointer(f"{path}{name}", place, getattr(value, name), pointees[name], value)
        elif issubclass(kind, Structure):
            yield from pointers(getattr(value, name), f"{path}{name}.", place)
        elif issubclass(kind, ctypes.Array) and issubclass(kind._type_, Structure):
            for index, element in enumerate(getattr(value, name)):
                yield from pointers(element, f"{path}{name}.{index}.", place + index * ctypes.sizeof(kind._type_))


def fields_that_mean(struct: type[Structure], meaning: Any) -> list[str]:
    """The structure's own fields with a meaning."""
    return [name for name, one in struct.meanings.items() if one is meaning]
