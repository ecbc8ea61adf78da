"""Policies for implementation-defined system registers: what a guest finds in registers that only its own silicon has.

    vm.sysregs["S3_0_C15_C4_0"] = storage()            # remembers what is written, for each vCPU
    vm.sysregs["S3_4_C15_C*_*"] = raz_wi               # a family: reads as zero, ignores writes
    vm.sysregs["S3_1_C15_C0_0"] = constant(0x80)       # the guest may read it, and not write
    vm.sysregs["S3_5_C15_C1_1"] = lambda access: 7     # any function of the access

Using `vm.sysregs` switches KVM_CAP_TRAPLINE_SYSREG_TO_USER on. `Vcpu.run` then answers accesses by these policies and goes on. The
policy of registers without one is `sysregs.default`, at first `ask`: note the access, print a line that would give it a policy, and
return the `SysregExit` from `Vcpu.run`, whose caller may answer it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trapline.abi.caps import Cap
from trapline.abi.exits import SysregExit
from trapline.errors import BadInput, BadSnapshot, NotSupported

if TYPE_CHECKING:
    from trapline.backends.objects import Vm
    from trapline.backends.vcpu import Vcpu

WORD: Final = (1 << 64) - 1


class Undefined:
    """What a policy returns to make an access UNDEFINED."""

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()


class Policy:
    """Answers accesses. A subclass overrides `answer`."""

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """Answer (`access.value =`, `access.done()`, `access.undefined()`) and return True, or False to let `Vcpu.run` return."""
        raise NotImplementedError


class storage(Policy):
    """A register that keeps what is written to it. Each vCPU has its own, which starts with `reset`; or one is `shared` by all."""

    def __init__(self, reset: int = 0, shared: bool = False) -> None:
        self.reset = reset & WORD
        self.shared = shared
        self.values: dict[tuple[int, str], int] = {}
        """By vCPU (0 if shared) and name."""

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """Store or load."""
        key = (0 if self.shared else vcpu.id, access.name)
        if access.is_write:
            self.values[key] = access.value
            access.done()
        else:
            access.value = self.values.get(key, self.reset)
        return True


class constant(Policy):
    """A read-only register: writes are UNDEFINED, or ignored."""

    def __init__(self, value: int, ignore_writes: bool = False) -> None:
        self.value = value & WORD
        self.ignore_writes = ignore_writes

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """Give the value."""
        if not access.is_write:
            access.value = self.value
        elif self.ignore_writes:
            access.done()
        else:
            access.undefined()
        return True


class function(Policy):
    """A register that a function implements. It gets the `SysregExit`.

    For a read it returns the value. For a write, which it finds in `access.value`, what it returns does not matter. `UNDEFINED` makes
    the access UNDEFINED; so does None for a read.
    """

    def __init__(self, body: Callable[[SysregExit], int | Undefined | None]) -> None:
        self.body = body

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """Ask the function."""
        result = self.body(access)
        if isinstance(result, Undefined) or (result is None and not access.is_write):
            access.undefined()
        elif access.is_write:
            access.done()
        else:
            assert isinstance(result, int)
            access.value = result
        return True


class _Undefined(Policy):
    """No such register."""

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """UNDEFINED."""
        access.undefined()
        return True


class _Ask(Policy):
    """Print a line that would give the register a policy, once, and let the caller of `Vcpu.run` answer."""

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """Not answered."""
        vcpu.vm.sysregs.report(access, vcpu)
        return False


class log(Policy):
    """Print every access, and answer it by another policy."""

    def __init__(self, policy: Policy | Callable[[SysregExit], Any] | None = None) -> None:
        self.policy = as_policy(policy) if policy is not None else ask

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """Answer, then print."""
        answered = self.policy.answer(access, vcpu)
        verb = "<-" if access.is_write else "->"
        vcpu.vm.sysregs.say(f"vCPU {vcpu.id}: {access.name} {verb} {access.value:#x} at {vcpu.regs.pc:#x}")
        return answered


undefined: Final = _Undefined()
ask: Final = _Ask()
raz_wi: Final = constant(0, ignore_writes=True)


def as_policy(policy: Any) -> Policy:
    """A policy from what may stand for one: a policy, a class of them, or a function."""
    if isinstance(policy, type) and issubclass(policy, Policy):
        return policy()
    if isinstance(policy, Policy):
        return policy
    if callable(policy):
        return function(policy)
    raise TypeError(f"{policy!r} is not a policy: give storage(), raz_wi, constant(n), undefined, ask, log() or a function of the access")


@dataclass(slots=True)
class Seen:
    """How a guest used one register: how often, the first values written, and where it was first."""

    reads: int = 0
    writes: int = 0
    last_written: int | None = None
    first_pc: int = 0

    def describe(self) -> str:
        """In words."""
        parts = [f"{count} {word}{'s' * (count != 1)}" for count, word in ((self.reads, "read"), (self.writes, "write")) if count]
        written = "" if self.last_written is None else f", last wrote {self.last_written:#x}"
        return f"{', '.join(parts)}{written}, first at PC {self.first_pc:#x}"


class Sysregs:
    """The policies of one VM, by register name. Names are generic ones (S3_4_C15_C2_0), also with `*`, `?` and [...] for a family."""

    def __init__(self, vm: Vm) -> None:
        if not vm.check_extension(Cap.TRAPLINE_SYSREG_TO_USER):
            raise NotSupported(f"the {vm.backend.name} backend has no exits for system registers: Linux's KVM injects UNDEFINED")
        vm.enable_cap(Cap.TRAPLINE_SYSREG_TO_USER)
        self._vm = vm
        self.default: Policy = ask
        """For registers without a policy."""
        self.seen: dict[str, Seen] = {}
        """What the guest has used, in order of first use."""
        self._policies: dict[str, Policy] = {}
        self._families: list[tuple[str, Policy]] = []
        self._reported: set[str] = set()

    def __setitem__(self, name: str, policy: Policy | Callable[[SysregExit], Any]) -> None:
        """Give a register, or a family, a policy. A register's own comes before its family's, a later family before an earlier one."""
        name = name.upper()
        if any(mark in name for mark in "*?["):
            self._families.insert(0, (name, as_policy(policy)))
        else:
            self._policies[name] = as_policy(policy)

    def __getitem__(self, name: str) -> Policy:
        """The policy that answers accesses to this register."""
        name = name.upper()
        found = self._policies.get(name)
        if found is not None:
            return found
        return next((policy for pattern, policy in self._families if fnmatchcase(name, pattern)), self.default)

    def answer(self, access: SysregExit, vcpu: Vcpu) -> bool:
        """Note an access and answer it; False if it is for the caller of `Vcpu.run`."""
        name = access.name
        seen = self.seen.get(name)
        if seen is None:
            seen = self.seen[name] = Seen(first_pc=vcpu.regs.pc)
        if access.is_write:
            seen.writes += 1
            seen.last_written = access.value
        else:
            seen.reads += 1
        return (self._policies.get(name) or self[name]).answer(access, vcpu)

    def report(self, access: SysregExit, vcpu: Vcpu) -> None:
        """Say, once for each register, what line would give it a policy."""
        if access.name not in self._reported:
            self._reported.add(access.name)
            did = f"wrote {access.value:#x}" if access.is_write else "read it"
            self.say(f'sysregs["{access.name}"] = storage()  # vCPU {vcpu.id} {did} at PC {vcpu.regs.pc:#x}')

    def say(self, line: str) -> None:
        """Where lines go: stderr, unless replaced."""
        print(line, file=sys.stderr, flush=True)

    def state(self) -> dict[str, list[list[int | str]]]:
        """What registers of `storage` policies hold, by the name that has the policy: vCPU, register, value."""
        return {
            name: [[vcpu, register, value] for (vcpu, register), value in sorted(kept.values.items())]
            for name, kept in self._storages()
            if kept.values
        }

    def load_state(self, state: dict[str, list[list[int | str]]]) -> None:
        """Put that into the policies of the same names; BadSnapshot if one is missing."""
        kept = dict(self._storages())
        for name, rows in state.items():
            if name not in kept:
                raise BadSnapshot(f"the saved VM stored registers under the policy {name}, which this VM does not have")
            kept[name].values = {(int(vcpu), str(register)): int(value) for vcpu, register, value in rows}

    def _storages(self) -> Iterator[tuple[str, storage]]:
        for name, policy in (*self._policies.items(), *self._families, ("", self.default)):
            while isinstance(policy, log):
                policy = policy.policy
            if isinstance(policy, storage):
                yield name, policy

    def lines(self) -> Iterator[str]:
        """A policy file for everything the guest has used."""
        for name, seen in sorted(self.seen.items(), key=lambda item: [int(number) for number in re.findall(r"\d+", item[0])]):
            policy = "storage()" if seen.writes else "constant(0)"
            yield f'sysregs["{name}"] = {policy}  # {seen.describe()}'

    def load(self, path: Path) -> None:
        """Execute a policy file: Python, with `sysregs`, `vm` and the policies of this module as names."""
        names = {name: globals()[name] for name in FILE_NAMES}
        try:
            code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
            raise BadInput(f"--sysreg {path}: {error}") from error
        try:
            exec(code, {"__name__": "sysregs", "__file__": str(path), "sysregs": self, "vm": self._vm, **names})
        except Exception as error:
            raise BadInput(f"--sysreg {path}: {type(error).__name__}: {error}") from error


FILE_NAMES: Final = ("UNDEFINED", "Policy", "ask", "constant", "function", "log", "raz_wi", "storage", "undefined")
"""What a policy file finds."""
