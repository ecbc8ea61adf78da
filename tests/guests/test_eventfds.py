"""Interrupts in and notifications out, through eventfds, without a single exit: a guest on the software machine."""

from __future__ import annotations

import os
import select
import threading

import pytest

import trapline
from tests.guests import tiny
from trapline.abi import arm64, irq

DIST, REDIST, ITS, DOORBELL, RAM, SPI = 0x800_0000, 0x80A_0000, 0x808_0000, 0xA00_0000, 0x4000_0000, 40
GROUPS = arm64.VgicGroup
LPI, DEVICE, EVENT = 8195, 3, 1
PATIENCE = 60

ECHO = """
        movz  x0, #0xF0
        msr   S3_0_C4_C6_0, x0
        movz  x0, #1
        msr   S3_0_C12_C12_7, x0
wait:   wfi
again:  mrs   x1, S3_0_C12_C12_0
        cmp   x1, #1023
        b.eq  wait
        msr   S3_0_C12_C12_1, x1
        str   w1, [x20]             // an eventfd takes it
        b     again
"""


def answered(file: int) -> int:
    """Wait until the guest has written an eventfd."""
    assert select.select([file], [], [], PATIENCE)[0], "no answer"
    return os.eventfd_read(file)


@pytest.mark.parametrize("resample", [False, True], ids=["edge", "resample"])
def test_echo(resample: bool) -> None:
    bell, answer, completed = (os.eventfd(0) for _ in range(3))
    with trapline.open("software") as kvm, kvm.create_vm() as vm:
        vcpu = vm.create_vcpu()
        gic = vm.create_device(arm64.DeviceType.ARM_VGIC_V3)
        gic.set_attr(GROUPS.ADDR, arm64.VgicAddr.V3_DIST, DIST)
        gic.set_attr(GROUPS.ADDR, arm64.VgicAddr.V3_REDIST, REDIST)
        gic.set_attr(GROUPS.CTRL, arm64.VgicCtrl.INIT)
        its = vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)
        its.set_attr(GROUPS.ADDR, arm64.VgicAddr.ITS, ITS)
        for offset, value in ((0, 2), (0x100 + 4, 1 << SPI - 32), (0xC00 + 8, 0 if resample else 2 << 2 * (SPI - 32))):
            gic.set_attr(GROUPS.DIST_REGS, offset, value, width=4)
        ram = vm.add_memory(RAM, 2 << 20)
        code = tiny.assemble_program(ECHO, RAM)
        ram[0 : len(code)] = code
        vcpu.regs.pc, vcpu.regs.x20 = RAM, DOORBELL
        vm.ioeventfd(DOORBELL, 4, answer)
        vm.irqfd(bell, SPI - 32, resamplefd=completed if resample else None)
        exits: list[object] = []
        guest = threading.Thread(target=lambda: exits.append(vcpu.run()))
        guest.start()
        for _ in range(50):
            os.eventfd_write(bell, 1)
            assert answered(answer) == 1
            if resample:
                assert answered(completed) == 1
        assert not exits
        vcpu.kick()
        guest.join(PATIENCE)
        assert [type(exit).__name__ for exit in exits] == ["IntrExit"]
    for file in (bell, answer, completed):
        os.close(file)


def test_messages_through_restored_tables() -> None:
    """User space alone sets the ITS up, as it would restore it: then the guest gets LPIs."""
    bell, answer = os.eventfd(0), os.eventfd(0)
    devices, collections, itt, properties, pending = (RAM + 0x10_0000 + 0x1_0000 * n for n in range(5))
    with trapline.open("software") as kvm, kvm.create_vm() as vm:
        vcpu = vm.create_vcpu()
        gic = vm.create_device(arm64.DeviceType.ARM_VGIC_V3)
        gic.set_attr(GROUPS.ADDR, arm64.VgicAddr.V3_DIST, DIST)
        gic.set_attr(GROUPS.ADDR, arm64.VgicAddr.V3_REDIST, REDIST)
        gic.set_attr(GROUPS.CTRL, arm64.VgicCtrl.INIT)
        its = vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)
        its.set_attr(GROUPS.ADDR, arm64.VgicAddr.ITS, ITS)
        ram = vm.add_memory(RAM, 2 << 20)

        def poke(address: int, value: int, size: int = 8) -> None:
            ram[address - RAM : address - RAM + size] = value.to_bytes(size, "little")

        poke(devices + 8 * DEVICE, 1 << 63 | itt >> 8 << 5 | 4)
        poke(itt + 8 * EVENT, LPI << 16)
        poke(collections, 1 << 63)
        poke(properties + LPI - 8192, 0xA1, 1)
        gic.set_attr(GROUPS.DIST_REGS, 0, 2, width=4)
        for offset, table in ((0x70, properties | 15), (0x78, pending)):
            gic.set_attr(GROUPS.REDIST_REGS, offset, table & 0xFFFF_FFFF, width=4)
            gic.set_attr(GROUPS.REDIST_REGS, offset + 4, table >> 32, width=4)
        gic.set_attr(GROUPS.REDIST_REGS, 0, 1, width=4)
        for offset, value in ((0x80, 1 << 63 | RAM), (0x100, 1 << 63 | devices), (0x108, 1 << 63 | collections)):
            its.set_attr(GROUPS.ITS_REGS, offset, value)
        its.set_attr(GROUPS.CTRL, arm64.VgicCtrl.ITS_RESTORE_TABLES)
        its.set_attr(GROUPS.ITS_REGS, 0, 1)
        vm.set_gsi_routing([irq.route_to_msi(70, ITS + 0x1_0040, EVENT, devid=DEVICE)])
        code = tiny.assemble_program(ECHO, RAM)
        ram[0 : len(code)] = code
        vcpu.regs.pc, vcpu.regs.x20 = RAM, DOORBELL
        vm.ioeventfd(DOORBELL, 4, answer, data=LPI)
        vm.irqfd(bell, 70)
        guest = threading.Thread(target=vcpu.run)
        guest.start()
        for _ in range(50):
            os.eventfd_write(bell, 1)
            assert answered(answer) == 1
        vcpu.kick()
        guest.join(PATIENCE)
    for file in (bell, answer):
        os.close(file)
