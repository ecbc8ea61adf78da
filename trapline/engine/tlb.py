"""Software TLBs, as native functions: selecting, filling and invalidating them, and keeping other vCPUs in step.

A data TLB entry maps one 4 KiB page to host memory. It is filled only from a completed stage-1 and stage-2 walk, whose output
is a host address inside a memslot: this is the containment boundary.

EL1 and EL2 have TLBs of their own, shared by all address spaces: what they hold is global nearly always, and the rest goes when
the ASID changes. EL0 has a *bank* of TLBs for each of the last few address spaces, which are named by regime, VMID and ASID; a
change of address space changes pointers. A page of a larger translation is an entry like any other; `Contents` remembers enough
for an invalidation by address to find all entries of its translation. Invalidating more than was asked for is always allowed.
"""

from __future__ import annotations

from trapline.arm64.regs import (
    HCR_EL2,
    MAIR_EL1,
    MAIR_EL2,
    SCTLR_EL1,
    SCTLR_EL2,
    TCR_EL1,
    TCR_EL2,
    TTBR0_EL1,
    TTBR0_EL2,
    TTBR1_EL1,
    TTBR1_EL2,
    VTCR_EL2,
    VTTBR_EL2,
)
from trapline.arm64.stage1 import current_asid
from trapline.arm64.walk import INFO_NONGLOBAL, INFO_READ, INFO_SIZE_SHIFT, INFO_WRITE
from trapline.arm64.walk_cache import forget_stage2, forget_tables, forget_tables_of
from trapline.bits.native import Ptr, addressof, ctz, fence, load32, load64, native, store8, store64, u1, u16, u32, u64
from trapline.engine.lock import SPINS, lock, sched_yield, unlock
from trapline.engine.state import (
    BANKS,
    CHUNKS,
    ITLB_ENTRIES,
    JOURNAL,
    LEVELS,
    SYNC_ITEMS,
    TLB_ENTRIES,
    TLB_INVALID,
    Bank,
    CodeTlb,
    Contents,
    DataTlb,
    EngineState,
    Shared,
    SyncItem,
)

GOLDEN = 0x9E37_79B9_7F4A_7C15

KIND_GLOBAL, KIND_NONGLOBAL, KIND_64K, KIND_HUGE = 1, 2, 4, 8
"""`Contents.kinds`: entries of all address spaces, of one; of translations above 4 KiB up to 64 KiB; above 1 GiB."""

DATA_CHUNK, CODE_CHUNK = TLB_ENTRIES // CHUNKS, ITLB_ENTRIES // CHUNKS
FEW = 16
"""So many pages are invalidated one by one; for more the whole TLB is looked through."""
FRAME = (1 << 44) - 1
"""VA[55:12]: what an invalidation names. The top byte of an entry's address may be a tag."""
HALF = 43
"""The bit of a frame that tells the halves of the address space apart."""

EVERYTHING, STAGE1, STAGE2, ASID, PAGES_OF_ASID, PAGES = range(6)
"""Scopes of `invalidate`: all that this vCPU knows; stage 1 of one regime; both stages of EL1&0; one ASID; pages of one ASID
and global ones; pages of every ASID."""
SCOPE, HOST, LAST_LEVEL = 7, 8, 16
"""`invalidate`'s `what` besides: mask of the scope; the regime of EL2 instead of EL1; only the last level changed."""
ASID_SHIFT = 16

KEY_VALID, KEY_HOST, KEY_VMID_SHIFT = 1 << 63, 1 << 62, 16
"""The name of an address space: ASID, VMID, and whether it belongs to EL2&0."""
HOST_EL0 = HCR_EL2.E2H.mask | HCR_EL2.TGE.mask
CURRENT_AT_EL1, CURRENT_AT_EL2 = 0, 2
"""Numbers in `EngineState.levels` of the TLBs of EL1 and EL2 with PAN clear; those with PAN set follow."""


