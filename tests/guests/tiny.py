"""Guests of the project's own, assembled by its own assembler when a test wants them: no download, no cross compiler.

Each is a flat binary: loaded 512 KiB above the start of RAM, entered with the device tree in X0.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from struct import pack

from trapline.arm64.asm_program import assemble_program

ORIGIN = 0x4008_0000

PRINT = """
print:  ldrb  w2, [x1], #1          // x1: string; clobbers w2, x3
        cbz   w2, printed
        movz  x3, #0x0900, lsl #16  // the UART's data register
        strb  w2, [x3]
        b     print
printed: ret
"""

PSCI = """
off:    movz  w0, #0x8400, lsl #16
        movk  w0, #8                // SYSTEM_OFF
        hvc   #0
reset:  movz  w0, #0x8400, lsl #16
        movk  w0, #9                // SYSTEM_RESET
        hvc   #0
"""

HELLO = """
        adr   x1, hello
        bl    print
        b     off
hello:  .asciz "hello from the guest\\nEXIT: STATUS=43\\n"
        .align 2
"""

REBOOT = """
        adr   x1, again
        bl    print
        b     reset
again:  .asciz "once more\\n"
        .align 2
"""

ECHO = """
        movz  x4, #0x0900, lsl #16
wait:   ldr   w5, [x4, #0x18]       // flags: poll until the receive FIFO has something
        tbnz  w5, #4, wait
        ldr   w6, [x4]
        strb  w6, [x4]
        cmp   w6, #113              // q
        b.ne  wait
        b     off
"""

SILENT = """
here:   b     here
"""

LOST = """
        movz  x1, #0x0B00, lsl #16  // no memory, no device
        msr   s3_0_c12_c0_0, x1     // VBAR_EL1
        isb
        .word 0                     // undefined: the exception goes to a vector that cannot be fetched
"""

FIRST_CPU = """
        adr   x2, second            // CPU_ON(1, second, 0x2a)
        movz  x1, #1
        movz  x3, #0x2a
        movz  w0, #0xc400, lsl #16
        movk  w0, #3
        hvc   #0
wait:   adr   x5, flag
        ldar  w6, [x5]
        cbz   w6, wait
        adr   x1, done
        bl    print
        b     off
second: adr   x5, flag
        stlr  w0, [x5]              // the context argument, 0x2a
sleep:  wfi
        b     sleep
        .align 3
flag:   .word 0
done:   .asciz "the second CPU was here\\n"
        .align 2
"""


def build(text: str) -> bytes:
    """A guest with the helpers behind it."""
    return assemble_program(text + PRINT + PSCI, ORIGIN)


def as_elf(code: bytes) -> bytes:
    """The guest as an ELF executable with one segment, virtual addresses elsewhere than physical ones."""
    virtual = 0xFFFF_8000_0000_0000
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = pack("<HHIQQQIHHHHHH", 2, 183, 1, virtual, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = pack("<IIQQQQQQ", 1, 7, 120, virtual, ORIGIN, len(code), len(code), 8)
    return ident + header + segment + code


def as_image(code: bytes) -> bytes:
    """The guest behind an arm64 Image header that asks for the place it was assembled for."""
    branch = 0x1400_0010  # over the header
    return pack("<IIQQQQQQ4sI", branch, 0, 0x7_FFC0, 0x10_0000, 0xA, 0, 0, 0, b"ARM\x64", 0) + code


FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "flat": bytes,
    "elf": as_elf,
    "image": as_image,
    "gzip": lambda code: gzip.compress(as_image(code)),
}
