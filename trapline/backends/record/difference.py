"""Where two backends differ: the call, what each made of it, and the registers, for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trapline.abi.struct import Meaning
from trapline.abi.tables import find
from trapline.abi.values import fields_that_mean
from trapline.abi.x86 import GENERAL
from trapline.backends.record.events import Event, find_call, register_name, unpack
from trapline.backends.vcpu import REGISTER_IDS
from trapline.errors import TraplineError

COMPARED = ("result", "errno", "exit", "out", "got", "shared", "memory", "state")
"""What two events of one call should have in common."""

WIDTH = 34
SHOWN = 4
"""Of longer lists only so many elements are shown."""

NUMBER_BYTES = (1, 2, 4, 8)


@dataclass
class Difference:
    """The first call that two backends answered otherwise. `str` is the report."""

    number: int
    """How many calls had been made, this one included."""

    arch: str
    names: tuple[str, str]
    events: tuple[Event, Event]
    """The event of each side."""

    states: tuple[dict[str, str], dict[str, str]] = ({}, {})
    """Each side's registers after the call, where they are known."""

    before: Sequence[Event] = ()
    """The calls before it."""

    what: list[tuple[str, str, str]] = field(default_factory=list)
    """What differs: where, and each side's value."""

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        mine, other = self.events
        yield f"{self.names[0]} and {self.names[1]} differ at call {self.number}:"
        yield ""
        yield f"  {call_text(mine)}"
        for name, event in zip(self.names, (mine, other)):
            yield f"    {name + ':':{max(map(len, self.names)) + 1}} {outcome_text(event)}"
        yield ""
        yield from self._table("what differs", self.what)
        left, right = self.states
        states = [(name, left.get(name, "-"), right.get(name, "-")) for name in dict.fromkeys((*left, *right))]
        yield from self._table("registers", [row for row in states if is_shown(*row)])
        if self.before:
            yield "  calls before it"
            for event in self.before:
                yield f"    {call_text(event)} {outcome_text(event)}"

    def _table(self, title: str, rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
        if not rows:
            return
        width = max(WIDTH, *(len(row[0]) for row in rows))
        yield f"  {title:{width + 2}} {self.names[0]:{WIDTH}} {self.names[1]}"
        for where, mine, other in rows:
            mark = "   <--" if title == "registers" and mine != other and "-" not in (mine, other) else ""
            yield f"    {where:{width}} {mine:{WIDTH}} {other}{mark}"
        yield ""


def is_shown(name: str, mine: str, other: str) -> bool:
    """Whether a register is worth a line: it differs, or is one of the general ones and not zero."""
    general = name in REGISTER_IDS or name.removeprefix("regs.") in GENERAL
    return (mine != other and "-" not in (mine, other)) or (general and {mine, other} != {"0x0"} and {mine, other} != {"0x0", "-"})


class Differs(TraplineError):
    """Two backends do not answer a call in the same way."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


def differences(mine: Event, other: Event, arch: str, parts: Iterable[str] = COMPARED) -> list[tuple[str, str, str]]:
    """What two events of one call do not have in common: where, and each side's value. Files and addresses are each side's own."""
    call = find_call(mine["call"], arch)
    own: set[str] = set()
    if call is not None and call.makes and call.struct is None:
        own.add("result")
    if call is not None and call.struct is not None:
        own |= {f"out.{name}" for name in fields_that_mean(call.struct, Meaning.MADE)}
    found: list[tuple[str, str, str]] = []
    for part in parts:
        if part == "state" and not (part in mine and part in other):
            continue
        _compare(found, part, mine.get(part), other.get(part))
    return [row for row in found if row[0] not in own or "-" in row[1:]]


def _compare(into: list[tuple[str, str, str]], where: str, mine: Any, other: Any) -> None:
    if mine == other:
        return
    if isinstance(mine, dict) and isinstance(other, dict):
        for name in dict.fromkeys((*mine, *other)):
            if where != "state" or (name in mine and name in other):
                _compare(into, f"{where}.{name}", mine.get(name), other.get(name))
        return
    into.append((where, text(mine), text(other)))


def text(data: Any) -> str:
    """A part of an event, in short."""
    if data is None:
        return "-"
    if isinstance(data, dict) and "class" in data:
        return f"{data['class']}({', '.join(f'{name}={text(value)}' for name, value in data.items() if name != 'class')})"
    if isinstance(data, dict):
        return "{" + ", ".join(f"{name}={text(value)}" for name, value in data.items()) + "}"
    if isinstance(data, (list, tuple)):
        return "[" + ", ".join(map(text, data[:SHOWN])) + (f", {len(data) - SHOWN} more" if len(data) > SHOWN else "") + "]"
    return str(data)


def call_text(event: Event) -> str:
    """The call and what it was given, in the way of traces."""
    if "call" not in event:
        return text(event)
    inside = [str(event["fd"])]
    if "address" in event:
        inside.append(event["address"])
    elif "arg" in event:
        inside.append(text(named(event["call"], event["arg"])))
    at = [f"{path} -> {memory_text(content)}" for path, content in event.get("at", {}).items() if content != ""]
    return f"{event['call']}({', '.join(inside)})" + (f" with {', '.join(at)}" if at else "")


def memory_text(content: str | None) -> str:
    """What an address leads to: a number where it has the size of one."""
    if content is None:
        return "nothing readable"
    value = unpack(content)
    return f"{int.from_bytes(value, 'little'):#x}" if len(value) in NUMBER_BYTES else text(content)


def named(name: str, arg: Any) -> Any:
    """An argument with names for the ids of registers."""
    struct = next((call.struct for call in find(name)), None)
    registers = fields_that_mean(struct, Meaning.REGISTER) if struct is not None else []
    return {**arg, **{field: register_name(int(arg[field], 16)) for field in registers if field in arg}} if registers else arg


def outcome_text(event: Event) -> str:
    """What came of a call."""
    if "call" not in event:
        return ""
    parts = [f"= -1 {event['errno']}" if "errno" in event else f"= {event.get('result')}"]
    parts += [f"got {path} -> {memory_text(content)}" for path, content in event.get("got", {}).items()]
    parts += [f"{name} {text(event[name])}" for name in ("out", "exit", "shared", "memory") if name in event]
    return " ".join(parts)