# ---- selecting ----------------------------------------------------------------------------------------------------------------


@native
def space_key(cpu: Ptr[EngineState]) -> u64:
    """The name of the address space that EL0 is in."""
    hcr = cpu.sysreg[HCR_EL2.slot]
    if hcr & HOST_EL0 == HOST_EL0:
        asid = current_asid(cpu.sysreg[TCR_EL2.slot], cpu.sysreg[TTBR0_EL2.slot], cpu.sysreg[TTBR1_EL2.slot])
        return KEY_VALID | KEY_HOST | asid
    asid = current_asid(cpu.sysreg[TCR_EL1.slot], cpu.sysreg[TTBR0_EL1.slot], cpu.sysreg[TTBR1_EL1.slot])
    vmid = cpu.sysreg[VTTBR_EL2.slot] >> 48
    if cpu.sysreg[VTCR_EL2.slot] & VTCR_EL2.VS.mask == 0:
        vmid &= 0xFF
    return KEY_VALID | vmid << KEY_VMID_SHIFT | asid


@native
def select_space(cpu: Ptr[EngineState]) -> None:
    """After a change of ASID, VMID or regime: find the bank of this address space, or give it the one unused for longest.

    `select_regime` must follow.
    """
    key = space_key(cpu)
    if key == cpu.space:
        return
    cpu.space = key
    for level in range(LEVELS):
        drop_nonglobal(cpu.levels[level])
    for level in range(2):
        if cpu.level_codes[level].contents.kinds & KIND_NONGLOBAL != 0:
            empty_code(cpu.level_codes[level])
    chosen: u64 = 0
    for k in range(BANKS):
        if cpu.banks[k].key == key:
            chosen = u64(k)
            break
        if cpu.banks[k].stamp < cpu.banks[chosen].stamp:
            chosen = u64(k)
    bank = cpu.banks[chosen]
    if bank.key != key:
        empty_data(bank.data)
        empty_code(bank.code)
        bank.key = key
    cpu.bank_clock += 1
    bank.stamp = cpu.bank_clock
    cpu.bank = addressof(bank)


@native
def select_regime(cpu: Ptr[EngineState]) -> None:
    """Point the data and instruction TLBs at those of the current exception level, PAN, and address space."""
    bank = cpu.bank
    data = addressof(cpu.levels[(CURRENT_AT_EL2 if cpu.el == 2 else u64(CURRENT_AT_EL1)) + (1 if cpu.pan != 0 else u64(0))])
    if cpu.el == 0:
        data = bank
    cpu.tlb = data
    cpu.itlb = bank + BANK_CODE if cpu.el == 0 else addressof(cpu.level_codes[u64(cpu.el) - 1])
    cpu.tlb_user = bank
    if cpu.uao != 0 or (cpu.el == 2 and cpu.sysreg[HCR_EL2.slot] & HOST_EL0 != HOST_EL0):
        cpu.tlb_user = data


# ---- filling ------------------------------------------------------------------------------------------------------------------


@native
def fill_data(cpu: Ptr[EngineState], tlb: u64, va: u64, host: u64, info: u32) -> None:
    """Enter a 4 KiB translation: `va` is the untouched virtual address, `host` where its byte lies, `info` INFO_ flags."""
    page = va & ~u64(4095)
    index = va >> 12 & (TLB_ENTRIES - 1)
    table = Ptr[DataTlb](tlb)
    entry = table.entries[index]
    entry.read_tag = page if info & INFO_READ != 0 else u64(TLB_INVALID)
    entry.write_tag = page if info & INFO_WRITE != 0 else u64(TLB_INVALID)
    entry.addend = host - va
    entry.flags = u64(info)
    note(table.contents, index, DATA_CHUNK, va, info)


