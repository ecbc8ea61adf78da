"""A guest of a guest: a program for Linux that runs a virtual machine by /dev/kvm, and the virtual machine. All in the project's assembler.

The inner guest prints a letter at a time by storing it where no memory is: A at its start, V after a call to PSCI, I for each of five
timer interrupts that end a WFI, S for an interrupt that it sends to itself, D when it is done.
"""

from __future__ import annotations

from struct import pack

from trapline.arm64.asm_program import assemble_program

INNER_BASE, OUTPUT = 0x8000_0000, 0x1000_0000
PROGRAM_BASE = 0x40_0000
HEADERS = 64 + 56

INNER = """
        movz  x19, #0x1000, lsl #16
        mov   w1, #65
        strb  w1, [x19]
        adr   x0, vectors
        msr   s3_0_c12_c0_0, x0     // VBAR_EL1
        movz  w0, #0x8400, lsl #16  // PSCI_VERSION
        hvc   #0
        lsr   w0, w0, #16
        cmp   w0, #1
        b.ne  stop
        mov   w1, #86
        strb  w1, [x19]
        movz  x5, #0x0800, lsl #16
        mov   w6, #2
        str   w6, [x5]              // distributor: group 1 on
        movz  x5, #0x080b, lsl #16
        movn  w6, #0
        str   w6, [x5, #0x80]       // all private interrupts in group 1
        movz  w6, #0x0800, lsl #16
        str   w6, [x5, #0x100]      // the virtual timer's on
        mov   x6, #0xf0
        msr   s3_0_c4_c6_0, x6      // ICC_PMR_EL1
        mov   x6, #1
        msr   s3_0_c12_c12_7, x6    // ICC_IGRPEN1_EL1
        isb
        mov   x20, #0
        mov   x21, #0
        mov   x22, #0
again:  mrs   x6, s3_3_c14_c0_2     // CNTVCT_EL0
        add   x6, x6, #0x800
        msr   s3_3_c14_c3_2, x6     // CNTV_CVAL_EL0
        mov   x6, #1
        msr   s3_3_c14_c3_1, x6     // CNTV_CTL_EL0
        isb
asleep: cmp   x21, x20
        b.ne  awake
        wfi
        .word 0xd50342ff            // msr daifclr, #2
        isb
        .word 0xd50342df            // msr daifset, #2
        b     asleep
awake:  mov   x20, x21
        cmp   x20, #5
        b.ne  again
        movz  x6, #0x0300, lsl #16
        movk  x6, #1
        msr   s3_0_c12_c11_5, x6    // ICC_SGI1R_EL1: SGI 3 to CPU 0
        isb
        .word 0xd50342ff
spin:   cbz   x22, spin
        mov   w1, #68
        strb  w1, [x19]
stop:   b     stop
irq:    mrs   x6, s3_0_c12_c12_0    // ICC_IAR1_EL1
        cmp   x6, #27
        b.ne  other
        msr   s3_3_c14_c3_1, xzr
        isb
        add   x21, x21, #1
        mov   w1, #73
        strb  w1, [x19]
        b     ended
other:  mov   x22, #1
        mov   w1, #83
        strb  w1, [x19]
ended:  msr   s3_0_c12_c12_1, x6    // ICC_EOIR1_EL1
        isb
        eret
        .align 11
vectors:
""" + "".join(f".align 7\nb {'irq' if k == 5 else 'stop'}\n" for k in range(16))

