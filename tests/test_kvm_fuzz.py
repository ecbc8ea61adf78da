"""Random calls with random arguments: every failure is one that the declaration announces, and nothing else happens."""

from __future__ import annotations

import ctypes
import errno
import os
import random

import pytest

from tests.fake_engine import mmio, open_fake
from trapline.abi import arm64, device, irq, system, vcpu, vm
from trapline.abi.ioctl import Ioctl, declared
from trapline.errors import KvmError

CALLS = [call for call in declared(system, vm, irq, vcpu, device, arm64) if call is not vcpu.KVM_RUN]
INTERESTING = tuple(
    int(text, 0) for text in "0 1 2 3 4 5 7 8 16 27 31 32 40 63 64 255 0xfff 0x1000 0x7fff 0x8000 0x100000 0x8000000 0x80a0000".split()
)
EDGES = (1 << 31, (1 << 32) - 1, 1 << 40, 1 << 47, 1 << 63, (1 << 64) - 1, (1 << 64) - 0x1000)

LIKELY = {
    "flags": (0, 0, 1, 2),
    "slot": (0, 1, 2),
    "cap": (177, 216),
    "control": (0, 1, 3, 0x10001, 0x20003),
    "group": tuple(range(10)),
    "attr": (*range(6), 0x80, 0x90, 0x100, 0x108),
    "memory_size": (0, 0x1000, 0x2000),
    "guest_phys_addr": (0, 0x1000, 0x4000, 0x800_0000),
    "target": (5,),
    "len": (0, 4),
    "gsi": (0, 8),
}
"""Values that get past the first checks."""


class Fuzzer:
    """One sequence of calls, repeatable by its seed."""

    def __init__(self, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.kvm, self.engine = open_fake()
        self.buffer = ctypes.create_string_buffer(4096)
        self.files: dict[str, list[int]] = {"system": [self.kvm.file], "vm": [], "vcpu": [], "device": []}
        self.outcomes: dict[str, set[int]] = {}
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.likely: dict[str, tuple[int, ...]] = {**LIKELY, "fd": (self.event,), "resamplefd": (self.event,)}
        self.make_machine()

    def __del__(self) -> None:
        os.close(self.event)

    def make_machine(self) -> None:
        machine = self.kvm.create_vm()
        self.machine = machine
        self.files["vm"].append(machine.file)
        self.files["vcpu"] += [machine.create_vcpu(features=() if number else None).file for number in range(3)]
        if self.numbers.random() < 0.8:
            kind = self.numbers.choice((arm64.DeviceType.ARM_VGIC_V3, arm64.DeviceType.ARM_VGIC_V3, arm64.DeviceType.ARM_VGIC_V2))
            self.files["device"].append(machine.create_device(kind).file)
        if self.numbers.random() < 0.5:
            self.files["device"].append(machine.create_device(arm64.DeviceType.ARM_VGIC_ITS).file)

    def number(self, bits: int) -> int:
        choice = self.numbers.random()
        if choice < 0.7:
            value = self.numbers.choice(INTERESTING)
        elif choice < 0.85:
            value = self.numbers.choice(EDGES)
        else:
            value = self.numbers.getrandbits(bits)
        return value & (1 << bits) - 1

    def address(self) -> int:
        inside = ctypes.addressof(self.buffer) + self.numbers.randrange(64)
        return inside if self.numbers.random() < 0.8 else self.number(64)

    def argument(self, call: Ioctl) -> object:
        if call.struct is None:
            return self.number(32)
        value = vcpu.reg_list(self.numbers.choice((0, 1, 500))) if call is vcpu.KVM_GET_REG_LIST else call.struct()
        for name, kind in call.struct._fields_:
            if name in ("addr", "dirty_bitmap", "userspace_addr"):
                setattr(value, name, self.address() & (-4096 if name == "userspace_addr" else -1))
            elif name == "id" and self.numbers.random() < 0.8:
                setattr(value, name, self.numbers.choice(self.register_ids()))
            elif name == "memory_size" or (name in self.likely and self.numbers.random() < 0.8):
                # Never a large slot: its dirty bitmap would not fit into the buffer that the calls write to.
                setattr(value, name, self.numbers.choice(self.likely[name]))
            elif issubclass(kind, ctypes.Array):
                for index in range(1 if self.numbers.random() < 0.8 else 4):
                    getattr(value, name)[index] = self.numbers.choice((0, 4, 5, self.number(8)))
            elif issubclass(kind, ctypes.Structure):
                for array, _ in kind._fields_:
                    getattr(getattr(value, name), array)[:] = [self.number(64) for _ in range(16)]
            elif name != "n":
                setattr(value, name, self.number(8 * ctypes.sizeof(kind)))
        return value

    def register_ids(self) -> list[int]:
        return [arm64.reg_x(3), arm64.REG_PC, arm64.REG_PSTATE, arm64.reg_v(2), arm64.REG_TIMER_CNT, arm64.reg_sysreg(3, 0, 0, 4, 0)]

    def step(self) -> None:
        call = self.numbers.choice(CALLS)
        files = self.files[self.numbers.choice(call.kinds if self.numbers.random() < 0.95 else tuple(self.files))]
        if not files:
            return
        code = 0
        self.buffer[:16] = self.numbers.randbytes(16) if self.numbers.random() < 0.3 else self.number(64).to_bytes(16, "little")
        try:
            self.kvm.backend.ioctl(self.numbers.choice(files), call, self.argument(call))
        except KvmError as error:
            code = error.errno
            assert code in call.causes or code in (errno.ENOTTY, errno.EBADF, errno.EINVAL), f"{call.name}: {errno.errorcode[code]}"
        self.outcomes.setdefault(call.name, set()).add(code)


@pytest.mark.parametrize("seed", range(12))
def test_random_calls(seed: int) -> None:
    fuzzer = Fuzzer(seed)
    for _ in range(1500):
        fuzzer.step()
    cpu = fuzzer.engine.cpus[1]
    runner = fuzzer.machine.vcpus[1]
    runner.immediate_exit = False
    cpu.script = [mmio(True, 0x1234_5000)] * 3
    if runner.mp_state == vcpu.MpState.RUNNABLE:
        try:
            runner.run()
        except KvmError as error:
            assert error.errno in vcpu.KVM_RUN.causes


def test_the_fuzzer_reaches_success_and_failure() -> None:
    outcomes: dict[str, set[int]] = {}
    for seed in range(8):
        fuzzer = Fuzzer(100 + seed)
        for _ in range(1000):
            fuzzer.step()
        for name, codes in fuzzer.outcomes.items():
            outcomes.setdefault(name, set()).update(codes)
    assert set(outcomes) == {call.name for call in CALLS}
    succeeded = {name for name, codes in outcomes.items() if 0 in codes}
    assert len(succeeded) >= len(CALLS) - 2, set(outcomes) - succeeded
