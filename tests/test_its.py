"""The ITS: commands, LPIs, registers, and its tables in guest memory in the layout that the kernel's manual describes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from struct import pack

import pytest
from test_kvm_eventfd import when_driven
from test_vgic_kvm import DIST, REDIST, Board, code_of

from tests.fake_engine import FakeCpu
from trapline.abi import arm64, irq
from trapline.abi.caps import Cap
from trapline.arm64 import gic_virtual
from trapline.arm64.regs import ICH_VMCR_EL2

ITS, RAM = 0x808_0000, 0x4000_0000
TRANSLATER = ITS + 0x1_0040
PROPERTIES, DEVICES, COLLECTIONS, RING, LEVEL_TWO = (RAM + 0x10_0000 * n for n in (1, 2, 3, 4, 5))
PENDING = (RAM + 0x60_0000, RAM + 0x70_0000)
ITT = RAM + 0x80_0000
CTLR, IIDR, TYPER, CBASER, CWRITER, CREADR, BASER0, BASER1 = 0, 4, 8, 0x80, 0x88, 0x90, 0x100, 0x108
VALID = 1 << 63
INDIRECT = 1 << 62
LPI, DEVICE, EVENT = 8200, 0x108, 5
GROUPS, CTRL = arm64.VgicGroup, arm64.VgicCtrl


class Machine(Board):
    """Two vCPUs, a GIC and an ITS that a guest has set up, with memory for its tables."""

    def __init__(self, setup: bool = True, indirect: bool = False) -> None:
        super().__init__(2)
        self.configure()
        self.its = self.vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)
        self.its.set_attr(GROUPS.ADDR, arm64.VgicAddr.ITS, ITS)
        self.its.set_attr(GROUPS.CTRL, CTRL.INIT)
        self.ram = self.vm.add_memory(RAM, 16 << 20)
        self.arch = self.vm.backend.system.files.get(self.vm.file).arch
        self.indirect = indirect
        self.written = 0
        for cpu in self.engine.cpus:
            cpu.state.sysreg[ICH_VMCR_EL2.slot] |= ICH_VMCR_EL2(VPMR=0xF8, VENG1=1)
        if setup:
            self.set_up()

    def set_up(self) -> None:
        """What a driver does."""
        self.write(DIST, 2, 4)
        for cpu in range(2):
            frame = REDIST + 0x2_0000 * cpu
            self.write(frame + 0x70, PROPERTIES | 15)
            self.write(frame + 0x78, PENDING[cpu])
            self.write(frame, 1, 4)
        if self.indirect:
            self.poke(DEVICES, LEVEL_TWO | VALID)
        self.write(ITS + BASER0, VALID | INDIRECT * self.indirect | DEVICES)
        self.write(ITS + BASER1, VALID | COLLECTIONS)
        self.write(ITS + CBASER, VALID | RING)
        self.write(ITS + CTLR, 1, 4)

    def read(self, address: int, length: int = 8) -> int:
        return self.arch.vgic.mmio(self.arch.vcpus[0], address, False, length)

    def write(self, address: int, value: int, length: int = 8) -> None:
        self.arch.vgic.mmio(self.arch.vcpus[0], address, True, length, value)

    def poke(self, address: int, value: int, size: int = 8) -> None:
        self.ram[address - RAM : address - RAM + size] = value.to_bytes(size, "little")

    def peek(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.ram[address - RAM : address - RAM + size], "little")

    # ---- commands

    def command(self, *words: int) -> None:
        words += (0,) * (4 - len(words))
        at = RING - RAM + self.written
        self.ram[at : at + 32] = pack("<4Q", *words)
        self.written = (self.written + 32) % 0x1000
        self.write(ITS + CWRITER, self.written)

    def mapd(self, device: int = DEVICE, itt: int = ITT, bits: int = 5, valid: bool = True) -> None:
        self.command(0x08 | device << 32, bits - 1, itt | valid << 63)

    def mapc(self, collection: int, cpu: int, valid: bool = True) -> None:
        self.command(0x09, 0, collection | cpu << 16 | valid << 63)

    def mapti(self, event: int = EVENT, lpi: int = LPI, collection: int = 0, device: int = DEVICE) -> None:
        self.command(0x0A | device << 32, event | lpi << 32, collection)

    def about(self, opcode: int, event: int = EVENT, collection: int = 0, device: int = DEVICE) -> None:
        """MOVI, INT, CLEAR, INV, DISCARD."""
        self.command(opcode | device << 32, event, collection)

    def property(self, lpi: int, value: int) -> None:
        self.poke(PROPERTIES + lpi - 8192, value, 1)

    def map_one(self, cpu: int = 0) -> None:
        self.property(LPI, 0xA1)
        self.mapd()
        self.mapc(0, cpu)
        self.mapti()

    # ---- the guest

    def take(self, cpu: int = 0) -> list[int]:
        """Acknowledge and complete until nothing is left."""
        taken: list[int] = []

        def step(fake: FakeCpu) -> str:
            taken.append(gic_virtual.icv_iar1_read(fake.state))
            gic_virtual.icv_eoir1_write(fake.state, taken[-1])
            return "irq"

        self.run(*[step] * 6, cpu=cpu)
        return [intid for intid in taken if intid != 1023]

    def signal(self, event: int = EVENT, device: int = DEVICE, address: int = TRANSLATER) -> bool:
        return self.vm.signal_msi(address, event, devid=device)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.vm.close()


# ---- life -------------------------------------------------------------------------------------------------------------------------


def test_what_an_its_changes() -> None:
    board = Board()
    board.configure()
    arch = board.vm.backend.system.files.get(board.vm.file).arch
    assert board.vm.check_extension(Cap.MSI_DEVID) == 0
    assert code_of(lambda: board.system.check_extension(Cap.MSI_DEVID)) == errno.EINVAL
    mmio = arch.vgic.mmio
    assert mmio(arch.vcpus[0], DIST + 4, False, 4) >> 17 & 0x7D == 9 << 2 and not mmio(arch.vcpus[0], REDIST + 8, False, 8) & 1
    mmio(arch.vcpus[0], REDIST, True, 4, 1)
    assert mmio(arch.vcpus[0], REDIST, False, 4) == 0, "there are no LPIs to enable"
    board.vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)
    assert board.vm.check_extension(Cap.MSI_DEVID) == board.vm.check_extension(Cap.SIGNAL_MSI) == 1
    assert mmio(arch.vcpus[0], DIST + 4, False, 4) >> 17 & 0x7D == 15 << 2 | 1, "LPIs, and INTIDs of 16 bits"
    assert mmio(arch.vcpus[0], REDIST + 8, False, 8) & 1


def test_identification(machine: Machine) -> None:
    typer = machine.read(ITS + TYPER)
    assert (typer & 1, typer >> 4 & 15, typer >> 8 & 31, typer >> 13 & 31, typer >> 19 & 1) == (1, 7, 15, 15, 0)
    assert machine.read(ITS + IIDR, 4) == 0x4B00_043B
    assert machine.read(ITS + 0xFFE8, 4) == 0x3B
    assert machine.read(ITS + BASER0) >> 48 & 0x71F == 0x107 and machine.read(ITS + BASER1) >> 48 & 0x71F == 0x407
    assert machine.read(ITS + BASER0 + 16) == 0
    machine.write(TRANSLATER, 5, 4)
    assert machine.read(TRANSLATER, 4) == 0


def test_enabling_needs_tables() -> None:
    machine = Machine(setup=False)
    machine.write(ITS + CTLR, 1, 4)
    assert machine.read(ITS + CTLR, 4) == 1 << 31
    machine.set_up()
    assert machine.read(ITS + CTLR, 4) == 1 << 31 | 1
    before = machine.read(ITS + BASER0), machine.read(ITS + CBASER)
    machine.write(ITS + BASER0, 0)
    machine.write(ITS + CBASER, 0)
    assert (machine.read(ITS + BASER0), machine.read(ITS + CBASER)) == before, "they are fixed while it is on"


def test_registers_of_redistributors(machine: Machine) -> None:
    assert machine.read(REDIST, 4) == 0b111
    machine.write(REDIST + 0x70, 0)
    machine.write(REDIST + 0x78, 0)
    assert machine.read(REDIST + 0x70) & 0xF_FFFF_FFFF_F01F == PROPERTIES | 15, "they are fixed while LPIs are on"
    machine.write(REDIST, 0, 4)
    machine.write(REDIST + 0x78, (1 << 64) - 1)
    assert machine.read(REDIST + 0x78) == 0x010F_FFFF_FFFF_0F80, "PTZ reads as zero, and so does what is reserved"


# ---- messages ---------------------------------------------------------------------------------------------------------------------


def test_a_message_becomes_an_lpi(machine: Machine) -> None:
    machine.map_one()
    assert machine.signal()
    assert machine.take() == [LPI]
    assert machine.take() == []
    machine.about(0x03)
    assert machine.take() == [LPI], "INT does the same"
    machine.signal()
    machine.about(0x04)
    assert machine.take() == [], "CLEAR takes it back"


def test_messages_that_go_nowhere(machine: Machine) -> None:
    assert not machine.signal()
    machine.map_one()
    assert not machine.signal(event=6) and not machine.signal(device=1)
    machine.mapc(0, 0, valid=False)
    assert not machine.signal()
    for address in (0, ITS - 1, ITS + 0x2_0000, RAM):
        assert code_of(lambda: machine.signal(address=address)) == errno.EINVAL  # noqa: B023
    assert code_of(lambda: machine.vm.signal_msi(TRANSLATER, EVENT)) == errno.EINVAL, "no device named"
    machine.mapc(0, 0)
    assert not machine.signal(), "its events have lost their collection for good"
    machine.mapd()
    machine.mapti()
    machine.write(REDIST, 0, 4)
    assert code_of(machine.signal) == errno.EBUSY
    machine.write(ITS + CTLR, 0, 4)
    assert code_of(machine.signal) == errno.EBUSY


def test_irqfd_to_lpi(machine: Machine) -> None:
    machine.map_one()
    machine.vm.set_gsi_routing([irq.route_to_msi(3, TRANSLATER, EVENT, devid=DEVICE)])
    box, send = when_driven(machine), machine.arch.send_msi

    def listen(msi: irq.Msi) -> int:
        try:
            return send(msi)
        finally:
            box.add()

    machine.arch.send_msi = listen
    event = os.eventfd(0)
    machine.vm.irqfd(event, 3)
    os.eventfd_write(event, 1)
    box.wait(1)
    assert machine.take() == [LPI]
    os.close(event)


# ---- configuration ----------------------------------------------------------------------------------------------------------------


def test_configuration_is_read_when_told(machine: Machine) -> None:
    machine.property(LPI, 0xA0)
    machine.mapd()
    machine.mapc(0, 0)
    machine.mapti()
    machine.signal()
    assert machine.take() == [], "it is not enabled"
    machine.property(LPI, 0xA1)
    assert machine.take() == []
    machine.about(0x0C)
    assert machine.take() == [LPI]
    machine.property(LPI, 0xA0)
    machine.command(0x0D, 0, 0)
    machine.signal()
    assert machine.take() == [], "INVALL"
    machine.property(LPI, 0xA1)
    machine.write(REDIST + 0xA0, LPI)
    assert machine.take() == [LPI], "GICR_INVLPIR"
    machine.property(LPI, 0xA0)
    machine.write(REDIST + 0xB0, 0)
    machine.signal()
    assert machine.take() == [] and machine.read(REDIST + 0xC0, 4) == 0, "GICR_INVALLR"


def test_priority_comes_from_the_table(machine: Machine) -> None:
    machine.mapd()
    machine.mapc(0, 0)
    for event, priority in ((0, 0xC1), (1, 0x41), (2, 0x81)):
        machine.property(LPI + event, priority)
        machine.mapti(event, LPI + event)
    for event in range(3):
        machine.signal(event)
    assert machine.take() == [LPI + 1, LPI + 2, LPI]


def test_moving(machine: Machine) -> None:
    machine.map_one()
    machine.mapc(1, 1)
    machine.signal()
    machine.about(0x01, collection=1)
    assert (machine.take(0), machine.take(1)) == ([], [LPI]), "MOVI takes the pending state along"
    machine.signal()
    machine.command(0x0E, 0, 1 << 16, 0 << 16)
    assert (machine.take(1), machine.take(0)) == ([], [LPI]), "MOVALL"
    machine.mapc(1, 1)
    machine.signal()
    assert machine.take(1) == [LPI], "a collection that is mapped again takes its events along"
    machine.about(0x01, collection=9)
    machine.signal()
    assert machine.take(1) == [LPI], "to a collection that does not exist nothing moves"


def test_mapi_is_mapti_with_the_same_number(machine: Machine) -> None:
    machine.property(8192 + 3, 0xA1)
    machine.mapd(bits=14)
    machine.mapc(0, 0)
    machine.command(0x0B | DEVICE << 32, 8192 + 3, 0)
    assert machine.signal(event=8195) and machine.take() == [8195]


def test_commands_that_make_no_sense_do_nothing(machine: Machine) -> None:
    machine.mapti()
    machine.mapd(device=1 << 16)
    machine.mapd(device=0x2000)  # beyond the one page of the device table
    machine.mapd(bits=17)
    machine.mapc(0x2000, 0)
    machine.mapc(1, 7)
    machine.mapti(device=0x2000)
    machine.about(0x03)
    machine.about(0xEE)
    its = machine.arch.its[0]
    assert not its.devices and not its.collections
    machine.mapd()
    machine.mapc(0, 0)
    for event, lpi in ((32, LPI), (EVENT, 8191), (EVENT, 1 << 16)):
        machine.mapti(event, lpi)
    assert not its.devices[DEVICE].events
    assert machine.read(ITS + CREADR) == machine.read(ITS + CWRITER), "and all of them were looked at"
    machine.mapd(bits=16, itt=RAM + (15 << 20) + 0xF_FF00)
    machine.mapti(event=1000)
    assert not its.devices[DEVICE].events, "its entry would not be in memory"


def test_the_ring_wraps(machine: Machine) -> None:
    machine.map_one()
    for _ in range(300):
        machine.about(0x03)
        assert machine.take() == [LPI]
    machine.write(ITS + CWRITER, 0x1000)
    assert machine.read(ITS + CWRITER) < 0x1000


def test_a_ring_that_is_not_in_memory(machine: Machine) -> None:
    machine.write(ITS + CTLR, 0, 4)
    machine.write(ITS + CBASER, VALID | 0x10_0000_0000)
    machine.write(ITS + CTLR, 1, 4)
    machine.write(ITS + CWRITER, 0x40)
    assert machine.read(ITS + CREADR) == 0x40


def test_discard_and_unmap_forget_what_was_pending(machine: Machine) -> None:
    machine.map_one()
    machine.signal()
    machine.about(0x0F)
    assert machine.take() == [] and not machine.signal()
    machine.mapti()
    machine.signal()
    machine.mapd(valid=False)
    assert machine.take() == [] and not machine.signal()


def test_two_events_of_one_lpi(machine: Machine) -> None:
    machine.map_one()
    machine.mapti(event=6)
    machine.about(0x0F)
    assert machine.signal(event=6) and machine.take() == [LPI]


# ---- pending tables ---------------------------------------------------------------------------------------------------------------


def pending_bit(machine: Machine, cpu: int, lpi: int = LPI) -> int:
    return machine.peek(PENDING[cpu] + lpi // 8, 1) >> lpi % 8 & 1


def test_pending_tables(machine: Machine) -> None:
    machine.map_one(cpu=1)
    machine.signal()
    assert pending_bit(machine, 1) == 0
    machine.gic.set_attr(GROUPS.CTRL, CTRL.SAVE_PENDING_TABLES)
    assert (pending_bit(machine, 1), pending_bit(machine, 0)) == (1, 0)
    machine.about(0x0F)
    machine.mapti()
    assert pending_bit(machine, 1) == 0 and machine.take(1) == [LPI], "mapping takes it out of the table"
    machine.write(REDIST + 0x2_0000, 0, 4)
    machine.poke(PENDING[1] + LPI // 8, 1 << LPI % 8, 1)
    machine.write(REDIST + 0x2_0000, 1, 4)
    assert machine.take(1) == [LPI], "enabling LPIs looks at the table"


def test_pending_tables_before_init() -> None:
    board = Board()
    assert code_of(lambda: board.gic.set_attr(GROUPS.CTRL, CTRL.SAVE_PENDING_TABLES)) == errno.ENXIO


# ---- save and restore -------------------------------------------------------------------------------------------------------------


def fill(machine: Machine) -> None:
    for lpi in range(LPI, LPI + 8):
        machine.property(lpi, 0xA1)
    machine.mapc(3, 1)
    machine.mapc(1, 0)
    for device, itt in ((DEVICE, ITT), (0x10, ITT + 0x1000)):
        machine.mapd(device, itt)
    machine.mapti(5, LPI, 3)
    machine.mapti(9, LPI + 1, 1)
    machine.mapti(30, LPI + 2, 3)
    machine.mapti(0, LPI + 3, 1, device=0x10)


@pytest.mark.parametrize("indirect", [False, True])
def test_layout_of_saved_tables(indirect: bool) -> None:
    machine = Machine(indirect=indirect)
    fill(machine)
    machine.its.set_attr(GROUPS.CTRL, CTRL.ITS_SAVE_TABLES)
    table = LEVEL_TWO if indirect else DEVICES
    assert machine.peek(table + 8 * 0x10) == VALID | (DEVICE - 0x10) << 49 | (ITT + 0x1000) >> 8 << 5 | 4
    assert machine.peek(table + 8 * DEVICE) == VALID | 0 << 49 | ITT >> 8 << 5 | 4
    assert machine.peek(ITT + 8 * 5) == 4 << 48 | LPI << 16 | 3
    assert machine.peek(ITT + 8 * 9) == 21 << 48 | LPI + 1 << 16 | 1
    assert machine.peek(ITT + 8 * 30) == LPI + 2 << 16 | 3
    assert [machine.peek(COLLECTIONS + 8 * n) for n in range(3)] == [VALID | 1 << 16 | 3, VALID | 1, 0]
    machine.mapd(0x10, valid=False)
    assert machine.peek(table + 8 * 0x10) == 0, "an entry is cleared when its device goes"
    machine.about(0x0F, event=9)
    assert machine.peek(ITT + 8 * 9) == 0


SAVED = (CBASER, CREADR, CWRITER, BASER0, BASER1, CTLR)


@pytest.mark.parametrize("indirect", [False, True])
def test_round_trip(indirect: bool) -> None:
    old, new = Machine(indirect=indirect), Machine(setup=False)
    fill(old)
    old.signal(9)
    old.gic.set_attr(GROUPS.CTRL, CTRL.SAVE_PENDING_TABLES)
    old.its.set_attr(GROUPS.CTRL, CTRL.ITS_SAVE_TABLES)
    new.ram[:] = old.ram[:]
    for offset in (0, 0x70, 0x74, 0x78, 0x7C)[::-1]:
        for cpu in range(2):
            attr = cpu << 32 | offset
            new.gic.set_attr(GROUPS.REDIST_REGS, attr, old.gic.get_attr(GROUPS.REDIST_REGS, attr, size=4), width=4)
    new.gic.set_attr(GROUPS.DIST_REGS, 0, 2, width=4)
    for offset in SAVED[:-1]:
        new.its.set_attr(GROUPS.ITS_REGS, offset, old.its.get_attr(GROUPS.ITS_REGS, offset))
    new.its.set_attr(GROUPS.CTRL, CTRL.ITS_RESTORE_TABLES)
    new.its.set_attr(GROUPS.ITS_REGS, CTLR, old.its.get_attr(GROUPS.ITS_REGS, CTLR))
    for offset in SAVED:
        assert new.its.get_attr(GROUPS.ITS_REGS, offset) == old.its.get_attr(GROUPS.ITS_REGS, offset), hex(offset)
    new.written = old.written
    assert new.take(0) == [LPI + 1], "what was pending"
    assert new.signal(30) and new.take(1) == [LPI + 2]
    assert new.signal(0, device=0x10) and new.take(0) == [LPI + 3]
    assert code_of(lambda: new.its.set_attr(GROUPS.CTRL, CTRL.ITS_RESTORE_TABLES)) == errno.EEXIST


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (ITT + 8 * 5, 4 << 48 | 8191 << 16 | 3),
        (ITT + 8 * 5, 40 << 48 | LPI << 16 | 3),
        (ITT + 8 * 5, LPI << 16 | 7),
        (COLLECTIONS, VALID | 9 << 16 | 3),
        (DEVICES + 8 * DEVICE, VALID | ITT >> 8 << 5 | 16),
    ],
    ids="no-lpi beyond-events no-collection no-vcpu too-many-bits".split(),
)
def test_bad_tables_are_refused(machine: Machine, where: int, value: int) -> None:
    fill(machine)
    machine.its.set_attr(GROUPS.CTRL, CTRL.ITS_SAVE_TABLES)
    machine.its.set_attr(GROUPS.CTRL, CTRL.ITS_RESET)
    for table, address in ((BASER0, DEVICES), (BASER1, COLLECTIONS)):
        machine.its.set_attr(GROUPS.ITS_REGS, table, VALID | address)
    machine.poke(where, value)
    assert code_of(lambda: machine.its.set_attr(GROUPS.CTRL, CTRL.ITS_RESTORE_TABLES)) == errno.EINVAL
    assert DEVICE not in machine.arch.its[0].devices


def test_tables_outside_memory(machine: Machine) -> None:
    fill(machine)
    machine.vm.set_user_memory_region(machine.ram.slot, 0, RAM, 0, 0)
    assert code_of(lambda: machine.its.set_attr(GROUPS.CTRL, CTRL.ITS_SAVE_TABLES)) == errno.EINVAL
    assert code_of(lambda: machine.gic.set_attr(GROUPS.CTRL, CTRL.SAVE_PENDING_TABLES)) == errno.EFAULT


def test_reset(machine: Machine) -> None:
    fill(machine)
    machine.its.set_attr(GROUPS.CTRL, CTRL.ITS_RESET)
    assert machine.read(ITS + CTLR, 4) == 1 << 31 and machine.read(ITS + CBASER) == 0
    assert not machine.read(ITS + BASER0) >> 63 and machine.read(ITS + BASER0) >> 48 & 0x71F == 0x107
    its = machine.arch.its[0]
    assert not its.devices and not its.collections and not list(machine.arch.vgic.lpis)


def test_an_its_before_its_gic() -> None:
    board = Board()
    vm = board.system.create_vm()
    its = vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)
    its.set_attr(GROUPS.ADDR, arm64.VgicAddr.ITS, ITS)
    its.set_attr(GROUPS.ITS_REGS, BASER1, VALID | COLLECTIONS)
    assert code_of(lambda: vm.signal_msi(TRANSLATER, 0, devid=0)) == errno.EINVAL, "there is no interrupt controller at all"
    vm.create_vcpu()
    vm.create_device(arm64.DeviceType.ARM_VGIC_V3)
    arch = vm.backend.system.files.get(vm.file).arch
    assert arch.vgic.contains(ITS) and arch.vgic.mmio(arch.vcpus[0], ITS + BASER1, False, 8) >> 63 == 1
    assert code_of(lambda: vm.signal_msi(TRANSLATER, 0, devid=0)) == errno.EBUSY


# ---- attributes -------------------------------------------------------------------------------------------------------------------


def test_address() -> None:
    board = Board()
    its = board.vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)
    assert its.get_attr(GROUPS.ADDR, 4) == (1 << 64) - 1
    for base, code in ((0x808_1000, errno.EINVAL), ((1 << 64) - 0x1_0000, errno.EINVAL), ((1 << 40) - 0x1_0000, errno.E2BIG)):
        assert code_of(lambda: its.set_attr(GROUPS.ADDR, 4, base)) == code  # noqa: B023
    assert code_of(lambda: its.get_attr(GROUPS.ITS_REGS, 0)) == errno.ENXIO, "it has no address yet"
    its.set_attr(GROUPS.ADDR, 4, ITS)
    assert its.get_attr(GROUPS.ADDR, 4) == ITS
    assert code_of(lambda: its.set_attr(GROUPS.ADDR, 4, ITS)) == errno.EEXIST
    for attr in (0, 2, 3):
        assert code_of(lambda: its.set_attr(GROUPS.ADDR, attr, ITS)) == errno.ENODEV  # noqa: B023
        assert code_of(lambda: its.get_attr(GROUPS.ADDR, attr)) == errno.ENODEV  # noqa: B023
        assert not its.has_attr(GROUPS.ADDR, attr)
    second = board.vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)
    second.set_attr(GROUPS.ADDR, 4, ITS + 0x2_0000)


def test_which_attributes_there_are(machine: Machine) -> None:
    its = machine.its
    for attr, there in ((0, True), (1, True), (2, True), (3, False), (4, True), (5, False)):
        assert its.has_attr(GROUPS.CTRL, attr) == there
    for group in (1, 2, 3, 5, 6, 7, 9):
        assert not its.has_attr(group, 0)
        assert code_of(lambda: its.set_attr(group, 0, 0)) == errno.ENXIO  # noqa: B023
    assert code_of(lambda: its.get_attr(GROUPS.CTRL, 0)) == errno.ENXIO


@pytest.mark.parametrize(
    ("offset", "code"), [(0, 0), (4, 0), (8, 0), (0x80, 0), (0xFFE8, 0), (2, errno.EINVAL), (0x84, errno.EINVAL), (0x40, errno.ENXIO)]
)
def test_register_numbers(machine: Machine, offset: int, code: int) -> None:
    if code:
        assert code_of(lambda: machine.its.get_attr(GROUPS.ITS_REGS, offset)) == code
    else:
        assert machine.its.has_attr(GROUPS.ITS_REGS, offset)
        machine.its.get_attr(GROUPS.ITS_REGS, offset)


def test_registers_that_only_user_space_writes(machine: Machine) -> None:
    its = machine.its
    assert code_of(lambda: its.set_attr(GROUPS.ITS_REGS, CREADR, 0)) == errno.EBUSY
    its.set_attr(GROUPS.ITS_REGS, CTLR, 0)
    its.set_attr(GROUPS.ITS_REGS, CREADR, 0x60)
    assert machine.read(ITS + CREADR) == 0x60
    assert code_of(lambda: its.set_attr(GROUPS.ITS_REGS, CREADR, 0x1000)) == errno.EINVAL
    its.set_attr(GROUPS.ITS_REGS, IIDR, 0x4B00_043B)
    assert code_of(lambda: its.set_attr(GROUPS.ITS_REGS, IIDR, 0x4B00_143B)) == errno.EINVAL


def test_nothing_while_a_vcpu_runs(machine: Machine) -> None:
    codes: list[int | None] = []

    def try_it(_cpu: FakeCpu) -> str:
        for attr in (CTRL.ITS_SAVE_TABLES, CTRL.ITS_RESTORE_TABLES, CTRL.ITS_RESET):
            codes.append(code_of(lambda: machine.its.set_attr(GROUPS.CTRL, attr)))  # noqa: B023
        codes.append(code_of(lambda: machine.its.get_attr(GROUPS.ITS_REGS, 0)))
        return "irq"

    machine.run(try_it)
    assert codes == [errno.EBUSY] * 4
