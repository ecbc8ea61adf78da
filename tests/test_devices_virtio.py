"""virtio-mmio, the split queue and the devices behind it, driven as a guest's driver would, and as a hostile one."""

from __future__ import annotations

from pathlib import Path
from struct import pack, pack_into, unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trapline.devices.memory import BadGuestAddress, GuestRam
from trapline.devices.virtio.block import SECTOR, Image, VirtioBlock
from trapline.devices.virtio.console import RECEIVE, TRANSMIT, VirtioConsole
from trapline.devices.virtio.mmio import F_VERSION_1, Interrupt, Status, VirtioDevice, VirtioMmio
from trapline.devices.virtio.queue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Queue, QueueError
from trapline.devices.virtio.rng import VirtioRng
from trapline.errors import BadInput
from trapline.vmm.bus import Bus

RAM_BASE = 0x4000_0000
RAM_SIZE = 0x10000
DESCRIPTORS, DRIVER, DEVICE, BUFFERS = (RAM_BASE + offset for offset in (0x1000, 0x2000, 0x3000, 0x4000))
SIZE = 8


class Driver:
    """The guest's side of one virtio-mmio slot with queue 0 (or another) set up."""

    def __init__(self, device: VirtioDevice, queue: int = 0) -> None:
        self.memory = bytearray(RAM_SIZE)
        self.ram = GuestRam(RAM_BASE, memoryview(self.memory))
        self.slot = VirtioMmio(device, self.ram)
        self.bus = Bus()
        self.bus.add(0, self.slot)
        self.queue = queue
        self.next = 0
        self.initialise()

    def read(self, offset: int, size: int = 4) -> int:
        value = self.bus.read(offset, size)
        assert value is not None
        return value

    def write(self, offset: int, value: int) -> None:
        assert self.bus.write(offset, 4, value)

    def initialise(self) -> None:
        assert self.read(0x000) == 0x7472_6976 and self.read(0x004) == 2
        self.write(0x070, 0)
        self.write(0x070, Status.ACKNOWLEDGE | Status.DRIVER)
        offered = 0
        for word in (0, 1):
            self.write(0x014, word)
            offered |= self.read(0x010) << 32 * word
        for word in (0, 1):
            self.write(0x024, word)
            self.write(0x020, offered >> 32 * word & 0xFFFF_FFFF)
        self.write(0x070, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        assert self.read(0x070) & Status.FEATURES_OK
        self.write(0x030, self.queue)
        assert self.read(0x034) >= SIZE
        self.write(0x038, SIZE)
        for offset, address in ((0x080, DESCRIPTORS), (0x090, DRIVER), (0x0A0, DEVICE)):
            self.write(offset, address & 0xFFFF_FFFF)
            self.write(offset + 4, address >> 32)
        self.write(0x044, 1)
        assert self.read(0x044) == 1
        self.write(0x070, self.read(0x070) | Status.DRIVER_OK)

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        pack_into("<QIHH", self.memory, DESCRIPTORS - RAM_BASE + 16 * index, address, length, flags, following)

    def offer(self, head: int, notify: bool = True) -> None:
        pack_into("<H", self.memory, DRIVER - RAM_BASE + 4 + 2 * (self.next % SIZE), head)
        self.next += 1
        pack_into("<HH", self.memory, DRIVER - RAM_BASE, 0, self.next & 0xFFFF)
        if notify:
            self.write(0x050, self.queue)

    def used(self) -> tuple[int, int, int]:
        """The used ring's index and its newest element (id, length)."""
        (index,) = unpack_from("<H", self.memory, DEVICE - RAM_BASE + 2)
        head, length = unpack_from("<II", self.memory, DEVICE - RAM_BASE + 4 + 8 * ((index - 1) % SIZE))
        return index, head, length

    def put(self, address: int, data: bytes) -> None:
        self.ram.view(address, len(data))[:] = data

    def get(self, address: int, length: int) -> bytes:
        return bytes(self.ram.view(address, length))

    def request(self, kind: int, sector: int, data: bytes = b"", room: int = 0) -> tuple[int, bytes]:
        """One block request in three descriptors; returns the status byte and what was read."""
        self.put(BUFFERS, pack("<IIQ", kind, 0, sector) + data)
        body, status = BUFFERS + 16, BUFFERS + 0x4000
        self.describe(0, BUFFERS, 16, DESC_NEXT, 1 if data or room else 2)
        self.describe(1, body, len(data) or room, DESC_NEXT | (DESC_WRITE if room else 0), 2)
        self.describe(2, status, 1, DESC_WRITE)
        self.put(status, b"\xaa")
        self.offer(0)
        return self.get(status, 1)[0], self.get(body, room)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([n]) * SECTOR for n in range(16)))
    return path


