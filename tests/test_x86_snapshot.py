"""Snapshots of x86 VMs on the host's /dev/kvm: guests that are saved in the middle go on as if they had not been."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from x86_machine import needs_x86_kvm, place

from trapline import x86
from trapline.abi.x86 import EventFlag, MpState
from trapline.abi.x86_vm import IrqchipId
from trapline.backends.snapshot import x86 as state
from trapline.backends.snapshot.format import Snapshot
from trapline.errors import BadSnapshot, KvmError, NotSupported, SnapshotOrder
from trapline.x86 import Msr
from trapline.x86_64.registers import Cr4

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(60)]
CODE, HANDLER, STACK, DATA = 0x2_0000, 0x4_0000, 0x5_0000, 0x6_0000
VECTOR = 0x21
PRIORITY = 5

COUNT = """
again:
  inc rbx
  in al, 0x11
  movzx ecx, al
  add [0x60000], rcx
  mov rax, [0x60000]
  imul rdx, rbx
  xor rdx, rax
  mov eax, edx
  out 0x10, eax
  jmp again
"""
"""Counts in a register, adds up in memory what a device says, and tells of both."""


@pytest.fixture
def kvm() -> Iterator[x86.X86System]:
    with x86.open() as system:
        yield system


def make(kvm: x86.X86System, chips: bool = False, cpus: int = 1) -> x86.X86Vm:
    vm = kvm.create_vm()
    if chips:
        vm.create_irqchip()
        vm.create_pit()
    vm.add_memory(0, 1 << 20)
    for _ in range(cpus):
        vm.create_vcpu().timeout = 5
    return vm


def counting(kvm: x86.X86System) -> x86.X86Vm:
    from trapline.x86_64.asm import assemble

    vm = make(kvm)
    place(vm, CODE, assemble(COUNT).hex())
    x86.long_mode(vm.vcpus[0], vm.memory[0], entry=CODE, stack=STACK)
    vm.vcpus[0].regs.rdx = 1
    vm.vcpus[0].kvm_run.cr8 = PRIORITY
    return vm


def outputs(vm: x86.X86Vm, count: int) -> list[int]:
    """What the guest tells next. The last of its questions is answered, and it has not read that yet."""
    found: list[int] = []
    vcpu = vm.vcpus[0]
    while True:
        exit = vcpu.run(timeout=5)
        assert isinstance(exit, x86.IoExit)
        if exit.is_out:
            found.append(exit.value)
        else:
            exit.data = bytes([3 + vcpu.regs.rbx % 5])
            if len(found) >= count:
                return found


def everything(vm: x86.X86Vm) -> dict[str, Any]:
    """The state as a snapshot has it, less what time does."""
    found = state.save(vm)
    found.pop("clock")
    found.pop("pit")
    for vcpu in found["vcpus"]:
        vcpu["msrs"].pop(f"{Msr.TSC:x}")
    return found


def test_a_guest_that_was_saved_in_the_middle_goes_on_with_the_same_output(kvm: x86.X86System, tmp_path: Path) -> None:
    with counting(kvm) as vm:
        outputs(vm, 10)
        vm.snapshot(tmp_path / "ten", told=10)
        reference = outputs(vm, 20)
        registers, total = vm.vcpus[0].regs.dump(), bytes(vm.memory[0][DATA : DATA + 8])
    assert len(set(reference)) > 15
    with Snapshot(tmp_path / "ten") as snapshot:
        assert snapshot.document["told"] == 10
        for _ in range(2):
            with kvm.restore(snapshot) as vm:
                assert outputs(vm, 20) == reference
                assert (vm.vcpus[0].regs.dump(), bytes(vm.memory[0][DATA : DATA + 8])) == (registers, total)
                assert vm.vcpus[0].sregs.cr8 == PRIORITY


RESTORE = """
import sys
sys.path[:0] = sys.argv[2:]
from test_x86_snapshot import outputs, x86
with x86.open() as kvm, kvm.restore(sys.argv[1]) as vm:
    print(outputs(vm, 20))
