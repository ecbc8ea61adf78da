"""Containment: whatever a guest does, it never touches host memory outside its slots.

The guest's memory lies between two stretches of canary bytes in one host mapping. A hostile program stores and loads around every
edge with every kind of access, with translation off and on, and edits its own tables from a second vCPU. Afterwards the canaries
are whole, and nothing the guest has loaded looks like them.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import re
import threading
from collections.abc import Iterator

import pytest

from trapline.abi.caps import Cap
from trapline.abi.exits import IntrExit, MmioExit, NisvExit
from trapline.abi.vm import MEM_READONLY
from trapline.arm64.asm_program import assemble_with_labels
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE
from trapline.arm64.sysreg import generic_name
from trapline.backends.objects import System
from trapline.backends.software import Software

RAM, UART = 0x4000_0000, 0x0900_0000
PAGE, MB = 4096, 1 << 20
SIZE = 3 * MB
LIST, RESULTS, TABLES = RAM + 0x8_0000, RAM + 0x10_0000, RAM + 0x20_0000
CANARY = 0xC5
MARK = 0x4141_4141_4141_4141

ACCESSES = {
    "zva": "sys #3, c7, c4, #1, x1",
    "ldr": "ldr x10, [x1]",
    "ldrb": "ldrb w10, [x1]",
    "ldp": "ldp x10, x11, [x1]",
    "ldpre": "ldr x10, [x1, #8]!",
    "ldrq": "ldr q0, [x1]\n fmov x10, d0",
    "ldpq": "ldp q0, q1, [x1]\n fmov x10, d0\n fmov x11, d1",
    "ld1": "ld1 {v0.16b, v1.16b, v2.16b, v3.16b}, [x1]\n fmov x10, d0\n fmov x11, d3",
    "ldxr": "ldxr x10, [x1]",
    "ldar": "ldar x10, [x1]",
    "ldadd": "ldadd x12, x10, [x1]",
    "swp": "swp x12, x10, [x1]",
    "cas": "mov x10, x12\n cas x10, x13, [x1]",
    "str": "str x12, [x1]",
    "strb": "strb w12, [x1]",
    "stp": "stp x12, x13, [x1]",
    "strq": "str q4, [x1]",
    "stpq": "stp q4, q5, [x1]",
    "st1": "st1 {v4.16b, v5.16b, v6.16b, v7.16b}, [x1]",
    "stxr": "ldxr x10, [x1]\n stxr w11, x12, [x1]",
    "stlr": "stlr x12, [x1]",
    "sttr": "sttr x12, [x1]",
}
"""Each kind of access at X1; what it loads is in X10 and X11, what it stores is in X12, X13 and V4 to V7."""

PROLOGUE = """
    set x0, 0x40008000
    msr vbar_el1, x0
    set x20, 0x40080000
    set x22, 0x40100000
    dup v4.2d, x12
    dup v5.2d, x12
    dup v6.2d, x12
    dup v7.2d, x12
next:
    mov x10, #0
    mov x11, #0
    ldr x1, [x20], #8
    ldr x2, [x20], #8
    cbz x2, done
    blr x2
    str x10, [x22], #8
    str x11, [x22], #8
    b next
done:
    set x1, 0x9000000
    str x22, [x1]
    b done
"""
SKIP = """
    mrs x9, elr_el1
    add x9, x9, #4
    msr elr_el1, x9
    eret
