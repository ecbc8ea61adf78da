"""How a case of the conformance list is written, and what it can use.

A case names a call, the errno it answers with (0 for success), and why; and makes that call on a fresh VM:

    case = Cases(__name__)

    case(KVM_SET_USER_MEMORY_REGION, EINVAL, "unknown flag", lambda t: t.region(flags=8), GENERIC)

    @case.of(KVM_SET_USER_MEMORY_REGION, EEXIST, "overlaps another slot", GENERIC)
    def _(t):
        t.region(slot=0)
        yield                       # what was before is preparation and has to succeed; the rest is judged
        t.region(slot=1)

Files `cases_*.py` of this folder are found by themselves. GENERIC cases run on /dev/kvm too, whatever its architecture; the others are
arm64's. `needs=` names a capability without which a backend is not asked. `differs=(errno, why)` allows a host's kernel another answer.
`python -m tests.conformance` prints the list with each backend's answers and the differences.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import errorcode
from importlib import import_module
from inspect import isgenerator
from pathlib import Path
from typing import Any

from tests.conformance.guest import DATA, PROGRAM, machine_code, write_pages
from trapline.abi import arm64
from trapline.abi.caps import Cap
from trapline.abi.device import KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR
from trapline.abi.exits import IMMEDIATE_EXIT_OFFSET, Exit, decode_exit
from trapline.abi.ioctl import Ioctl
from trapline.abi.system import KVM_CHECK_EXTENSION, KVM_CREATE_VM
from trapline.abi.vcpu import KVM_GET_ONE_REG, KVM_RUN, KVM_SET_ONE_REG
from trapline.abi.vm import KVM_CREATE_DEVICE, KVM_CREATE_VCPU, KVM_ENABLE_CAP, KVM_SET_USER_MEMORY_REGION
from trapline.backends.base import Backend
from trapline.backends.software import Software
from trapline.errors import KvmError, NotSupported

PAGE = mmap.PAGESIZE
GENERIC = True
"""Marks cases that every architecture's KVM answers in the same way."""

