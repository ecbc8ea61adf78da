"""Software TLBs, as native functions: selecting, filling and invalidating them, and keeping other vCPUs in step.

A data TLB entry maps one 4 KiB page to host memory. It is filled only from a completed stage-1 and stage-2 walk, whose output
is a host address inside a memslot: this is the containment boundary. Entries made from larger translations leave a mark in two
small Bloom filters, so that a TLB invalidation by address knows when it must look at every entry.
"""

from __future__ import annotations

from trapline.bits.native import Ptr, addressof, cas64, extern, fence, load32, load64, native, store8, store64, u1, u32, u64
from trapline.engine.state import ITLB_ENTRIES, SYNC_PAGES, TLB_ENTRIES, TLB_INVALID, EngineState, Shared

sched_yield = extern("sched_yield", u32, ())

DTLB_OFFSET = EngineState.dtlb.offset
REGIME_BYTES = TLB_ENTRIES * 32
ITLB_OFFSET = EngineState.itlbs.offset
ITLB_BYTES = ITLB_ENTRIES * 16
EL1_REGIMES = 3
"""Data TLBs of EL1&0; that of EL2 is never used, since the hypervisor is not guest code."""
GOLDEN = 0x9E37_79B9_7F4A_7C15
SPINS = 2000
"""How often a waiting vCPU looks before it lets another thread run."""


@native
def bloom(frame: u64) -> u64:
    """The filter bit of a frame number."""
    return u64(1) << ((frame * GOLDEN) >> 58)


@native
def select_regime(cpu: Ptr[EngineState]) -> None:
    """Point the data and instruction TLBs at those of the current exception level and PAN."""
    base = addressof(cpu)
    regime = u64(cpu.el)
    if cpu.el == 1 and cpu.pan != 0:
        regime = 2
    if cpu.el == 2:
        regime = 3
    cpu.tlb = base + DTLB_OFFSET + regime * REGIME_BYTES
    cpu.itlb = base + ITLB_OFFSET + u64(cpu.el) * ITLB_BYTES


@native
def flush_all(cpu: Ptr[EngineState]) -> None:
    """Invalidate every entry of this vCPU."""
    base = addressof(cpu)
    at = base + DTLB_OFFSET
    end = at + EL1_REGIMES * REGIME_BYTES
    while at != end:
        store64(at, TLB_INVALID)
        store64(at + 8, TLB_INVALID)
        at = at + 32
    at = base + ITLB_OFFSET
    end = at + 2 * ITLB_BYTES
    while at != end:
        store64(at, TLB_INVALID)
        at = at + 16
    cpu.large_2m = 0
    cpu.large_1g = 0


@native
def flush_nonglobal(cpu: Ptr[EngineState]) -> None:
    """Invalidate entries of the current address space (another ASID is selected, or this one is invalidated)."""
    base = addressof(cpu)
    at = base + DTLB_OFFSET
    end = at + EL1_REGIMES * REGIME_BYTES
    while at != end:
        if load64(at + 24) != 0:
            store64(at, TLB_INVALID)
            store64(at + 8, TLB_INVALID)
        at = at + 32
    at = base + ITLB_OFFSET
    end = at + 2 * ITLB_BYTES
    while at != end:
        store64(at, TLB_INVALID)
        at = at + 16


@native
def flush_page(cpu: Ptr[EngineState], va: u64) -> None:
    """Invalidate what may translate one virtual address, in all regimes of EL1&0."""
    base = addressof(cpu)
    frame = (va >> 12) & 0xFFFFFFFFFFF
    if (cpu.large_2m & bloom(frame >> 9)) != 0 or (cpu.large_1g & bloom(frame >> 18)) != 0:
        flush_all(cpu)
        return
    index = frame & (TLB_ENTRIES - 1)
    for regime in range(EL1_REGIMES):
        at = base + DTLB_OFFSET + u64(regime) * REGIME_BYTES + (index << 5)
        store64(at, TLB_INVALID)
        store64(at + 8, TLB_INVALID)
    for el in range(2):
        store64(base + ITLB_OFFSET + u64(el) * ITLB_BYTES + ((frame & (ITLB_ENTRIES - 1)) << 4), TLB_INVALID)