"""


def assembled(text: str, base: int) -> tuple[bytes, dict[str, int]]:
    """Machine code and labels. System registers may be given by name; `set x0, number` loads any 64-bit number."""

    def generic(found: re.Match[str]) -> str:
        reg = TABLE.by_name.get(found[0].upper())
        return generic_name(reg.enc) if reg is not None else found[0]

    def constant(found: re.Match[str]) -> str:
        register, value = found[1], int(found[2], 0)
        moves = [f"movk {register}, #{value >> 16 * part & 0xFFFF:#x}, lsl #{16 * part}" for part in (1, 2, 3)]
        return "\n".join([f"mov {register}, #{value & 0xFFFF:#x}", *moves])

    text = re.sub(r"\bset (x\d+), (\w+)", constant, text)
    return assemble_with_labels(re.sub(r"\w+_el[012]\b", generic, text), base)


@pytest.fixture(scope="module")
def kvm() -> Iterator[System]:
    pytest.importorskip("llvmlite")
    load_a64()
    with System(Software()) as system:
        yield system


class Prison:
    """A guest in the middle of canaries."""

    def __init__(self, kvm: System, vcpus: int = 1, offset: int = 2 * MB) -> None:
        """`offset` from a 2 MiB boundary decides whether stage 2 uses blocks or pages."""
        self.mapping = mmap.mmap(-1, 8 * MB + SIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        self.start = -base % (2 * MB) + offset
        self.address = base + self.start
        self.view = memoryview(self.mapping)
        self.view[:] = bytes([CANARY]) * len(self.view)
        self.memory = self.view[self.start : self.start + SIZE]
        self.memory[:] = bytes(SIZE)
        self.vm = kvm.create_vm()
        self.vm.enable_cap(Cap.ARM_NISV_TO_USER)
        self.vm.set_user_memory_region(0, 0, RAM, SIZE, self.address)
        self.vcpus = [self.vm.create_vcpu() for _ in range(vcpus)]

    def write(self, ipa: int, data: bytes) -> None:
        self.memory[ipa - RAM : ipa - RAM + len(data)] = data

    def load(self, attacks: list[tuple[int, str]]) -> None:
        """Put program, vectors, routines and the list of attacks into memory."""
        code, _ = assembled(PROLOGUE, RAM)
        self.write(RAM, code)
        for vector in range(0, 0x800, 0x80):
            self.write(RAM + 0x8000 + vector, assembled(SKIP, RAM + 0x8000 + vector)[0])
        body = "".join(f"at_{name}:\n {text}\n ret\n" for name, text in ACCESSES.items())
        routines, labels = assembled(body, RAM + 0x1_0000)
        self.write(RAM + 0x1_0000, routines)
        rows = [(address % (1 << 64), labels[f"at_{name}"]) for address, name in attacks] + [(0, 0)]
        assert 16 * len(rows) < RESULTS - LIST
        self.write(LIST, b"".join(value.to_bytes(8, "little") for row in rows for value in row))
        regs = self.vcpus[0].regs
        regs.pc, regs.x12, regs.x13 = RAM, MARK, MARK

    def run(self) -> int:
        """Run the program to its end, answering every access to nowhere with an abort; returns how many there were."""
        vcpu, refused = self.vcpus[0], 0
        watchdog = threading.Timer(60, vcpu.kick)
        watchdog.start()
        try:
            while True:
                match vcpu.run():
                    case MmioExit(phys_addr=addr) if addr == UART:
                        return refused
                    case MmioExit() | NisvExit():
                        refused += 1
                        vcpu.inject_external_abort()
                    case IntrExit():
                        pytest.fail(f"the guest hangs at {vcpu.regs.pc:#x}")
                    case other:
                        pytest.fail(f"{other}")
        finally:
            watchdog.cancel()

    def restart(self) -> None:
        """Complete the access that ended the run, and go back to the start of the program."""
        vcpu = self.vcpus[0]
        vcpu.immediate_exit = True
        vcpu.run()
        vcpu.immediate_exit = False
        vcpu.regs.pc = RAM

    def check(self) -> None:
        """The canaries are whole, and the guest has seen nothing of them."""
        outside = bytes(self.view[: self.start]) + bytes(self.view[self.start + SIZE :])
        assert outside.count(CANARY) == len(outside), "host memory outside the slot was written"
        results = bytes(self.memory[RESULTS - RAM : TABLES - RAM])
        assert bytes([CANARY]) * 2 not in results, "host memory outside the slot was read"

    def close(self) -> None:
        self.vm.close()


def edges() -> list[int]:
    """Addresses where something could go wrong: slot ends, the VM's and the architecture's limits, wrap-around."""
    bases = (RAM, RAM + SIZE, 0, 1 << 39, 1 << 40, 1 << 47, 1 << 48, 1 << 52, 1 << 63, 1 << 64)
    return [base + offset for base in bases for offset in (-64, -63, -48, -33, -32, -17, -16, -15, -9, -8, -7, -4, -1, 0, 1, 8, 4095)]


@pytest.mark.parametrize("offset", [2 * MB, 2 * MB + PAGE], ids=["blocks", "pages"])
def test_edges_without_translation(kvm: System, offset: int) -> None:
    prison = Prison(kvm, offset=offset)
    hosts = [prison.address - 8, prison.address, prison.address + SIZE]
    attacks = [(a, n) for a in edges() + hosts for n in ACCESSES if not RAM <= a < RAM + SIZE - 64]
    prison.load(attacks)
    assert prison.run() > 500
    prison.check()
    assert bytes(prison.memory[SIZE - 64 :]).count(0x41) > 0, "what is inside was written"
    prison.close()


def test_random_addresses(kvm: System) -> None:
    numbers = random.Random(3)
    prison = Prison(kvm)
    names = list(ACCESSES)
    attacks = []
    for _ in range(20_000):
        near = numbers.choice((RAM + SIZE, RAM - PAGE, prison.address - PAGE, prison.address + SIZE, numbers.getrandbits(48)))
        attacks.append((near + numbers.randrange(-64, PAGE), numbers.choice(names)))
    prison.load([(a, n) for a, n in attacks if not RAM <= a < RAM + SIZE - 64])
    prison.run()
    prison.check()
    prison.close()


BLOCK, TABLE_OR_PAGE, ATTRIBUTES = 1, 3, 1 << 10 | 3 << 8
"""Descriptor bits: access flag, inner shareable, attribute index 0, EL1 read and write."""

ENABLE = f"""
    mov x0, #0xff
    msr mair_el1, x0
    set x0, 0x40200000
    msr ttbr0_el1, x0
    set x0, 0x500803519
    msr tcr_el1, x0
    isb
    mrs x0, sctlr_el1
    mov x1, #0x1005
    orr x0, x0, x1
    msr sctlr_el1, x0
    isb
{PROLOGUE}
"""


def first_level(prison: Prison, outputs: dict[int, int]) -> None:
    """A 39-bit table of 1 GiB blocks: the identity, except where `outputs` says otherwise."""
    table = b"".join((outputs.get(index, index << 30) | ATTRIBUTES | BLOCK).to_bytes(8, "little") for index in range(512))
    prison.write(TABLES, table)


def test_tables_that_point_at_host_memory(kvm: System) -> None:
    """Stage 1 is the guest's: it can name any output address, and stage 2 must refuse it."""
    prison = Prison(kvm)
    host = prison.address & -(1 << 30)
    first_level(prison, {256: host, 257: (1 << 40), 258: (1 << 47), 259: host + (1 << 30), 260: (1 << 48) - (1 << 30)})
    inside = prison.address - host
    targets = [inside - 8, inside, inside + SIZE - 8, inside + SIZE, 0, (1 << 30) - 8, (1 << 30) - 16]
    addresses = [(index << 30) + target for index in range(255, 262) for target in targets]
    prison.load([(address, name) for address in addresses for name in ACCESSES])
    prison.write(RAM, assembled(ENABLE, RAM)[0])
    assert prison.run() > 0
    prison.check()
    prison.close()


