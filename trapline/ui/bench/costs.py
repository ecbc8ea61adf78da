"""What has no peer, or grows with something: exits, instructions, processors, memory, the first run."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

from trapline.errors import NotSupported
from trapline.ui.bench.machine import TRAPLINE, Side, Start, boot

Cost = dict[str, float]
"""One line of a cost's table: numbers by column."""

CODE_ADDRESS = 0x4000_0000
MMIO_ADDRESS = 0x0B00_0000
MMIO_ROUNDS = 20_000
MMIO_LOOP = (0xB940_0001, 0x17FF_FFFF)
"""LDR W1, [X0]; B to it: a guest that does nothing but read a device."""
COUNT_LOOP = (0xF100_0442, 0x8B02_0063, 0xCA03_0064, 0x54FF_FFA1, 0xB940_0001, 0x17FF_FFFB)
"""SUBS X2, X2, #1; ADD X3, X3, X2; EOR X4, X0, X3; B.NE to the first: a loop of four. Then LDR W1, [X0], an exit, and B to the first."""
LOOP_LENGTH = 4
WARM_EXITS, WARM_TURNS = 20, 1_000_000
BATCH, LIVES, LEAST_BATCHES = 2000, 20, 7
WORK = (1_000_000, 10_000_000, 100_000_000)
CPUS = (1, 2, 4, 8)
MEMORY = (128, 512, 2048, 8192)
"""MiB."""


def run_bare(words: tuple[int, ...], x2: int, exits: int) -> float:
    """CPU seconds until a vCPU without a kernel has made so many exits, each after a loop of X2 turns, once it is warm."""
    import trapline

    with trapline.open("software") as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(CODE_ADDRESS, 2 << 20)
        memory[0 : 4 * len(words)] = b"".join(word.to_bytes(4, "little") for word in words)
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x0 = CODE_ADDRESS, MMIO_ADDRESS

        def run(count: int, turns: int) -> float:
            start = time.thread_time()
            for _ in range(count):
                if turns:
                    vcpu.regs.x2 = turns
                exit = vcpu.run()
                exit.data = 0x1234  # type: ignore[attr-defined]
            return time.thread_time() - start

        run(WARM_EXITS, x2 and WARM_TURNS)
        return run(exits, x2)


def mmio(sides: list[Side], plain: Start, runs: int) -> list[Cost]:
    """Microseconds of CPU time of one MMIO read, from the guest to a Python handler and back, in the best of several batches."""
    times = [run_bare(MMIO_LOOP, 0, MMIO_ROUNDS) / MMIO_ROUNDS * 1e6 for _ in range(runs)]
    return [{"microseconds": min(times)}]


def calls(sides: list[Side], plain: Start, runs: int) -> list[Cost]:
    """CPU time of calls on the software machine, in the best of several batches."""
    import trapline
    from trapline.abi.caps import Cap
    from trapline.abi.system import KVM_CHECK_EXTENSION, KVM_GET_API_VERSION
    from trapline.abi.vcpu import KVM_GET_MP_STATE

    with trapline.open("software") as kvm, kvm.create_vm() as vm:
        vcpu, ioctl, state = vm.create_vcpu(), kvm.backend.ioctl, KVM_GET_MP_STATE.make()

        def life() -> None:
            with kvm.create_vm() as other:
                other.create_vcpu()

        return [{
            "KVM_GET_API_VERSION, us": best(lambda: ioctl(kvm.file, KVM_GET_API_VERSION, 0), BATCH, runs) * 1e6,
            "KVM_CHECK_EXTENSION, us": best(lambda: ioctl(vm.file, KVM_CHECK_EXTENSION, Cap.USER_MEMORY), BATCH, runs) * 1e6,
            "KVM_GET_MP_STATE, us": best(lambda: ioctl(vcpu.file, KVM_GET_MP_STATE, state), BATCH, runs) * 1e6,
            "VM with a vCPU, ms": best(life, LIVES, runs) * 1e3,
        }]  # fmt: skip


