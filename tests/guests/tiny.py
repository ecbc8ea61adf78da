"""Guests of the project's own, assembled by its own assembler when a test wants them: no download, no cross compiler.

Each is a flat binary: loaded 512 KiB above the start of RAM, entered with the device tree in X0.
"""

from __future__ import annotations

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
