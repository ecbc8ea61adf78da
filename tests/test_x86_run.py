"""x86 guests on the real /dev/kvm: modes, exits and the watchdog. Skipped where there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from x86_machine import EMULATES, needs_x86_kvm, place

import trapline
from trapline import x86
from trapline.errors import BadInput, NotSupported, Timeout

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(60)]


@pytest.fixture
def vm() -> Iterator[x86.X86Vm]:
    with x86.open() as kvm, kvm.create_vm() as machine:
        machine.add_memory(0, 1 << 20)
        yield machine


@pytest.fixture
def vcpu(vm: x86.X86Vm) -> x86.X86Vcpu:
    vcpu = vm.create_vcpu()
    vcpu.timeout = 5
    return vcpu


def test_the_same_call_opens_it() -> None:
    with trapline.open(backend="kvm") as kvm, kvm.create_vm() as vm:
        assert isinstance(vm, x86.X86Vm) and kvm.api_version == 12


def test_real_mode_port_output(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x1000, "b02a e610 f4")  # mov al, 42; out 0x10, al; hlt
    x86.real_mode(vcpu, ip=0x1000)
    match vcpu.run():
        case x86.IoExit(port=0x10, is_out=1) as out:
            assert out.value == 42 and out.size == 1
        case other:
            pytest.fail(f"{other!r}")
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rip == 0x1005


def test_real_mode_segments(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2010, "a00000 f4")  # mov al, [0]; hlt
    place(vm, 0x2000, "77")
    x86.real_mode(vcpu, ip=0x10, segment=0x200)
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rax & 0xFF == 0x77


def test_port_input(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x1000, "66ed f4")  # in eax, dx; hlt
    x86.real_mode(vcpu, ip=0x1000)
    vcpu.regs.rdx = 0xCFC
    exit = vcpu.run()
    assert isinstance(exit, x86.IoExit) and not exit.is_out and (exit.port, exit.size) == (0xCFC, 4)
    exit.data = 0xDEADBEEF
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rax == 0xDEADBEEF


def test_string_output_comes_item_by_item_or_at_once(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x1000, "f36e f4")  # rep outsb; hlt
    vm.memory[0][0x3000:0x3005] = b"Hello"
    x86.real_mode(vcpu, ip=0x1000)
    vcpu.regs.update(rcx=5, rsi=0x3000, rdx=0x3F8)
    text = b""
    while isinstance(exit := vcpu.run(), x86.IoExit):
        text += exit.data
    assert text == b"Hello" and isinstance(exit, x86.HltExit)


def test_protected_mode(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x8000, "b878563412 a300004000 a100004000 f4")  # mov eax, 0x12345678; mov [0x400000], eax; mov eax, [0x400000]; hlt
    x86.protected_mode(vcpu, vm.memory[0], entry=0x8000, stack=0x9000)
    write = vcpu.run()
    assert isinstance(write, x86.MmioExit) and (write.phys_addr, write.value, write.is_write) == (0x40_0000, 0x12345678, True)
    read = vcpu.run()
    assert isinstance(read, x86.MmioExit) and not read.is_write
    read.data = 0x55AA
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rax == 0x55AA


def test_protected_mode_paging(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "a100000080 f4")  # mov eax, [0x80000000]; hlt
    try:
        room = x86.protected_mode(vcpu, vm.memory[0], entry=0x2_0000, paging=4 << 20)
    except NotSupported as reason:
        pytest.skip(f"NOT TESTED: {reason}")
    assert room.tables is not None
    room.tables.map(0x8000_0000, 0x3_0000, 4096)
    place(vm, 0x3_0000, "efbe0000")
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rax == 0xBEEF
    assert vcpu.translate(0x8000_0123) == 0x3_0123 and vcpu.translate(0x9000_0000) is None


def test_long_mode_paging_and_faults(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    ram = vm.memory[0]
    high = 0xFFFF_8000_0000_0000
    # mov rbx, high; mov rax, [rbx]; mov rcx, [rbx + 0x1000]; hlt
    place(vm, 0x2_0000, "48bb 000000000080ffff 488b03 488b8b00100000 f4")
    place(vm, 0x4_0000, "5a f4")  # the page fault handler: pop rdx (the error code); hlt
    place(vm, 0x3_0000, "8877665544332211")
    room = x86.long_mode(vcpu, ram, entry=0x2_0000, stack=0x5_0000)
    assert room.tables is not None
    room.tables.map(high, 0x3_0000, 4096, writable=False)
    room.handle(14, 0x4_0000)
    assert isinstance(vcpu.run(), x86.HltExit)
    regs = vcpu.regs.read()
    assert regs.rax == 0x1122334455667788
    assert regs.rip == 0x4_0002 and regs.rdx == 0, "a read of a page that is not present, by the kernel"
    assert vcpu.sregs.cr2 == high + 0x1000
    assert vcpu.translate(high + 8) == room.tables.translate(high + 8) == 0x3_0008


def test_a_write_to_a_read_only_page_faults(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "890425 00006000 f4")  # mov [0x600000], eax; hlt
    place(vm, 0x4_0000, "5a f4")
    room = x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000, stack=0x5_0000)
    assert room.tables is not None
    room.tables.map(0x60_0000, 0x3_0000, 4096, writable=False)
    room.handle(14, 0x4_0000)
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rdx == 3, "a write to a page that is present"
    assert vm.memory[0][0x3_0000] == 0


def test_triple_fault(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "0f0b")  # ud2, and no handlers
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000, stack=0x5_0000)
    exit = vcpu.run()
    assert isinstance(exit, x86.ShutdownExit)
    assert "triple fault" in vcpu.explain(exit) and "64-bit mode" in vcpu.explain(exit)


def test_an_instruction_that_nobody_can_emulate(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "660fefc0 f4")  # pxor xmm0, xmm0; hlt
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000)
    exit = vcpu.run()
    if not EMULATES and isinstance(exit, x86.HltExit):
        pytest.skip("NOT TESTED: this host runs SSE in guests natively, and has to emulate nothing here")
    assert isinstance(exit, x86.InternalError)
    text = vcpu.explain(exit)
    assert "cannot run this guest" in text and "66 0f ef c0" in text and "rip 0000000000020000" in text


@pytest.mark.parametrize("code", ["ebfe", "0f01c1", "0f01d9"], ids=["loop", "vmcall", "vmmcall"])
def test_watchdog(vm: x86.X86Vm, vcpu: x86.X86Vcpu, code: str) -> None:
    """A guest that never leaves; some hosts' KVM never finish a hypercall either."""
    place(vm, 0x2_0000, code + "ebfe")
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000)
    with pytest.raises(Timeout, match="0.2 s without an exit"):
        vcpu.run(timeout=0.2)
    assert 0x2_0000 <= vcpu.regs.rip <= 0x2_0003
    place(vm, 0x1000, "f4")
    vcpu.regs.rip = 0x1000
    assert isinstance(vcpu.run(timeout=5), x86.HltExit), "nothing of the timeout is left"


