"""Interrupts from eventfds, eventfds from the guest's writes, and where GSIs lead."""

from __future__ import annotations

import errno
import os
import resource
import select
from collections.abc import Callable, Iterator

import pytest
from test_vgic_kvm import DIST, SPI, Board, code_of, store

from tests.fake_engine import FakeCpu, mmio
from trapline.abi import irq
from trapline.abi.caps import Cap
from trapline.arm64 import gic_virtual
from trapline.backends.objects import Vm
from trapline.host.eventfd import EventFd, EventWatcher
from trapline.sync import Condition, Lock

GSI = SPI - 32
DOORBELL = 0xA00_0050
PATIENCE = 20
"""Seconds after which something that ought to happen has not happened."""


class Mailbox:
    """Counts events from another thread, and waits for them."""

    def __init__(self) -> None:
        self.lock = Lock("mailbox")
        self.changed = Condition(self.lock, "mailbox_changed")
        self.count = 0

    def add(self) -> None:
        with self.lock:
            self.count += 1
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        with self.lock:
            while self.count < count:
                assert self.changed.wait(PATIENCE), f"{self.count} events, not {count}"


@pytest.fixture
def event() -> Iterator[int]:
    file = os.eventfd(0, os.EFD_NONBLOCK)
    yield file
    os.close(file)


@pytest.fixture
def other() -> Iterator[int]:
    file = os.eventfd(0, os.EFD_NONBLOCK)
    yield file
    os.close(file)


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    board.configure()
    board.enable()
    yield board
    board.vm.close()


def count_of(file: int) -> int:
    try:
        return os.eventfd_read(file)
    except BlockingIOError:
        return 0


def latched(board: Board) -> bool:
    return board.vm.backend.system.files.get(board.vm.file).arch.vgic.spis[SPI - 32].latch


def when_driven(board: Board) -> Mailbox:
    """Hears of every level that is put on an input of the interrupt controller."""
    arch = board.vm.backend.system.files.get(board.vm.file).arch
    box, drive = Mailbox(), arch.set_irqchip_pin

    def listen(pin: int, level: bool) -> None:
        try:
            drive(pin, level)
        finally:
            box.add()

    arch.set_irqchip_pin = listen
    return box


# ---- references to eventfds -------------------------------------------------------------------------------------------------------


def test_references_know_their_eventfd(event: int, other: int) -> None:
    copy = os.dup(event)
    first, second = EventFd(event), EventFd(copy)
    os.close(copy)
    assert first.identity == second.identity != EventFd(other).identity
    assert not first.consume()
    second.signal()
    second.signal()
    assert first.consume() and not first.consume()


@pytest.mark.parametrize("file", [-1, 9_999_999, 1 << 31, (1 << 32) - 1])
def test_what_is_no_file(file: int) -> None:
    assert code_of(lambda: EventFd(file)) == errno.EBADF


def test_no_more_files(event: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (event, hard))
    try:
        assert code_of(lambda: EventFd(event)) == errno.ENOMEM
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_no_eventfd() -> None:
    ends = os.pipe()
    try:
        assert code_of(lambda: EventFd(ends[0])) == errno.EINVAL
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_full_counter_stays_full(event: int, blocking: bool) -> None:
    os.set_blocking(event, blocking)
    os.eventfd_write(event, (1 << 64) - 2)
    EventFd(event).signal()
    assert count_of(event) == (1 << 64) - 2


def test_watcher_calls_until_told_to_stop(event: int, other: int) -> None:
    watcher, box, second = EventWatcher(), Mailbox(), Mailbox()
    reference, another = EventFd(event), EventFd(other)
    os.eventfd_write(event, 3)
    watcher.watch(reference, box.add)
    box.wait(1)
    watcher.watch(another, second.add)
    os.eventfd_write(event, 1)
    box.wait(2)
    watcher.unwatch(reference)
    os.eventfd_write(event, 1)
    os.eventfd_write(other, 1)
    second.wait(1)
    assert box.count == 2 and count_of(event) == 1
    watcher.unwatch(another)
    watcher.watch(another, second.add)
    os.eventfd_write(other, 1)
    second.wait(2)
    watcher.unwatch(another)


