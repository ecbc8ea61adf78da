"""Several vCPUs at the same memory: no atomic update is lost, and ordered accesses keep their order."""

from __future__ import annotations

import threading

import pytest

from tests.engine_machine import Bench, hvc_number
from trapline.engine import Cpu

COUNT, VCPUS = 100_000, 3

INCREMENTS = {
    "ldxr stxr": "again: ldxr x2, [x1]\nadd x2, x2, #1\nstxr w3, x2, [x1]\ncbnz w3, again",
    "ldaxr stlxr, 32 bits": "again: ldaxr w2, [x1]\nadd w2, w2, #1\nstlxr w3, w2, [x1]\ncbnz w3, again",
    "ldxrh stxrh": "again: ldxrh w2, [x1]\nadd w2, w2, #1\nstxrh w3, w2, [x1]\ncbnz w3, again",
    "ldxp stxp": "again: ldxp x2, x4, [x1]\nadd x2, x2, #1\nsub x4, x4, #1\nstxp w3, x2, x4, [x1]\ncbnz w3, again",
    "ldadd": "mov x2, #1\nldadd x2, x3, [x1]",
    "ldaddalh": "mov w2, #1\nldaddalh w2, w3, [x1]",
    "cas": "again: ldr x2, [x1]\nadd x3, x2, #1\nmov x4, x2\ncas x4, x3, [x1]\ncmp x4, x2\nb.ne again",
    "casal, 32 bits": "again: ldr w2, [x1]\nadd w3, w2, #1\nmov w4, w2\ncasal w4, w3, [x1]\ncmp w4, w2\nb.ne again",
    "caspal": "again: ldp x2, x3, [x1]\nadd x4, x2, #1\nsub x5, x3, #1\nmov x6, x2\nmov x7, x3\n"
    "caspal x6, x7, x4, x5, [x1]\ncmp x6, x2\nb.ne again\ncmp x7, x3\nb.ne again",
    "swpal lock": "mov w2, #1\nagain: swpal w2, w3, [x8]\ncbnz w3, again\nldr x4, [x1]\nadd x4, x4, #1\nstr x4, [x1]\nstlr wzr, [x8]",
}  # fmt: skip
"""One increment of the counter at X1 (16 bits at least); X8 is free memory."""


@pytest.fixture
def bench() -> Bench:
    pytest.importorskip("llvmlite")
    return Bench(200)


def run_all(cpus: list[Cpu]) -> None:
    threads = [threading.Thread(target=cpu.enter, daemon=True) for cpu in cpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("how", INCREMENTS)
def test_no_increment_is_lost(bench: Bench, how: str) -> None:
    shared = bench.memory.page()
    bench.tables.map(shared, shared)
    code = bench.load(f"loop: {INCREMENTS[how]}\nsub x0, x0, #1\ncbnz x0, loop\nhvc #1")
    cpus = [bench.cpu(code, x0=COUNT, x1=shared, x8=shared + 256) for _ in range(VCPUS)]
    run_all(cpus)
    assert [hvc_number(cpu) for cpu in cpus] == [1] * VCPUS
    width = 16 if how.endswith("h") else 64
    assert bench.memory.get(shared) % (1 << width) == COUNT * VCPUS % (1 << width)


SIDES = "str x2, [x{mine}]\n{between}\nldr x3, [x{other}]\nstr x3, [x9], #8"
"""One side of the store buffering test: who sees the other's store?"""

BARRIERS = {
    "dmb ish": SIDES.replace("{between}", "dmb ish"),
    "dsb sy": SIDES.replace("{between}", "dsb sy"),
    "stlr ldar": "stlr x2, [x{mine}]\nldar x3, [x{other}]\nstr x3, [x9], #8",
}


@pytest.mark.parametrize("barrier", BARRIERS)
def test_store_buffering_is_forbidden(bench: Bench, barrier: str) -> None:
    """Two vCPUs each store and then load what the other stores: with a full barrier, one of them sees the other's."""
    rounds = 20_000
    shared, results = bench.memory.page(2), [bench.memory.page(rounds // 512 + 1) for _ in range(2)]
    for page in (shared, shared + 4096, *(r + k * 4096 for r in results for k in range(rounds // 512 + 1))):
        bench.tables.map(page, page)
    cpus = []
    for side in range(2):
        body = BARRIERS[barrier].format(mine=5 + side, other=6 - side)
        # Meet at the start of every round: count oneself in, wait until both have come.
        meet = "mov x10, #1\nldaddal x10, x11, [x7]\nwait: ldar x11, [x7]\ncmp x11, x12\nb.lo wait"
        code = bench.load(f"loop: add x12, x12, #2\nadd x2, x2, #1\n{meet}\n{body}\nsub x0, x0, #1\ncbnz x0, loop\nhvc #1")
        registers = {"x0": rounds, "x5": shared, "x6": shared + 256, "x7": shared + 4096, "x9": results[side], "x12": 0, "x2": 0}
        cpus.append(bench.cpu(code, **registers))
    run_all(cpus)
    assert [hvc_number(cpu) for cpu in cpus] == [1, 1]
    seen = [[bench.memory.get(r + 8 * k) for k in range(rounds)] for r in results]
    both_missed = [k for k, (a, b) in enumerate(zip(*seen, strict=True), 1) if a < k and b < k]
    assert not both_missed, f"both read old values in rounds {both_missed[:5]}"