"""


def test_it_goes_on_in_another_process(kvm: x86.X86System, tmp_path: Path) -> None:
    with counting(kvm) as vm:
        outputs(vm, 7)
        vm.snapshot(tmp_path / "seven")
        reference = outputs(vm, 20)
    command = [sys.executable, "-c", RESTORE, str(tmp_path / "seven"), str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert result.stdout == f"{reference}\n", result.stderr


def test_every_part_of_a_vm_comes_back(kvm: x86.X86System, tmp_path: Path) -> None:
    with make(kvm, chips=True, cpus=2) as vm:
        vm.set_tss_addr(0xFFFB_D000)
        vm.user_space_msrs(x86.MsrExitReason.FILTER)
        vm.set_msr_filter(x86.Range(0x1000, 64, allowed=[0x1001]))
        vm.set_msr_filter(x86.Range(0x2000, 8, allowed=[0x2003, 0x2001]))
        first, second = vm.vcpus
        x86.long_mode(first, vm.memory[0], entry=CODE, stack=STACK)
        first.regs.update(rax=0x1111, r15=-2, rflags=0x246)
        first.msrs.write({Msr.LSTAR: 0x1234, Msr.KERNEL_GS_BASE: 0x5678, Msr.SYSENTER_EIP: 0x9ABC, Msr.PAT: 0x0007_0406_0007_0406})
        debug = first.debugregs
        debug.db[2], debug.dr7 = 0x4321, 0x420
        first.debugregs = debug
        area = first.xsave
        area[160 : 160 + 256], area[512], area[24:28] = bytes(range(256)), 3, (0x1F80).to_bytes(4, "little")
        first.xsave = area
        events = first.events
        events.nmi.masked, events.flags = 1, EventFlag.NMI_PENDING
        first.events = events
        lapic = first.lapic
        lapic.regs[0xF0:0xF2], lapic.regs[0x350:0x352] = (0xFF, 0x01), (0x00, 0x07)
        first.lapic = lapic
        second.mp_state = MpState.INIT_RECEIVED
        ioapic = vm.get_irqchip(IrqchipId.IOAPIC)
        ioapic.redirtbl[4] = 1 << 56 | 0x31
        vm.set_irqchip(IrqchipId.IOAPIC, ioapic)
        pic = vm.get_irqchip(IrqchipId.PIC_SLAVE)
        pic.irq_base, pic.imr = 0x28, 0x5A
        vm.set_irqchip(IrqchipId.PIC_SLAVE, pic)
        pit = vm.pit
        pit.channels[2].count, pit.channels[2].mode = 0x1234, 3
        vm.pit = pit
        tsc, clock = first.msrs[Msr.TSC], vm.clock.clock
        saved = everything(vm)
        vm.snapshot(tmp_path / "all")
        made = [step for step in vm.made if step.what != "memory"]
        later = first.msrs[Msr.TSC], vm.clock.clock
    with kvm.restore(tmp_path / "all") as vm:
        assert everything(vm) == saved
        assert [step for step in vm.made if step.what != "memory"] == made
        assert vm.vcpus[1].mp_state is MpState.INIT_RECEIVED
        assert (vm.pit.channels[2].count, vm.pit.channels[2].mode) == (0x1234, 3)
        assert tsc <= vm.vcpus[0].msrs[Msr.TSC] < later[0] + 10 * 1000 * first_rate(saved), "it does not show the time in between"
        assert clock <= vm.clock.clock < later[1] + 10_000_000_000


def first_rate(saved: dict[str, Any]) -> int:
    """Thousands of ticks of the TSC in a second."""
    return int(saved["vcpus"][0].get("tsc_khz", 10_000_000))


def test_an_interrupt_that_was_pending_comes_after_the_restore(kvm: x86.X86System, tmp_path: Path) -> None:
    with make(kvm, chips=True) as vm:
        vcpu = vm.vcpus[0]
        place(vm, CODE, "e610 fb ebfe")  # out 0x10, al; sti; loop
        place(vm, HANDLER, "b021 e612 f4")  # mov al, 0x21; out 0x12, al; hlt
        x86.long_mode(vcpu, vm.memory[0], entry=CODE, stack=STACK).handle(VECTOR, HANDLER)
        pic = vm.get_irqchip(IrqchipId.PIC_MASTER)
        pic.irq_base, pic.imr = VECTOR & ~7, 0
        vm.set_irqchip(IrqchipId.PIC_MASTER, pic)
        lapic = vcpu.lapic
        lapic.regs[0xF0:0xF2], lapic.regs[0x350:0x352] = (0xFF, 0x01), (0x00, 0x07)  # on; LINT0 takes what the PIC sends
        vcpu.lapic = lapic
        assert isinstance(vcpu.run(timeout=5), x86.IoExit), "interrupts are still off"
        vm.set_irq(VECTOR & 7, 1)
        vm.snapshot(tmp_path / "pending")
    with kvm.restore(tmp_path / "pending") as vm:
        exit = vm.vcpus[0].run(timeout=5)
        assert isinstance(exit, x86.IoExit) and (exit.port, exit.value) == (0x12, VECTOR)


def test_steps_out_of_order_name_the_order(kvm: x86.X86System) -> None:
    with counting(kvm) as vm, make(kvm) as other:
        outputs(vm, 1)
        saved = state.save(vm)
        restore = state.X86Restore(other, None, saved)
        with pytest.raises(SnapshotOrder, match="vcpus comes after memory .*The order: memory, vcpus, chips, clock, the first run"):
            restore.vcpus()
        restore.memory()
        restore.vcpus()
        with pytest.raises(SnapshotOrder, match="vcpus was restored already"):
            restore.vcpus()
        with pytest.raises(SnapshotOrder, match="clock comes after chips"):
            restore.clock()
        with pytest.raises(SnapshotOrder, match="this VM has run"):
            state.X86Restore(vm, None, saved).everything()


def test_what_this_kvm_refuses_is_named(kvm: x86.X86System) -> None:
    with make(kvm) as vm, make(kvm) as other, make(kvm, cpus=2) as two:
        saved = state.save(vm)
        with pytest.raises(BadSnapshot, match=r"it has vCPUs \[0\], this VM \[0, 1\]"):
            state.X86Restore(two, None, saved).everything()
        saved["vcpus"][0]["msrs"][f"{Msr.LSTAR:x}"] = f"{1 << 62:x}"
        with pytest.raises(BadSnapshot, match=r"vCPU 0 its msrs: .*LSTAR\) does not take 0x40"):
            state.X86Restore(other, None, saved).everything()


def test_a_hypervisor_is_refused(kvm: x86.X86System, tmp_path: Path) -> None:
    with counting(kvm) as vm:
        sregs = vm.vcpus[0].sregs
        sregs.cr4 |= Cr4.VMXE.mask
        try:
            vm.vcpus[0].sregs = sregs
        except KvmError:
            pytest.skip("NOT TESTED: this host's guests have no VMX")
        with pytest.raises(NotSupported, match="makes VMs itself"):
            vm.snapshot(tmp_path / "nested")