@native
def fill_data(
    cpu: Ptr[EngineState], regime_at: u64, va: u64, host: u64, readable: u1, writable: u1, nonglobal: u1, size_log2: u32
) -> None:
    """Enter a 4 KiB translation: `va` is the untouched virtual address, `host` where its byte lies."""
    page = va & ~u64(4095)
    at = regime_at + (((va >> 12) & (TLB_ENTRIES - 1)) << 5)
    store64(at, page if readable else u64(TLB_INVALID))
    store64(at + 8, page if writable else u64(TLB_INVALID))
    store64(at + 16, host - va)
    store64(at + 24, u64(nonglobal))
    note_size(cpu, va, size_log2)


@native
def note_size(cpu: Ptr[EngineState], va: u64, size_log2: u32) -> None:
    """Remember that an entry is part of a translation larger than 4 KiB."""
    frame = (va >> 12) & 0xFFFFFFFFFFF
    if size_log2 > 21:
        cpu.large_1g = cpu.large_1g | bloom(frame >> 18)
    elif size_log2 > 12:
        cpu.large_2m = cpu.large_2m | bloom(frame >> 9)


@native
def lock_sync(cpu: u64) -> None:
    """Take the lock of a vCPU's list of requested invalidations; it is held for a few stores."""
    spins = u64(0)
    while cas64(cpu + SYNC_LOCK, 0, 1) != 0:
        spins = spins + 1
        if spins > SPINS:
            sched_yield()
            spins = 0


@native
def serve_sync(cpu: Ptr[EngineState]) -> None:
    """Do the invalidations that other vCPUs asked for."""
    lock_sync(addressof(cpu))
    cpu.poll_sync = 0
    request = cpu.sync_request
    if cpu.sync_count > SYNC_PAGES:
        flush_all(cpu)
    else:
        for k in range(cpu.sync_count):
            flush_page(cpu, cpu.sync_pages[k])
    cpu.sync_count = 0
    cpu.sync_done = request
    fence()
    cpu.sync_lock = 0


@native
def broadcast_flush(cpu: Ptr[EngineState], shared: Ptr[Shared], va: u64) -> None:
    """Ask all other vCPUs to forget a page, or EVERYTHING; `wait_sync` waits until they have."""
    if shared.cpu_count < 2:
        return
    fence()
    for k in range(shared.cpu_count):
        other = shared.cpus[k]
        if other != addressof(cpu):
            request_sync(other, va)
    cpu.sync_wait = 1


@native
def wait_sync(cpu: Ptr[EngineState], shared: Ptr[Shared]) -> None:
    """Wait until no running vCPU uses a translation that was invalidated before (DSB after TLBI or IC)."""
    cpu.sync_wait = 0
    fence()
    for k in range(shared.cpu_count):
        other = shared.cpus[k]
        if other != addressof(cpu):
            target = sync_requested(other)
            spins = u64(0)
            while is_running(other) and sync_finished(other) < target:
                if cpu.poll_sync != 0:
                    serve_sync(cpu)
                spins = spins + 1
                if spins > SPINS:
                    sched_yield()
                    spins = 0


EVERYTHING = (1 << 64) - 1
"""Instead of an address: all translations."""
SYNC_REQUEST = EngineState.sync_request.offset
SYNC_LOCK, SYNC_COUNT, SYNC_LIST = EngineState.sync_lock.offset, EngineState.sync_count.offset, EngineState.sync_pages.offset
SYNC_DONE = EngineState.sync_done.offset
POLL_SYNC = EngineState.poll_sync.offset
RUNNING = EngineState.running.offset


@native
def request_sync(other: u64, va: u64) -> None:
    """Post an invalidation at another vCPU, given by its address: of a page, or of EVERYTHING."""
    lock_sync(other)
    count = load64(other + SYNC_COUNT)
    if va == EVERYTHING or count >= SYNC_PAGES:
        store64(other + SYNC_COUNT, SYNC_PAGES + 1)
    else:
        store64(other + SYNC_LIST + (count << 3), va)
        store64(other + SYNC_COUNT, count + 1)
    store64(other + SYNC_REQUEST, load64(other + SYNC_REQUEST) + 1)
    store8(other + POLL_SYNC, 1)
    fence()
    store64(other + SYNC_LOCK, 0)
    fence()


@native
def sync_requested(other: u64) -> u64:
    return load64(other + SYNC_REQUEST)


@native
def sync_finished(other: u64) -> u64:
    fence()
    return load64(other + SYNC_DONE)


@native
def is_running(other: u64) -> u1:
    fence()
    return load32(other + RUNNING) != 0