@native
def fill_code(cpu: Ptr[EngineState], pc: u64, mark: u64, records: u64, info: u32) -> None:
    """Enter the predecoded page of an address into the current instruction TLB; `mark` is GUARDED or 0."""
    index = pc >> 12 & (ITLB_ENTRIES - 1)
    table = Ptr[CodeTlb](cpu.itlb)
    entry = table.entries[index]
    entry.records = records
    entry.tag = pc & ~u64(4095) | mark
    note(table.contents, index, CODE_CHUNK, pc, info)


@native
def note(contents: Ptr[Contents], index: u64, chunk: u64, va: u64, info: u32) -> None:
    """Remember which entry was made, and its kind; a 64th of the entries are `chunk`."""
    if contents.fills < JOURNAL:
        contents.journal[contents.fills] = u16(index)
    contents.fills += 1
    contents.used |= u64(1) << index // chunk
    contents.kinds |= KIND_NONGLOBAL if info & INFO_NONGLOBAL != 0 else u64(KIND_GLOBAL)
    if info >> INFO_SIZE_SHIFT > 12:
        note_size(contents, va >> 12 & FRAME, info >> INFO_SIZE_SHIFT)


@native
def note_size(contents: Ptr[Contents], frame: u64, size_log2: u32) -> None:
    """Remember that the entry of a frame is part of a translation larger than 4 KiB."""
    if size_log2 <= 16:
        contents.kinds |= KIND_64K
    elif size_log2 <= 21:
        contents.large_2m[frame >> HALF] |= bloom(frame >> 9)
    elif size_log2 <= 30:
        contents.large_1g[frame >> HALF] |= bloom(frame >> 18)
    else:
        contents.kinds |= KIND_HUGE


@native
def bloom(frame: u64) -> u64:
    """The filter bit of a frame number."""
    return u64(1) << ((frame * GOLDEN) >> 58)


# ---- emptying -----------------------------------------------------------------------------------------------------------------


@native
def empty_data(tlb: Ptr[DataTlb]) -> None:
    """Invalidate every entry of a data TLB."""
    used = tlb.contents.used
    if tlb.contents.fills <= JOURNAL:
        for n in range(tlb.contents.fills):
            entry = tlb.entries[tlb.contents.journal[n]]
            entry.read_tag = TLB_INVALID
            entry.write_tag = TLB_INVALID
        used = 0
    while used != 0:
        first = ctz(used) * DATA_CHUNK
        used &= used - 1
        for k in range(DATA_CHUNK):
            tlb.entries[first + u64(k)].read_tag = TLB_INVALID
            tlb.entries[first + u64(k)].write_tag = TLB_INVALID
    forget_contents(tlb.contents)


@native
def empty_code(tlb: Ptr[CodeTlb]) -> None:
    """Invalidate every entry of an instruction TLB."""
    used = tlb.contents.used
    if tlb.contents.fills <= JOURNAL:
        for n in range(tlb.contents.fills):
            tlb.entries[tlb.contents.journal[n]].tag = TLB_INVALID
        used = 0
    while used != 0:
        first = ctz(used) * CODE_CHUNK
        used &= used - 1
        for k in range(CODE_CHUNK):
            tlb.entries[first + u64(k)].tag = TLB_INVALID
    forget_contents(tlb.contents)


@native
def forget_contents(contents: Ptr[Contents]) -> None:
    """Nothing is in this TLB."""
    contents.used = 0
    contents.kinds = 0
    forget_sizes(contents)
    contents.fills = 0


@native
def forget_sizes(contents: Ptr[Contents]) -> None:
    """No entry belongs to a translation of 2 MiB or 1 GiB."""
    for half in range(2):
        contents.large_2m[half] = 0
        contents.large_1g[half] = 0


@native
def drop_nonglobal(tlb: Ptr[DataTlb]) -> None:
    """Invalidate the entries that belong to one address space."""
    if tlb.contents.kinds & KIND_NONGLOBAL == 0:
        return
    used = tlb.contents.used
    while used != 0:
        first = ctz(used) * DATA_CHUNK
        used &= used - 1
        for k in range(DATA_CHUNK):
            entry = tlb.entries[first + u64(k)]
            if entry.flags & INFO_NONGLOBAL != 0:
                entry.read_tag = TLB_INVALID
                entry.write_tag = TLB_INVALID
    tlb.contents.kinds &= ~u64(KIND_NONGLOBAL)


