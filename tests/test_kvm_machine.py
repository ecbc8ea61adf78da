"""The hypervisor on the real software machine: small guests in machine code."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest

from trapline.abi import arm64
from trapline.abi.exits import Exit, IntrExit, MmioExit, SystemEvent, SystemEventType
from trapline.abi.vm import MEM_LOG_DIRTY_PAGES, MEM_READONLY
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE
from trapline.arm64.sysreg import generic_name
from trapline.backends.memory import GuestMemory
from trapline.backends.objects import System, Vm
from trapline.backends.software import Software
from trapline.backends.vcpu import Vcpu

RAM, DATA, UART = 0x4000_0000, 0x4010_0000, 0x0900_0000
MB = 1 << 20


@pytest.fixture(scope="module")
def kvm() -> Iterator[System]:
    pytest.importorskip("llvmlite")
    load_a64()
    with System(Software()) as system:
        yield system


def program(text: str, base: int = RAM) -> bytes:
    """Machine code; system registers may be given by name."""

    def generic(found: re.Match[str]) -> str:
        reg = TABLE.by_name.get(found[0].upper())
        return generic_name(reg.enc) if reg is not None else found[0]

    return assemble_program(re.sub(r"\w+_el[012]\b", generic, text), base)


class Guest:
    """A VM with 4 MiB of memory and a program at its start."""

    def __init__(self, kvm: System, text: str, vcpus: int = 1, flags: int = 0, features: tuple[int, ...] = ()) -> None:
        self.vm: Vm = kvm.create_vm()
        self.ram: GuestMemory = self.vm.add_memory(RAM, 4 * MB, flags=flags)
        self.ram.view[: len(code)] = code if (code := program(text)) else b""
        self.vcpus: list[Vcpu] = [
            self.vm.create_vcpu(features=[*features, *([arm64.Feature.POWER_OFF] if number else ())]) for number in range(vcpus)
        ]
        self.vcpu = self.vcpus[0]
        self.vcpu.regs.pc = RAM

    def run(self) -> Exit:
        """Run the first vCPU; a guest that does not exit is an error."""
        watchdog = threading.Timer(20, self.vcpu.kick)
        watchdog.start()
        try:
            return self.vcpu.run()
        finally:
            watchdog.cancel()

    def close(self) -> None:
        self.vm.close()


@pytest.fixture
def boot(kvm: System) -> Iterator:
    guests: list[Guest] = []

    def make(text: str, **keywords: int) -> Guest:
        guests.append(Guest(kvm, text, **keywords))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


def test_device_accesses(boot) -> None:
    guest = boot("""
        mov x1, #0x9000000
        mov x0, #0x1234
        str w0, [x1]
        ldrsb x2, [x1, #1]
        ldrh w3, [x1, #2]
        str x2, [x1, #8]
        str x3, [x1, #16]
        """)
    exit = guest.run()
    assert (exit.phys_addr, exit.value, exit.length, exit.is_write) == (UART, 0x1234, 4, True)
    exit = guest.run()
    assert (exit.phys_addr, exit.length, exit.is_write) == (UART + 1, 1, False)
    exit.data = 0x80
    exit = guest.run()
    assert (exit.phys_addr, exit.length) == (UART + 2, 2)
    exit.data = 0xBEEF
    assert guest.run().value == 0xFFFF_FFFF_FFFF_FF80
    assert guest.run().value == 0xBEEF


def test_memory_is_shared_both_ways(boot) -> None:
    guest = boot("""
        mov x1, #0x40100000
        ldr x0, [x1]
        add x0, x0, #1
        str x0, [x1, #8]
        mov x2, #0x9000000
        str x0, [x2]
        """)
    guest.ram[0x10_0000:0x10_0008] = (41).to_bytes(8, "little")
    assert guest.run().value == 42
    assert guest.ram[0x10_0008:0x10_0010] == (42).to_bytes(8, "little")


def test_write_to_readonly_memory_exits(boot) -> None:
    guest = boot(
        """
        mov x1, #0x40100000
        ldr x0, [x1]
        str x0, [x1, #8]
        ldr x0, [x1, #8]
        str x0, [x1, #16]
        """,
        flags=MEM_READONLY,
    )
    guest.ram[0x10_0000:0x10_0008] = (7).to_bytes(8, "little")
    exit = guest.run()
    assert (exit.phys_addr, exit.value, exit.is_write) == (DATA + 8, 7, True)
    exit = guest.run()
    assert (exit.phys_addr, exit.value) == (DATA + 16, 0)


def test_dirty_log_sees_stores(boot) -> None:
    guest = boot(
        """
        mov x1, #0x40100000
        mov x2, #0x9000000
        again:
        ldr x0, [x1]
        str x0, [x1, #4096]
        str x0, [x2]
        b again
        """,
        flags=MEM_LOG_DIRTY_PAGES,
    )
    for _ in range(3):
        guest.run()
        assert guest.vm.get_dirty_log(0, 1024) == [0x101]


def test_deleted_memory_is_gone_for_a_running_guest(boot) -> None:
    guest = boot("""
        mov x1, #0x50000000
        again:
        ldr x0, [x1]
        b again
        """)
    extra = guest.vm.add_memory(0x5000_0000, 2 * MB)
    seen: list[Exit] = []
    thread = threading.Thread(target=lambda: seen.append(guest.run()), daemon=True)
    thread.start()
    thread.join(0.2)
    assert not seen
    extra.close()
    thread.join(20)
    assert isinstance(seen[0], MmioExit) and seen[0].phys_addr == 0x5000_0000


def test_moved_memory(boot) -> None:
    guest = boot("""
        mov x1, #0x50000000
        mov x2, #0x9000000
        again:
        ldr x0, [x1]
        str x0, [x2]
        b again
        """)
    extra = guest.vm.add_memory(0x5000_0000, 2 * MB)
    extra[0:8] = (5).to_bytes(8, "little")
    assert guest.run().value == 5
    guest.vm.set_user_memory_region(extra.slot, 0, 0x6000_0000, extra.size, extra.address)
    exit = guest.run()
    assert exit.phys_addr == 0x5000_0000 and not exit.is_write
    guest.vm.set_user_memory_region(extra.slot, 0, 0x5000_0000, extra.size, extra.address)
    exit.data = 9
    assert guest.run().value == 9
    assert guest.run().value == 5


def test_spinning_guest_is_kicked(boot) -> None:
    guest = boot("here:\n b here")
    threading.Timer(0.1, guest.vcpu.kick).start()
    start = time.monotonic()
    assert guest.run() == IntrExit()
    assert time.monotonic() - start < 5


def test_a_guest_that_only_takes_exceptions_does_not_hold_up_others(boot) -> None:
    """Its vectors are at an address that cannot be fetched from; a flush of all TLBs waits for it."""
    fetch_abort = 0x8600_0000
    guest, other = boot("brk #0"), boot("mov x1, #0x9000000\nstr x0, [x1]")
    other.run()
    guest.vcpu.set_one_reg(arm64.reg_sysreg(3, 0, 12, 0, 0), 0xBAD_5EED_0BAD_5800)
    thread = threading.Thread(target=guest.vcpu.run)
    thread.start()
    state = guest.vm.backend.system.files.get(guest.vcpu.file).arch.cpu.state
    while not (state.running and state.sysreg[TABLE.by_name["ESR_EL1"].slot] == fetch_abort):
        pass  # the guest has not reached the first of its exceptions that cannot be taken
    closing = threading.Thread(target=other.close, daemon=True)
    closing.start()
    closing.join(20)
    held_up = closing.is_alive()
    guest.vcpu.kick()
    thread.join(20)
    assert not held_up and not thread.is_alive()


def test_undefined_and_identification(boot) -> None:
    guest = boot("""
        mov x1, #0x9000000
        mov x0, #0x40100000
        msr vbar_el1, x0
        mrs x0, id_aa64pfr0_el1
        str x0, [x1]
        mrs x0, mpidr_el1
        str x0, [x1]
        mrs x0, s3_0_c15_c0_0
        """)
    guest.ram.view[0x10_0200 : 0x10_0200 + 12] = program("mrs x0, esr_el1\n str x0, [x1]\n nop", DATA + 0x200)
    assert guest.run().value & 0xFFFF == 0x0011
    assert guest.run().value == 0x8000_0000
    assert guest.run().value == 1 << 25


SIGN = """
    mov x9, #0x9000000
    mov x0, #0x40100000
    msr vbar_el1, x0
    mov x0, #0x19
    msr tcr_el1, x0
    mrs x0, sctlr_el1
    mov x1, #0x80000000
    orr x0, x0, x1
    msr sctlr_el1, x0
    isb
    mov x0, #0x40000000
    mov x1, #0x5
    pacia x0, x1
    mov x2, x0
    autia x0, x1
    str x0, [x9]
    str x2, [x9]
    """


def test_pointer_authentication_when_asked_for(kvm: System) -> None:
    guest = Guest(kvm, SIGN, features=(arm64.Feature.PTRAUTH_ADDRESS, arm64.Feature.PTRAUTH_GENERIC))
    assert guest.run().value == 0x4000_0000
    assert guest.run().value != 0x4000_0000
    assert guest.vcpu.get_one_reg(arm64.reg_sysreg(3, 0, 0, 6, 1)) & 0xFF0
    guest.close()


def test_pointer_authentication_is_hidden_otherwise(boot) -> None:
    guest = boot(SIGN)
    guest.ram.view[0x10_0200:0x10_020C] = program("mrs x0, esr_el1\n str x0, [x9]\n nop", DATA + 0x200)
    assert guest.vcpu.get_one_reg(arm64.reg_sysreg(3, 0, 0, 6, 1)) & 0xFF0 == 0
    assert guest.run().value == 1 << 25, "undefined"


PSCI_ON = """
    mov x0, #0x3
    movk x0, #0xc400, lsl #16
    mov x1, #1
    mov x2, #0x40100000
    mov x3, #0x77
    hvc #0
    mov x4, #0x9000000
    str x0, [x4]
    mov x0, #0x8
    movk x0, #0x8400, lsl #16
    hvc #0
    """


def test_second_vcpu_is_turned_on_and_the_system_off(boot) -> None:
    guest = boot(PSCI_ON, vcpus=2)
    guest.ram.view[0x10_0000:0x10_0008] = program("mov x1, #0x9000000\n str x0, [x1, #8]", DATA)
    seen: list[Exit] = []
    thread = threading.Thread(target=lambda: seen.append(guest.vcpus[1].run()), daemon=True)
    thread.start()
    assert guest.run().value == 0
    thread.join(20)
    assert seen[0].phys_addr == UART + 8 and seen[0].value == 0x77
    assert guest.run() == SystemEvent(SystemEventType.SHUTDOWN, (0,))


def test_wfi_sleeps_until_the_timer_fires(boot) -> None:
    guest = boot("""
        mov x1, #0x9000000
        mov x0, #0xb2d0
        movk x0, #0x5f, lsl #16
        msr cntv_tval_el0, x0
        mov x0, #1
        msr cntv_ctl_el0, x0
        wfi
        mrs x0, cntv_ctl_el0
        str x0, [x1]
        """)
    start = time.monotonic()
    assert guest.run() == IntrExit() and guest.vcpu.device_irq_level == 1, "there is no interrupt controller but us"
    assert guest.run().value == 5, "enabled, condition met"
    assert 0.09 < time.monotonic() - start < 5


def test_eight_vcpus_count_together(boot) -> None:
    """Each adds 1 to a counter 20,000 times; guest atomics are the machine's."""
    guest = boot(
        """
        mov x1, #0x40100000
        mov x2, #20000
        mov x3, #1
        again:
        ldadd x3, x4, [x1]
        sub x2, x2, #1
        cbnz x2, again
        mov x1, #0x9000000
        str x0, [x1]
        """,
        vcpus=8,
    )
    for vcpu in guest.vcpus:
        vcpu.init()
        vcpu.regs.pc = RAM
    threads = [threading.Thread(target=vcpu.run, daemon=True) for vcpu in guest.vcpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert guest.ram[0x10_0000:0x10_0008] == (8 * 20000).to_bytes(8, "little")


def test_many_machines_one_after_another(kvm: System) -> None:
    """Processors are finite; VMs that are closed give theirs back."""
    for value in range(80):
        guest = Guest(kvm, f"mov x0, #{value}\n mov x1, #0x9000000\n str x0, [x1]")
        assert guest.run().value == value
        guest.close()


def test_a_vm_inherits_no_translations(kvm: System) -> None:
    """The next VM has the processor and the VMID of the one before, and less memory."""
    text = "mov x1, #0x50000000\nldr x0, [x1]\nmov x2, #0x9000000\nstr x0, [x2]"
    first = Guest(kvm, text)
    extra = first.vm.add_memory(0x5000_0000, 2 * MB)
    extra[0:8] = (7).to_bytes(8, "little")
    assert first.run().value == 7
    first.close()
    second = Guest(kvm, text)
    exit = second.run()
    second.close()
    assert isinstance(exit, MmioExit) and exit.phys_addr == 0x5000_0000 and not exit.is_write


def test_memory_that_holds_other_code(boot) -> None:
    """A slot is taken away, its memory gets another program, and it comes back."""
    guest = boot("nop\nmov x0, #1\nmov x2, #0x9000000\nstr x0, [x2]")
    assert guest.run().value == 1
    ram = guest.ram
    guest.vm.set_user_memory_region(ram.slot, 0, RAM, 0, ram.address)
    ram.view[4:8] = program("mov x0, #2")
    guest.vm.set_user_memory_region(ram.slot, 0, RAM, ram.size, ram.address)
    guest.vcpu.regs.pc = RAM  # the completed store moves it on by an instruction
    assert guest.run().value == 2


def test_a_register_set_by_userspace_changes_translation_at_once(kvm: System) -> None:
    """Two sets of tables map one address differently; userspace switches between them while the guest waits for a device."""
    va, tables = 0x1000_0000, (RAM + MB, RAM + MB + 0x10000)
    guest = Guest(kvm, "again:\nldr x1, [x0]\nstr w1, [x2]\nb again")
    try:

        def put(at: int, value: int) -> None:
            guest.ram.view[at - RAM : at - RAM + 8] = value.to_bytes(8, "little")

        for root, target in zip(tables, (RAM + 2 * MB, RAM), strict=True):
            put(root, root + 0x1000 | 3)
            put(root + 0x1000, root + 0x2000 | 3)
            put(root + 0x1000 + 8, RAM | 0x701)
            put(root + 0x2000 + (va >> 21) * 8, target | 0x701)
            put(root + 0x2000 + (UART >> 21) * 8, UART & ~(2 * MB - 1) | 0x705)
        guest.ram.view[2 * MB : 2 * MB + 4] = (1111).to_bytes(4, "little")
        guest.ram.view[0x100:0x104] = (2222).to_bytes(4, "little")
        regs, name = guest.vcpu, TABLE.by_name
        regs.set_one_reg(name["MAIR_EL1"].one_reg_id, 0xFF)
        regs.set_one_reg(name["TCR_EL1"].one_reg_id, 16 | 1 << 23 | 5 << 32)
        regs.set_one_reg(name["SCTLR_EL1"].one_reg_id, name["SCTLR_EL1"].reset_value() | 1)
        regs.regs.x2 = UART
        for root, offset, expected in ((tables[0], 0, 1111), (tables[1], 0x100, 2222), (tables[0], 0, 1111)):
            regs.set_one_reg(name["TTBR0_EL1"].one_reg_id, root)
            regs.regs.x0 = va + offset
            exit = guest.run()
            assert isinstance(exit, MmioExit) and exit.phys_addr == UART, exit
            assert int.from_bytes(exit.data, "little") == expected
    finally:
        guest.close()


@pytest.mark.parametrize("kvm_first", [False, True])
def test_the_threads_of_a_machine_end_with_its_last_file(kvm_first: bool) -> None:
    """Whichever is closed last; and whoever still holds the objects."""
    before = set(threading.enumerate())
    system = System(Software())
    vm = system.create_vm()
    ram = vm.add_memory(RAM, MB)
    code = program("mov x0, #100\nmsr cntv_tval_el0, x0\nmov x0, #1\nmsr cntv_ctl_el0, x0\nisb\nmov x1, #0x9000000\nstr w0, [x1]")
    ram[0 : len(code)] = code
    vcpu = vm.create_vcpu()
    vcpu.regs.pc = RAM
    while not isinstance(vcpu.run(), MmioExit):
        pass
    names = {"trapline-profiler", "trapline-tier1", "trapline-timers"}
    made = [thread for thread in threading.enumerate() if thread not in before and thread.name in names]
    assert {thread.name for thread in made} == names
    first, second = (system, vm) if kvm_first else (vm, system)
    first.close()
    assert all(thread.is_alive() for thread in made)
    second.close()
    for thread in made:
        thread.join(10)
        assert not thread.is_alive(), thread.name
