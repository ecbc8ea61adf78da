"""Posted writes: stores to devices that wait in a ring instead of ending the run, as native functions.

A hypervisor that lets some device's writes wait for its userspace (KVM calls them coalesced) tells the machine which they are, one by
one as it meets them; from then on the machine puts them into the ring itself. What a store needs for that is what an abort's syndrome
could describe: one general register, no writeback.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.descriptors import FAULT_S1PTW, FAULT_STAGE2, FAULT_UPDATE, PERMISSION, TRANSLATION
from trapline.bits.native import Ptr, addressof, fence, load32, native, store32, store64, u1, u32, u64
from trapline.engine.lock import lock, unlock
from trapline.engine.state import PLACES, EngineState, Posting

SIZE_BITS: Final = 4
"""A place is `address << SIZE_BITS | size`."""

HEAD_BYTES: Final = 8
"""Of the ring: the numbers of the first entry that is taken and of the first that is not, 32 bits each."""
ENTRY_BYTES: Final = 24
"""Of an entry: address, size (32 bits), a word of zero, and 8 bytes of data."""

FSC_KIND: Final = 0x3C
"""Of a fault status code, without the level."""
LOCK = Posting.lock.offset


@native
def knows_place(posting: Ptr[Posting], place: u64) -> u1:
    """Whether writes to a place may be posted."""
    for k in range(PLACES):
        if posting.places[k] == place:
            return True
    return False


@native
def append_write(posting: Ptr[Posting], place: u64, value: u64) -> u1:
    """Add an entry, with the lock held; no if the ring is full, or holds nonsense (it is the other side's to write, too)."""
    ring = posting.ring
    last = u64(load32(ring + 4))
    if last >= posting.capacity:
        return False
    following = last + 1
    if following == posting.capacity:
        following = 0
    if following == u64(load32(ring)):
        return False
    entry = ring + HEAD_BYTES + last * ENTRY_BYTES
    store64(entry, place >> SIZE_BITS)
    store64(entry + 8, place & ((1 << SIZE_BITS) - 1))
    store64(entry + 16, value)
    fence()
    store32(ring + 4, u32(following))
    return True


@native
def post(posting: Ptr[Posting], address: u64, size: u64, value: u64) -> u1:
    """The hypervisor has found that a write may wait: add it, and know its place from now on. No if there is no room."""
    place = address << SIZE_BITS | size
    lock(addressof(posting) + LOCK)
    done = append_write(posting, place, value)
    if done and not knows_place(posting, place):
        posting.places[posting.next & (PLACES - 1)] = place
        posting.next = posting.next + 1
    unlock(addressof(posting) + LOCK)
    return done


@native
def forget_posted(posting: Ptr[Posting]) -> None:
    """No place is known any more; when this returns nobody adds anything for what was known before."""
    lock(addressof(posting) + LOCK)
    for k in range(PLACES):
        posting.places[k] = 0
    unlock(addressof(posting) + LOCK)


@native
def post_store(cpu: Ptr[EngineState], fault: u32, va: u64, ipa: u64, size: u64, value: u64) -> u1:
    """A store had a fault, and an abort could describe it: post it, if its place is known."""
    kind = fault & FSC_KIND
    stage2 = fault & (FAULT_STAGE2 | FAULT_S1PTW | FAULT_UPDATE) == FAULT_STAGE2
    if not stage2 or (kind != TRANSLATION and kind != PERMISSION) or size > 8:
        return False
    posting = Ptr[Posting](cpu.posting)
    place = (ipa & ~u64(4095) | va & 4095) << SIZE_BITS | size
    if not knows_place(posting, place):
        return False
    lock(addressof(posting) + LOCK)
    done: u1 = knows_place(posting, place) and append_write(posting, place, value & ((u64(2) << (size * 8 - 1)) - 1))
    unlock(addressof(posting) + LOCK)
    return done