OUTER = """
        movn  x0, #99               // AT_FDCWD
        adr   x1, path
        mov   x2, #2
        mov   x8, #56               // openat
        bl    call
        mov   x19, x0
        movz  x1, #0xae01           // KVM_CREATE_VM
        mov   x2, #0
        bl    ioctl
        mov   x20, x0
        mov   x0, #0
        movz  x1, #0x20, lsl #16
        mov   x2, #3
        mov   x3, #0x21
        movn  x4, #0
        mov   x5, #0
        mov   x8, #222              // mmap
        bl    call
        adr   x9, region
        str   x0, [x9, #24]
        adr   x10, inner
        adr   x11, inner_end
copy:   ldr   w12, [x10], #4
        str   w12, [x0], #4
        cmp   x10, x11
        b.ne  copy
        mov   x0, x20
        movz  x1, #0xae46
        movk  x1, #0x4020, lsl #16  // KVM_SET_USER_MEMORY_REGION
        adr   x2, region
        bl    ioctl
        mov   x0, x20
        movz  x1, #0xae41           // KVM_CREATE_VCPU
        mov   x2, #0
        bl    ioctl
        mov   x22, x0
        mov   x0, x20
        movz  x1, #0xaee0
        movk  x1, #0xc00c, lsl #16  // KVM_CREATE_DEVICE
        adr   x2, device
        bl    ioctl
        adr   x9, device
        ldr   w23, [x9, #4]
        adr   x2, at_dist
        bl    attribute
        adr   x2, at_redist
        bl    attribute
        mov   x0, x20
        movz  x1, #0xaeaf
        movk  x1, #0x8020, lsl #16  // KVM_ARM_PREFERRED_TARGET
        adr   x2, target
        bl    ioctl
        adr   x9, target
        mov   w10, #4               // PSCI_0_2
        str   w10, [x9, #4]
        mov   x0, x22
        movz  x1, #0xaeae
        movk  x1, #0x4020, lsl #16  // KVM_ARM_VCPU_INIT
        adr   x2, target
        bl    ioctl
        adr   x2, at_init
        bl    attribute
        mov   x0, x22
        movz  x1, #0xaeac
        movk  x1, #0x4010, lsl #16  // KVM_SET_ONE_REG
        adr   x2, set_pc
        bl    ioctl
        mov   x0, x19
        movz  x1, #0xae04           // KVM_GET_VCPU_MMAP_SIZE
        mov   x2, #0
        bl    ioctl
        mov   x1, x0
        mov   x0, #0
        mov   x2, #3
        mov   x3, #1
        mov   x4, x22
        mov   x5, #0
        mov   x8, #222
        bl    call
        mov   x24, x0
run:    mov   x0, x22
        movz  x1, #0xae80           // KVM_RUN
        mov   x2, #0
        bl    ioctl
        ldr   w9, [x24, #8]
        cmp   w9, #6                // KVM_EXIT_MMIO
        b.ne  failed
        mov   x0, #1
        add   x1, x24, #40
        mov   x2, #1
        mov   x8, #64               // write
        bl    call
        ldrb  w9, [x24, #40]
        cmp   w9, #68               // D
        b.ne  run
        mov   x0, #0
        mov   x8, #93               // exit
        svc   #0
attribute: mov x0, x23
        movz  x1, #0xaee1
        movk  x1, #0x4018, lsl #16  // KVM_SET_DEVICE_ATTR
ioctl:  mov   x8, #29
call:   svc   #0
        tbnz  x0, #63, failed
        ret
failed: mov   x0, #1
        mov   x8, #93
        svc   #0
path:   .asciz "/dev/kvm"
        .align 3
region: .word 0, 0
        .quad 0x80000000, 0x200000, 0
device: .word 7, 0, 0, 0            // KVM_DEV_TYPE_ARM_VGIC_V3
dist:   .quad 0x08000000
redist: .quad 0x080a0000
entry:  .quad 0x80000000
at_dist: .word 0, 0
        .quad 2, dist
at_redist: .word 0, 0
        .quad 3, redist
at_init: .word 0, 4
        .quad 0, 0
set_pc: .quad 0x6030000000100040, entry
target: .space 32
        .align 12
inner:
"""


def program() -> bytes:
    """A static executable for arm64 Linux."""
    inner = assemble_program(INNER, INNER_BASE)
    inner += bytes(-len(inner) % 4)
    words = "\n".join(f".word {int.from_bytes(inner[k : k + 4], 'little'):#x}" for k in range(0, len(inner), 4))
    code = assemble_program(f"{OUTER}{words}\ninner_end:\n", PROGRAM_BASE + HEADERS)
    size = HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = pack("<16sHHIQQQIHHHHHH", ident, 2, 183, 1, PROGRAM_BASE + HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = pack("<IIQQQQQQ", 1, 7, 0, PROGRAM_BASE, PROGRAM_BASE, size, size, 4096)
    return header + segment + code


def archive(name: str, data: bytes) -> bytes:
    """A cpio archive of one executable file, to be put behind an initial ramdisk."""
    result = b""
    for path, content, mode in ((name, data, 0o100755), ("TRAILER!!!", b"", 0)):
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path) + 1, 0)
        entry = b"070701" + b"".join(b"%08X" % field for field in fields) + path.encode() + b"\0"
        entry += bytes(-len(entry) % 4) + content
        result += entry + bytes(-len(entry) % 4)
    return result
