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

PATIENT_ECHO = """
        movz  x4, #0x0900, lsl #16
        movz  w7, #1000
idle:   ldr   w5, [x4, #0x18]       // so often that the flags come from memory before anything is typed
        sub   w7, w7, #1
        cbnz  w7, idle
        movz  w6, #33               // !
        strb  w6, [x4]
wait:   ldr   w5, [x4, #0x18]
        tbnz  w5, #4, wait
        ldr   w6, [x4]
        strb  w6, [x4]
        cmp   w6, #113              // q
        b.ne  wait
        b     off
"""

LEDGER = """
        movz  x4, #0x0900, lsl #16
        movz  x9, #0x4020, lsl #16
        movz  x10, #0
count:  add   x10, x10, #1          // each number goes to one of 64 pages
        and   x11, x10, #63
        add   x11, x9, x11, lsl #12
        str   x10, [x11]
        ldr   w5, [x4, #0x18]
        tbnz  w5, #4, count
        ldr   w6, [x4]
        strb  w6, [x4]
        cmp   w6, #113              // q
        b.ne  count
        movz  w12, #0
check:  sub   x13, x10, x12         // and the last 64 have to be there
        and   x11, x13, #63
        add   x11, x9, x11, lsl #12
        ldr   x14, [x11]
        cmp   x14, x13
        b.ne  lost
        add   w12, w12, #1
        cmp   w12, #64
        b.ne  check
        adr   x1, good
        bl    print
        b     off
lost:   adr   x1, bad
        bl    print
        b     off
good:   .asciz ": nothing lost\\n"
bad:    .asciz ": LOST\\n"
        .align 2
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

AT_EL2 = (
    """
        adr   x0, upper
        msr   s3_4_c12_c0_0, x0     // VBAR_EL2; its vectors go on at x28
        adr   x0, lower
        msr   s3_0_c12_c0_0, x0     // VBAR_EL1; its vectors go on at x27
        mrs   x1, s3_0_c4_c2_2      // CurrentEL
        lsr   x1, x1, #2
        add   w1, w1, #48
        bl    put
        movz  x20, #0x8000, lsl #16 // HCR_EL2.RW
        adr   x21, at_el1
        bl    lower_to_el1
at_el1: adr   x27, in_svc
        svc   #0
in_svc: mov   w1, #115              // s
        bl    put
        adr   x28, in_hvc
        hvc   #0
in_hvc: mov   w1, #104              // h
        mov   w4, #0x16
        bl    check
        movz  x20, #0x8400, lsl #16 // and HCR_EL2.TVM
        adr   x21, again
        bl    lower_to_el1
again:  adr   x28, in_trap
        msr   s3_0_c1_c0_0, x0      // SCTLR_EL1
in_trap: mov  w1, #116              // t
        mov   w4, #0x18
        bl    check
        adr   x28, in_undefined
        .word 0
in_undefined: mov w1, #117          // u
        mov   w4, #0
        bl    check
        movz  x5, #0x0800, lsl #16  // the distributor
        mov   w6, #2
        str   w6, [x5]              // group 1 on
        mov   x6, #0xff
        msr   s3_0_c4_c6_0, x6      // ICC_PMR_EL1
        mov   x6, #1
        msr   s3_0_c12_c12_7, x6    // ICC_IGRPEN1_EL1
        movz  x20, #0x8000, lsl #16
        orr   x20, x20, #0x10       // HCR_EL2.IMO
        msr   s3_4_c1_c1_0, x20
        adr   x28, in_irq
        .word 0xd50342ff            // msr daifclr, #2
        movz  x6, #0x0300, lsl #16
        movk  x6, #1
        msr   s3_0_c12_c11_5, x6    // ICC_SGI1R_EL1: SGI 3 to CPU 0
idle:   b     idle
in_irq: mrs   x6, s3_0_c12_c12_0    // ICC_IAR1_EL1
        cmp   x6, #3
        b.ne  idle
        msr   s3_0_c12_c12_1, x6    // ICC_EOIR1_EL1
        mov   w1, #105              // i
        bl    put
        movz  x20, #4, lsl #32      // HCR_EL2.E2H
        msr   s3_4_c1_c1_0, x20
        isb
        mov   x6, #0x8000
        msr   s3_0_c12_c0_0, x6     // VBAR_EL1 is VBAR_EL2 now
        mrs   x7, s3_4_c12_c0_0
        cmp   x6, x7
        b.ne  idle
        mrs   x7, s3_5_c12_c0_0     // VBAR_EL12
        adr   x6, lower
        cmp   x6, x7
        b.ne  idle
        mov   w1, #118              // v
        bl    put
        mov   w1, #10
        bl    put
        movz  w0, #0x8400, lsl #16
        movk  w0, #8                // SYSTEM_OFF
        smc   #0

lower_to_el1: msr s3_4_c1_c1_0, x20 // HCR_EL2
        mov   x0, #0x3c5
        msr   s3_4_c4_c0_0, x0      // SPSR_EL2
        msr   s3_4_c4_c0_1, x21     // ELR_EL2
        eret
check:  mrs   x0, s3_4_c5_c2_0      // ESR_EL2: its class has to be w4
        lsr   x0, x0, #26
        cmp   w0, w4
        b.ne  idle
put:    movz  x3, #0x0900, lsl #16
        strb  w1, [x3]
        ret
        .align 11
upper:  """
    + "br x28\n .align 7\n" * 16
    + """
        .align 11
lower:  """
    + "br x27\n .align 7\n" * 16
)

LOST_AT_EL2 = LOST.replace("s3_0_c12_c0_0", "s3_4_c12_c0_0").replace("VBAR_EL1", "VBAR_EL2")

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
