"""Random calls made from their declarations, on several VMs of the software machine, some of them with running guests.

A sequence is repeatable by its seed as far as the fuzzer itself goes; what guests do meanwhile is not. `python -m tests.ioctl_fuzz SEED
[COUNT]` repeats one and prints its last calls when it fails.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import pickle
import pickletools
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from errno import EINTR
from typing import Any

from trapline.abi import arm64, device, irq, stats, system, vcpu, vm
from trapline.abi.caps import Cap
from trapline.abi.exits import IMMEDIATE_EXIT_OFFSET
from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import Meaning, Structure
from trapline.abi.tables import calls
from trapline.abi.text import call_text
from trapline.backends.software import UNKNOWN_CALL, Software
from trapline.errors import KvmError
from trapline.kvm.arm64.vcpu import Arm64Vcpu

CALLS = calls("arm64")
PAGE = mmap.PAGESIZE
GUEST_PAGES, BUFFER_SIZE = 64, 64 << 10
BUSY_SHARE = 0.06
"""Of the calls, those on VMs that run: each waits for the vCPU that it is about to leave the guest."""

SPARED = 0.75
"""Of the calls on VMs with an interrupt controller, those whose effect on its large state is not looked at in a quick run."""

KICK_SECONDS = 0.001
PAUSE_SECONDS = 0.003
SWITCH_SECONDS = 0.0001
QUIET_VMS, BUSY_VMS = 4, 2

NUMBERS = tuple(
    int(text, 0)
    for text in "0 1 2 3 4 5 7 8 16 20 27 30 31 32 33 40 63 64 128 255 256 0xfff 0x1000 0x7fff 0x8000 0x10000 0x100000 0x54520001".split()
)
EDGES = (1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 47, 1 << 63, (1 << 64) - 1, (1 << 64) - PAGE)
GUEST_ADDRESSES = (0, PAGE, 4 * PAGE, 0x10_0000, 0x800_0000, 0x808_0000, 0x80A_0000, 0x900_0000, 0x4000_0000, (1 << 40) - PAGE, 1 << 40)
SIZES = (0, PAGE, PAGE, 4 * PAGE, 64 * PAGE, PAGE + 1, 1 << 43)
"""Of memory slots, and never another one of these: what is valid is small, so that it is memory of ours and its dirty log fits into the
buffer."""

REGISTERS = (
    arm64.reg_x(3), arm64.REG_PC, arm64.REG_PSTATE, arm64.REG_SP, arm64.reg_v(2), arm64.REG_FPCR, arm64.REG_TIMER_CNT, arm64.REG_TIMER_CTL,
    arm64.REG_PTIMER_CVAL, arm64.REG_PSCI_VERSION, arm64.REG_WORKAROUND_1, arm64.reg_ccsidr(0), arm64.reg_sysreg(3, 0, 0, 4, 0),
    arm64.reg_sysreg(3, 0, 1, 0, 0), arm64.reg_sysreg(3, 0, 0, 6, 0), arm64.reg_sysreg(3, 0, 0, 0, 5), arm64.reg_sysreg(3, 0, 0, 0, 0),
    arm64.REG_ARCH | arm64.SIZE_U64 | arm64.GROUP_FW_BITMAP, arm64.REG_ARCH | arm64.SIZE_U64 | arm64.GROUP_SVE,
)  # fmt: skip

FIELDS: dict[str, tuple[int, ...]] = {
    "group": tuple(range(11)),
    "attr": (0, 1, 2, 3, 4, 5, 0xC230, 0x100, 0x1_0000_0000),
    "type": (0, 4, 5, 7, 7, 8, 99),
    "target": (5, 5, 5, 4),
    "len": (0, 1, 2, 4, 8, 3),
    "gsi": (0, 1, 8, 32, 987, 4095),
    "irq": (0, 1, 1 << 24 | 40, 1 << 24 | 31, 2 << 24 | 20, 2 << 24 | 1 << 16 | 27, 3 << 24),
    "level": (0, 1),
    "nr": (0, 1, 2),
    "n": (0, 1, 1000),
    "flags": (0, 0, 0, 1, 2),
    "address_lo": (0x809_0040, 0x809_0040, 0x808_0040, 0),
    "address_hi": (0, 0, 0, 1),
    "pio": (0, 0, 1, 2),
    "memory_size": SIZES,
    "size": SIZES,
    "num_pages": (0, 1, 4, 64),
    "first_page": (0, 0, 1, 64, 1 << 40),
    "range": (0, 0, 1),
    "feature": (4, 3, -1),
    "cap": (Cap.ARM_NISV_TO_USER, Cap.ARM_SYSTEM_SUSPEND, Cap.HALT_POLL, Cap.MANUAL_DIRTY_LOG_PROTECT2, Cap.DIRTY_LOG_RING_ACQ_REL,
            Cap.DIRTY_LOG_RING_WITH_BITMAP, Cap.ARM_WRITABLE_IMP_ID_REGS, Cap.TRAPLINE_SYSREG_TO_USER, Cap.ARM_MTE, Cap.USER_MEMORY, 99999),
    "serror_pending": (0, 1),
    "serror_has_esr": (0, 0, 0, 1),
    "ext_dabt_pending": (0, 0, 0, 1),
}
"""Values that get past the first checks, for fields whose meaning is not declared."""

Attributes = tuple[tuple[int, int, int], ...]
ADDR, CTRL = arm64.VgicGroup.ADDR, arm64.VgicGroup.CTRL
GICV3: tuple[int, Attributes] = (
    arm64.DeviceType.ARM_VGIC_V3,
    (
        (ADDR, arm64.VgicAddr.V3_DIST, 0x800_0000),
        (ADDR, arm64.VgicAddr.V3_REDIST, 0x80A_0000),
        (arm64.VgicGroup.NR_IRQS, 0, 64),
        (CTRL, arm64.VgicCtrl.INIT, 0),
    ),
)
ITS: tuple[int, Attributes] = (
    arm64.DeviceType.ARM_VGIC_ITS,
    ((ADDR, arm64.VgicAddr.ITS, 0x808_0000), (CTRL, arm64.VgicCtrl.INIT, 0)),
)
"""Devices with group, attribute and value of what makes them complete."""

PADDING = ("pad", "reserved")
SPIN = (0xD2A0_0021, 0xF100_0421, 0x54FF_FFE1, 0xD2A1_2002, 0x3900_0040, 0xD290_0003, 0x3900_0060, 0x17FF_FFF9)
"""A guest: counts to 65536, stores to a device and to memory, again."""


class Undeclared(AssertionError):
    """A call failed with an errno that it does not declare."""


# --- state ---------------------------------------------------------------------------------------------------------------------

SKIPPED = frozenset({
    "Lock", "Condition", "WaitQueue", "Srcu", "Bits", "System", "Arm64", "Engine", "Cpu", "Counters", "AddressSpace", "lock", "function",
    "method", "module", "Stage2", "builtin_function_or_method", "World", "Turns", "Clock", "memoryview", "mappingproxy", "cell", "Watcher",
    "Random", "EventFd", "Posts",
})  # fmt: skip
"""Types that are not a VM's state, or not the part that a call could have changed."""