def best(body: Callable[[], object], count: int, runs: int) -> float:
    """CPU seconds of one call in the fastest batch of `count`."""
    times = []
    for _ in range(max(runs, LEAST_BATCHES)):
        start = time.thread_time()
        for _ in range(count):
            body()
        times.append((time.thread_time() - start) / count)
    return min(times)


def kvm_exits(sides: list[Side], plain: Start, runs: int) -> list[Cost]:
    """CPU time of one exit of the host's KVM, handled in C and in Python; nothing where that cannot be measured."""
    from trapline.ui.bench.exits import exit_rate

    try:
        rate = exit_rate()
    except NotSupported as reason:
        print(f"  kvm-exits: {reason}", file=sys.stderr)
        return []
    return [{"C, us": rate.c * 1e6, "Python, us": rate.python * 1e6, "% of C's rate": 100 * rate.c / rate.python}]


def work(sides: list[Side], plain: Start, runs: int) -> list[Cost]:
    """CPU time of so many instructions of a loop: what is constant and what grows."""
    return work_lines([(count, statistics.median(run_bare(COUNT_LOOP, count // LOOP_LENGTH, 1) for _ in range(runs))) for count in WORK])


def work_lines(measured: list[tuple[int, float]]) -> list[Cost]:
    """The table of instructions and their seconds, with what is left of each time at the rate by which the last two differ.

    That is the start: the call, and the turns of the loop until its compiled code is entered.
    """
    (fewer, less), (more, longer) = measured[-2:]
    rate = (longer - less) / (more - fewer)
    return [
        {
            "million instructions": count / 1e6,
            "milliseconds": seconds * 1e3,
            "of these one-off": max(0.0, seconds - count * rate) * 1e3,
            "million/s": count / seconds / 1e6,
        }
        for count, seconds in measured
    ]


def boots(sides: list[Side], starts: list[tuple[str, float, Start]], runs: int) -> list[Cost]:
    """Boots of growing machines on every side: seconds to the end and resident MiB."""
    lines = []
    for column, value, start in starts:
        line: Cost = {column: value}
        samples: dict[str, list[tuple[float, float, float]]] = {side.name: [] for side in sides}
        for _ in range(runs):
            for side in sides:
                one = boot(side, start)
                samples[side.name].append((one.seconds, one.cpu, one.resident))
        for name, triples in samples.items():
            line |= zip((f"{name}, s", f"{name}, CPU s", f"{name}, MiB"), map(statistics.median, zip(*triples)))
        lines.append(line)
        print(f"  {line}", file=sys.stderr)
    return lines


def cpus(sides: list[Side], plain: Start, runs: int) -> list[Cost]:
    """Boots with more and more processors."""
    return boots(sides, [("CPUs", count, replace(plain, cpus=count)) for count in CPUS], min(runs, 3))


def memory_size(sides: list[Side], plain: Start, runs: int) -> list[Cost]:
    """Boots with more and more memory."""
    return boots(sides, [("MiB of RAM", size, replace(plain, memory=size)) for size in MEMORY], min(runs, 3))


def cold(sides: list[Side], plain: Start, runs: int) -> list[Cost]:
    """A boot on a machine that has never compiled anything."""
    with tempfile.TemporaryDirectory(prefix="trapline-cold-") as cache:
        one = boot(TRAPLINE, plain, {**os.environ, "XDG_CACHE_HOME": cache})
    return [{"seconds": one.seconds, "CPU s": one.cpu, "resident MiB": one.resident}]


MEASURES: dict[str, Callable[[list[Side], Start, int], list[Cost]]] = {
    "cold": cold,
    "mmio": mmio,
    "calls": calls,
    "kvm-exits": kvm_exits,
    "work": work,
    "cpus": cpus,
    "memory-size": memory_size,
}
ALONE = frozenset({"mmio", "calls", "kvm-exits", "work"})
"""Those that want the processor for themselves: compilers of guests that ended go on for a while, and may share it."""


def measure(into: dict[str, list[Cost]], names: list[str], sides: list[Side], plain: Start, runs: int) -> None:
    """Measure the costs among the names."""
    for name in names:
        if name in MEASURES:
            print(f"  {name}", file=sys.stderr)
            if lines := MEASURES[name](sides, plain, runs):
                into[name] = lines
