"""A 64-bit guest with page tables of its own: `python examples/x86_long_mode.py`, on an x86-64 host with /dev/kvm.

Its code is mapped twice, low and in the upper half. It jumps up, writes to a page that is read-only, and its handler for page faults
asks the host, by a port, what to do: the host maps the page writable, and the guest goes on.
"""

from __future__ import annotations

import sys

from trapline import x86
from trapline.x86_64.asm import assemble

CODE, HANDLER, STACK, DATA = 0x10_0000, 0x11_0000, 0x18_0000, 0x12_0000
UPPER = 0xFFFF_8000_0000_0000
ASK, REPORT = 0x80, 0x81

GUEST = f"""
    movabs rax, {UPPER + CODE + 0x20:#x}
    jmp rax
    .org 0x20
    movabs rbx, {UPPER + DATA:#x}
    mov eax, 0x600d
    mov dword ptr [rbx], eax        # a page fault the first time
    mov eax, dword ptr [rbx]
    out {REPORT:#x}, eax
    hlt
"""
PAGE_FAULT = f"""
    push rax
    mov rax, cr2
    out {ASK:#x}, eax
    invlpg byte ptr [rax]
    pop rax
    add rsp, 8                      # the error code
    iretq
"""


def main() -> int:
    """Run it; the exit status says whether the guest wrote what it wanted."""
    with x86.open() as kvm, kvm.create_vm() as vm:
        ram = vm.add_memory(0, 2 << 20)
        for address, text in ((CODE, GUEST), (HANDLER, PAGE_FAULT)):
            code = assemble(text)
            ram[address : address + len(code)] = code
        vcpu = vm.create_vcpu()
        vcpu.timeout = 10
        room = x86.long_mode(vcpu, ram, entry=CODE, stack=STACK)
        assert room.tables is not None
        room.tables.map(UPPER + CODE, CODE, 0x1_0000)
        room.tables.map(UPPER + DATA, DATA, 0x1000, writable=False, executable=False)
        room.handle(14, HANDLER)
        for exit in vcpu.exits():
            match exit:
                case x86.IoExit(port=port) if port == ASK:
                    linear = vcpu.sregs.cr2
                    print(f"page fault at {linear:#x}, which is {vcpu.translate(linear):#x}: it may write now")
                    room.tables.map(linear & -4096, DATA, 0x1000, executable=False)
                case x86.IoExit(port=port, value=value) if port == REPORT:
                    print(f"the guest at {vcpu.regs.rip:#x} reads back {value:#x}")
                case x86.HltExit():
                    return 0 if ram[DATA : DATA + 4] == bytes.fromhex("0d600000") else 1
                case _:
                    print(vcpu.explain(exit), file=sys.stderr)
                    return 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