def test_a_vcpu_that_edits_the_tables_of_another(kvm: System) -> None:
    """One vCPU flips a page between guest memory, host addresses and nothing; the other one stores through it."""
    prison = Prison(kvm, vcpus=2)
    page_table, middle = TABLES + 0x2000, TABLES + 0x1000
    first_level(prison, {})
    prison.write(TABLES + 8 * 2, (middle | TABLE_OR_PAGE).to_bytes(8, "little"))
    prison.write(middle, (page_table | TABLE_OR_PAGE).to_bytes(8, "little"))
    # VA 0x8000_0000: the page that flips.
    numbers = random.Random(9)
    outputs = [RAM + 0x2F_0000, prison.address - PAGE, prison.address + SIZE, (1 << 40) - PAGE, RAM + SIZE, RAM - PAGE, 0]
    choices = [(output & -PAGE) | ATTRIBUTES | TABLE_OR_PAGE for output in outputs] + [0]
    prison.write(LIST + 0x4_0000, b"".join(numbers.choice(choices).to_bytes(8, "little") for _ in range(4096)))
    prison.load([(0x8000_0000 + numbers.randrange(PAGE + 16) - 8, numbers.choice(list(ACCESSES))) for _ in range(10_000)])
    prison.write(RAM, assembled(ENABLE, RAM)[0])
    flip = f"""
        set x0, {page_table}
    again:
        set x1, 0x400c0000
        mov x2, #4096
    one:
        ldr x3, [x1], #8
        str x3, [x0]
        dsb ish
        sys #0, c8, c3, #0, xzr
        dsb ish
        sub x2, x2, #1
        cbnz x2, one
        b again
    """
    prison.write(RAM + 0x2E_0000, assembled(flip, RAM + 0x2E_0000)[0])
    editor = prison.vcpus[1]
    editor.regs.pc = RAM + 0x2E_0000
    thread = threading.Thread(target=editor.run, daemon=True)
    thread.start()
    for _ in range(20):
        prison.run()
        prison.restart()
    editor.kick()
    thread.join(20)
    assert not thread.is_alive()
    prison.check()
    assert 0x41 in bytes(prison.memory[0x2F_0000:0x2F_1000]), "the guest got through where it may"
    prison.close()


