"""`python -m tests.differential.accesses --accesses N`: two vCPUs make hostile accesses, counted, between canaries.

Each vCPU runs its own endless loop, at EL1 or EL0, of loads, stores, pairs, SIMD, atomics, exclusives, memory copies, DC ZVA and the
like, at addresses drawn from a table: edges of pages and of memory, addresses of this process, and a half of the address space
whose translation tables are hostile descriptors, of any granule, in memory that both vCPUs overwrite; the walker sets flags in
them. TLB invalidation is in the loops too. What faults goes on behind the instruction. The code lies in a read-only slot, so a
hostile mapping cannot change it; another slot comes and goes all the time. Meanwhile the process's own map is watched: nothing
may be writable and executable, and resident memory stays within a constant.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import random
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trapline.abi.caps import Cap
from trapline.abi.exits import IntrExit, MmioExit, NisvExit
from trapline.abi.vm import MEM_READONLY
from trapline.arm64.asm import assemble
from trapline.arm64.regs import CPACR_EL1, SCTLR_EL1, TABLE
from trapline.backends.objects import System, Vcpu
from trapline.backends.software import Software

RAM, CODE, FLEETING, PAGE, MB = 0x4000_0000, 0x8000_0000, 0x7000_0000, 4096, 1 << 20
SIZE, CODE_SIZE, FLEETING_SIZE, GUARD, CANARY = 2 * MB, 1 * MB, 64 << 10, 4 * MB, 0xC5
VECTORS, TABLES, ADDRESSES, LOOPS = 0x1000, 0x2000, 0x3000, 0x1_0000
LOOP_BYTES, ADDRESS_COUNT = 0x2_0000, 512
HOSTILE = RAM + 0x1_0000
"""Where the translation tables of the upper half begin: 16 pages that the guest overwrites."""
HOSTILE_PAGES = 16
UPPER = 0xFFFF_FF80_0000_0000
STEPS = 200
WATCH_SECONDS, KICK_SECONDS, FLEETING_SECONDS = 0.2, 0.05, 0.02
GROWTH = 400 * MB
"""What a run may add to the resident memory of the process: handlers, regions, decoded pages (all bounded), thread stacks."""

ACCESSES = (
    "ldr x10, [x9]", "ldr w10, [x9, #5]!", "ldrh w10, [x9], #-3", "ldrsb x10, [x9]", "str x0, [x9]", "str x1, [x9, #-7]!",
    "strh w2, [x9]", "strb w3, [x9], #1", "ldp x10, x11, [x9]", "stp x0, x1, [x9, #-16]", "ldp q0, q1, [x9, #16]", "stp q2, q3, [x9]",
    "ldr q4, [x9]", "str q5, [x9]", "ldr d6, [x9]", "ld4 {v0.8h, v1.8h, v2.8h, v3.8h}, [x9]", "st1 {v0.s}[1], [x9]",
    "st1 {v4.16b, v5.16b, v6.16b, v7.16b}, [x9], #64", "ldaxr x10, [x9]", "stlxr w11, x0, [x9]", "ldxp x10, x11, [x9]",
    "stxp w12, x0, x1, [x9]", "casp x0, x1, x2, x3, [x9]", "cas x4, x5, [x9]", "swpal x0, x10, [x9]", "ldaddh w1, w10, [x9]",
    "ldar x10, [x9]", "stlr x1, [x9]", "ldapur x10, [x9, #3]", "ldtr x10, [x9]", "sttr x0, [x9]", "prfm #0, [x9]", "dc zva, x9",
    "dc zva, x9", "dc cvac, x9", "ic ivau, x9", "at s1e1r, x9", "tlbi vae1is, x9", "tlbi vmalle1is", "dsb ish",
    "ldxr x10, [x9]\nstxr w11, x0, [x9]", "ldaxrh w10, [x9]\nstlxrh w11, w1, [x9]", "ldxp x10, x11, [x9]\nstxp w12, x0, x1, [x9]",
    "ldxp w10, w11, [x9]\nstxp w12, w0, w1, [x9]", "ldxr x10, [x9]\nstr x2, [x9]\nstxr w11, x0, [x9]",
    "cpyfp [x9]!, [x13]!, x14!\ncpyfm [x9]!, [x13]!, x14!\ncpyfe [x9]!, [x13]!, x14!",
    "cpyp [x9]!, [x13]!, x14!\ncpym [x9]!, [x13]!, x14!\ncpye [x9]!, [x13]!, x14!",
    "cpyp [x9]!, [x13]!, x15!\ncpym [x9]!, [x13]!, x15!", "cpym [x9]!, [x13]!, x15!", "cpyfm [x13]!, [x9]!, x14!",
    "setp [x9]!, x14!, x0\nsetm [x9]!, x14!, x0\nsete [x9]!, x14!, x0", "setm [x9]!, x15!, x0",
)  # fmt: skip
"""X9 and X13 are hostile addresses, X14 a small size and X15 any; X0 to X7 hold what descriptors look like."""

HANDLER = ("mrs x17, s3_0_c4_c0_1", "add x17, x17, #4", "msr s3_0_c4_c0_1, x17", "add x25, x25, #1", "eret")
"""X25 counts exceptions; ELR_EL1 moves on."""

CONTROLS = int(SCTLR_EL1.res1 | SCTLR_EL1(M=1, C=1, I=1, SPAN=1, DZE=1, UCT=1, UCI=1, MSCEn=1))
REGISTERS = {"TTBR0_EL1": CODE + TABLES, "TTBR1_EL1": HOSTILE, "VBAR_EL1": CODE + VECTORS, "MAIR_EL1": 0xFF,
             "CPACR_EL1": int(CPACR_EL1(FPEN=3))}  # fmt: skip
TG1 = {"4K": 2, "16K": 1, "64K": 3}
PSTATES = {0: 0x3C0, 1: 0x3C5}


def controls(rng: random.Random) -> dict[str, int]:
    """Registers of a vCPU: alignment is checked on some, the upper half has any granule, and the walker may set flags."""
    tcr = 25 | 25 << 16 | rng.choice(list(TG1.values())) << 30 | 2 << 32 | rng.getrandbits(4) << 37 | rng.getrandbits(2) << 41
    return REGISTERS | {"SCTLR_EL1": CONTROLS | int(rng.randrange(4) == 0) * SCTLR_EL1.A.mask, "TCR_EL1": tcr}


def descriptor(rng: random.Random) -> int:
    """Looks like a table or page in guest memory, or like something worse."""
    flags = rng.choice((3, 3, 3, 1, 0)) | (rng.randrange(8) > 0) << 10 | rng.getrandbits(2) << 6 | rng.getrandbits(2) << 8
    flags |= rng.getrandbits(1) << 51
    kind = rng.randrange(64)
    if kind == 0:
        return rng.getrandbits(64)
    if kind == 1:
        return rng.getrandbits(36) << 12 | flags
    if kind < 12:
        return HOSTILE + rng.randrange(HOSTILE_PAGES) * PAGE | flags
    return RAM + rng.randrange(SIZE // PAGE) * PAGE | flags


def addresses(rng: random.Random, host: int) -> Iterator[int]:
    """Mostly edges inside, some outside; a few leave to userspace, which is slow."""
    for _ in range(ADDRESS_COUNT):
        kind = rng.randrange(100)
        if kind < 30:
            yield RAM + rng.randrange(1, SIZE // PAGE) * PAGE - rng.randrange(64)
        elif kind < 60:
            yield UPPER + (rng.randrange(8) << 30 | rng.randrange(8) << 21 | rng.randrange(16) << 12) + PAGE - rng.randrange(80)
        elif kind < 75:
            yield HOSTILE + rng.randrange(HOSTILE_PAGES * PAGE) & -8
        elif kind < 85:
            anywhere = rng.getrandbits(64)
            yield rng.choice((host, host + GUARD, host + GUARD + SIZE - 8, host - 4096, anywhere, anywhere | 0xFF << 56))
        elif kind == 85:
            yield RAM + SIZE - rng.randrange(16)
        elif kind == 86:
            yield RAM - 8
        elif kind == 87:
            yield FLEETING + rng.randrange(FLEETING_SIZE)
        else:
            yield RAM + rng.randrange(SIZE - PAGE)


def loop(rng: random.Random) -> bytes:
    """X28 counts accesses; X27 is the random state, X26 the table of addresses."""
    lines = []
    for _ in range(STEPS):
        lines += ["add x28, x28, #1", "madd x27, x27, x23, x24", "ubfx x9, x27, #50, #9", "ldr x9, [x26, x9, lsl #3]"]
        lines += [f"ubfx x10, x27, #{rng.randrange(20, 40)}, #5", "add x9, x9, x10"]
        access = rng.choice(ACCESSES)
        if "x13" in access or "x14" in access or "x15" in access:
            lines += ["ubfx x13, x27, #41, #9", "ldr x13, [x26, x13, lsl #3]", f"ubfx x14, x27, #{rng.randrange(20)}, #13"]
            lines += ["mov x15, x27"]
        lines += access.split("\n")
    words = [assemble(line) for line in lines]
    words.append(0x1400_0000 | -len(words) & 0x3FF_FFFF)
    return struct.pack(f"<{len(words)}I", *words)


class Guest:
    """Memory between canaries, code beside it, two vCPUs."""

    def __init__(self, kvm: System, rng: random.Random) -> None:
        self.memory, self.code = mmap.mmap(-1, SIZE + 2 * GUARD), mmap.mmap(-1, CODE_SIZE + 2 * GUARD)
        self.fleeting = mmap.mmap(-1, FLEETING_SIZE + 2 * GUARD)
        self.mappings = (self.memory, self.code, self.fleeting)
        base, code_base, fleeting = (ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in self.mappings)
        for m in self.mappings:
            m[:] = bytes([CANARY]) * len(m)
        self.memory[GUARD : GUARD + SIZE] = struct.pack(f"<{SIZE // 8}Q", *(descriptor(rng) for _ in range(SIZE // 8)))
        image = bytearray(CODE_SIZE)
        handler = b"".join(assemble(line).to_bytes(4, "little") for line in HANDLER)
        for at in range(VECTORS, VECTORS + 0x800, 0x80):
            image[at : at + len(handler)] = handler
        struct.pack_into("<3Q", image, TABLES, 0, RAM | 0x741, CODE | 0x7C1)  # blocks: read and write; read only
        struct.pack_into(f"<{ADDRESS_COUNT}Q", image, ADDRESSES, *(a & (1 << 64) - 1 for a in addresses(rng, base)))
        for n in range(2):
            body = loop(rng)
            image[LOOPS + n * LOOP_BYTES : LOOPS + n * LOOP_BYTES + len(body)] = body
        self.code[GUARD : GUARD + CODE_SIZE] = bytes(image)
        self.image = bytes(image)
        self.vm = kvm.create_vm()
        self.vm.enable_cap(Cap.ARM_NISV_TO_USER)
        self.vm.set_user_memory_region(0, 0, RAM, SIZE, base + GUARD)
        self.vm.set_user_memory_region(1, MEM_READONLY, CODE, CODE_SIZE, code_base + GUARD)
        self._fleeting = fleeting + GUARD
        self.visits, self.trespasses = 0, 0
        self.vcpus = [self.vm.create_vcpu() for _ in range(2)]
        levels = rng.choice(((1, 1), (0, 1), (0, 1), (0, 0)))
        for n, vcpu in enumerate(self.vcpus):
            for name, value in controls(rng).items():
                vcpu.set_one_reg(TABLE[name].one_reg_id, value)
            for k in range(8):
                setattr(vcpu.regs, f"x{k}", descriptor(rng))
            vcpu.regs.x23, vcpu.regs.x24 = 6364136223846793005, 1442695040888963407
            vcpu.regs.x25, vcpu.regs.x26, vcpu.regs.x27, vcpu.regs.x28 = 0, CODE + ADDRESSES, rng.getrandbits(64), 0
            vcpu.regs.pc, vcpu.regs.pstate = CODE + LOOPS + n * LOOP_BYTES, PSTATES[levels[n]]
        self.counts, self.faults = [0, 0], [0, 0]
        self.exits: Counter[str] = Counter()

    def run(self, n: int, wanted: int, deadline: float) -> None:
        vcpu = self.vcpus[n]
        while self.counts[n] < wanted and time.monotonic() < deadline:
            result = vcpu.run()
            self.exits[type(result).__name__] += 1
            if isinstance(result, MmioExit | NisvExit):
                vcpu.inject_external_abort()
            elif not isinstance(result, IntrExit):
                raise AssertionError(f"unexpected {result}")
            if isinstance(result, IntrExit):
                self.counts[n], self.faults[n] = vcpu.regs.x28, vcpu.regs.x25

    def come_and_go(self, done: threading.Event) -> None:
        """Show the guest some memory for a moment, again and again; behind its back it stays as it is."""
        near = slice(GUARD - PAGE, GUARD + FLEETING_SIZE + PAGE)
        while not done.wait(FLEETING_SECONDS):
            before = self.fleeting[near]
            self.vm.set_user_memory_region(2, 0, FLEETING, FLEETING_SIZE, self._fleeting)
            done.wait(FLEETING_SECONDS)
            changed = self.fleeting[near] != before
            self.vm.set_user_memory_region(2, 0, FLEETING, 0, 0)
            self.visits += changed
            left = self.fleeting[near]
            done.wait(FLEETING_SECONDS)
            self.trespasses += self.fleeting[near] != left

    def intact(self) -> bool:
        """Canaries on both sides of all mappings, and the read-only slot, are as they were."""
        whole = [bytes(m[:GUARD]) + bytes(m[-GUARD:]) == bytes([CANARY]) * (2 * GUARD) for m in self.mappings]
        return all(whole) and self.code[GUARD : GUARD + CODE_SIZE] == self.image and not self.trespasses


def writable_code() -> list[str]:
    """Lines of this process's map that are writable and executable."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if {"w", "x"} <= set(line.split()[1])]


