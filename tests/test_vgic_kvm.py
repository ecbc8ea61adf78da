"""The GIC inside a VM: made, configured and driven by KVM calls, on a scripted machine."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.fake_engine import FakeCpu, mmio, open_fake
from trapline.abi import arm64
from trapline.arm64 import gic_interface, gic_virtual
from trapline.arm64.regs import ICC_PMR_EL1, ICH_LR0_EL2, ICH_VMCR_EL2
from trapline.backends.objects import Device
from trapline.errors import KvmError

DIST, REDIST, UART = 0x800_0000, 0x80A_0000, 0x900_0000
SGI_FRAME = REDIST + 0x1_0000
SPI, PPI = 40, 20
IGROUPR, ISENABLER, ISPENDR = 0x80, 0x100, 0x200


class Board:
    """A VM with a GIC and vCPUs whose guests do what a script says."""

    def __init__(self, vcpus: int = 1) -> None:
        self.system, self.engine = open_fake()
        self.vm = self.system.create_vm()
        self.vcpus = [self.vm.create_vcpu() for _ in range(vcpus)]
        self.gic: Device = self.vm.create_device(arm64.DeviceType.ARM_VGIC_V3)

    def configure(self) -> None:
        self.gic.set_attr(arm64.VgicGroup.NR_IRQS, 0, 64, width=4)
        self.gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_DIST, DIST)
        self.gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_REDIST, REDIST)
        self.gic.set_attr(arm64.VgicGroup.CTRL, arm64.VgicCtrl.INIT)

    def run(self, *steps: Callable[[FakeCpu], str | None], cpu: int = 0) -> None:
        """Play the steps, then return to user space."""
        self.engine.cpus[cpu].script = [*steps, mmio(True, UART)]
        self.vcpus[cpu].run()

    def enable(self) -> None:
        """What a guest does to take SPI and PPI on vCPU 0."""

        def open_interface(cpu: FakeCpu) -> str:
            cpu.state.sysreg[ICH_VMCR_EL2.slot] |= ICH_VMCR_EL2(VPMR=0xF8, VENG1=1)
            return "irq"

        self.run(
            store(DIST, 2), store(DIST + ISENABLER + 4, 1 << SPI - 32), store(SGI_FRAME + ISENABLER, 1 << PPI | 1 << 27), open_interface
        )


def store(ipa: int, value: int) -> Callable[[FakeCpu], None]:
    def step(cpu: FakeCpu) -> None:
        cpu.state.x[5] = value
        mmio(True, ipa, 4, register=5)(cpu)

    return step


def code_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(KvmError) as failure:
        call()
    return failure.value.errno


@pytest.fixture
def board() -> Board:
    board = Board()
    board.configure()
    board.enable()
    return board


def test_life() -> None:
    board = Board()
    assert code_of(lambda: board.vm.set_irq(SPI, 1)) == errno.EBUSY
    assert code_of(board.vcpus[0].run) == errno.ENXIO
    assert code_of(lambda: board.vm.create_device(arm64.DeviceType.ARM_VGIC_V3)) == errno.EEXIST
    board.vcpus.append(board.vm.create_vcpu())
    board.configure()
    assert code_of(board.vm.create_vcpu) == errno.EBUSY
    board.run()
    for call in (lambda: board.vm.set_irq(64, 1), lambda: board.vm.set_irq(31, 1)):
        assert code_of(call) == errno.EINVAL
    for attr in (arm64.VgicAddr.V3_DIST, arm64.VgicAddr.V3_REDIST):
        assert board.gic.has_attr(arm64.VgicGroup.ADDR, attr)
    assert not board.gic.has_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.ITS)


def test_interrupts_reach_the_guest(board: Board) -> None:
    board.vm.set_irq(SPI, 1)
    board.vm.irq_line(arm64.IrqType.PPI << 24 | PPI, 1)
    taken: list[int] = []

    def take(cpu: FakeCpu) -> str:
        taken.append(gic_virtual.icv_iar1_read(cpu.state))
        gic_virtual.icv_eoir1_write(cpu.state, taken[-1])
        return "irq"

    board.run(take, take)
    assert taken == [PPI, PPI], "it stays high, and the lower number comes first"
    board.vm.irq_line(arm64.IrqType.PPI << 24 | PPI, 0)
    board.run(take)
    board.vm.set_irq(SPI, 0)
    board.run(take)
    assert taken[2:] == [SPI, gic_interface.SPURIOUS]


def test_attributes_through_user_memory(board: Board) -> None:
    gic, groups = board.gic, arm64.VgicGroup
    assert gic.get_attr(groups.ADDR, arm64.VgicAddr.V3_DIST) == DIST
    assert gic.get_attr(groups.NR_IRQS, 0, size=4) == 64
    assert gic.get_attr(groups.DIST_REGS, ISENABLER + 4, size=4) == 1 << SPI - 32
    gic.set_attr(groups.REDIST_REGS, 0x1_0000 + ISPENDR, 1 << 3, width=4)
    assert gic.get_attr(groups.REDIST_REGS, 0x1_0000 + ISPENDR, size=4) == 1 << 3
    gic.set_attr(groups.CPU_SYSREGS, ICC_PMR_EL1.encoding, 0x80)
    assert gic.get_attr(groups.CPU_SYSREGS, ICC_PMR_EL1.encoding) == 0x80
    gic.set_attr(groups.LEVEL_INFO, 32, 1, width=4)
    assert gic.get_attr(groups.LEVEL_INFO, 32, size=4) == 1


def test_registers_are_refused_while_a_vcpu_runs(board: Board) -> None:
    codes: list[int | None] = []

    def save(_cpu: FakeCpu) -> str:
        codes.append(code_of(lambda: board.gic.get_attr(arm64.VgicGroup.DIST_REGS, 0, size=4)))
        return "irq"

    board.run(save)
    assert codes == [errno.EBUSY]


def test_reset_makes_the_timer_quiet(board: Board) -> None:
    cpu = board.engine.cpus[0]

    def fires(cpu: FakeCpu) -> str:
        cpu.lines = 1
        return "irq"

    board.run(fires)
    assert board.gic.get_attr(arm64.VgicGroup.LEVEL_INFO, 0, size=4) == 1 << 27
    assert cpu.state.sysreg[ICH_LR0_EL2.slot] & 0xFFFF_FFFF == 27
    cpu.lines = 0
    board.vcpus[0].init()
    assert board.gic.get_attr(arm64.VgicGroup.LEVEL_INFO, 0, size=4) == 0
    board.run()
    assert cpu.state.sysreg[ICH_LR0_EL2.slot] == 0
