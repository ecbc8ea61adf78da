"""Calls as lines of text, in the way strace prints system calls: names instead of numbers wherever a declaration knows them."""

from __future__ import annotations

import ctypes
from enum import Enum, IntFlag
from errno import errorcode
from typing import Any

from trapline.abi.caps import Cap, c_name
from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import Meaning, Structure

PLAIN = 10
"""Numbers from here on are printed in hexadecimal."""

SHOWN_ELEMENTS = 8
"""Of a longer array that is not zero only so many elements are shown."""


def number(value: int) -> str:
    """A number without a known meaning."""
    return str(value) if -PLAIN < value < PLAIN else f"{value:#x}"


def value_text(value: int, meaning: Any) -> str:
    """A number by what it means."""
    if meaning is Cap:
        return c_name(Cap(value)) if value in Cap._value2member_map_ else number(value)
    if isinstance(meaning, type) and issubclass(meaning, IntFlag):
        return flags_text(value, meaning)
    if isinstance(meaning, type) and issubclass(meaning, Enum) and value in meaning._value2member_map_:
        return str(meaning(value).name)
    if meaning is Meaning.FD:
        return str(value)
    if meaning in (Meaning.USER, Meaning.GUEST, Meaning.REGISTER):
        return f"{value:#x}" if value else "0"
    return number(value)


def flags_text(value: int, flags: type[IntFlag]) -> str:
    """The names of the bits, and what remains as a number."""
    names = [flag.name or "" for flag in flags if flag.value & value]
    rest = value & ~sum(flag.value for flag in flags if flag.value & value)
    return "|".join([*names, *([f"{rest:#x}"] if rest or not names else [])]) if value else "0"


def structure_text(argument: Any) -> str:
    """A structure's fields; padding and array elements are left out where they are zero."""
    meanings = argument.meanings if isinstance(argument, Structure) else {}
    parts = []
    for name, *_ in argument._fields_:
        value = getattr(argument, name)
        if isinstance(value, ctypes.Array):
            text = array_text(value)
        elif isinstance(value, (ctypes.Structure, ctypes.Union)):
            text = structure_text(value)
        else:
            text = value_text(value, meanings.get(name))
        if text not in ("[]", "{}") and not (name.startswith(("pad", "reserved")) and text == "0"):
            parts.append(f"{name}={text}")
    return "{" + ", ".join(parts) + "}"


def array_text(values: ctypes.Array[Any]) -> str:
    """An array up to its last element that is not zero."""
    if values._type_ is ctypes.c_uint8:
        data = bytes(values).rstrip(b"\0")
        return data[: 4 * SHOWN_ELEMENTS].hex() + ("..." if len(data) > 4 * SHOWN_ELEMENTS else "") if data else "[]"
    texts = [structure_text(value) if isinstance(value, ctypes.Structure) else number(value) for value in values]
    while texts and texts[-1] in ("0", "{}"):
        texts.pop()
    return "[" + ", ".join(texts[:SHOWN_ELEMENTS]) + (", ..." if len(texts) > SHOWN_ELEMENTS else "") + "]"


def argument_text(call: Ioctl, argument: Any) -> str:
    """What a call was given: nothing, a number, or a structure."""
    if isinstance(argument, (ctypes.Structure, ctypes.Union)):
        return structure_text(argument)
    if call.struct is not None:
        return f"{argument:#x}"
    if call.takes == "cap":
        return value_text(argument, Cap)
    return number(argument) if call.takes or argument else ""


def call_text(call: Ioctl, file: int, argument: Any, result: int = 0, error: int = 0) -> str:
    """One call as a line. A structure that the call fills in is shown as it is now."""
    inside = ", ".join(part for part in (str(file), argument_text(call, argument)) if part)
    outcome = f"-1 {errorcode.get(error, error)} ({call.causes.get(error, 'not declared')})" if error else number(result)
    return f"{call.name}({inside}) = {outcome}"