@native
def widen(contents: Ptr[Contents], first: u64, last: u64) -> tuple[u64, u64]:
    """The frames that have to go so that no part of a translation of `first` to `last` stays."""
    low = first
    high = last
    if contents.kinds & KIND_64K != 0:
        low = first & ~u64(0xF)
        high = last | 0xF
    half = first >> HALF
    if filtered(contents.large_2m[half], first >> 9, last >> 9):
        low = first & ~u64(0x1FF)
        high = last | 0x1FF
    if filtered(contents.large_1g[half], first >> 18, last >> 18):
        low = first & ~u64(0x3FFFF)
        high = last | 0x3FFFF
    if contents.kinds & KIND_HUGE != 0 or last >> HALF != half:
        low = 0
        high = FRAME
    return low, high


@native
def filtered(bits: u64, first: u64, last: u64) -> u1:
    """May one of these frames be in a filter?"""
    if bits == 0:
        return False
    if last - first >= CHUNKS:
        return True
    frame = first
    while frame <= last:
        if bits & bloom(frame) != 0:
            return True
        frame += 1
    return False


@native
def drop_data(tlb: Ptr[DataTlb], first: u64, last: u64) -> None:
    """Invalidate the entries whose translation covers any of the frames `first` to `last`."""
    contents = tlb.contents
    low, high = widen(contents, first, last)
    if high - low < FEW:
        while low <= high:
            entry = tlb.entries[low & (TLB_ENTRIES - 1)]
            entry.read_tag = TLB_INVALID
            entry.write_tag = TLB_INVALID
            low += 1
        return
    used = contents.used
    forget_sizes(contents)
    while used != 0:
        start = ctz(used) * DATA_CHUNK
        used &= used - 1
        for k in range(DATA_CHUNK):
            each = tlb.entries[start + u64(k)]
            tag = each.read_tag if each.read_tag != TLB_INVALID else each.write_tag
            frame = tag >> 12 & FRAME
            if tag == TLB_INVALID:
                pass
            elif low <= frame and frame <= high:
                each.read_tag = TLB_INVALID
                each.write_tag = TLB_INVALID
            elif each.flags >> INFO_SIZE_SHIFT > 16:
                note_size(contents, frame, u32(each.flags >> INFO_SIZE_SHIFT))


@native
def drop_code(tlb: Ptr[CodeTlb], first: u64, last: u64) -> None:
    """Invalidate the instruction TLB's entries in the frames `first` to `last`, and the rest of their translations."""
    low, high = widen(tlb.contents, first, last)
    if high - low < FEW:
        while low <= high:
            tlb.entries[low & (ITLB_ENTRIES - 1)].tag = TLB_INVALID
            low += 1
        return
    used = tlb.contents.used
    while used != 0:
        start = ctz(used) * CODE_CHUNK
        used &= used - 1
        for k in range(CODE_CHUNK):
            entry = tlb.entries[start + u64(k)]
            frame = entry.tag >> 12 & FRAME
            if low <= frame and frame <= high:
                entry.tag = TLB_INVALID


# ---- invalidating -------------------------------------------------------------------------------------------------------------


@native
def flush_all(cpu: Ptr[EngineState]) -> None:
    """Forget every translation of this vCPU."""
    for level in range(LEVELS):
        empty_data(cpu.levels[level])
    for level in range(2):
        empty_code(cpu.level_codes[level])
    for k in range(BANKS):
        empty_data(cpu.banks[k].data)
        empty_code(cpu.banks[k].code)
    forget_tables(cpu.walks)
    forget_stage2(cpu.walks)


