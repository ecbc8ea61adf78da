// A guest that expects the silicon of a vertically integrated machine: twenty implementation-defined system registers, used the way
// such a system's start-up code does. On any other machine the first access is an undefined instruction.
//
// Flat binary at 0x40080000; prints on the PL011; ends with PSCI SYSTEM_OFF. x19 counts the registers that worked.

        adr   x0, vectors
        msr   s3_0_c12_c0_0, x0     // VBAR_EL1
        isb
        movz  x19, #0
        adr   x1, greeting
        bl    print

// Eleven registers of "chicken bits": each is read, a bit is set, and the bit has to stay.
        mrs   x0, s3_0_c15_c0_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c0_0, x0
        isb
        mrs   x0, s3_0_c15_c0_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c1_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c1_0, x0
        isb
        mrs   x0, s3_0_c15_c1_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c3_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c3_0, x0
        isb
        mrs   x0, s3_0_c15_c3_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c4_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c4_0, x0
        isb
        mrs   x0, s3_0_c15_c4_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c5_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c5_0, x0
        isb
        mrs   x0, s3_0_c15_c5_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c6_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c6_0, x0
        isb
        mrs   x0, s3_0_c15_c6_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c7_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c7_0, x0
        isb
        mrs   x0, s3_0_c15_c7_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c8_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c8_0, x0
        isb
        mrs   x0, s3_0_c15_c8_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c9_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c9_0, x0
        isb
        mrs   x0, s3_0_c15_c9_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c10_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c10_0, x0
        isb
        mrs   x0, s3_0_c15_c10_0
        tbz   w0, #8, wrong
        add   x19, x19, #1
        mrs   x0, s3_0_c15_c11_0
        orr   x0, x0, #0x100
        msr   s3_0_c15_c11_0, x0
        isb
        mrs   x0, s3_0_c15_c11_0
        tbz   w0, #8, wrong
        add   x19, x19, #1

// Performance counters: control and status, then two counters that have to count.
        movz  x0, #0x3
        msr   s3_1_c15_c0_0, x0
        mrs   x0, s3_1_c15_c0_0
        cmp   x0, #0x3
        b.ne  wrong
        add   x19, x19, #1
        movz  x0, #0x3
        msr   s3_1_c15_c1_0, x0
        mrs   x0, s3_1_c15_c1_0
        cmp   x0, #0x3
        b.ne  wrong
        add   x19, x19, #1
        movz  x0, #0x3
        msr   s3_1_c15_c13_0, x0
        mrs   x0, s3_1_c15_c13_0
        cmp   x0, #0x3
        b.ne  wrong
        add   x19, x19, #1
        mrs   x4, s3_2_c15_c0_0
        mrs   x5, s3_2_c15_c0_0
        cmp   x5, x4
        b.ls  wrong
        add   x19, x19, #1
        mrs   x4, s3_2_c15_c1_0
        mrs   x5, s3_2_c15_c1_0
        cmp   x5, x4
        b.ls  wrong
        add   x19, x19, #1

// Interrupts between processors: requests are written, and none is pending.
        movz  x0, #0x1
        msr   s3_5_c15_c0_0, x0
        add   x19, x19, #1
        msr   s3_5_c15_c0_1, x0
        add   x19, x19, #1
        mrs   x0, s3_5_c15_c1_1
        cbnz  x0, wrong
        add   x19, x19, #1

// What the processor says it is.
        mrs   x0, s3_4_c15_c5_0
        cmp   x0, #0x20
        b.ne  wrong
        add   x19, x19, #1

        cmp   x19, #20
        b.ne  wrong
        adr   x1, all
        bl    print
        b     off

wrong:  adr   x1, unexpected
        bl    print
off:    movz  w0, #0x8400, lsl #16
        movk  w0, #8
        hvc   #0

print:  ldrb  w2, [x1], #1
        cbz   w2, printed
        movz  x3, #0x0900, lsl #16
        strb  w2, [x3]
        b     print
printed: ret

undef:  adr   x1, undefined
        bl    print
        b     off

greeting: .asciz "looking for my silicon\n"
all:    .asciz "all 20 registers are there\n"
unexpected: .asciz "a register does not do what it should\nEXIT: STATUS=3\n"
undefined: .asciz "undefined instruction\nEXIT: STATUS=5\n"
        .align 11
vectors: .space 0x200
        b     undef