# ---- irqfd ------------------------------------------------------------------------------------------------------------------------


def test_capabilities(board: Board) -> None:
    for cap in (Cap.IRQFD, Cap.IRQFD_RESAMPLE, Cap.IOEVENTFD, Cap.IOEVENTFD_ANY_LENGTH):
        assert board.vm.check_extension(cap) == 1
    assert board.vm.check_extension(Cap.IRQ_ROUTING) == 4096


def test_irqfd_pulses_its_interrupt(board: Board, event: int) -> None:
    box = when_driven(board)
    board.run(store(DIST + 0xC00 + SPI // 16 * 4, 2 << SPI % 16 * 2))
    board.vm.irqfd(event, GSI)
    os.eventfd_write(event, 5)
    box.wait(2)
    taken: list[int] = []

    def take(cpu: FakeCpu) -> str:
        taken.append(gic_virtual.icv_iar1_read(cpu.state))
        gic_virtual.icv_eoir1_write(cpu.state, taken[-1])
        return "irq"

    board.run(take)
    assert taken == [SPI] and count_of(event) == 0


def test_irqfd_takes_what_came_before(board: Board, event: int) -> None:
    box = when_driven(board)
    os.eventfd_write(event, 1)
    board.vm.irqfd(event, GSI)
    box.wait(2)


def test_irqfd_with_resample_holds_the_line(board: Board, event: int, other: int) -> None:
    box = when_driven(board)
    board.vm.irqfd(event, GSI, resamplefd=other)
    os.eventfd_write(event, 1)
    box.wait(1)
    taken: list[int] = []

    def take(cpu: FakeCpu) -> str:
        taken.append(gic_virtual.icv_iar1_read(cpu.state))
        gic_virtual.icv_eoir1_write(cpu.state, taken[-1])
        return "irq"

    board.run(take, take)
    assert taken == [SPI, 1023], "taken once, then the line was let go"
    assert count_of(other) == 1
    board.vm.irqfd(event, GSI, deassign=True)
    board.vm.set_irq(SPI, 1)
    board.run(take)
    assert taken[2:] == [SPI] and count_of(other) == 0


def test_irqfd_refusals(event: int, other: int) -> None:
    board = Board()
    vm = board.vm
    assert code_of(lambda: vm.irqfd(event, GSI)) == errno.EAGAIN
    assert code_of(lambda: vm.irqfd(-1 & 0xFFFF_FFFF, GSI)) == errno.EAGAIN, "the controller is looked at first"
    vm.irqfd(event, GSI, deassign=True)  # there is nothing to undo
    board.configure()
    backend = vm.backend
    for flags in (4, 1 << 31, 7):
        assert code_of(lambda: backend.ioctl(vm.file, irq.KVM_IRQFD, irq.Irqfd(event, GSI, flags, 0))) == errno.EINVAL  # noqa: B023
    assert code_of(lambda: vm.irqfd(9_999_999, GSI)) == errno.EBADF
    assert code_of(lambda: vm.irqfd(9_999_999, GSI, deassign=True)) == errno.EBADF
    assert code_of(lambda: vm.irqfd(0, GSI)) == errno.EINVAL
    assert code_of(lambda: vm.irqfd(event, GSI, resamplefd=0)) == errno.EINVAL
    assert code_of(lambda: vm.irqfd(event, GSI, resamplefd=9_999_999)) == errno.EBADF
    vm.irqfd(event, GSI)
    assert code_of(lambda: vm.irqfd(event, GSI + 1)) == errno.EBUSY
    vm.irqfd(other, GSI)
    vm.irqfd(event, GSI + 1, deassign=True)  # another GSI: nothing happens
    assert code_of(lambda: vm.irqfd(event, GSI)) == errno.EBUSY
    vm.irqfd(event, GSI, deassign=True)
    vm.irqfd(event, GSI)
    vm.close()


def test_closing_the_vm_lets_go_of_the_eventfds(board: Board, event: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    board.vm.irqfd(event, GSI)
    board.vm.ioeventfd(DOORBELL, 4, event)
    board.vm.close()
    watcher = board.vm.backend.system.events
    assert watcher._poller is None
    os.eventfd_write(event, 1)
    assert select.select([event], [], [], 0)[0], "nobody reads it any more"
    assert len(os.listdir("/proc/self/fd")) <= before + 3, "the watcher's thread may take a moment to close its own files"


# ---- ioeventfd --------------------------------------------------------------------------------------------------------------------


def test_a_matching_write_does_not_exit(board: Board, event: int, other: int) -> None:
    board.vm.ioeventfd(DOORBELL, 4, event, data=7)
    board.vm.ioeventfd(DOORBELL, 2, other)
    board.run(store(DOORBELL, 7), store(DOORBELL, 7))
    assert (count_of(event), count_of(other)) == (2, 0)

    def halfword(cpu: FakeCpu) -> None:
        mmio(True, DOORBELL, 2, register=5)(cpu)

    board.run(halfword)
    assert (count_of(event), count_of(other)) == (0, 1)
    board.vm.ioeventfd(DOORBELL + 4, 0, other)
    board.run(store(DOORBELL + 4, 99))
    assert count_of(other) == 1


@pytest.mark.parametrize(
    "step",
    [store(DOORBELL, 8), store(DOORBELL + 1, 7), mmio(False, DOORBELL, 4), mmio(True, DOORBELL, 8)],
    ids="data address read size".split(),
)
def test_everything_else_exits(board: Board, event: int, step: Callable[[FakeCpu], None]) -> None:
    board.vm.ioeventfd(DOORBELL, 4, event, data=7)
    board.engine.cpus[0].script = [step]
    assert board.vcpus[0].run().phys_addr & ~1 == DOORBELL
    assert count_of(event) == 0


def test_ioeventfd_refusals(board: Board, event: int, other: int) -> None:
    vm = board.vm
    for length in (3, 5, 16):
        assert code_of(lambda: vm.ioeventfd(DOORBELL, length, event)) == errno.EINVAL  # noqa: B023
    assert code_of(lambda: vm.ioeventfd((1 << 64) - 4, 8, event)) == errno.EINVAL
    assert code_of(lambda: vm.ioeventfd(DOORBELL, 4, event, flags=1 << 5)) == errno.EINVAL
    assert code_of(lambda: vm.ioeventfd(DOORBELL, 0, event, data=1)) == errno.EINVAL
    assert code_of(lambda: vm.ioeventfd(DOORBELL, 4, -1)) == errno.EBADF
    assert code_of(lambda: vm.ioeventfd(DOORBELL, 4, 0)) == errno.EINVAL
    assert code_of(lambda: vm.ioeventfd(DOORBELL, 3, -1)) == errno.EINVAL, "the length is looked at first"
    vm.ioeventfd(DOORBELL, 4, event, data=1)
    vm.ioeventfd(DOORBELL, 4, event, data=2)
    vm.ioeventfd(DOORBELL, 8, event)
    for length, data in ((4, 1), (4, None), (8, 5), (0, None)):
        assert code_of(lambda: vm.ioeventfd(DOORBELL, length, other, data=data)) == errno.EEXIST  # noqa: B023
    for length, file, data in ((4, event, 3), (4, other, 1), (4, event, None), (2, event, None), (3, event, None)):
        assert code_of(lambda: vm.ioeventfd(DOORBELL, length, file, data=data, deassign=True)) == errno.ENOENT  # noqa: B023
    vm.ioeventfd(DOORBELL, 4, event, data=1, deassign=True)
    vm.ioeventfd(DOORBELL, 4, other, data=1)


def test_other_buses_never_match(board: Board, event: int) -> None:
    for flag in (irq.IoeventfdFlag.PIO, irq.IoeventfdFlag.VIRTIO_CCW_NOTIFY):
        board.vm.ioeventfd(DOORBELL, 4, event, flags=flag)
    board.vm.ioeventfd(DOORBELL, 4, event)
    board.run(store(DOORBELL, 1))
    assert count_of(event) == 1


# ---- routing ----------------------------------------------------------------------------------------------------------------------


def entry(**fields: int) -> irq.RoutingEntry:
    made = irq.route_to_pin(1, 2)
    for name, value in fields.items():
        if name in ("irqchip", "pin"):
            made.u[0 if name == "irqchip" else 1] = value
        else:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([], 0),
        ([irq.route_to_pin(4095, 987), irq.route_to_msi(7, 0x808_0040, 3, devid=9)], 0),
        ([irq.route_to_pin(4096, 0)], errno.EINVAL),
        ([irq.route_to_pin(0, 988)], errno.EINVAL),
        ([entry(irqchip=1)], errno.EINVAL),
        ([entry(type=0)], errno.EINVAL),
        ([entry(type=3)], errno.EINVAL),
        ([entry(flags=1)], errno.EINVAL),
        ([entry(flags=2, type=2)], errno.EINVAL),
        ([irq.route_to_pin(5, 1), irq.route_to_pin(5, 2)], errno.EINVAL),
        ([irq.route_to_pin(5, 1), irq.route_to_msi(5, 0, 0)], errno.EINVAL),
        ([irq.route_to_pin(5, 1), irq.route_to_pin(6, 1)], 0),
    ],
)
def test_tables(board: Board, entries: list[irq.RoutingEntry], code: int) -> None:
    if code:
        assert code_of(lambda: board.vm.set_gsi_routing(entries)) == code
    else:
        board.vm.set_gsi_routing(entries)


def test_table_limits(board: Board) -> None:
    vm: Vm = board.vm
    assert code_of(lambda: vm.set_gsi_routing([], flags=1)) == errno.EINVAL
    head = irq.IrqRouting(4097, 0)
    assert code_of(lambda: vm.backend.ioctl(vm.file, irq.KVM_SET_GSI_ROUTING, head)) == errno.EINVAL
    vm.set_gsi_routing([irq.route_to_pin(gsi, gsi % 900) for gsi in range(4096)])


def test_an_irqfd_follows_the_table(board: Board, event: int) -> None:
    box = when_driven(board)
    board.run(store(DIST + 0xC00 + SPI // 16 * 4, 2 << SPI % 16 * 2))
    board.vm.set_gsi_routing([irq.route_to_pin(1000, GSI)])
    board.vm.irqfd(event, 1000)
    os.eventfd_write(event, 1)
    box.wait(2)
    assert latched(board)
    board.vm.set_gsi_routing([])
    os.eventfd_write(event, 1)
    board.vm.irqfd(event, 1000, deassign=True)
    assert box.count == 2, "it led nowhere"


def test_resample_follows_the_table(board: Board, event: int, other: int) -> None:
    box = when_driven(board)
    board.vm.irqfd(event, 77, resamplefd=other)
    board.vm.set_gsi_routing([irq.route_to_pin(77, GSI)])
    os.eventfd_write(event, 1)
    box.wait(1)

    def take(cpu: FakeCpu) -> str:
        gic_virtual.icv_eoir1_write(cpu.state, gic_virtual.icv_iar1_read(cpu.state))
        return "irq"

    board.run(take)
    assert count_of(other) == 1


def test_msi_without_its(board: Board) -> None:
    assert code_of(lambda: board.vm.signal_msi(0x808_0040, 0, devid=0)) == errno.ENODEV
    bare = Board().system.create_vm()
    assert code_of(lambda: bare.signal_msi(0x808_0040, 0, devid=0)) == errno.EINVAL
    message = irq.Msi(0, 0, 0, 2)
    assert code_of(lambda: board.vm.backend.ioctl(board.vm.file, irq.KVM_SIGNAL_MSI, message)) == errno.EINVAL