def resident() -> int:
    """Bytes of resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Watch:
    """Looks at the process's own map again and again.

    Where libffi has no static trampolines, any callback of ctypes puts its thunk on a page that is writable and executable. Such a
    page, made before there is a guest, is CPython's; whatever else appears is ours.
    """

    def __init__(self) -> None:
        self._callback = ctypes.CFUNCTYPE(None)(lambda: None)
        self._before = frozenset(writable_code())
        self.wrong: list[str] = []
        self.looks = self.peak = 0

    def look(self) -> None:
        self.wrong += [line for line in writable_code() if line not in self._before]
        self.peak = max(self.peak, resident())
        self.looks += 1


@contextmanager
def running(watch: Watch, vcpus: list[Vcpu]) -> Iterator[None]:
    """Watch and kick vCPUs from a thread of its own."""
    done = threading.Event()

    def work() -> None:
        seen = 0.0
        while not done.wait(KICK_SECONDS):
            if time.monotonic() - seen > WATCH_SECONDS:
                watch.look()
                seen = time.monotonic()
            for vcpu in vcpus:
                vcpu.kick()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def attack(kvm: System, seed: int, accesses: int, seconds: float, watch: Watch) -> Guest:
    """One guest until it has made `accesses` accesses or time is up."""
    guest = Guest(kvm, random.Random(seed))
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            guest.run(n, -(-accesses // 2), time.monotonic() + seconds)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    done = threading.Event()
    fleeting = threading.Thread(target=guest.come_and_go, args=(done,))
    with running(watch, guest.vcpus):
        for thread in (*threads, fleeting):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        fleeting.join()
    if failed:
        raise failed[0]
    return guest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.accesses", description=__doc__)
    parser.add_argument("--accesses", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guests", type=int, default=2, help="guests, one after the other")
    parser.add_argument("--seconds", type=float, default=3600, help="at most")
    options = parser.parse_args()
    watch, made, faults, visits, whole = Watch(), 0, 0, 0, True
    exits: Counter[str] = Counter()
    with System(Software()) as kvm:
        start = resident()
        for k in range(options.guests):
            guest = attack(kvm, options.seed + k, options.accesses // options.guests, options.seconds / options.guests, watch)
            made, faults, whole = made + sum(guest.counts), faults + sum(guest.faults), whole and guest.intact()
            visits += guest.visits
            exits += guest.exits
            guest.vm.close()
    grown = max(watch.peak - start, 0)
    print(f"seed {options.seed}: {made} accesses, {faults} exceptions, exits {dict(exits)}, {visits} times "
          f"in memory that comes and goes; canaries {'whole' if whole else 'WRITTEN'}; "
          f"{len(watch.wrong)} mappings writable and executable in {watch.looks} looks; grew by {grown >> 20} MiB")  # fmt: skip
    return 0 if whole and not watch.wrong and grown < GROWTH and made else 1


if __name__ == "__main__":
    sys.exit(main())
