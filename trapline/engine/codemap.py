"""The map from host pages of guest code to predecoded pages, shared by the vCPUs of an engine, as native functions.

Predecoded pages depend on nothing but the instruction words, so every vCPU and every address space shares them. They are found
by the host address of the code page; cache maintenance by the guest (IC) resets the records that it names.
"""

from __future__ import annotations

from trapline.bits.native import Ptr, addressof, cas64, fence, load64, native, store8, store64, u1, u64
from trapline.engine.lock import lock, unlock
from trapline.engine.state import PAGE_BYTES, PAGE_GENERATION, PAGE_HEADER, PAGE_INSNS, RECORD_SIZE, EngineState, Shared

CODE_LOCK = Shared.code_lock.offset
RESET_LOCK = Shared.reset_lock.offset
POLL_LEAVE = EngineState.poll_leave.offset
HASH = 0x9E37_79B9_7F4A_7C15


@native
def find_records(shared: Ptr[Shared], page: u64) -> u64:
    """Records of a host code page, or 0 if it has none yet."""
    at = ((page >> 12) * HASH) >> 20
    key = u64(1)
    while key != 0:
        entry = shared.map + ((at & shared.map_mask) << 4)
        key = load64(entry)
        if key == page:
            return load64(entry + 8)
        at = at + 1
    return 0


@native
def add_records(shared: Ptr[Shared], page: u64) -> u64:
    """Make the predecoded page of a host page, all records undecoded; 0 if there is no room left."""
    lock(addressof(shared) + CODE_LOCK)
    records = find_records(shared, page)
    if records == 0 and shared.code_next + PAGE_BYTES <= shared.code_end:
        base = shared.code_next
        shared.code_next = base + PAGE_BYTES
        records = base + PAGE_HEADER
        store64(base, page)
        forget(shared, records, 0, PAGE_INSNS)
        store64(records + PAGE_INSNS * RECORD_SIZE, shared.page_end)
        insert(shared, page, records)
    unlock(addressof(shared) + CODE_LOCK)
    return records


@native
def insert(shared: Ptr[Shared], page: u64, records: u64) -> None:
    """Enter a page into the hash table; its value is visible before its key."""
    at = ((page >> 12) * HASH) >> 20
    entry = shared.map + ((at & shared.map_mask) << 4)
    while load64(entry) != 0:
        at = at + 1
        entry = shared.map + ((at & shared.map_mask) << 4)
    store64(entry + 8, records)
    fence()
    store64(entry, page)


@native
def reset_records(shared: Ptr[Shared], records: u64, first: u64, count: u64) -> None:
    """Forget what was decoded of `count` instructions, and all regions that have code on the page."""
    lock(addressof(shared) + RESET_LOCK)  # against code that is being published
    forget(shared, records, first, count)
    unlock(addressof(shared) + RESET_LOCK)


@native
def forget(shared: Ptr[Shared], records: u64, first: u64, count: u64) -> None:
    """`reset_records` of a page that nobody else changes.

    Stencils fall through from one to the next without looking at records, so what may run into these instructions goes too.
    """
    generation = records - PAGE_HEADER + PAGE_GENERATION
    store64(generation, load64(generation) + 1)
    fence()
    at = records + first * RECORD_SIZE
    end = at + count * RECORD_SIZE
    before = at
    while before != records and load64(before - RECORD_SIZE) != shared.undecoded:
        before = before - RECORD_SIZE
        store64(before, shared.undecoded)
    while at != end:
        store64(at, shared.undecoded)
        at = at + RECORD_SIZE


@native
def reset_line(shared: Ptr[Shared], host: u64, line: u64) -> None:
    """Forget the decoded instructions of the `line` bytes around a host address (IC IVAU)."""
    records = find_records(shared, host & ~u64(4095))
    if records != 0:
        first = (host & 4095 & ~(line - 1)) >> 2
        reset_records(shared, records, first, line >> 2)
        leave_regions(shared)


@native
def leave_regions(shared: Ptr[Shared]) -> None:
    """Have every vCPU leave the region that it is in: compiled code changed, and only records are looked at again."""
    for k in range(shared.cpu_count):
        store8(shared.cpus[k] + POLL_LEAVE, 1)


@native
def reset_everything(shared: Ptr[Shared]) -> None:
    """Forget all decoded instructions (IC IALLU)."""
    at = shared.code_start
    while at != shared.code_next:
        reset_records(shared, at + PAGE_HEADER, 0, PAGE_INSNS)
        at = at + PAGE_BYTES
    leave_regions(shared)


@native
def install(shared: Ptr[Shared], record: u64, handler: u64, region: u64, records: u64, generation: u64) -> u1:
    """Have a region take over at a record that has this handler; no if it has another by now, or if anything on its page was
    forgotten since it had this generation: the record may be of another instruction then."""
    lock(addressof(shared) + RESET_LOCK)
    done = u1(0)
    if load64(records - PAGE_HEADER + PAGE_GENERATION) == generation:
        done = cas64(record, handler, region) == handler
    unlock(addressof(shared) + RESET_LOCK)
    return done