class StatePickler(pickle.Pickler):
    """Writes down what is reachable from a VM: C walks the objects, and asks here only about types that it does not know."""

    def reducer_override(self, thing: Any) -> Any:
        name = type(thing).__name__
        if isinstance(thing, type):
            return NotImplemented
        if name in SKIPPED:
            return str, ()
        if name == "IdRegisters":
            return tuple, (sorted(thing.written.items()),)  # the rest is kept answers
        if name == "EngineState":
            return bytes, (bytes(thing.sysreg) + bytes(thing.x) + bytes(thing.v) + bytes(thing.sp_el),)
        if isinstance(thing, Arm64Vcpu):  # its table of registers is made of functions: the ids are all that can change
            return object, (), {**vars(thing), "registers": list(thing.registers)}
        if isinstance(thing, mmap.mmap):
            return bytes, (bytes(thing),)
        if isinstance(thing, (ctypes.Array, ctypes.Structure)):
            return bytes, (bytes(thing),)
        return NotImplemented


def state_of(target: Any) -> bytes:
    """A VM's whole state as bytes, to be compared."""
    output = io.BytesIO()
    StatePickler(output, protocol=5).dump(target)
    return output.getvalue()


# --- the fuzzer ----------------------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """A VM and its files. One that is busy has a thread for each vCPU, and its state is not looked at."""

    file: int
    busy: bool
    vcpus: list[int] = field(default_factory=list)
    devices: list[int] = field(default_factory=list)
    runs: dict[int, Any] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    over: bool = False
    state: bytes = b""
    """What a quiet VM's state is known to be."""

    def files(self, kind: str) -> list[int]:
        """Its files of a kind."""
        return {"vm": [self.file], "vcpu": self.vcpus, "device": self.devices}[kind]


