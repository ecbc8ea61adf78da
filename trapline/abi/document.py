"""Prints docs/abi.md, the reference of the KVM calls, from their declarations: `python -m trapline.abi.document > docs/abi.md`."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from enum import Enum, IntFlag

from trapline.abi import caps, exits, extensions, x86_exits
from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import Meaning, Structure
from trapline.abi.tables import calls, structures

KINDS = {"system": "The KVM device", "vm": "Virtual machines", "vcpu": "vCPUs", "device": "Devices"}


ARCHITECTURES = {"": "", "arm64": " (arm64)", "x86": " (x86)"}


def calls_of(kind: str) -> list[Ioctl]:
    """The calls that a kind of file answers."""
    return [call for call in calls() if kind in call.kinds]


def call_section(call: Ioctl) -> Iterator[str]:
    """One call: facts, meaning, errors."""
    yield f"### {call.name}{ARCHITECTURES[call.arch]}"
    yield ""
    capability = f"`{caps.c_name(call.cap)}`" if call.cap is not None else "none"
    result = " · returns: a file" if call.makes else ""
    yield f"`{call.number:#010x}` · argument: {call.argument} · capability: {capability}{result}"
    yield ""
    yield call.doc
    yield ""
    if call.causes:
        yield "| error | cause |"
        yield "|---|---|"
        yield from (f"| {errno.errorcode[code]} | {cause} |" for code, cause in call.causes.items())
        yield ""


def meaning_of(meaning: object) -> str:
    """What a field's number stands for."""
    if isinstance(meaning, Meaning):
        return meaning.value
    if isinstance(meaning, type) and issubclass(meaning, Enum) and len(meaning) <= LISTED_VALUES:
        number = "{:#x}" if issubclass(meaning, IntFlag) else "{}"
        return ", ".join(f"{number.format(member.value)} {member.name}" for member in meaning)
    return getattr(meaning, "__name__", "")


LISTED_VALUES = 12
"""An enumeration of more values is only named."""


def structure_section(module: str, cls: type[Structure]) -> Iterator[str]:
    """One structure: offset, size, name and meaning of each field."""
    arch = next((text for name, text in ARCHITECTURES.items() if name and module.startswith(name)), "")
    yield f"### {cls.c_name if ' ' in cls.c_name else f'struct {cls.c_name}'}{arch}"
    yield ""
    yield "| offset | bytes | field | values |"
    yield "|---|---|---|---|"
    for name, *_ in cls._fields_:
        place = getattr(cls, name)
        yield f"| {place.offset} | {place.size} | {name} | {meaning_of(cls.meanings.get(name))} |"
    yield ""


def capability_section() -> Iterator[str]:
    """What can be asked about."""
    yield "## Capabilities"
    yield ""
    yield "What KVM_CHECK_EXTENSION can be asked about; the software machine answers 0 for what it lacks."
    yield ""
    yield "| number | name |"
    yield "|---|---|"
    yield from (f"| {cap.value} | {caps.c_name(cap)} |" for cap in sorted(caps.Cap))
    yield ""


def exit_section(title: str, classes: Iterable[type[exits.Exit]]) -> Iterator[str]:
    """Why KVM_RUN returns."""
    yield f"## {title}"
    yield ""
    yield "| number | class | meaning |"
    yield "|---|---|---|"
    for number, cls in sorted((cls.reason, cls) for cls in classes):
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        yield f"| {number if number < extensions.PRIVATE else hex(number)} | `{cls.__name__}` | {summary} |"
    yield ""


def document() -> str:
    """The whole page."""
    lines = ["# The KVM calls", "", "Printed from `trapline/abi` by `python -m trapline.abi.document`; do not edit.", ""]
    for kind, title in KINDS.items():
        lines += [f"## {title}", ""]
        for call in calls_of(kind):
            if call.kinds[0] == kind:
                lines += call_section(call)
            else:
                lines += [f"{call.name}: as for {KINDS[call.kinds[0]].lower()}.", ""]
    lines += capability_section()
    lines += exit_section("Exits", (exits.MmioExit, exits.SysregExit, *exits.LAYOUTS))
    lines += exit_section("Exits that only x86 has, or has otherwise", (*x86_exits.ANSWERED, *x86_exits.LAYOUTS))
    lines += extensions.PAGE.splitlines()
    lines += ["## Structures", ""]
    for module, cls in sorted(structures(), key=lambda entry: (entry[1].c_name, entry[0])):
        if cls.c_name:
            lines += structure_section(module, cls)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(document(), end="")
