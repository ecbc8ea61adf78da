"""Random sequences of what userspace can do with an access that exited, against a model of the documented state machine."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass

import pytest

from tests.fake_engine import mmio
from tests.test_kvm_calls import code_of
from tests.test_kvm_run import UART
from tests.test_sysreg_exits import HERE, VECTORS, make, sysreg
from trapline.abi.exits import EXIT_REASON_OFFSET, SYSREG_ACTION_OFFSET, SYSREG_VALUE_OFFSET, UNION_OFFSET, MmioExit, SysregExit
from trapline.arm64.regs import VBAR_EL1

MASK = (1 << 64) - 1
STEPS = "access access answer answer run run interrupted set_pc set_register reset forge abort look".split()


@dataclass
class Model:
    """What a reader of the manual's page expects."""

    pc: int
    x: dict[int, int]
    pending: tuple[bool, int] | None = None
    """Direction and register."""
    action: int = 0
    value: int = 0

    def completes(self) -> int:
        """The next KVM_RUN finishes the access: its errno."""
        if self.pending is None:
            return 0
        if self.action not in (0, 1):
            return errno.EINVAL
        (write, register), self.pending = self.pending, None
        if not self.action:
            self.pc = VECTORS + 0x200
            return 0
        if not write and register != 31:
            self.x[register] = self.value
        self.pc += 4
        return 0


class Walk:
    """One random sequence."""

    def __init__(self, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.guest = make()
        self.model = Model(HERE, {})
        self.told: list[str] = []

    def step(self) -> None:
        name = self.numbers.choice(STEPS)
        self.told.append(name)
        getattr(self, name)()
        self.check()

    def access(self) -> None:
        """The guest goes on to an access."""
        write, register = self.numbers.random() < 0.5, self.numbers.choice([0, 1, 2, 31])
        self.guest.cpu.script = [sysreg((3, 0, 15, 4, 0), write, rt=register)]
        code = code_of(self.guest.vcpu.run)
        assert code == self.model.completes()
        if not code:
            self.model.pending, self.model.action = (write, register), 0
            self.model.value = self.model.x.get(register, 0) if write and register != 31 else 0
            assert isinstance(self.guest.vcpu.decoders[SysregExit.reason](self.guest.vcpu._buffer), SysregExit)

    def answer(self) -> None:
        """Userspace writes an answer, valid or not, or takes it back."""
        if self.model.pending is not None:
            self.model.action = self.numbers.choice([0, 1, 1, 1, 2, 255])
            self.model.value = self.numbers.getrandbits(64)
            buffer = self.guest.vcpu._buffer
            buffer[SYSREG_ACTION_OFFSET] = self.model.action
            buffer[SYSREG_VALUE_OFFSET : SYSREG_VALUE_OFFSET + 8] = self.model.value.to_bytes(8, "little")

    def run(self) -> None:
        """The guest goes on to a store, which is completed without going on."""
        self.guest.cpu.script = [mmio(True, UART, register=31)]
        code = code_of(self.guest.vcpu.run)
        assert code == self.model.completes()
        if not code:
            assert self.guest.vcpu.kvm_run.exit_reason == MmioExit.reason
            self.guest.vcpu.immediate_exit = True
            self.guest.vcpu.run()
            self.guest.vcpu.immediate_exit = False
            self.model.pc += 4

    def interrupted(self) -> None:
        """KVM_RUN that does not enter the guest."""
        entries = self.guest.cpu.entries
        self.guest.vcpu.immediate_exit = True
        code = code_of(self.guest.vcpu.run)
        self.guest.vcpu.immediate_exit = False
        assert code == self.model.completes() and self.guest.cpu.entries == entries

    def set_pc(self) -> None:
        self.model.pc = self.numbers.getrandbits(32) & ~3
        self.guest.vcpu.regs.pc = self.model.pc
        self.model.pending = None

    def set_register(self) -> None:
        register, value = self.numbers.randrange(3), self.numbers.getrandbits(64)
        setattr(self.guest.vcpu.regs, f"x{register}", value)
        self.model.x[register] = value

    def reset(self) -> None:
        self.guest.vcpu.init()
        self.guest.cpu.state.sysreg[VBAR_EL1.slot] = VECTORS
        self.model.pending, self.model.pc, self.model.x = None, 0, {}

    def forge(self) -> None:
        """Userspace scribbles over everything but its answer: nobody looks there."""
        buffer = self.guest.vcpu._buffer
        buffer[EXIT_REASON_OFFSET : EXIT_REASON_OFFSET + 4] = self.numbers.choice([0x5452_0001, 0, 6]).to_bytes(4, "little")
        buffer[UNION_OFFSET : UNION_OFFSET + 7] = self.numbers.randbytes(7)

    def abort(self) -> None:
        self.guest.vcpu.inject_external_abort()
        self.model.pending, self.model.pc = None, VECTORS + 0x200

    def look(self) -> None:
        """Reading changes nothing."""
        self.guest.vcpu.reg_list()
        assert self.guest.vcpu.mp_state == 0

    def check(self) -> None:
        regs = self.guest.vcpu.regs
        assert regs.pc == self.model.pc & MASK
        for register in range(3):
            assert getattr(regs, f"x{register}") == self.model.x.get(register, 0)


@pytest.mark.parametrize("seed", range(40))
def test_random_walks_agree_with_the_manual(seed: int) -> None:
    walk = Walk(seed)
    try:
        for _ in range(150):
            walk.step()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {', '.join(walk.told[-8:])}") from error