EL1_CONTROLS = SCTLR_EL1.M.mask | SCTLR_EL1.A.mask | SCTLR_EL1.C.mask | SCTLR_EL1.WXN.mask | SCTLR_EL1.EPAN.mask
"""Bits of SCTLR_EL1, and SCTLR_EL2, that entries depend on."""
STAGE2_CONTROLS = (
    HCR_EL2.VM.mask | HCR_EL2.DC.mask | HCR_EL2.PTW.mask | HCR_EL2.FWB.mask | HCR_EL2.TGE.mask | HCR_EL2.E2H.mask | HCR_EL2.CD.mask
)
"""Bits of HCR_EL2 that the entries of EL1&0 depend on."""


@native
def follow_controls(cpu: Ptr[EngineState]) -> None:
    """After writes of registers that rule translation: forget what was entered under values that hold no more.

    `controls` has the values under which the present entries were made. A host (E2H and TGE) cannot use EL1&0, so whatever it
    writes counts only when it lets a guest run.
    """
    hcr = cpu.sysreg[HCR_EL2.slot]
    if hcr & HOST_EL0 != HOST_EL0:
        first = changed(cpu, 0, cpu.sysreg[SCTLR_EL1.slot] & EL1_CONTROLS)
        first = changed(cpu, 1, cpu.sysreg[TCR_EL1.slot]) or first
        first = changed(cpu, 2, cpu.sysreg[MAIR_EL1.slot]) or first
        both = changed(cpu, 3, hcr & STAGE2_CONTROLS)
        both = changed(cpu, 4, cpu.sysreg[VTCR_EL2.slot]) or both
        both = changed(cpu, 5, cpu.sysreg[VTTBR_EL2.slot]) or both
        if both:
            invalidate(cpu, STAGE2, 0, 0)
        elif first:
            invalidate(cpu, STAGE1, 0, 0)
    el2 = changed(cpu, 6, cpu.sysreg[SCTLR_EL2.slot] & EL1_CONTROLS)
    el2 = changed(cpu, 7, cpu.sysreg[TCR_EL2.slot]) or el2
    el2 = changed(cpu, 8, cpu.sysreg[MAIR_EL2.slot]) or el2
    el2 = changed(cpu, 9, hcr & HCR_EL2.E2H.mask) or el2
    if el2:
        invalidate(cpu, STAGE1 | HOST, 0, 0)


@native
def changed(cpu: Ptr[EngineState], number: u64, value: u64) -> u1:
    """Note the value of a control; whether it is another one than before."""
    if cpu.controls[number] == value:
        return False
    cpu.controls[number] = value
    return True


@native
def reset_tlbs(cpu: Ptr[EngineState]) -> None:
    """Start with nothing, whatever the memory held before."""
    for level in range(LEVELS):
        cpu.levels[level].contents.used = ~u64(0)
        cpu.levels[level].contents.fills = JOURNAL + 1
    for level in range(2):
        cpu.level_codes[level].contents.used = ~u64(0)
        cpu.level_codes[level].contents.fills = JOURNAL + 1
    for k in range(BANKS):
        cpu.banks[k].data.contents.used = ~u64(0)
        cpu.banks[k].data.contents.fills = JOURNAL + 1
        cpu.banks[k].code.contents.used = ~u64(0)
        cpu.banks[k].code.contents.fills = JOURNAL + 1
        cpu.banks[k].key = 0
        cpu.banks[k].stamp = 0
    cpu.space = 0
    flush_all(cpu)


