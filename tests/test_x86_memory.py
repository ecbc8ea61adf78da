"""Slots, dirty logs and rings, and coalesced writes with x86 guests on the real /dev/kvm."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from x86_machine import EMULATES, needs_x86_kvm, place

from trapline import x86
from trapline.abi.caps import Cap
from trapline.abi.vm import MemoryFlag
from trapline.backends.rings import CoalescedWrite, DirtyPage
from trapline.errors import KvmError, NotSupported

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(60)]
CODE, DATA, PAGE = 0x1000, 0x2_0000, 4096


@pytest.fixture
def vm() -> Iterator[x86.X86Vm]:
    with x86.open() as kvm, kvm.create_vm() as machine:
        machine.add_memory(0, 0x1_0000)
        yield machine


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(KvmError) as failure:
        yield
    assert failure.value.errno == code, errno.errorcode.get(failure.value.errno or 0)


def storing_guest(vm: x86.X86Vm, *pages: int) -> x86.X86Vcpu:
    """A guest that writes a byte into each of these pages of the slot at DATA, in order, and halts."""
    code = b"".join(b"\xa2" + (page * PAGE).to_bytes(2, "little") for page in pages)  # mov [page], al
    vm.memory[0][CODE : CODE + len(code) + 1] = code + b"\xf4"
    vcpu = vm.create_vcpu()
    vcpu.timeout = 5
    x86.real_mode(vcpu, ip=CODE)
    sregs = vcpu.sregs
    sregs.ds.base, sregs.ds.selector = DATA, DATA >> 4
    vcpu.sregs = sregs
    return vcpu


def test_dirty_log(vm: x86.X86Vm) -> None:
    vm.add_memory(DATA, 16 * PAGE, slot=3, flags=MemoryFlag.LOG_DIRTY_PAGES)
    vcpu = storing_guest(vm, 5, 2, 5)
    vm.get_dirty_log(3, 16)
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vm.get_dirty_log(3, 16) == [2, 5]
    assert vm.get_dirty_log(3, 16) == [], "reading clears"
    with refused(errno.ENOENT):
        vm.get_dirty_log(0, 16)


def test_manual_protection(vm: x86.X86Vm) -> None:
    vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
    vm.add_memory(DATA, 64 * PAGE, slot=3, flags=MemoryFlag.LOG_DIRTY_PAGES)
    vcpu = storing_guest(vm, 1, 9)
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vm.get_dirty_log(3, 64) == [1, 9] == vm.get_dirty_log(3, 64), "reading does not clear"
    vm.clear_dirty_log(3, [9], count=64)
    assert vm.get_dirty_log(3, 64) == [1]
    for first, count in ((1, 64), (0, 65), (64, 64), (0, 8)):
        with refused(errno.EINVAL):
            vm.clear_dirty_log(3, [], first=first, count=count)
    with refused(errno.EINVAL):
        vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 4)


def test_initially_all_set(vm: x86.X86Vm) -> None:
    if not vm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2) & 2:
        pytest.skip("NOT TESTED: this KVM has no KVM_DIRTY_LOG_INITIALLY_SET")
    vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 3)
    vm.add_memory(DATA, 64 * PAGE, slot=3, flags=MemoryFlag.LOG_DIRTY_PAGES)
    assert vm.get_dirty_log(3, 64) == list(range(64))


def test_dirty_ring(vm: x86.X86Vm) -> None:
    if not vm.check_extension(Cap.DIRTY_LOG_RING):
        pytest.skip("NOT TESTED: this KVM has no dirty rings")
    for size in (PAGE - 1, 3 * PAGE, 16):
        with refused(errno.EINVAL):
            vm.enable_dirty_rings(size)
    with refused(errno.E2BIG):
        vm.enable_dirty_rings(vm.check_extension(Cap.DIRTY_LOG_RING) * 2)
    vm.enable_dirty_rings(65536)
    with refused(errno.EINVAL):
        vm.enable_dirty_rings(65536)
    vm.add_memory(DATA, 16 * PAGE, slot=3, flags=MemoryFlag.LOG_DIRTY_PAGES)
    vcpu = storing_guest(vm, 5, 2, 5)
    ring = vcpu.dirty_ring
    assert ring.harvest() == []
    assert isinstance(vcpu.run(), x86.HltExit)
    pages = ring.harvest()
    assert pages[:2] == [DirtyPage(3, 5), DirtyPage(3, 2)], "in the order of the writes"
    assert pages[2:] == [DirtyPage(3, 5)] * EMULATES, "once each, unless stores are emulated: then each is noted"
    assert vm.reset_dirty_rings() == len(pages) and vm.reset_dirty_rings() == 0
    with refused(errno.ENXIO):
        vm.get_dirty_log(3, 16)
    vcpu.regs.rip = CODE
    assert isinstance(vcpu.run(), x86.HltExit)
    assert [page.page for page in ring.harvest()][:2] == [5, 2], "watched again after the reset"


def test_a_full_dirty_ring_ends_the_run(vm: x86.X86Vm) -> None:
    size = vm.check_extension(Cap.DIRTY_LOG_RING)
    if not size:
        pytest.skip("NOT TESTED: this KVM has no dirty rings")
    pages = 2048
    with x86.open() as kvm, kvm.create_vm() as machine:
        ram = machine.add_memory(0, 0x1_0000)
        for ring_size in (1 << bits for bits in range(12, 21)):
            try:
                machine.enable_dirty_rings(ring_size)
                break
            except KvmError:
                continue
        machine.add_memory(16 << 20, pages * PAGE, slot=3, flags=MemoryFlag.LOG_DIRTY_PAGES)
        # loop: mov [ebx], al; add ebx, 0x1000; mov ecx, 24; here: loop here; jmp loop
        # The pause is for KVMs that emulate a thousand instructions before they look at the ring, which has 64 entries in reserve.
        place(machine, 0x8000, "8803 81c300100000 b918000000 e2fe ebef")
        vcpu = machine.create_vcpu()
        x86.protected_mode(vcpu, ram, entry=0x8000)
        vcpu.regs.rbx = 16 << 20
        seen: list[int] = []
        fulls = 0
        while len(seen) < pages:
            exit = vcpu.run(timeout=10)
            seen += [page.page for page in vcpu.dirty_ring.harvest()]
            if not isinstance(exit, x86.DirtyRingFull):
                assert isinstance(exit, x86.MmioExit) and exit.phys_addr == (16 << 20) + pages * PAGE, exit
                break
            fulls += 1
            assert machine.reset_dirty_rings() > 0
        assert seen == list(range(pages)), "every page once, in order"
        assert fulls >= 2


def test_rings_have_to_be_asked_for(vm: x86.X86Vm) -> None:
    vcpu = vm.create_vcpu()
    with pytest.raises(NotSupported, match="enable_dirty_rings"):
        _ = vcpu.dirty_ring
    with refused(errno.EINVAL):
        vm.reset_dirty_rings()


def test_a_read_only_slot(vm: x86.X86Vm) -> None:
    memory = vm.add_memory(DATA, PAGE, slot=3, flags=MemoryFlag.READONLY)
    memory[7] = 0x5A
    place(vm, CODE, "a00700 a20800 f4")  # mov al, [7]; mov [8], al; hlt
    vcpu = storing_guest(vm)
    place(vm, CODE, "a00700 a20800 f4")
    write = vcpu.run()
    assert isinstance(write, x86.MmioExit) and write.is_write and (write.phys_addr, write.value) == (DATA + 8, 0x5A)
    assert isinstance(vcpu.run(), x86.HltExit) and memory[8] == 0


def test_coalesced_writes(vm: x86.X86Vm) -> None:
    vcpu = storing_guest(vm, 1, 2, 1, 3)
    vm.coalesce(DATA + PAGE, 2 * PAGE)
    vcpu.regs.rax = 0x77
    exit = vcpu.run()
    assert isinstance(exit, x86.MmioExit) and exit.phys_addr == DATA + 3 * PAGE, "outside the zone"
    assert vcpu.coalesced.drain() == [CoalescedWrite(DATA + page * PAGE, b"\x77") for page in (1, 2, 1)]
    assert vcpu.coalesced.drain() == []
    vm.uncoalesce(DATA + PAGE, 2 * PAGE)
    vcpu.regs.rip = CODE
    exit = vcpu.run()
    assert isinstance(exit, x86.MmioExit) and exit.phys_addr == DATA + PAGE


def test_coalesced_ports(vm: x86.X86Vm) -> None:
    if not vm.check_extension(Cap.COALESCED_PIO):
        pytest.skip("NOT TESTED: no KVM_CAP_COALESCED_PIO here")
    place(vm, CODE, "b041 e670 b042 e670 e671 f4")  # mov al, 'A'; out 0x70, al; mov al, 'B'; out 0x70, al; out 0x71, al
    vcpu = vm.create_vcpu()
    x86.real_mode(vcpu, ip=CODE)
    vm.coalesce(0x70, 1, pio=True)
    exit = vcpu.run(timeout=5)
    assert isinstance(exit, x86.IoExit) and exit.port == 0x71
    assert [(write.address, write.value, write.pio) for write in vcpu.coalesced.drain()] == [(0x70, 0x41, True), (0x70, 0x42, True)]


def test_coalesced_writes_that_find_the_ring_full_exit(vm: x86.X86Vm) -> None:
    place(vm, CODE, "e670 ebfc")  # loop: out 0x70, al; jmp loop
    vcpu = vm.create_vcpu()
    x86.real_mode(vcpu, ip=CODE)
    vm.coalesce(0x70, 1, pio=True)
    assert isinstance(vcpu.run(timeout=5), x86.IoExit)
    assert len(vcpu.coalesced.drain()) == 169
