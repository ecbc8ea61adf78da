"""`trapline abi`: the manual page of a call, a structure or a capability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trapline.abi import caps
from trapline.abi.document import meaning_of
from trapline.abi.struct import Structure
from trapline.abi.tables import calls, find, structures
from trapline.errors import BadInput


def print_pages(names: Sequence[str]) -> int:
    """Print what is asked for, or the list of all calls."""
    if not names:
        for call in sorted(calls(), key=lambda call: (call.name, call.arch)):
            print(f"{call.number:#010x}  {call.name}{f' ({call.arch})' if call.arch else ''}")
        return 0
    for name in names:
        pages = list(pages_of(name))
        if not pages:
            raise BadInput(f"{name}: no such call, structure or capability; `trapline abi` lists the calls")
        print("\n\n".join(pages))
    return 0


def pages_of(name: str) -> Iterator[str]:
    """All that has this name; a number finds the calls that have it."""
    found = [call for call in calls() if f"{call.number:#x}" == name.lower()] or find(name)
    for call in found:
        yield call.describe() + (f"\n{fields(call.struct)}" if call.struct is not None else "")
    wanted = name.lower().removeprefix("struct ").removeprefix("kvm_")
    shown = [call.struct for call in found]
    yield from (fields(cls) for _, cls in structures() if cls.c_name.removeprefix("kvm_") == wanted and cls not in shown)
    for cap in caps.Cap:
        if caps.c_name(cap).lower() == name.lower():
            users = ", ".join(sorted({call.name for call in calls() if call.cap == cap})) or "none"
            yield f"{caps.c_name(cap)} = {cap.value}\n    calls that need it: {users}"


def fields(cls: type[Structure]) -> str:
    """A structure's layout."""
    lines = [f"    struct {cls.c_name}:"] if cls.c_name else []
    for field, *_ in cls._fields_:
        place = getattr(cls, field)
        meaning = meaning_of(cls.meanings.get(field))
        lines.append(f"    {place.offset:6} {place.size:5}  {field}{f': {meaning}' if meaning else ''}")
    return "\n".join(lines)