def test_a_slot_that_is_taken_away_while_it_is_used(kvm: System) -> None:
    """After the delete has returned, the memory belongs to the host again: nothing may write it."""
    prison = Prison(kvm)
    extra = prison.view[:MB]
    code, _ = assembled("set x1, 0x50000000\n again:\n str x1, [x1]\n stp x1, x1, [x1, #16]\n b again", RAM)
    prison.write(RAM, code)
    vcpu = prison.vcpus[0]
    vcpu.regs.pc = RAM
    base = prison.address - prison.start
    for round in range(20):
        prison.vm.set_user_memory_region(1, 0, 0x5000_0000, PAGE, base + round * PAGE)
        exits: list[object] = []
        thread = threading.Thread(target=lambda exits=exits: exits.append(vcpu.run()), daemon=True)
        thread.start()
        thread.join(0.02)
        prison.vm.set_user_memory_region(1, 0, 0x5000_0000, 0, base + round * PAGE)
        extra[round * PAGE : (round + 1) * PAGE] = bytes([CANARY]) * PAGE
        thread.join(20)
        assert isinstance(exits[0], MmioExit | NisvExit)
        prison.restart()
    prison.check()
    prison.close()


def test_readonly_memory_stays_as_it_is(kvm: System) -> None:
    prison = Prison(kvm)
    rom = prison.view[:PAGE]
    prison.vm.set_user_memory_region(1, MEM_READONLY, 0x5000_0000, PAGE, prison.address - prison.start)
    stores = [name for name in ACCESSES if name.startswith(("st", "swp", "cas", "ldadd", "zva"))]
    prison.load([(0x5000_0000 + offset, name) for offset in (0, 8, 64, 0xFF0, 0xFFC, 0xFFF) for name in stores])
    assert prison.run() > 0
    assert bytes(rom).count(CANARY) == PAGE
    prison.close()
