"""Declaring an ioctl: its number, what it takes, who answers it and why it fails, in one place.

    @ioctl("vm", 0x46, UserspaceMemoryRegion, "W", cap=Cap.USER_MEMORY, EINVAL="...", EEXIST="...")
    def KVM_SET_USER_MEMORY_REGION(vm, region):
        \"\"\"Create, move, re-flag or delete a guest physical memory slot.\"\"\"

The function's name is the call's name, its docstring is the manual's entry, and its body is empty: the decorator replaces it by
an `Ioctl`. A second parameter names what the call takes; a call without one takes nothing. Backends, tracers, the fuzzer, tests and
documents read these objects (`tables.py` lists them all); the software hypervisor attaches behaviour to them with `implements`, and
fails a test when a body raises an errno that has no declared cause.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Literal, TypeVar

from trapline.abi.caps import Cap
from trapline.abi.struct import Structure

FdKind = Literal["system", "vm", "vcpu", "device"]
"""Which file answers: /dev/kvm itself, or one made from it."""

KVMIO = 0xAE
DIRECTIONS = MappingProxyType({"": 0, "W": 1, "R": 2, "RW": 3})
"""Direction as encoded. Several calls encode the wrong one for historical reasons: declarations copy it, nobody derives it."""

ARCHITECTURES = ("arm64", "x86")

BAD_ARGUMENT = "the argument's structure cannot be read or written"
"""Why every call that takes a structure can fail with EFAULT."""


def never(argument: Any) -> bool:
    """Of calls that have nothing to do with guest memory."""
    return False


def always(argument: Any) -> bool:
    """Of calls that may use guest memory whatever their argument."""
    return True


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, eq=False)
class Ioctl:
    """One declared call. Compared by identity: two fd kinds can share a number."""

    name: str
    kinds: tuple[FdKind, ...]
    nr: int
    struct: type[Structure] | None
    direction: str
    cap: Cap | None
    causes: Mapping[int, str]
    makes: str
    """The kind of file that the call makes, "" for none. Its number is what the call returns, or in a field that says so."""

    doc: str
    arch: str
    """The architecture that has the call, "" if all do: said by the name of the module that declares it."""

    takes: str
    """What the argument is called, "" if there is none."""

    nullable: bool
    """A null pointer instead of the structure means something."""

    guest: Callable[[Any], bool]
    """Whether the call, with this argument, may read or write guest memory."""

    @property
    def size(self) -> int:
        """Bytes of argument that the number encodes."""
        return ctypes.sizeof(self.struct) if self.struct is not None else 0

    @property
    def number(self) -> int:
        """The request number as the kernel's headers compute it."""
        return DIRECTIONS[self.direction] << 30 | self.size << 16 | KVMIO << 8 | self.nr

    @property
    def argument(self) -> str:
        """What the call takes, in words."""
        if self.struct is not None:
            return f"struct {self.struct.c_name} ({self.size} bytes)" if self.struct.c_name else f"{self.size} bytes, {self.takes}"
        return f"a number, {self.takes}" if self.takes else "none"

    def make(self, **fields: Any) -> Any:
        """An argument for the call: a structure with these fields set and the others zero, or 0 for a call that takes none.

        TypeError for a field that there is not, ValueError for a number that does not fit.
        """
        if self.struct is None:
            if fields:
                raise TypeError(f"{self.name} takes {self.argument}, not fields")
            return 0
        value = self.struct()
        kinds = {name: kind for name, kind, *_ in self.struct._fields_}
        for name, given in fields.items():
            if name not in kinds:
                raise TypeError(f"{self.name}: struct {self.struct.c_name} has no field {name!r}, but {', '.join(kinds)}")
            if isinstance(given, (list, tuple, bytes)):
                getattr(value, name)[: len(given)] = given
                continue
            setattr(value, name, given)
            if isinstance(given, int) and getattr(value, name) != given:
                raise ValueError(f"{self.name}: {name} cannot hold {given:#x}")
        return value

    def describe(self) -> str:
        """The manual's entry: number, capability, argument, and one line for each errno."""
        lines = [
            f"{self.name} ({self.number:#010x})",
            f"    on: {', '.join(self.kinds)}{f' of {self.arch}' if self.arch else ''}; "
            f"capability: {self.cap.name if self.cap else 'basic'}; argument: {self.argument}",
            f"    {self.doc}",
        ]
        lines += [f"    {errno.errorcode[code]}: {cause}" for code, cause in self.causes.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{self.name} {self.number:#010x}>"


def ioctl(
    kinds: FdKind | tuple[FdKind, ...],
    nr: int,
    struct: type[Structure] | None = None,
    direction: Literal["", "R", "W", "RW"] = "",
    *,
    cap: Cap | None = None,
    makes: str = "",
    nullable: bool = False,
    guest: Callable[[Any], bool] = never,
    **causes: str,
) -> Callable[[Callable[..., Any]], Ioctl]:
    """Declare a call. Keyword arguments named like an errno state when the call fails with it."""
    if struct is not None:
        causes["EFAULT"] = f"{causes['EFAULT']}, or {BAD_ARGUMENT}" if "EFAULT" in causes else BAD_ARGUMENT

    def declare(stub: Callable[..., Any]) -> Ioctl:
        module = stub.__module__.rpartition(".")[2]
        parameters = stub.__code__.co_varnames[1 : stub.__code__.co_argcount]
        return Ioctl(
            name=stub.__name__,
            kinds=(kinds,) if isinstance(kinds, str) else kinds,
            nr=nr,
            struct=struct,
            direction=direction,
            cap=cap,
            causes=MappingProxyType({getattr(errno, name): cause for name, cause in causes.items()}),
            makes=makes,
            doc=" ".join((stub.__doc__ or "").split()),
            arch=next((arch for arch in ARCHITECTURES if module.startswith(arch)), ""),
            takes=parameters[0] if parameters else "",
            nullable=nullable,
            guest=guest,
        )

    return declare


def declared(*modules: ModuleType) -> tuple[Ioctl, ...]:
    """Every call declared in these modules, in the order of their numbers."""
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Ioctl)}
    return tuple(sorted(found.values(), key=lambda call: (call.kinds, call.nr)))


def implements(*calls: Ioctl) -> Callable[[F], F]:
    """Mark a function as the body of these calls. `bodies` collects the marks."""

    def mark(body: F) -> F:
        body.implements = calls  # type: ignore[attr-defined]
        return body

    return mark


def bodies(modules: Iterable[ModuleType]) -> Mapping[Ioctl, Callable[..., Any]]:
    """The table from call to body made of the marked functions of these modules; a call with two bodies is an error."""
    table: dict[Ioctl, Callable[..., Any]] = {}
    for module in modules:
        for value in vars(module).values():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            for call in getattr(value, "implements", ()):
                if call in table:
                    raise TypeError(f"{call.name} has two bodies: {table[call]!r} and {value!r}")
                table[call] = value
    return MappingProxyType(table)
