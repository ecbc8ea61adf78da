"""Everything the ABI declares, in one place: what documents, tests, tracers and the fuzzer are made from."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import trapline.abi
from trapline.abi.ioctl import Ioctl, declared
from trapline.abi.struct import Structure


def modules() -> list[ModuleType]:
    """The modules of this package that declare something: all of them but this one and those that print."""
    names = (info.name for info in iter_modules(trapline.abi.__path__) if info.name not in ("tables", "document", "text"))
    return [import_module(f"trapline.abi.{name}") for name in names]


def calls(arch: str | None = None) -> tuple[Ioctl, ...]:
    """Every declared call; with `arch`, those that this architecture has."""
    return tuple(call for call in declared(*modules()) if arch is None or call.arch in ("", arch))


def structures() -> Iterator[tuple[str, type[Structure]]]:
    """Every declared C structure with the name of the module that declares it."""
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Structure) and value.__module__ == module.__name__ and "c_name" in vars(value):
                yield module.__name__.rpartition(".")[2], value


def find(name: str) -> list[Ioctl]:
    """The calls with this name (KVM_ and case may be left out): more than one if architectures differ."""
    wanted = name.upper().removeprefix("KVM_")
    return [call for call in calls() if call.name.removeprefix("KVM_") == wanted]
