"""Devices' state, frames between two processes, and what counts as written while a machine moves."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

import pytest

import trapline
from tests.guests import tiny
from trapline.abi.exits import MmioExit
from trapline.abi.memory import PAGE
from trapline.devices.device import IrqLine, MmioDevice
from trapline.devices.memory import GuestRam
from trapline.devices.pci import PciBus
from trapline.devices.pci_testdev import pci_testdev
from trapline.devices.pl011 import PL011
from trapline.devices.pl031 import PL031
from trapline.devices.pl061 import PL061
from trapline.devices.virtio.console import VirtioConsole
from trapline.devices.virtio.mmio import VirtioMmio
from trapline.errors import BadInput, BadSnapshot
from trapline.vmm.board import RAM_BASE, UART, MiB
from trapline.vmm.channel import HEADER, Channel, Lost, connect, listen
from trapline.vmm.machine import Config, Machine, Software
from trapline.vmm.migration import DirtyPages, Emigration, _join
from trapline.vmm.runloop import Runner
from trapline.vmm.snapshot import SavedMachine, describe, save

# ---- devices ----------------------------------------------------------------------------------------------------------------------


def pl011() -> MmioDevice:
    return PL011(IrqLine())


def virtio() -> MmioDevice:
    return VirtioMmio(VirtioConsole(lambda data: None), GuestRam(RAM_BASE, memoryview(bytearray(MiB))), IrqLine())


def pci() -> MmioDevice:
    return PciBus({8: pci_testdev()})


WRITES = {
    pl011: [(0x30, 0x301), (0x2C, 0x70), (0x38, 0x50), (0x24, 13)],
    virtio: [(0x30, 1), (0x38, 8), (0x80, 0x4000_1000), (0x90, 0x4000_2000), (0xA0, 0x4000_3000), (0x44, 1), (0x70, 7)],
    pci: [(0x8004, 2), (0x8010, 0x1000_0000), (0x803C, 5)],
    lambda: PL061(IrqLine()): [(0x400, 0x0F), (0x404, 0x30), (0x410, 0xFF), (0x3FC, 0x05)],
    lambda: PL031(IrqLine(), lambda: 1000.25): [(0x8, 5000), (0x4, 6000), (0x10, 1)],
}


@pytest.mark.parametrize("make", WRITES)
def test_a_devices_state_is_plain_and_makes_another_device_like_it(make) -> None:
    first, second = make(), make()
    for offset, value in WRITES[make]:
        first.writer(offset, 4)(value)
    for device in (first, second):
        if isinstance(device, PL061):
            device.set_input(5, device is first)
    if isinstance(first, PL011):
        first.receive(b"typed before")
        first.reader(0x40, 4)()
        first.reader(0, 4)()
    assert first.state() != second.state()
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    offsets = [*range(0, 0x100, 4), 0x400, 0x404, 0x410, 0x418, 0x8000, 0x8004, 0x8010]
    readable = [offset for offset in offsets if offset < first.size and offset]
    assert [first.reader(offset, 4)() for offset in readable] == [second.reader(offset, 4)() for offset in readable]
    second.reset()
    assert second.irq.level is False or isinstance(second, PL061)


def test_an_alarm_that_came_due_while_the_machine_was_away_rings() -> None:
    clock = [1000.0]
    for passed, rings in ((10, False), (100, True), (5000, True)):
        clock[0] = 1000.0
        first = PL031(IrqLine(), lambda: clock[0])
        first.writer(0x10, 4)(1)
        first.writer(0x4, 4)(1100)
        state = first.state()
        clock[0] += passed
        second = PL031(IrqLine(), lambda: clock[0])
        second.load(state)
        assert second.irq.level is rings
        assert second.armed is not rings


# ---- frames -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with Channel(ours) as channel, theirs:
        yield channel, theirs


def test_frames_arrive_as_they_were_sent(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    other = Channel(theirs)
    other.send(b"PAGE", b"head", memoryview(b"body" * 1000))
    other.send_document(b"STAT", {"a": [1, 2]})
    assert channel.receive(b"ZERO", b"PAGE") == (b"PAGE", bytearray(b"head" + b"body" * 1000))
    assert channel.receive_document(b"STAT") == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", Lost, "closed the connection"),
        (HEADER.pack(b"PAGE", 0, 10) + b"short", Lost, "closed the connection"),
        (HEADER.pack(b"PAGE", 1, 4) + b"body", BadSnapshot, "damaged on its way"),
        (HEADER.pack(b"WHAT", 0, 0), BadSnapshot, "where b'PAGE' is due"),
        (HEADER.pack(b"PAGE", 0, 1 << 40), BadSnapshot, "no Trapline"),
        (HEADER.pack(b"FAIL", 0xD202EF8D, 1) + b"\0", Lost, "the other side says"),
    ],
)
def test_what_is_no_frame_is_refused(ends: tuple[Channel, socket.socket], data: bytes, error: type[Exception], words: str) -> None:
    channel, theirs = ends
    theirs.sendall(data)
    theirs.close()
    with pytest.raises(error, match=words):
        channel.receive(b"PAGE")


def test_addresses(tmp_path: Path) -> None:
    for wrong in ("", "tcp:", "tcp:host", "tcp:host:x", "unix:", "/path", "tcp:127.0.0.1:99999999999"):
        with pytest.raises(BadInput):
            connect(wrong)
    path = f"unix:{tmp_path / 'socket'}"
    listen(path).close()  # a socket that nobody listens to any more is replaced
    with listen(path) as waiting, connect(path) as channel:
        connection, _ = waiting.accept()
        with connection, pytest.raises(BadInput):
            listen(path)
        assert channel


# ---- machines ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(tiny.build(tiny.LEDGER))
    config = Config(kernel=kernel, memory=16 * MiB, virtio_console=True)
    with trapline.open("software") as kvm:
        made = Machine(kvm, config, Software.read(config), [], lambda data: None)
        yield made
        made.close()


def run_a_little(machine: Machine) -> None:
    """Until the guest has looked at its UART 64 times, and so written 64 pages."""
    for _ in range(64):
        exit = machine.vcpus[0].run()
        assert isinstance(exit, MmioExit) and exit.phys_addr == UART.base + 0x18
        exit.data = 0x10


def test_what_the_guest_and_what_devices_write_is_sent_again(machine: Machine) -> None:
    flag_page = (0x4020_0000 - RAM_BASE) // PAGE
    with DirtyPages(machine) as dirty:
        dirty.take()
        run_a_little(machine)
        machine.ram.writable(RAM_BASE + 100 * PAGE - 1, 2)
        machine.ram.pack(Struct("<Q"), RAM_BASE + 200 * PAGE, 5)
        ranges = dict(dirty.take())[machine.memory]
        pages = {page for first, count in ranges for page in range(first, first + count)}
        assert {99, 100, 200} | set(range(flag_page, flag_page + 64)) == pages
        assert not any(ranges for _, ranges in dirty.take()), "once"
    assert machine.ram.written is None


def test_a_deterministic_machine_does_not_move(tmp_path: Path, ends: tuple[Channel, socket.socket]) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(tiny.build(tiny.SILENT))
    config = Config(kernel=kernel, memory=4 * MiB)
    with trapline.open(deterministic=True) as kvm:
        made = Machine(kvm, config, Software.read(config), [], lambda data: None)
        with pytest.raises(BadInput, match="a deterministic machine cannot be migrated"):
            Emigration(Runner(made), [], ends[0], 1.0)
        made.close()


def test_pages_join_to_ranges() -> None:
    assert _join({3, 1, 2, 9, 11, 10, 20}) == [(1, 3), (9, 3), (20, 1)]


def test_a_machine_with_other_devices_is_refused(machine: Machine) -> None:
    document = {**save(machine, []), "memory": []}
    document["machine"]["devices"].pop(f"{UART.base:x}")
    with pytest.raises(BadSnapshot, match="has other devices"):
        SavedMachine(document).load_devices(machine)
    assert describe(machine, [])["settings"]["memory"] == 16 * MiB
    with pytest.raises(BadSnapshot, match="use System.restore"):
        SavedMachine({"vm": {}})