PROGRAM_SLOT = 99
WATCHDOG_SECONDS = 10
BUFFER_PAGES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One row of the list."""

    area: str
    call: Ioctl
    errno: int
    cause: str
    body: Callable[[Trial], Any]
    generic: bool
    needs: Cap | None
    differs: tuple[int, str] | None

    @property
    def name(self) -> str:
        """What the case is called in reports; unique."""
        return f"{self.area}: {self.call.name} {error_name(self.errno)}: {self.cause}"


class Cases:
    """The cases of one file."""

    def __init__(self, module: str) -> None:
        self.area = module.rpartition(".")[2].removeprefix("cases_")
        self.rows: list[Case] = []

    def __call__(
        self,
        call: Ioctl,
        errno: int,
        cause: str,
        body: Callable[[Trial], Any],
        generic: bool = False,
        *,
        needs: Cap | None = None,
        differs: tuple[int, str] | None = None,
    ) -> None:
        """Add a case of one line."""
        if any(row.call is call and row.errno == errno and row.cause == cause for row in self.rows):
            raise ValueError(f"{call.name}: {cause!r} is there twice")
        self.rows.append(Case(self.area, call, errno, cause, body, generic, needs, differs))

    def of(self, call: Ioctl, errno: int, cause: str, generic: bool = False, **options: Any) -> Callable[[Any], None]:
        """Decorate the body of a case that takes more than a line."""
        return lambda body: self(call, errno, cause, body, generic, **options)


class Trial:
    """A fresh VM of one backend, made as far as a case uses it. Everything goes through the plain ABI."""

    def __init__(self, backend: Backend, system: int, arch: str) -> None:
        self.backend = backend
        self.system = system
        self.arch = arch
        self.set_region: Ioctl = KVM_SET_USER_MEMORY_REGION
        """Which call `region` makes."""
        self.made: list[Ioctl] = []
        """Calls so far, in order."""
        self.last: Any = None
        """The argument of the last call."""
        self.runs: dict[int, Any] = {}
        """kvm_run of each vCPU by its file."""
        self._files: list[int] = []
        self._vm = self._vcpu = -1
        self._buffer: mmap.mmap | None = None
        self._keep: list[Any] = []

    # --- files ---------------------------------------------------------------------------------------------------------------

    @property
    def vm(self) -> int:
        """The VM's file."""
        if self._vm < 0:
            self._vm = self(KVM_CREATE_VM, 0)
        return self._vm

    @property
    def vcpu(self) -> int:
        """The first vCPU's file; it is initialised."""
        if self._vcpu < 0:
            self._vcpu = self.add_vcpu(0)
        return self._vcpu

    def add_vcpu(self, number: int, init: bool = True) -> int:
        """Another vCPU."""
        file = self(KVM_CREATE_VCPU, number, on=self.vm)
        self.runs[file] = self.backend.map_run(file)
        if init and self.arch == "arm64":
            self.init_vcpu(file)
        return file

    def init_vcpu(self, file: int, *features: int, target: int = arm64.TARGET_GENERIC_V8, words: tuple[int, ...] = ()) -> None:
        """KVM_ARM_VCPU_INIT with PSCI 0.2, or with these features, or these words of features."""
        wanted = [0] * 7
        for feature in features or (arm64.Feature.PSCI_0_2,):
            wanted[feature // 32] |= 1 << feature % 32
        wanted[: len(words)] = words
        self(arm64.KVM_ARM_VCPU_INIT, on=file, target=target, features=wanted)

    def add_device(self, kind: int) -> int:
        """An in-kernel device's file."""
        self(KVM_CREATE_DEVICE, type=kind)
        self._files.append(self.last.fd)
        return int(self.last.fd)

    # --- calls ---------------------------------------------------------------------------------------------------------------

    def __call__(self, call: Ioctl, argument: Any = None, /, on: int | None = None, **fields: Any) -> int:
        """Make a call: on a file, or on the one that its kind suggests; with an argument, or with a structure of these fields."""
        file = on if on is not None else getattr(self, call.kinds[0])
        if argument is None:
            argument = call.struct() if call.struct is not None else 0
            for name, value in fields.items():
                if isinstance(value, (list, tuple)):
                    getattr(argument, name)[: len(value)] = value
                else:
                    setattr(argument, name, value)
        self.made.append(call)
        self.last = argument
        result = self.backend.ioctl(file, call, argument)
        if call.makes and call is not KVM_CREATE_DEVICE:
            self._files.append(result)
        return result

    def cap(self, cap: int, on: int | None = None) -> int:
        """KVM_CHECK_EXTENSION on the VM."""
        return self(KVM_CHECK_EXTENSION, int(cap), on=self.vm if on is None else on)

    def enable(self, cap: int, *args: int, flags: int = 0) -> int:
        """KVM_ENABLE_CAP on the VM."""
        return self(KVM_ENABLE_CAP, cap=cap, flags=flags, args=args)

    def region(self, slot: int = 0, flags: int = 0, gpa: int = DATA, size: int = 4 * PAGE, hva: int | None = None) -> int:
        """KVM_SET_USER_MEMORY_REGION; four pages of the buffer unless said otherwise."""
        address = self.address if hva is None else hva
        return self(self.set_region, slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=address)

    def set_attr(self, on: int, group: int, attr: int, value: int | None = None, size: int = 4) -> int:
        """KVM_SET_DEVICE_ATTR with a value in memory, or with a null pointer."""
        address = 0 if value is None else self.put(value.to_bytes(size, "little"))
        return self(KVM_SET_DEVICE_ATTR, on=on, group=group, attr=attr, addr=address)

    def get_attr(self, on: int, group: int, attr: int, size: int = 4) -> int:
        """KVM_GET_DEVICE_ATTR; the value."""
        address = self.put(bytes(size))
        self(KVM_GET_DEVICE_ATTR, on=on, group=group, attr=attr, addr=address)
        return int.from_bytes(ctypes.string_at(address, size), "little")

    def has_attr(self, on: int, group: int, attr: int) -> int:
        """KVM_HAS_DEVICE_ATTR."""
        return self(KVM_HAS_DEVICE_ATTR, on=on, group=group, attr=attr)

    def get_reg(self, reg_id: int, on: int | None = None) -> int:
        """KVM_GET_ONE_REG; the value."""
        size = arm64.reg_bytes(reg_id)
        address = self.put(bytes(size))
        self(KVM_GET_ONE_REG, on=self.vcpu if on is None else on, id=reg_id, addr=address)
        return int.from_bytes(ctypes.string_at(address, size), "little")

    def set_reg(self, reg_id: int, value: int, on: int | None = None) -> int:
        """KVM_SET_ONE_REG."""
        address = self.put(value.to_bytes(arm64.reg_bytes(reg_id), "little"))
        return self(KVM_SET_ONE_REG, on=self.vcpu if on is None else on, id=reg_id, addr=address)

    # --- memory --------------------------------------------------------------------------------------------------------------

    @property
    def buffer(self) -> mmap.mmap:
        """Memory of this process for the guest, page aligned."""
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, BUFFER_PAGES * PAGE)
        return self._buffer

    @property
    def address(self) -> int:
        """Where the buffer is."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))

    @property
    def nowhere(self) -> int:
        """An address at which nothing is mapped."""
        return 0x1000

    def large(self, pages: int) -> int:
        """The address of more memory for the guest."""
        self._keep.append(mmap.mmap(-1, pages * PAGE))
        return ctypes.addressof(ctypes.c_char.from_buffer(self._keep[-1]))

    def edge(self, data: Any) -> int:
        """The address of a copy of a structure after which no memory is."""
        area = mmap.mmap(-1, 2 * PAGE)
        self._keep.append(area)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        place = PAGE - ctypes.sizeof(data)
        area[place:PAGE] = bytes(data)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + PAGE), PAGE, 0) == 0
        return start + place

    def put(self, data: bytes) -> int:
        """The address of a copy of these bytes, for an argument."""
        self._keep.append(ctypes.create_string_buffer(data, max(len(data), 1)))
        return ctypes.addressof(self._keep[-1])

    def bitmap(self, pages: int = 64, value: int = 0) -> int:
        """The address of a bitmap, for dirty logs. `bits` reads it."""
        return self.put(value.to_bytes(max(8, (pages + 63) // 64 * 8), "little"))

    def bits(self, pages: int = 64) -> int:
        """The bits of the bitmap that was made last."""
        return int.from_bytes(self._keep[-1].raw[: max(8, (pages + 63) // 64 * 8)], "little")

    # --- the guest -----------------------------------------------------------------------------------------------------------

    def program(self, *accesses: tuple[str, int, int], on: int | None = None) -> None:
        """Let a vCPU make accesses, each ("store" or "load", address, value), then spin. Its code is in a slot of its own."""
        self.code(machine_code(self.arch, accesses), on)

    def loop(self, address: int, pages: int) -> None:
        """Let the first vCPU, of arm64, write to so many pages from an address on, then exit."""
        self.code(write_pages(address, pages))

    def code(self, text: bytes, on: int | None = None) -> None:
        """Let a vCPU begin with this machine code."""
        file = self.vcpu if on is None else on
        code = mmap.mmap(-1, PAGE)
        self._keep.append(code)
        start = PROGRAM + PAGE * list(self.runs).index(file)
        code[: len(text)] = text
        hva = ctypes.addressof(ctypes.c_char.from_buffer(code))
        self.region(PROGRAM_SLOT - list(self.runs).index(file), 0, start, PAGE, hva)
        if self.arch == "arm64":
            self.set_reg(arm64.REG_PC, start, on=file)
        else:
            self._start_x86(file, start)

    def _start_x86(self, file: int, start: int) -> None:
        try:
            x86 = import_module("trapline.abi.x86")
        except ImportError:
            raise NotSupported("no declarations of x86's registers yet") from None
        sregs = x86.Sregs()
        self.backend.ioctl(file, x86.KVM_GET_SREGS, sregs)
        for name in ("cs", "ds", "es", "ss"):
            segment = getattr(sregs, name)
            segment.base = segment.selector = 0
        self.backend.ioctl(file, x86.KVM_SET_SREGS, sregs)
        regs = x86.Regs()
        regs.rip, regs.rflags = start, 2
        self.backend.ioctl(file, x86.KVM_SET_REGS, regs)

    def run(self, on: int | None = None) -> Exit:
        """KVM_RUN. A guest that does not come back is interrupted."""
        file = self.vcpu if on is None else on
        self.made.append(KVM_RUN)
        watchdog = threading.Timer(WATCHDOG_SECONDS, lambda: self.kick(file))
        watchdog.start()
        try:
            self.backend.runner(file)()
        finally:
            watchdog.cancel()
        return decode_exit(self.runs[file])

    @contextmanager
    def own_handler(self) -> Iterator[None]:
        """SIGUSR2 does nothing but interrupt."""
        before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR2, before)

    def kick(self, file: int) -> None:
        """End a KVM_RUN, the present one or the next."""
        self.runs[file][IMMEDIATE_EXIT_OFFSET] = 1
        self.backend.kick(file)

    def close(self) -> None:
        """Close all files."""
        for file in reversed(self._files):
            try:
                self.backend.close(file)
            except (KvmError, OSError):
                pass  # a case may have closed it


def error_name(code: int) -> str:
    """EINVAL for 22, "0" for 0."""
    return errorcode.get(code, str(code)) if code else "0"


def answer(case: Case, trial: Trial) -> int:
    """Carry a case out: the errno of its call. A preparation that fails is an error of the case."""
    judged = 0
    try:
        steps = case.body(trial)  # a generator has not begun yet
        if isgenerator(steps):
            _prepare(case, steps)
            judged = len(trial.made)
            next(steps, None)
    except KvmError as error:
        if not trial.made or trial.made[-1] is not case.call:
            raise
        return error.errno or 0
    assert case.call in trial.made[judged:], f"{case.name}: the call was never made"
    return 0


def _prepare(case: Case, steps: Iterator[None]) -> None:
    try:
        next(steps)
    except KvmError as error:
        raise AssertionError(f"{case.name}: the preparation failed: {error}") from error


def all_cases() -> list[Case]:
    """Every case of this folder."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    return [row for name in names for row in import_module(f"tests.conformance.{name}").case.rows]


def host_arch() -> str:
    """The architecture of /dev/kvm."""
    return "arm64" if platform.machine() in ("aarch64", "arm64") else "x86"


def applies(case: Case, trial: Trial) -> bool:
    """Whether a backend is to be asked."""
    if not case.generic and trial.arch != "arm64":
        return False
    if isinstance(trial.backend, Software) and case.call not in trial.backend.bodies:
        return False  # docs/CAVEATS.md lists those
    return case.needs is None or trial.cap(case.needs) > 0
