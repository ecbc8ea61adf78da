"""PL011, PL031, PL061 and the empty PCI bus, as a guest sees them through the bus."""

from __future__ import annotations

import random

import pytest

from trapline.devices.device import IrqLine, MmioDevice, Reg
from trapline.devices.pci import Command, PciBus, PciWindow
from trapline.devices.pci_testdev import pci_testdev
from trapline.devices.pl011 import FIFO_DEPTH, PL011, POLLS_BEFORE_FEEDING, READS_BEFORE_SHOWING, Flag, Int
from trapline.devices.pl031 import PL031
from trapline.devices.pl061 import PL061
from trapline.vmm.bus import CACHED_ACCESSES, Bus

BASE = 0x0900_0000
DR, FR, LCRH, IMSC, RIS, MIS, ICR = 0x00, 0x18, 0x2C, 0x38, 0x3C, 0x40, 0x44


class Probe:
    """A device on a bus, with the levels its line has had."""

    def __init__(self, device: MmioDevice) -> None:
        self.bus = Bus()
        self.bus.add(BASE, device)

    def read(self, offset: int, size: int = 4) -> int:
        value = self.bus.read(BASE + offset, size)
        assert value is not None
        return value

    def write(self, offset: int, value: int, size: int = 4) -> None:
        assert self.bus.write(BASE + offset, size, value)


class Uart(Probe):
    def __init__(self) -> None:
        self.sent = bytearray()
        self.levels: list[bool] = []
        self.device = PL011(IrqLine(self.levels.append), self.sent.extend)
        super().__init__(self.device)

    def enable_receive(self) -> None:
        self.write(LCRH, 0x70)
        self.write(IMSC, Int.RX | Int.RT)


def test_registers_have_widths_masks_and_access_rules() -> None:
    class Device(MmioDevice, size=0x10):
        PLAIN = Reg(0x0, mask=0xFFFF, reset=0x1234)
        READ_ONLY = Reg(0x4, ro=True, reset=7)
        WRITE_ONLY = Reg(0x8, wo=True)

    probe = Probe(Device())
    assert probe.read(0x0) == 0x1234
    probe.write(0x0, 0xAABB_CCDD)
    assert probe.read(0x0) == 0xCCDD
    assert probe.read(0x1, 1) == 0xCC
    probe.write(0x1, 0x55, 1)
    assert probe.read(0x0) == 0xCCDD, "the upper bytes of a register cannot be written alone"
    probe.write(0x4, 0)
    assert probe.read(0x4) == 7
    probe.write(0x8, 9)
    assert probe.read(0x8) == 0
    assert probe.read(0x0, 8) == 7 << 32 | 0xCCDD
    assert probe.read(0xC) == 0


def test_registers_may_not_share_an_offset() -> None:
    with pytest.raises(TypeError, match="taken"):

        class Device(MmioDevice, size=0x10):
            ONE = Reg(0x0)
            TWO = Reg(0x0)


def test_bus_refuses_overlaps_and_reports_holes() -> None:
    bus = Bus()
    bus.add(0x1000, PciWindow(PciBus(), Command.MEMORY, 0, 0x1000))
    with pytest.raises(ValueError, match="overlaps"):
        bus.add(0x1FFF, PciWindow(PciBus(), Command.MEMORY, 0, 0x1000))
    assert bus.read(0x0FFF, 1) is None
    assert bus.read(0x2000, 4) is None
    assert not bus.write(0x2000, 4, 0)
    assert bus.read(0x1FFF, 1) == 0xFF


def test_bus_remembers_a_bounded_number_of_accesses() -> None:
    bus = Bus()
    bus.add(0, PciBus())
    for address in range(0, 8 * CACHED_ACCESSES, 4):
        assert bus.read(address, 4) == 0xFFFF_FFFF
    assert len(bus._readers) == CACHED_ACCESSES


def test_uart_transmits_at_once() -> None:
    uart = Uart()
    for byte in b"hello":
        uart.write(DR, byte, 2)
    assert uart.sent == b"hello"
    assert uart.read(FR) == Flag.TXFE | Flag.RXFE


def test_uart_line_follows_status_and_mask() -> None:
    uart = Uart()
    uart.write(DR, ord("x"))
    assert uart.levels == []
    uart.write(IMSC, Int.TX)
    assert uart.levels == [True]
    assert uart.read(MIS) == Int.TX
    uart.write(ICR, Int.TX)
    assert uart.levels == [True, False]
    assert uart.read(RIS) == 0


def test_uart_receives_by_interrupt() -> None:
    uart = Uart()
    uart.device.receive(b"ab")
    uart.enable_receive()
    assert uart.levels == [True]
    assert uart.read(MIS) == Int.RX | Int.RT
    assert not uart.read(FR) & Flag.RXFE
    assert [uart.read(DR), uart.read(DR)] == [ord("a"), ord("b")]
    assert uart.read(FR) & Flag.RXFE
    assert uart.levels == [True, False]