@native
def invalidate(cpu: Ptr[EngineState], what: u64, first: u64, last: u64) -> None:
    """Invalidate on this vCPU: `what` is a scope with flags and an ASID, `first` and `last` are frames, where a scope has them."""
    scope = what & SCOPE
    if scope == EVERYTHING:
        flush_all(cpu)
        return
    pages = scope == PAGES or scope == PAGES_OF_ASID
    el2 = what & HOST != 0
    number: u64 = CURRENT_AT_EL2 if el2 else u64(CURRENT_AT_EL1)
    for k in range(2):
        level = cpu.levels[number + u64(k)]
        if pages:
            drop_data(level, first, last)
        elif scope == ASID:
            drop_nonglobal(level)
        else:
            empty_data(level)
    code = cpu.level_codes[u64(1) if el2 else u64(0)]
    if pages:
        drop_code(code, first, last)
    elif scope != ASID or code.contents.kinds & KIND_NONGLOBAL != 0:
        empty_code(code)
    for k in range(BANKS):
        bank = cpu.banks[k]
        if bank.key != 0 and (bank.key & KEY_HOST != 0) == el2:
            mine = bank.key & 0xFFFF == what >> ASID_SHIFT & 0xFFFF
            if pages:
                if mine or scope == PAGES or (bank.data.contents.kinds | bank.code.contents.kinds) & KIND_GLOBAL != 0:
                    drop_data(bank.data, first, last)
                    drop_code(bank.code, first, last)
            elif mine or scope != ASID:
                empty_data(bank.data)
                empty_code(bank.code)
    if scope == STAGE2:
        forget_stage2(cpu.walks)
    if not pages:
        forget_tables(cpu.walks)
    elif what & LAST_LEVEL == 0:
        forget_tables_of(cpu.walks, first, last)


# ---- other vCPUs --------------------------------------------------------------------------------------------------------------


@native
def serve_sync(cpu: Ptr[EngineState]) -> None:
    """Do the invalidations that other vCPUs asked for."""
    lock(addressof(cpu) + SYNC_LOCK)
    cpu.poll_sync = 0
    request = cpu.sync_request
    if cpu.sync_count > SYNC_ITEMS:
        flush_all(cpu)
    else:
        for k in range(cpu.sync_count):
            item = cpu.sync_items[k]
            invalidate(cpu, item.what, item.first, item.last)
    cpu.sync_count = 0
    cpu.sync_done = request
    unlock(addressof(cpu) + SYNC_LOCK)


@native
def broadcast(cpu: Ptr[EngineState], shared: Ptr[Shared], what: u64, first: u64, last: u64) -> None:
    """Ask all other vCPUs for an invalidation; `wait_sync` waits until they have done it."""
    if shared.cpu_count < 2:
        return
    fence()
    for k in range(shared.cpu_count):
        other = shared.cpus[k]
        if other != addressof(cpu):
            request_sync(other, what, first, last)
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


BANK_CODE = Bank.code.offset
"""The instruction TLB in a bank; the data TLB comes first."""
SYNC_REQUEST = EngineState.sync_request.offset
SYNC_LOCK, SYNC_COUNT, SYNC_LIST = EngineState.sync_lock.offset, EngineState.sync_count.offset, EngineState.sync_items.offset
SYNC_DONE = EngineState.sync_done.offset
POLL_SYNC = EngineState.poll_sync.offset
RUNNING = EngineState.running.offset
SYNC_ITEM_BYTES = EngineState.sync_items.size // SYNC_ITEMS


@native
def request_sync(other: u64, what: u64, first: u64, last: u64) -> None:
    """Post an invalidation (`invalidate`) at another vCPU, given by its address."""
    lock(other + SYNC_LOCK)
    count = load64(other + SYNC_COUNT)
    if what & SCOPE == EVERYTHING or count >= SYNC_ITEMS:
        store64(other + SYNC_COUNT, SYNC_ITEMS + 1)
    else:
        item = Ptr[SyncItem](other + SYNC_LIST + count * SYNC_ITEM_BYTES)
        item.what = what
        item.first = first
        item.last = last
        store64(other + SYNC_COUNT, count + 1)
    store64(other + SYNC_REQUEST, load64(other + SYNC_REQUEST) + 1)
    store8(other + POLL_SYNC, 1)
    unlock(other + SYNC_LOCK)
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
