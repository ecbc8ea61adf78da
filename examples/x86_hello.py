"""A real mode guest that says hello through a PC's serial port: `python examples/x86_hello.py`, on an x86-64 host with /dev/kvm.

The guest is what a boot sector would be: 16-bit code that waits until the UART can take a character, and writes the next one.
"""

from __future__ import annotations

import sys

from trapline import x86
from trapline.x86_64.asm import assemble

COM1 = 0x3F8
LINE_STATUS = COM1 + 5
TRANSMITTER_EMPTY = 0x60

GUEST = """
    call start                  # leaves the text's address on the stack, wherever this was loaded
    .asciz "Hello from real mode!\n"
start:
    pop si
next:
    mov dx, 0x3fd
wait:
    in al, dx
    test al, 0x20
    jz wait
    lodsb
    test al, al
    jz done
    mov dx, 0x3f8
    out dx, al
    jmp next
done:
    hlt
"""


def main() -> int:
    """Run the guest until it halts; its output goes to stdout."""
    with x86.open() as kvm, kvm.create_vm() as vm:
        ram = vm.add_memory(0, 64 << 10)
        code = assemble(GUEST, bits=16)
        ram[0x7C00 : 0x7C00 + len(code)] = code
        vcpu = vm.create_vcpu()
        vcpu.timeout = 10
        x86.real_mode(vcpu, ip=0x7C00, stack=0x7000)
        for exit in vcpu.exits():
            match exit:
                case x86.IoExit(port=port, is_out=1) if port == COM1:
                    print(exit.data.decode("ascii"), end="")
                case x86.IoExit(port=port, is_out=0):
                    exit.data = TRANSMITTER_EMPTY if port == LINE_STATUS else 0xFF
                case x86.HltExit():
                    return 0
                case _:
                    print(vcpu.explain(exit), file=sys.stderr)
                    return 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