def test_uart_keeps_early_input_from_a_driver_that_drains_the_fifo() -> None:
    uart = Uart()
    uart.device.receive(b"early")
    uart.enable_receive()
    uart.write(ICR, Int.RX | Int.RT)
    assert uart.read(FR) & Flag.RXFE, "nothing to drain"
    uart.write(IMSC, Int.RX | Int.RT)
    assert uart.levels[-1] and uart.read(RIS) & Int.RT
    assert bytes(uart.read(DR) for _ in range(5)) == b"early"


def test_uart_receives_when_the_guest_polls() -> None:
    uart = Uart()
    uart.device.receive(b"q")
    for _ in range(POLLS_BEFORE_FEEDING + 1):
        flags = uart.read(FR)
    assert not flags & Flag.RXFE
    assert uart.read(DR) == ord("q")


def test_uart_passes_long_input_through_its_fifo() -> None:
    uart = Uart()
    uart.enable_receive()
    text = bytes(range(1, 200))
    uart.device.receive(text)
    assert uart.read(RIS) & Int.RX
    assert len(uart.device.fifo) == FIFO_DEPTH
    assert uart.read(FR) & Flag.RXFF
    assert uart.read(RIS) & Int.RX
    received = bytearray()
    while not uart.read(FR) & Flag.RXFE:
        received.append(uart.read(DR))
    assert received == text


class FakeMirror:
    """Memory that takes the place of a device's registers, as far as a device can tell."""

    def __init__(self) -> None:
        self.words = memoryview(bytearray(4096)).cast("I")
        self.changes: list[bool] = []

    @property
    def shown(self) -> bool:
        return bool(self.changes) and self.changes[-1]

    def show(self) -> bool:
        self.changes.append(True)
        return True

    def hide(self) -> None:
        self.changes.append(False)


@pytest.mark.parametrize("seed", range(20))
def test_uart_mirror_has_what_reads_would_return(seed: int) -> None:
    """A guest that reads the mirror while it is shown, and one without a mirror: whatever happens, they read the same."""
    rng = random.Random(seed)
    mirrored, plain = Uart(), Uart()
    mirrored.device.mirror = mirror = FakeMirror()
    offsets = [*range(0, 0x50, 4), *range(0xFD0, 0x1000, 4)]
    for _ in range(1000):
        action = rng.choice(("read", "read", "write", "poll", "drain", "input"))
        if action == "write":
            offset, value = rng.choice((DR, LCRH, IMSC, ICR, 0x30, 0x24)), rng.getrandbits(11) & ~0x80
            for uart in (mirrored, plain):
                uart.write(offset, value)
        elif action == "input" and rng.random() < 0.1:
            data = rng.randbytes(rng.randrange(1, 3 * FIFO_DEPTH))
            for uart in (mirrored, plain):
                uart.device.receive(data)
        else:
            for offset in {"poll": [FR] * 40, "drain": [DR] * 40}.get(action, [rng.choice(offsets)]):
                seen = mirror.words[offset // 4] if mirror.shown else mirrored.read(offset)
                assert seen == plain.read(offset), f"register {offset:#x}, seed {seed}"
        assert mirrored.levels == plain.levels
    assert mirrored.sent == plain.sent and True in mirror.changes and False in mirror.changes


def test_uart_mirror_is_hidden_before_input_can_be_seen() -> None:
    uart = Uart()
    uart.device.mirror = mirror = FakeMirror()
    for _ in range(READS_BEFORE_SHOWING):
        uart.read(FR)
    assert mirror.changes == [True]
    uart.device.receive(b"x")
    assert mirror.changes == [True, False]
    for _ in range(POLLS_BEFORE_FEEDING + 1):
        flags = uart.read(FR)
    assert not flags & Flag.RXFE and uart.read(DR) == ord("x")
    for _ in range(READS_BEFORE_SHOWING):
        uart.read(FR)
    assert mirror.changes == [True, False, True]
    uart.device.reset()
    assert not mirror.shown


def test_primecells_identify_themselves() -> None:
    for device, part in ((PL011(), 0x11), (PL031(), 0x31), (PL061(), 0x61)):
        probe = Probe(device)
        ids = [probe.read(0xFE0 + 4 * n) for n in range(8)]
        assert ids[0] == part and ids[1] == 0x10 and ids[2] & 0xF == 4
        assert ids[4:] == [0x0D, 0xF0, 0x05, 0xB1]
        probe.write(0xFE0, 0)
        assert probe.read(0xFE0) == part


class Rtc(Probe):
    DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0, 0x20, 4)

    def __init__(self, now: float) -> None:
        self.now = now
        self.alarms: list[tuple[float, object]] = []
        self.line = IrqLine()
        super().__init__(PL031(self.line, lambda: self.now, self.schedule))

    def schedule(self, delay, callback):  # type: ignore[no-untyped-def]
        alarm = (self.now + delay, callback)
        self.alarms.append(alarm)
        return lambda: self.alarms.remove(alarm) if alarm in self.alarms else None

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for alarm in [alarm for alarm in self.alarms if alarm[0] <= self.now]:
            self.alarms.remove(alarm)
            alarm[1]()  # type: ignore[operator]


