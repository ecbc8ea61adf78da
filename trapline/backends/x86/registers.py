"""A vCPU's general registers as attributes, and its MSRs as a mapping."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

from trapline.abi.ioctl import Ioctl
from trapline.abi.x86 import GENERAL, KVM_GET_REGS, KVM_SET_REGS, Regs
from trapline.abi.x86_msr import KVM_GET_MSRS, KVM_SET_MSRS, MsrEntry, Msrs, followed_by
from trapline.backends.base import Backend
from trapline.errors import KvmError
from trapline.x86_64.msr import msr_name

if TYPE_CHECKING:
    from trapline.backends.x86.vcpu import X86Vcpu

MSRS_AT_ONCE = 128
"""How many entries one call takes here; KVM allows fewer than 256."""


class Gpr:
    """One general register of `Registers`."""

    __slots__ = ("name",)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Gpr: ...
    @overload
    def __get__(self, instance: Registers, owner: type) -> int: ...
    def __get__(self, instance: Registers | None, owner: type) -> Gpr | int:
        return self if instance is None else int(getattr(instance.read(), self.name))

    def __set__(self, instance: Registers, value: int) -> None:
        instance.update(**{self.name: value})


class Registers:
    """`regs.rax`, `regs.rip = 0x1000`: each access is a KVM_GET_REGS, an assignment a KVM_SET_REGS too.

    `update(rax=1, rip=2)` sets several at once, `read` gives all as a structure that `write` takes.
    """

    __slots__ = ("_vcpu",)
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp = Gpr(), Gpr(), Gpr(), Gpr(), Gpr(), Gpr(), Gpr(), Gpr()
    r8, r9, r10, r11, r12, r13, r14, r15 = Gpr(), Gpr(), Gpr(), Gpr(), Gpr(), Gpr(), Gpr(), Gpr()
    rip, rflags = Gpr(), Gpr()

    def __init__(self, vcpu: X86Vcpu) -> None:
        self._vcpu = vcpu

    def read(self) -> Regs:
        """All of them."""
        regs = Regs()
        self._vcpu.ioctl(KVM_GET_REGS, regs)
        return regs

    def write(self, regs: Regs) -> None:
        """Set all of them."""
        self._vcpu.ioctl(KVM_SET_REGS, regs)

    def update(self, **values: int) -> None:
        """Set some of them; negative numbers are taken modulo 2^64."""
        regs = self.read()
        for name, value in values.items():
            if name not in GENERAL:
                raise AttributeError(f"no register {name!r}")
            setattr(regs, name, value & (1 << 64) - 1)
        self.write(regs)

    def dump(self) -> dict[str, int]:
        """All of them by name."""
        regs = self.read()
        return {name: getattr(regs, name) for name in GENERAL}

    def __repr__(self) -> str:
        return " ".join(f"{name}={value:#x}" for name, value in self.dump().items())


def _transfer(backend: Backend, file: int, call: Ioctl, pairs: list[tuple[int, int]]) -> list[int]:
    """KVM_GET_MSRS or KVM_SET_MSRS of (index, value) pairs; KvmError names the first that failed."""
    values: list[int] = []
    for start in range(0, len(pairs), MSRS_AT_ONCE):
        part = pairs[start : start + MSRS_AT_ONCE]
        argument: Any = followed_by(Msrs, MsrEntry, len(part))
        for entry, (index, value) in zip(argument.entries, part):
            entry.index, entry.data = index, value & (1 << 64) - 1
        done = backend.ioctl(file, call, argument)
        if done < len(part):
            index, value = part[done]
            what = "cannot be read" if call is KVM_GET_MSRS else f"does not take {value:#x}"
            raise KvmError(errno.EINVAL, f"{call.name}: MSR {msr_name(index)} {what}; {start + done} were done before it")
        values += [entry.data for entry in argument.entries]
    return values


def read_msrs(backend: Backend, file: int, indices: Iterable[int]) -> dict[int, int]:
    """The values of MSRs of a vCPU, or of feature MSRs of the device's file."""
    wanted = list(indices)
    return dict(zip(wanted, _transfer(backend, file, KVM_GET_MSRS, [(index, 0) for index in wanted])))


class MsrMap:
    """A vCPU's MSRs: `msrs[Msr.EFER]`, `msrs[0xc0000100] = base`. The MSR filter does not concern this."""

    __slots__ = ("_backend", "_file")

    def __init__(self, backend: Backend, file: int) -> None:
        self._backend, self._file = backend, file

    def __getitem__(self, index: int) -> int:
        return self.read([index])[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.write({index: value})

    def read(self, indices: Iterable[int]) -> dict[int, int]:
        """Several at once; KvmError (EINVAL) names the first that cannot be read."""
        return read_msrs(self._backend, self._file, indices)

    def write(self, values: Mapping[int, int]) -> None:
        """Several in order; KvmError (EINVAL) names the first that does not take its value, and those before it are set."""
        _transfer(self._backend, self._file, KVM_SET_MSRS, list(values.items()))