def test_features_need_version_1() -> None:
    driver = Driver(VirtioRng())
    driver.write(0x070, 0)
    driver.write(0x024, 1)
    driver.write(0x020, 0)
    driver.write(0x070, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    assert not driver.read(0x070) & Status.FEATURES_OK
    assert driver.slot.offered & F_VERSION_1


def test_features_not_offered_are_refused() -> None:
    driver = Driver(VirtioRng())
    driver.write(0x070, 0)
    driver.write(0x024, 0)
    driver.write(0x020, 1)
    driver.write(0x024, 1)
    driver.write(0x020, 1)
    driver.write(0x070, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    assert not driver.read(0x070) & Status.FEATURES_OK


def test_rng_fills_buffers_and_interrupts() -> None:
    driver = Driver(VirtioRng(lambda count: b"R" * count))
    driver.describe(0, BUFFERS, 100, DESC_WRITE)
    driver.offer(0)
    assert driver.used() == (1, 0, 100)
    assert driver.get(BUFFERS, 101) == b"R" * 100 + b"\0"
    assert driver.slot.irq.level and driver.read(0x060) == Interrupt.USED_BUFFER
    driver.write(0x064, Interrupt.USED_BUFFER)
    assert not driver.slot.irq.level


def test_driver_can_ask_for_silence() -> None:
    driver = Driver(VirtioRng())
    driver.describe(0, BUFFERS, 4, DESC_WRITE)
    driver.offer(0, notify=False)
    pack_into("<H", driver.memory, DRIVER - RAM_BASE, 1)
    driver.write(0x050, 0)
    assert driver.used()[0] == 1 and not driver.slot.irq.level


def test_ring_indices_wrap() -> None:
    driver = Driver(VirtioRng())
    driver.slot.queues[0].next_available = driver.slot.queues[0].next_used = driver.next = 0xFFFE
    driver.describe(0, BUFFERS, 4, DESC_WRITE)
    for _ in range(4):
        driver.offer(0)
    assert driver.used()[0] == 2


def test_console_carries_bytes_both_ways() -> None:
    sent = bytearray()
    console = VirtioConsole(sent.extend)
    driver = Driver(console, TRANSMIT)
    driver.put(BUFFERS, b"from the guest")
    driver.describe(0, BUFFERS, 14)
    driver.offer(0)
    assert sent == b"from the guest"

    console = VirtioConsole(sent.extend)
    driver = Driver(console, RECEIVE)
    console.receive(b"to the guest")
    for index in range(2):
        driver.describe(index, BUFFERS + 8 * index, 8, DESC_WRITE)
        driver.offer(index)
    assert driver.get(BUFFERS, 12) == b"to the guest"
    assert driver.used() == (2, 1, 4)


def test_block_reads_writes_flushes_and_names_itself(disk: Path) -> None:
    driver = Driver(VirtioBlock(Image(disk), serial="serial-1"))
    assert driver.read(0x100, 8) == 16
    assert driver.request(0, 3, room=2 * SECTOR) == (0, b"\3" * SECTOR + b"\4" * SECTOR)
    assert driver.used() == (1, 0, 2 * SECTOR + 1)
    assert driver.request(1, 5, data=b"w" * SECTOR)[0] == 0
    assert driver.request(4, 0)[0] == 0
    assert disk.read_bytes()[5 * SECTOR : 6 * SECTOR] == b"w" * SECTOR
    assert driver.request(8, 0, room=20) == (0, b"serial-1".ljust(20, b"\0"))
    assert driver.request(99, 0)[0] == 2


@pytest.mark.parametrize(("sector", "room"), [(16, SECTOR), (15, 2 * SECTOR), (1 << 62, SECTOR), (0, 100)])
def test_block_refuses_what_is_outside_the_disk(disk: Path, sector: int, room: int) -> None:
    driver = Driver(VirtioBlock(Image(disk)))
    assert driver.request(0, sector, room=room)[0] == 1


def test_block_read_only(disk: Path) -> None:
    driver = Driver(VirtioBlock(Image(disk, read_only=True)))
    assert driver.request(1, 0, data=b"x" * SECTOR)[0] == 1
    assert disk.read_bytes()[:SECTOR] == b"\0" * SECTOR


def test_block_image_that_shrank_is_an_io_error(disk: Path) -> None:
    driver = Driver(VirtioBlock(Image(disk)))
    disk.write_bytes(b"")
    assert driver.request(0, 0, room=SECTOR)[0] == 1


def test_image_complaints(tmp_path: Path, disk: Path) -> None:
    with pytest.raises(BadInput, match="is a directory"):
        Image(tmp_path)
    with pytest.raises(BadInput, match="No such file"):
        Image(tmp_path / "nothing")
    first = Image(disk)
    with pytest.raises(BadInput, match="in use"):
        Image(disk)
    first.close()
    Image(disk).close()


def test_indirect_descriptors() -> None:
    driver = Driver(VirtioRng(lambda count: b"i" * count))
    table = BUFFERS + 0x100
    driver.put(table, pack("<QIHH", BUFFERS, 4, DESC_WRITE | DESC_NEXT, 1) + pack("<QIHH", BUFFERS + 8, 4, DESC_WRITE, 0))
    driver.describe(0, table, 32, DESC_INDIRECT)
    driver.offer(0)
    assert driver.get(BUFFERS, 12) == b"iiii\0\0\0\0iiii"


HOSTILE = {
    "loop": lambda d: d.describe(0, BUFFERS, 4, DESC_WRITE | DESC_NEXT, 0),
    "next outside the table": lambda d: d.describe(0, BUFFERS, 4, DESC_WRITE | DESC_NEXT, 0xFFFF),
    "address below memory": lambda d: d.describe(0, 0x1000, 4, DESC_WRITE),
    "address past memory": lambda d: d.describe(0, RAM_BASE + RAM_SIZE - 2, 4, DESC_WRITE),
    "address that wraps": lambda d: d.describe(0, (1 << 64) - 2, 4, DESC_WRITE),
    "readable after writable": lambda d: (d.describe(0, BUFFERS, 4, DESC_WRITE | DESC_NEXT, 1), d.describe(1, BUFFERS, 4)),
    "empty indirect table": lambda d: d.describe(0, BUFFERS, 0, DESC_INDIRECT),
    "odd indirect table": lambda d: d.describe(0, BUFFERS, 17, DESC_INDIRECT),
    "indirect table outside": lambda d: d.describe(0, 0, 16, DESC_INDIRECT),
    "indirect with next": lambda d: d.describe(0, BUFFERS, 16, DESC_INDIRECT | DESC_NEXT, 1),
    "nested indirect": lambda d: (d.put(BUFFERS, pack("<QIHH", BUFFERS, 16, DESC_INDIRECT, 0)), d.describe(0, BUFFERS, 16, DESC_INDIRECT)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptors_break_the_device_and_nothing_else(name: str) -> None:
    driver = Driver(VirtioRng())
    HOSTILE[name](driver)
    driver.offer(0)
    assert driver.read(0x070) & Status.NEEDS_RESET
    assert driver.read(0x060) & Interrupt.CONFIG_CHANGE
    assert driver.used()[0] == 0
    driver.initialise()
    driver.next = 0
    driver.describe(0, BUFFERS, 4, DESC_WRITE)
    driver.offer(0)
    assert driver.used()[:2] == (1, 0), "a reset brings it back"


def test_hostile_available_index() -> None:
    driver = Driver(VirtioRng())
    driver.next = SIZE + 5
    driver.offer(0)
    assert driver.read(0x070) & Status.NEEDS_RESET


@pytest.mark.parametrize(("offset", "address"), [(0x080, 0), (0x090, RAM_BASE + RAM_SIZE - 2), (0x0A0, DEVICE + 1)])
def test_hostile_ring_addresses(offset: int, address: int) -> None:
    driver = Driver(VirtioRng())
    driver.write(0x044, 0)
    driver.write(offset, address)
    driver.write(0x044, 1)
    assert driver.read(0x044) == 0 and driver.read(0x070) & Status.NEEDS_RESET


def test_queue_that_is_not_there() -> None:
    driver = Driver(VirtioRng())
    driver.write(0x030, 77)
    assert driver.read(0x034) == 0 and driver.read(0x044) == 0
    for offset in (0x038, 0x044, 0x080, 0x050):
        driver.write(offset, 1)
    assert not driver.read(0x070) & Status.NEEDS_RESET


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=16 * SIZE, max_size=16 * SIZE), st.binary(min_size=4 + 2 * SIZE, max_size=4 + 2 * SIZE))
def test_random_rings_never_escape(table: bytes, ring: bytes) -> None:
    memory = bytearray(RAM_SIZE)
    ram = GuestRam(RAM_BASE, memoryview(memory))
    queue = Queue(ram, SIZE)
    queue.descriptors, queue.driver_ring, queue.device_ring, queue.ready = DESCRIPTORS, DRIVER, DEVICE, True
    ram.view(DESCRIPTORS, len(table))[:] = table
    ram.view(DRIVER, len(ring))[:] = ring
    try:
        while (chain := queue.pop()) is not None:
            assert len(chain.readable) + len(chain.writable) <= 0x10000
            queue.push(chain, 0)
    except QueueError:
        pass


def test_guest_ram_bounds() -> None:
    ram = GuestRam(RAM_BASE, memoryview(bytearray(16)))
    assert len(ram.view(RAM_BASE, 16)) == 16
    for address, length in ((RAM_BASE - 1, 2), (RAM_BASE, 17), (RAM_BASE + 16, 1), (RAM_BASE, -1), ((1 << 64) - 8, 16)):
        with pytest.raises(BadGuestAddress):
            ram.view(address, length)