def test_watchdog_in_other_threads(vm: x86.X86Vm) -> None:
    """Two vCPUs with deadlines of their own, neither in the main thread."""
    place(vm, 0x1000, "ebfe")
    ended: list[float] = []

    def body(seconds: float) -> None:
        vcpu = vm.create_vcpu()
        x86.real_mode(vcpu, ip=0x1000)
        with pytest.raises(Timeout):
            vcpu.run(timeout=seconds)
        ended.append(seconds)

    threads = [threading.Thread(target=body, args=(seconds,)) for seconds in (0.4, 0.1)]
    for thread in threads:
        thread.start()
        thread.join(0.02)
    for thread in threads:
        thread.join(10)
    assert ended == [0.1, 0.4]


def test_kick(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x1000, "ebfe")
    x86.real_mode(vcpu, ip=0x1000)
    vcpu.kick()
    assert isinstance(vcpu.run(), x86.IntrExit), "a kick before the run counts"
    timer = threading.Timer(0.1, vcpu.kick)
    timer.start()
    assert isinstance(vcpu.run(timeout=10), x86.IntrExit)
    timer.join()


def test_immediate_exit_completes_what_is_pending(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x1000, "e410 f4")  # in al, 0x10; hlt
    x86.real_mode(vcpu, ip=0x1000)
    exit = vcpu.run()
    assert isinstance(exit, x86.IoExit)
    exit.data = 7
    assert vcpu.regs.rip == 0x1000
    vcpu.immediate_exit = True
    assert isinstance(vcpu.run(), x86.IntrExit)
    assert (vcpu.regs.rip, vcpu.regs.rax & 0xFF) == (0x1002, 7)
    vcpu.immediate_exit = False
    assert isinstance(vcpu.run(), x86.HltExit)


def test_single_step_and_breakpoints(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "90 90 90 cc f4")
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000, stack=0x5_0000)
    vcpu.set_guest_debug(single_step=True)
    exit = vcpu.run()
    assert isinstance(exit, x86.DebugExit) and (exit.exception, exit.pc) == (1, 0x2_0001)
    vcpu.set_guest_debug(software=True)
    exit = vcpu.run()
    if not (EMULATES and isinstance(exit, x86.InternalError)):  # INT3 cannot be emulated in 64-bit mode
        assert isinstance(exit, x86.DebugExit) and (exit.exception, exit.pc) == (3, 0x2_0003)
    with pytest.raises(BadInput, match="4 breakpoints"):
        vcpu.set_guest_debug(breakpoints=range(5))