def test_rtc_counts_from_what_was_loaded() -> None:
    rtc = Rtc(1_000_000.5)
    assert rtc.read(rtc.DR) == 1_000_000
    rtc.write(rtc.LR, 42)
    rtc.pass_time(3)
    assert rtc.read(rtc.DR) == 45


def test_rtc_alarm_rings_once_and_can_be_masked() -> None:
    rtc = Rtc(1000.25)
    rtc.write(rtc.IMSC, 1)
    rtc.write(rtc.MR, 1002)
    rtc.pass_time(1.5)
    assert not rtc.line.level
    rtc.pass_time(0.5)
    assert rtc.line.level and rtc.read(rtc.MIS) == 1
    rtc.write(rtc.IMSC, 0)
    assert not rtc.line.level and rtc.read(rtc.RIS) == 1
    rtc.write(rtc.IMSC, 1)
    rtc.write(rtc.ICR, 1)
    assert not rtc.line.level


def test_rtc_alarm_moves() -> None:
    rtc = Rtc(1000)
    rtc.write(rtc.MR, 1010)
    rtc.write(rtc.MR, 1020)
    rtc.pass_time(15)
    assert rtc.read(rtc.RIS) == 0
    rtc.pass_time(5)
    assert rtc.read(rtc.RIS) == 1


def test_gpio_data_is_masked_by_the_address() -> None:
    gpio = Probe(device := PL061())
    gpio.write(0x400, 0x0F)
    gpio.write(0x3FC, 0xFF)
    assert device.outputs == 0x0F, "inputs are not driven"
    gpio.write(0b101 << 2, 0)
    assert gpio.read(0x3FC) == 0b1010
    device.set_input(6, True)
    assert gpio.read(0x3FC) == 0b100_1010
    assert gpio.read(0b1000 << 2) == 0b1000


@pytest.mark.parametrize(
    ("rising", "both", "level", "expected"),
    [(8, 0, 0, [True, False]), (0, 0, 0, [False, True]), (0, 8, 0, [True, True]), (8, 0, 8, [True, False])],
)
def test_gpio_interrupts(rising: int, both: int, level: int, expected: list[bool]) -> None:
    gpio = Probe(device := PL061())
    for offset, value in ((0x404, level), (0x408, both), (0x40C, rising), (0x410, 8)):
        gpio.write(offset, value)
    seen = []
    for pressed in (True, False):
        device.set_input(3, pressed)
        seen.append(device.irq.level)
        gpio.write(0x41C, 8)
    assert seen == expected


def test_absent_pci_functions_read_as_all_ones() -> None:
    ecam = Probe(PciBus())
    for size in (1, 2, 4, 8):
        assert ecam.read(0x100_0008, size) == (1 << 8 * size) - 1
    ecam.write(0, 0x1234)
    assert ecam.read(0) == 0xFFFF_FFFF


def test_pci_function_is_found_sized_and_placed() -> None:
    bus = Bus()
    pci = PciBus({8: pci_testdev()})
    bus.add(0, pci)
    bus.add(0x2000_0000, PciWindow(pci, Command.MEMORY, 0x2000_0000, 0x100_0000))
    bus.add(0x3000_0000, PciWindow(pci, Command.IO, 0, 0x1_0000))
    config = 8 << 12
    assert bus.read(config, 4) == 0x0005_1B36
    for bar, (size, kind) in enumerate(((0x1000, 0), (0x100, 1))):
        bus.write(config + 0x10 + 4 * bar, 4, 0xFFFF_FFFF)
        assert bus.read(config + 0x10 + 4 * bar, 4) == 0x1_0000_0000 - size | kind
    assert bus.read(config + 0x18, 4) == 0
    bus.write(config + 0x10, 4, 0x2000_1000)
    bus.write(config + 0x14, 4, 0x400)
    for window, offset in ((0x2000_0000, 0x1000), (0x3000_0000, 0x400)):
        assert bus.read(window + offset, 4) == 0xFFFF_FFFF, "nothing is decoded before the command register says so"
    bus.write(config + 0x04, 2, Command.MEMORY | Command.IO)
    for base in (0x2000_1000, 0x3000_0400):
        bus.write(base, 1, 2)
        assert bus.read(base + 12, 4) == 0 and bus.read(base + 1, 1) == 1
        target, data = bus.read(base + 4, 4), bus.read(base + 8, 4)
        assert target is not None and data is not None
        for _ in range(16):
            bus.write(base + target, 1, data)
            bus.write(base + target, 1, data ^ 1)
        assert bus.read(base + 12, 4) == 16
        bus.write(base, 1, 3)
        assert bus.read(base + 1, 1) == 0
    assert bytes(bus.read(0x2000_1000 + 16 + n, 1) or 0 for n in range(4)) == bytes(4)
    bus.write(0x2000_1000, 1, 0)
    assert bytes(bus.read(0x2000_1010 + n, 1) or 0 for n in range(15)) == b"mmio-no-eventfd"