class Fuzzer:
    """Random calls, checked."""

    def __init__(self, seed: int, backend: Software | None = None, thorough: bool = False) -> None:
        """`thorough`: look at the state after every failed call, also where it is large."""
        self.seed = seed
        self.thorough = thorough
        self.numbers = random.Random(seed)
        self.backend = backend if backend is not None else Software()
        self.system = self.backend.open()
        self.guest = mmap.mmap(-1, (GUEST_PAGES + 2) * PAGE)  # a slot may begin at the second page; the last one is in no slot
        self.guest_address = ctypes.addressof(ctypes.c_char.from_buffer(self.guest))
        self.buffer = ctypes.create_string_buffer(BUFFER_SIZE)
        self.buffer_address = ctypes.addressof(self.buffer) + PAGE - 1 & -PAGE
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
        self.machines: list[Machine] = []
        self.others: list[int] = []
        self.outcomes: Counter[tuple[str, int]] = Counter()
        self.recent: deque[tuple[Ioctl, int, Any, int, int]] = deque(maxlen=12)
        self.checked = 0
        self.crash: BaseException | None = None
        self._over = False
        self._over_or_pause = threading.Event()
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._kicker = threading.Thread(target=self._kick, daemon=True)
        self._kicker.start()
        for number in range(QUIET_VMS + BUSY_VMS):
            self.make_machine(number >= QUIET_VMS)

    # --- machines --------------------------------------------------------------------------------------------------------------

    def make_machine(self, busy: bool) -> None:
        """Another VM, with vCPUs and perhaps an interrupt controller; a busy one runs."""
        ioctl = self.backend.ioctl
        machine = Machine(ioctl(self.system, system.KVM_CREATE_VM, 0), busy)
        if busy:
            code = b"".join(word.to_bytes(4, "little") for word in SPIN)
            self.guest[: len(code)] = code
            region = vm.UserspaceMemoryRegion(0, self.numbers.choice((0, 1)), 0, GUEST_PAGES * PAGE, self.guest_address)
            ioctl(machine.file, vm.KVM_SET_USER_MEMORY_REGION, region)
        elif self.numbers.random() < 0.3:
            ioctl(machine.file, vm.KVM_ENABLE_CAP, vm.EnableCap(Cap.DIRTY_LOG_RING_ACQ_REL, 0, (ctypes.c_uint64 * 4)(PAGE)))
        for number in range(2):
            self.add_vcpu(machine, number, init=busy or self.numbers.random() < 0.7)
        if self.numbers.random() < 0.5 and not busy:
            self.add_device(machine, GICV3, self.numbers.random() < 0.6)
            if self.numbers.random() < 0.5:
                self.add_device(machine, ITS, self.numbers.random() < 0.6)
        self.machines.append(machine)
        if busy:
            for file in machine.vcpus:
                machine.threads.append(threading.Thread(target=self._run, args=(machine, file), daemon=True))
                machine.threads[-1].start()

    def add_vcpu(self, machine: Machine, number: int, init: bool) -> None:
        """A vCPU; what runs in quiet VMs returns at once."""
        file = self.backend.ioctl(machine.file, vm.KVM_CREATE_VCPU, number)
        self.adopt_vcpu(machine, file)
        if init:
            request = arm64.VcpuInit(arm64.TARGET_GENERIC_V8, (ctypes.c_uint32 * 7)(1 << arm64.Feature.PSCI_0_2))
            self.backend.ioctl(file, arm64.KVM_ARM_VCPU_INIT, request)

    def add_device(self, machine: Machine, kind: tuple[int, Attributes], complete: bool) -> None:
        """Part of an interrupt controller, perhaps with all that it needs to be used."""
        number, attributes = kind
        request = vm.CreateDevice(number)
        self.backend.ioctl(machine.file, vm.KVM_CREATE_DEVICE, request)
        machine.devices.append(request.fd)
        for group, attr, value in attributes if complete else ():
            self.value(value)
            self.backend.ioctl(request.fd, device.KVM_SET_DEVICE_ATTR, device.DeviceAttr(0, group, attr, self.buffer_address))

    def value(self, value: int) -> None:
        """What pointers of the next arguments lead to begins with this."""
        ctypes.c_uint64.from_address(self.buffer_address).value = value & (1 << 64) - 1

    def adopt_vcpu(self, machine: Machine, file: int) -> None:
        """A vCPU's file is known from now on."""
        run = self.backend.map_run(file)
        if not machine.busy:
            run[IMMEDIATE_EXIT_OFFSET] = 1
        machine.runs[file] = run
        machine.vcpus.append(file)

    def remove_machine(self, machine: Machine) -> None:
        """Close a VM, running or not."""
        self.machines.remove(machine)
        machine.over = True
        for file in (*machine.devices, machine.file):
            self.backend.close(file)
        for thread in machine.threads:
            thread.join(20)
            assert not thread.is_alive(), "a vCPU of a closed VM goes on"
        for file in machine.vcpus:
            self.backend.close(file)

    def _run(self, machine: Machine, file: int) -> None:
        """What a busy vCPU's thread does: run, whatever comes of it."""
        while not machine.over:
            self._over_or_pause.wait(PAUSE_SECONDS)  # leave some of the host to the fuzzer
            try:
                self.backend.ioctl(file, vcpu.KVM_RUN, 0)
            except KvmError:
                pass
            except BaseException as error:
                self.crash = error
                return

    def _kick(self) -> None:
        """While a call is made on a VM that runs, let none of its vCPUs sleep or spin for long: the call waits for their mutexes."""
        while self._wanted.wait() and not self._over:
            for machine in list(self.machines):
                for file in list(machine.vcpus) if machine.busy else ():
                    try:
                        self.backend.kick(file)
                    except KvmError:
                        pass
            self._ended.wait(KICK_SECONDS)

    def close(self) -> None:
        """End everything."""
        for machine in list(self.machines):
            self.remove_machine(machine)
        self._over = True
        self._wanted.set()
        self._kicker.join()
        for file in (*self.others, self.system):
            self.backend.close(file)
        for event in self.eventfds:
            os.close(event)
        assert not any(self.guest[-PAGE:]) and not any(self.buffer.raw[-PAGE:]), f"seed {self.seed}: written beyond what was given"

    # --- arguments -------------------------------------------------------------------------------------------------------------

    def number(self, bits: int = 64) -> int:
        """A number: small, at an edge, or any."""
        choice = self.numbers.random()
        value = self.numbers.choice(NUMBERS if choice < 0.75 else EDGES) if choice < 0.9 else self.numbers.getrandbits(bits)
        return value & (1 << bits) - 1

    def user_address(self) -> int:
        """Memory of ours, mostly; else where nothing is."""
        if self.numbers.random() < 0.8:
            return self.buffer_address + self.numbers.choice((0, 0, 8, PAGE))
        return self.numbers.choice((0, 0x1000, 0xFFFF_8000_0000_0000, (1 << 64) - 8, 1 << 47))

    def meant(self, meaning: Any, bits: int) -> int:
        """A value of a declared meaning, or sometimes any."""
        if meaning is Meaning.USER:
            return self.user_address()
        if self.numbers.random() < 0.1:
            return self.number(bits)
        if isinstance(meaning, type) and issubclass(meaning, Enum):
            values = [member.value for member in meaning]
            if not issubclass(meaning, IntFlag):
                return int(self.numbers.choice(values))
            return sum(value for value in values if self.numbers.random() < 0.4)
        choices: dict[Any, Callable[[], int]] = {
            Meaning.GUEST: lambda: self.numbers.choice(GUEST_ADDRESSES),
            Meaning.FD: lambda: self.numbers.choice((*self.eventfds, -1, 0x7FFF)),
            Meaning.REGISTER: lambda: self.numbers.choice(REGISTERS),
            Meaning.MADE: lambda: self.number(bits),
            Meaning.PAGES: lambda: self.numbers.choice((0, 1, 4, 64)),
            Meaning.SLOT: lambda: self.numbers.choice((0, 0, 1, 2, 32766, 32767, 1 << 16)),
        }
        return choices[meaning]()

    def fill(self, value: Any) -> Any:
        """A structure with random fields."""
        meanings = value.meanings if isinstance(value, Structure) else {}
        for name, kind in value._fields_:
            if issubclass(kind, ctypes.Structure):
                self.fill(getattr(value, name))
            elif issubclass(kind, ctypes.Array):
                self.fill_array(getattr(value, name), name)
            elif not name.startswith(PADDING) or self.numbers.random() < 0.05:
                setattr(value, name, self.field(name, meanings.get(name), 8 * ctypes.sizeof(kind)))
        return value

    def field(self, name: str, meaning: Any, bits: int) -> int:
        """One field's value."""
        if name == "userspace_addr":  # the kernel side writes to guest memory: it has to be ours
            return self.numbers.choice((self.guest_address, self.guest_address, self.guest_address + PAGE, 0, 0x1000, 1 << 63, 8))
        if name in FIELDS and (name == "memory_size" or self.numbers.random() < 0.9):  # what is in a slot has to be ours, too
            return self.numbers.choice(FIELDS[name]) & (1 << bits) - 1
        if meaning is not None:
            return self.meant(meaning, bits) & (1 << bits) - 1
        return self.number(bits)

    def fill_array(self, array: Any, name: str) -> None:
        """Mostly zero; padding almost always."""
        if name.startswith(PADDING) and self.numbers.random() < 0.95:
            return
        for index in range(min(len(array), self.numbers.choice((0, 1, 1, 2)))):
            if isinstance(array[index], int):
                array[index] = self.number(8 * ctypes.sizeof(array._type_))

    def argument(self, call: Ioctl) -> Any:
        """Something for a call to take."""
        if call.struct is None:
            return self.number(32) if call.takes or self.numbers.random() < 0.1 else 0
        choice = self.numbers.random()
        if choice < 0.03:
            return self.numbers.choice((0, 0x1000, 0xFFFF_8000_0000_0000, self.buffer_address + BUFFER_SIZE // 2))
        if call is vcpu.KVM_GET_REG_LIST:
            return vcpu.reg_list(self.numbers.choice((0, 1, 1000)))
        if call is vcpu.KVM_SET_SIGNAL_MASK:
            return vcpu.signal_mask([self.numbers.randrange(1, 65)]) if choice < 0.8 else self.fill(vcpu.SignalMask())
        if call is irq.KVM_SET_GSI_ROUTING:
            entries = [self.fill(irq.RoutingEntry()) for _ in range(self.numbers.randrange(3))]
            return irq.routing_table(entries, self.numbers.choice((0, 0, 1)))
        if Meaning.USER in call.struct.meanings.values() and self.numbers.random() < 0.5:
            self.value(self.numbers.choice(GUEST_ADDRESSES) if self.numbers.random() < 0.3 else self.number())
        value = self.fill(call.struct())
        if call is arm64.KVM_ARM_VCPU_INIT:
            value.features[0] = self.numbers.choice((0, 4, 4, 4, 5, 0x64, 8, 0x10, 0x80, 0x400))
        if call is vm.KVM_ENABLE_CAP and choice < 0.9:
            value.flags, value.args[0] = 0, self.numbers.choice((PAGE, 4 * PAGE, 3 * PAGE, 0, 1, 3, 1 << 21))
        if call is vm.KVM_CREATE_DEVICE:
            value.flags = self.numbers.choice((0, 0, 1, 2))
        return value

    # --- calls -----------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One call on one file."""
        call = self.numbers.choice(CALLS)
        kind = self.numbers.choice(call.kinds if self.numbers.random() < 0.95 else ("system", "vm", "vcpu", "device"))
        busy = self.numbers.random() < BUSY_SHARE
        machine = self.numbers.choice([one for one in self.machines if one.busy == busy])
        files = [self.system] if kind == "system" else machine.files(kind)
        if not files or (call is vm.KVM_CREATE_VCPU and len(machine.vcpus) > 4):
            return
        file, argument = self.numbers.choice(files), self.argument(call)
        target = None if machine.busy or kind == "system" else self.backend.system.files.get(machine.file)
        if target is not None and target.arch.vgic is not None and not self.thorough and self.numbers.random() < SPARED:
            target = None
        if target is not None and not machine.state:
            machine.state = state_of(target)
        if busy:
            self._ended.clear()
            self._wanted.set()
        try:
            result = self.backend.ioctl(file, call, argument)
        except KvmError as error:
            self.failed(call, kind, file, argument, error.errno or 0)
            if (call, error.errno) == (vcpu.KVM_RUN, EINTR):  # which completes what was pending
                machine.state = b""
            elif target is not None:
                self.checked += 1
                after = state_of(target)
                assert after == machine.state, f"{call.name} failed and changed the VM: {changes(machine.state, after)}"
        else:
            self.outcomes[call.name, 0] += 1
            self.recent.append((call, file, argument, result, 0))
            machine.state = b""
            self.made(call, machine, argument, result)
        finally:
            self._wanted.clear()
            self._ended.set()
        if self.crash is not None:
            raise self.crash

    def failed(self, call: Ioctl, kind: str, file: int, argument: Any, code: int) -> None:
        """A call failed: was that announced?"""
        self.outcomes[call.name, code] += 1
        self.recent.append((call, file, argument, 0, code))
        known = code in call.causes if kind in call.kinds and call in self.backend.bodies else code in (*UNKNOWN_CALL.values(),)
        if not known:
            raise Undeclared(call_text(*self.recent[-1]))

    def made(self, call: Ioctl, machine: Machine, argument: Any, result: int) -> None:
        """A call succeeded: files that it made are used, or closed if there are enough."""
        if call is vm.KVM_CREATE_VCPU:
            self.adopt_vcpu(machine, result)
        elif call is vm.KVM_CREATE_DEVICE:
            request = vm.CreateDevice.from_address(argument) if isinstance(argument, int) else argument
            if not request.flags & vm.CREATE_DEVICE_TEST:
                machine.devices.append(request.fd)
        elif call is system.KVM_CREATE_VM or call is stats.KVM_GET_STATS_FD:
            if call is stats.KVM_GET_STATS_FD:
                self.backend.read(result, 1 << 16, self.numbers.choice((0, 24, 1 << 20)))
            self.backend.close(result)

    def replace(self) -> None:
        """A VM goes, another comes."""
        machine = self.numbers.choice(self.machines)
        self.remove_machine(machine)
        self.make_machine(machine.busy)

    def run(self, count: int) -> None:
        """So many calls; every now and then a VM is replaced."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)  # the guests' threads are busy in Python, too
        try:
            for number in range(count):
                if number % 400 == 399:
                    self.replace()
                self.step()
        except BaseException:
            print(f"seed {self.seed}, the last calls:", *(call_text(*recent) for recent in self.recent), sep="\n  ", file=sys.stderr)
            raise
        finally:
            sys.setswitchinterval(before)


def changes(before: bytes, after: bytes) -> str:
    """Where two states begin to differ: what was written before that, and what is different."""
    ops = [[f"{op.name} {arg!r}"[:120] for op, arg, _ in pickletools.genops(state) if op.name != "FRAME"] for state in (before, after)]
    at = next((index for index, (a, b) in enumerate(zip(*ops)) if a != b), min(map(len, ops)))
    names = [op for op in ops[0][max(0, at - 400) : at] if "UNICODE" in op]
    return f"after {names[-6:]}: {ops[0][at : at + 4]} became {ops[1][at : at + 4]}"


def coverage(fuzzers: list[Fuzzer]) -> Iterator[str]:
    """Which declared outcomes were seen, as lines."""
    total: Counter[tuple[str, int]] = Counter()
    for fuzzer in fuzzers:
        total.update(fuzzer.outcomes)
    for call in CALLS:
        yield f"{call.name}: " + ", ".join(f"{os.strerror(code) if code else 'ok'} {total[call.name, code]}" for code in sorted({
            code for name, code in total if name == call.name
        }))  # fmt: skip


if __name__ == "__main__":
    fuzzer = Fuzzer(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    fuzzer.run(int(sys.argv[2]) if len(sys.argv) > 2 else 5000)
    fuzzer.close()
    print(*coverage([fuzzer]), f"{fuzzer.checked} failed calls changed nothing", sep="\n")
