"""`python -m tests.differential.growth SCENARIO`: guests that try to make the host's memory grow.

Every scenario runs code without end that fills some table of the engine: more pages of code than are kept decoded, more address
spaces than there are TLBs, code that is rewritten all the time, loops that get hot one after the other. What is printed are the
resident bytes besides the guest's RAM, of this process and of the compiler's.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import threading
import time
from pathlib import Path

from tests.engine_machine import PTE_TABLE
from trapline.arm64.asm_program import assemble_program, assemble_with_labels
from trapline.arm64.regs import TABLE
from trapline.arm64.sysreg import generic_name
from trapline.backends.memory import GuestMemory
from trapline.backends.objects import System, Vcpu
from trapline.backends.software import Software, arch_of
from trapline.engine.tier1 import client, manager
from trapline.kvm.arm64.machine import Arm64

RAM, PAGE, MB = 0x4000_0000, 4096, 1 << 20
PAGES = RAM + MB
"""Where the guest's many pages begin."""
TTBR0 = generic_name(TABLE["TTBR0_EL1"].enc)
HOT = 0x4_0000
"""Rounds of a loop that shall get hot."""
SAMPLE_SECONDS = 0.2
PATIENCE_SECONDS = 60
"""How long to wait for compilers, which a busy host gives little time."""


def _visit(ram: GuestMemory, text: str, size: int) -> str:
    """A page of code after the other, each with its number in the first two words; the program that calls them all."""
    body = assemble_program(text)
    low, high = struct.unpack_from("<2I", body)
    for k, at in enumerate(range(PAGES, RAM + size, PAGE)):
        words = struct.pack("<2I", low | (k & 0xFFFF) << 5, high | (k >> 16) << 5)
        ram.view[at - RAM : at - RAM + len(body)] = words + body[8:]
    return """
        again: mov x3, x1
        next: mov x4, x12
        blr x3
        add x3, x3, #1, lsl #12
        cmp x3, x2
        b.lo next
        b again
    """


NUMBER = "movz x9, #0\nmovk x9, #0, lsl #16\n"


def pages(ram: GuestMemory, vcpu: Vcpu, size: int) -> str:
    """Code in every page of memory."""
    return _visit(ram, NUMBER + "add x0, x0, #1\nret", size)


def loops(ram: GuestMemory, vcpu: Vcpu, size: int) -> str:
    """A hot loop in every page of memory, each another one."""
    vcpu.regs.x12 = HOT
    return _visit(ram, f"loop: {NUMBER}add x0, x0, x9\neor x10, x0, x10, lsr #3\nsubs x4, x4, #1\nb.ne loop\nret", size)


def writes(ram: GuestMemory, vcpu: Vcpu, size: int) -> str:
    """A loop that becomes another one whenever it was hot for a while."""
    vcpu.regs.x7, vcpu.regs.x12 = int.from_bytes(assemble_program("movz x9, #0"), "little"), HOT
    return """
        adr x2, loop
        outer: add x5, x5, #1
        ubfx x8, x5, #0, #16
        orr w6, w7, w8, lsl #5
        str w6, [x2]
        dc cvau, x2
        dsb ish
        ic ivau, x2
        dsb ish
        isb
        mov x4, x12
        loop: movz x9, #0
        add x0, x0, x9
        eor x10, x10, x0
        subs x4, x4, #1
        b.ne loop
        b outer
    """


def spaces(ram: GuestMemory, vcpu: Vcpu, size: int) -> str:
    """An address space after the other, data and code in each; the tables of all are the same but for the root."""
    top = RAM + 2 * MB
    words = struct.pack("<2Q", 0x400 | 0x301, RAM | 0x7C1)  # 1 GiB each: devices; memory that EL0 may read
    ram.view[top - RAM : top - RAM + len(words)] = words
    roots = range(top + PAGE, RAM + size, PAGE)
    for root in roots:
        ram.view[root - RAM : root - RAM + 8] = struct.pack("<Q", top | PTE_TABLE)
    for name, value in (("MAIR_EL1", 0xFF), ("TCR_EL1", 16 | 1 << 23 | 5 << 32 | 1 << 36)):
        vcpu.set_one_reg(TABLE[name].one_reg_id, value)
    vcpu.set_one_reg(TABLE["TTBR0_EL1"].one_reg_id, roots[0])
    vcpu.set_one_reg(TABLE["SCTLR_EL1"].one_reg_id, TABLE["SCTLR_EL1"].reset_value() | 1)
    vcpu.regs.x7, vcpu.regs.x8 = roots[0], roots[-1]
    return f"""
        again: mov x3, x7
        next: add x5, x5, #1
        orr x4, x3, x5, lsl #48
        msr {TTBR0}, x4
        isb
        ldtr x6, [x7]
        add x3, x3, #1, lsl #12
        cmp x3, x8
        b.lo next
        b again
    """


SCENARIOS = {each.__name__: each for each in (pages, loops, writes, spaces)}


def resident(pid: int | str = "self") -> int:
    """Bytes of resident memory of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def compilers() -> list[int]:
    """The compiler's process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            ours = parent == os.getpid() and b"tier1.server" in (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if ours:
            found.append(int(stat.parent.name))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.growth", description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--memory", type=int, default=64, help="the guest's RAM in MiB")
    parser.add_argument("--regions", type=int, default=manager.REGIONS, help="regions at most (default: %(default)s)")
    parser.add_argument("--lifetime", type=int, default=client.LIFETIME, help="regions of one compiler (default: %(default)s)")
    parser.add_argument("--compilers", type=int, default=0, help="go on until there have been so many, for a minute more at most")
    parser.add_argument("--verbose", action="store_true", help="print all samples")
    options = parser.parse_args()
    manager.REGIONS, client.LIFETIME = options.regions, options.lifetime
    arch = arch_of("")
    assert isinstance(arch, Arm64)
    with System(Software(arch)) as kvm, kvm.create_vm() as vm:
        size = options.memory * MB
        ram = vm.add_memory(RAM, size)
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x1, vcpu.regs.x2 = RAM, PAGES, RAM + size
        ram.view[:] = bytes(size)  # all of it is resident from the beginning
        code = assemble_with_labels(SCENARIOS[options.scenario](ram, vcpu, size), RAM)[0]
        ram.view[: len(code)] = code
        start = resident()
        runner = threading.Thread(target=vcpu.run)
        runner.start()
        end = time.monotonic() + options.seconds
        ours, theirs = [0], [0]
        seen: set[int] = set()
        while runner.is_alive() and time.monotonic() < end + (PATIENCE_SECONDS if len(seen) < options.compilers else 0):
            time.sleep(SAMPLE_SECONDS)
            ours.append(resident() - start)
            seen.update(now := compilers())
            theirs.append(max(map(resident, now), default=0))
            if options.verbose:
                print(f"{ours[-1] >> 20} MiB, compiler {theirs[-1] >> 20} MiB", flush=True)
        ran = runner.is_alive()
        vcpu.kick()
        runner.join()
    regions = arch.engine.regions
    linked, ordered = len(arch.engine.code.regions), 0 if regions is None else len(regions._ordered)
    print(f"{options.scenario}: grew by {max(ours) >> 20} MiB, {len(seen)} compilers had {max(theirs) >> 20} MiB each at most; "
          f"{linked} regions, {ordered} ordered")  # fmt: skip
    return 0 if ran and linked <= options.regions and ordered <= manager.ORDERS else 1


if __name__ == "__main__":
    sys.exit(main())
