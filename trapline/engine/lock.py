"""A spin lock, as native functions: a word of memory that is 0 while nobody holds it."""

from __future__ import annotations

from trapline.bits.native import cas64, extern, fence, native, store64, u32, u64

SPINS = 2000
"""How often a thread that waits looks before it lets another one run, which may be the one that is waited for."""

sched_yield = extern("sched_yield", u32, ())


@native
def lock(address: u64) -> None:
    """Take the lock at `address`. Whoever holds it is to be quick: a few stores, or a system call."""
    spins: u64 = 0
    while cas64(address, 0, 1) != 0:
        spins = spins + 1
        if spins > SPINS:
            sched_yield()
            spins = 0


@native
def unlock(address: u64) -> None:
    """Give it back."""
    fence()
    store64(address, 0)
