"""Prints docs/api.md, the reference of the KVM calls, from their declarations: `python -m trapline.abi.document > docs/api.md`."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from trapline.abi import arm64, device, exits, extensions, irq, system, vcpu, vm
from trapline.abi.ioctl import Ioctl, declared
from trapline.abi.struct import Structure

KINDS = {"system": "The KVM device", "vm": "Virtual machines", "vcpu": "vCPUs", "device": "Devices"}


def calls_of(kind: str) -> list[Ioctl]:
    """The calls that a kind of file answers."""
    return [call for call in declared(system, vm, irq, vcpu, device, arm64) if kind in call.kinds]


def call_section(call: Ioctl) -> Iterator[str]:
    """One call: facts, meaning, errors."""
    yield f"### {call.name}"
    yield ""
    argument = f"`struct {call.struct.c_name}` ({call.size} bytes)" if call.struct is not None else "a number"
    capability = f"`KVM_CAP_{call.cap.name}`" if call.cap is not None else "none"
    yield f"`{call.number:#010x}` · argument: {argument} · capability: {capability}"
    yield ""
    yield call.doc
    yield ""
    if call.causes:
        yield "| error | cause |"
        yield "|---|---|"
        yield from (f"| {errno.errorcode[code]} | {cause} |" for code, cause in call.causes.items())
        yield ""


def structure_section(cls: type[Structure]) -> Iterator[str]:
    """One structure: offset, size and name of each field."""
    yield f"### struct {cls.c_name}"
    yield ""
    yield "| offset | bytes | field |"
    yield "|---|---|---|"
    for name, *_ in cls._fields_:
        place = getattr(cls, name)
        yield f"| {place.offset} | {place.size} | {name} |"
    yield ""


def exit_section() -> Iterator[str]:
    """Why KVM_RUN returns."""
    yield "## Exits"
    yield ""
    yield "| number | class | meaning |"
    yield "|---|---|---|"
    special: tuple[type[exits.Exit], ...] = (exits.MmioExit, exits.SysregExit)
    classes = {cls.reason: cls for cls in (*special, *exits.LAYOUTS)}
    for number, cls in sorted(classes.items()):
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        yield f"| {number if number < extensions.PRIVATE else hex(number)} | `{cls.__name__}` | {summary} |"
    yield ""


def document() -> str:
    """The whole page."""
    lines = ["# The KVM calls", "", "Printed from `trapline/abi` by `python -m trapline.abi.document`; do not edit.", ""]
    structures: dict[str, type[Structure]] = {}
    for kind, title in KINDS.items():
        lines += [f"## {title}", ""]
        for call in calls_of(kind):
            if call.kinds[0] == kind:
                lines += call_section(call)
                if call.struct is not None:
                    structures[call.struct.__name__] = call.struct
            else:
                lines += [f"{call.name}: as for {KINDS[call.kinds[0]].lower()}.", ""]
    lines += exit_section()
    lines += extensions.PAGE.splitlines()
    lines += ["## Structures", ""]
    for name in sorted(structures):
        lines += structure_section(structures[name])
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(document(), end="")
