"""What the engine keeps for each vCPU besides architectural state: TLBs, the current code page, pending work.

Compiled code addresses these structures directly; the layout is declared here once.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from trapline.arm64.state import CpuState
from trapline.arm64.walk_cache import WalkCache

TLB_BITS = 13
TLB_ENTRIES = 1 << TLB_BITS
"""Entries of each data TLB (direct-mapped, one 4 KiB page each): 32 MiB. With an eighth of that a sieve of 16 MiB takes three times as
long; with twice as much fork takes longer."""
ITLB_BITS = 12
ITLB_ENTRIES = 1 << ITLB_BITS
"""Entries of each instruction TLB: the text of Linux fits. With a quarter fork and exec refill ten times as often."""
CHUNKS = 64
"""A TLB is looked through in 64ths: a bit for each tells whether anything was entered there."""
JOURNAL = 256
"""How many entries of a TLB are remembered one by one: most processes need fewer."""
BANKS = 8
"""How many address spaces keep the translations of their EL0 while another one runs."""
LEVELS = 4
"""Data TLBs of exception levels with privileges: EL1 with PAN clear, EL1 with PAN set, and the same of EL2."""

CONTROLS = 10
"""How many registers rule translation (`tlb.follow_controls`)."""
SYNC_ITEMS = 16
"""How many invalidations can wait at a vCPU; more become one of everything."""

SAMPLES = 16
"""How many samples wait at a vCPU for the profiler; older ones are overwritten."""

TLB_INVALID = 1 << 11
"""A tag that no probe asks for: page addresses, with the low bits of a misaligned address left in (up to 15), or of a misaligned
branch target (up to 3)."""

GUARDED = 1 << 2
"""Bit of an instruction TLB tag: the page is guarded, calls and jumps into it must land on instructions made for that."""

RECORD_SIZE = 32
"""Bytes of a predecoded instruction: handler address and operands."""
RECORD_SHIFT = 3
"""Record offset = instruction offset << RECORD_SHIFT."""
PAGE_INSNS = 1024
PAGE_HEADER = 64
"""Bytes before the first record of a predecoded page; the first word is the host address of the code."""
PAGE_GENERATION = 8
"""Offset in that header of a number that changes whenever decoded instructions of the page are forgotten."""
PAGE_BYTES = PAGE_HEADER + (PAGE_INSNS + 2) * RECORD_SIZE
STEP_BYTES = PAGE_HEADER + 2 * RECORD_SIZE + 63
"""Room for a page header and two records, aligned: where a vCPU runs single instructions."""
ALONE = 1 << 40
"""Index of an instruction that is decoded as if no other one were on its page."""


class Exit:
    """Why compiled code returned (`EngineState.exit_code`)."""

    NONE = 0
    EL2_SYNC = 1
    EL2_IRQ = 2
    EL2_SERROR = 3
    COMPILE = 4
    CODE_FULL = 5
    TIMER = 6
    ATTEND = 7
    """The machine is wanted: somebody kicked the PE, a line to the interrupt controller rose, its interface wants a refill."""
    DEVICE = 8
    """A load or store where no memory is (`device_address` and so on)."""
    FIRMWARE = 9
    """HVC or SMC to the machine's firmware; the PC is after it."""
    WAIT = 10
    """WFI or WFE with nothing pending; the PC is after it."""
    SGI = 11
    """A software-generated interrupt is sent: `result` was written to the register with encoding `result_hi`."""
    CHECK = 12
    """A region's record, in paranoid mode (`tier1.paranoid`)."""


class TlbEntry(ctypes.Structure):
    """One data TLB entry: tags are page addresses (or TLB_INVALID); host = virtual + addend; flags: INFO_ of the translation."""

    _fields_ = [("read_tag", c_uint64), ("write_tag", c_uint64), ("addend", c_uint64), ("flags", c_uint64)]


class ItlbEntry(ctypes.Structure):
    """One instruction TLB entry: virtual page (with GUARDED, or TLB_INVALID) to predecoded records."""

    _fields_ = [("tag", c_uint64), ("records", c_uint64)]


class Sample(ctypes.Structure):
    """Where a vCPU was at a branch: virtual address, its predecoded page, and whether it came from a compiled region."""

    _fields_ = [("pc", c_uint64), ("records", c_uint64), ("in_region", c_uint64)]


class Contents(ctypes.Structure):
    """What may be in a TLB, so that an invalidation looks only where it must.

    `used` has a bit for each 64th of the entries; `kinds` the nG values and page sizes seen (tlb.py's KIND_ flags); the filters a
    bit for each (hashed) 2 MiB and 1 GiB frame of which an entry belongs to a translation larger than 64 KiB and 2 MiB, for each half
    of the address space (a kernel is made of such translations, and programs hardly ever). `journal`
    has the numbers of the first `fills` entries that were made: few enough entries are undone one by one.
    """

    _fields_ = [
        ("used", c_uint64),
        ("kinds", c_uint64),
        ("large_2m", c_uint64 * 2),
        ("large_1g", c_uint64 * 2),
        ("fills", c_uint64),
        ("journal", c_uint16 * JOURNAL),
    ]


class DataTlb(ctypes.Structure):
    """A data TLB. Compiled code points at its entries, which come first."""

    _fields_ = [("entries", TlbEntry * TLB_ENTRIES), ("contents", Contents)]


class CodeTlb(ctypes.Structure):
    """An instruction TLB. Compiled code points at its entries, which come first."""

    _fields_ = [("entries", ItlbEntry * ITLB_ENTRIES), ("contents", Contents)]


class Bank(ctypes.Structure):
    """The TLBs of EL0 in one address space: `key` says which (tlb.py; 0: none), `stamp` when it was last selected."""

    _fields_ = [("data", DataTlb), ("code", CodeTlb), ("key", c_uint64), ("stamp", c_uint64)]


class SyncItem(ctypes.Structure):
    """An invalidation that another vCPU asked for: `tlb.invalidate`'s arguments."""

    _fields_ = [("what", c_uint64), ("first", c_uint64), ("last", c_uint64)]


class EngineState(CpuState):
    """One vCPU of the engine: architectural state, and after it what only the engine knows.

    `tlb` and `tlb_user` point to the data TLBs of ordinary and of unprivileged accesses (LDTR).

    The `poll_` bytes lie in one aligned word that handlers test at every taken branch: each is a reason to stop and look
    (`runtime.service`), and each has a byte of its own so that other threads set it with a plain store.

    The handlers of a counting engine increment `icount` and leave the guest before an instruction that finds it at `stop`. `turns`
    says that YIELD and WFE end the turn of a vCPU that shares its host thread with others. `random` is where the random numbers of a
    vCPU in virtual time have got to. `restarts`: the next run begins with an instruction again that took an abort the guest does not
    know of, and what waits then waits for a branch, as it would if there had been no abort. `posting`: address of what says which
    stores may wait (`Posting`), 0 if none may.
    """

    _fields_ = [
        ("page_va", c_uint64),
        ("records", c_uint64),
        ("poll_kick", c_uint8),
        ("poll_irq", c_uint8),
        ("poll_timer", c_uint8),
        ("poll_sync", c_uint8),
        ("poll_sample", c_uint8),
        ("poll_check", c_uint8),
        ("poll_leave", c_uint8),
        ("poll_spare", c_uint8),
        ("fp_disabled", c_uint32),
        ("in_region", c_uint32),
        ("restarts", c_uint32),
        ("exit_code", c_uint32),
        ("running", c_uint32),
        ("result", c_uint64),
        ("result_hi", c_uint64),
        ("tlb", c_uint64),
        ("tlb_user", c_uint64),
        ("itlb", c_uint64),
        ("excl_valid", c_uint64),
        ("excl_addr", c_uint64),
        ("excl_size", c_uint64),
        ("excl_lo", c_uint64),
        ("excl_hi", c_uint64),
        ("bounce", c_uint64 * 4),
        ("shared", c_uint64),
        ("index", c_uint64),
        ("sync_request", c_uint64),
        ("sync_done", c_uint64),
        ("sync_wait", c_uint64),
        ("sync_lock", c_uint64),
        ("sync_count", c_uint64),
        ("sync_items", SyncItem * SYNC_ITEMS),
        ("deadline", c_uint64),
        ("bank", c_uint64),
        ("bank_clock", c_uint64),
        ("space", c_uint64),
        ("controls", c_uint64 * CONTROLS),
        ("timer_reported", c_uint32),
        ("missing_word", c_uint32),
        ("missing_alone", c_uint32),
        ("debug_active", c_uint32),
        ("watching", c_uint32),
        ("step_state", c_uint32),
        ("device_address", c_uint64),
        ("device_va", c_uint64),
        ("device_syndrome", c_uint64),
        ("posting", c_uint64),
        ("icount", c_uint64),
        ("sampled", c_uint64),
        ("samples", Sample * SAMPLES),
        ("stop", c_uint64),
        ("virtual_time", c_uint64),
        ("clock_offset", c_uint64),
        ("turns", c_uint64),
        ("random", c_uint64),
        ("step_buffer", c_uint8 * STEP_BYTES),
        ("levels", DataTlb * LEVELS),
        ("level_codes", CodeTlb * 2),
        ("banks", Bank * BANKS),
        ("walks", WalkCache),
    ]


PLACES = 4
"""How many (address, size) pairs a machine knows, at a time, to which stores may wait."""


class Posting(ctypes.Structure):
    """The writes of one VM that wait: the ring's address, how many entries it has (one stays empty), a lock for who adds, and what is
    known: `address << 4 | size`, 0 for nothing."""

    _fields_ = [("ring", c_uint64), ("capacity", c_uint64), ("lock", c_uint64), ("next", c_uint64), ("places", c_uint64 * PLACES)]


TURN_GIVEN_UP = 2
"""In `EngineState.turns`: the vCPU wants its turn to end."""

MAX_CPUS = 64


class Shared(ctypes.Structure):
    """What all vCPUs of one engine share: the code map, the list of vCPUs, and their alarm clock.

    `alarm_clock` is a file descriptor of timerfd_create(2) plus 1 (0: none yet), which rings at count `alarm_at`; `alarm_setting` is
    what it was set to last (struct itimerspec), `alarm_rung` what is read from it.
    """

    _fields_ = [
        ("handlers", c_uint64),
        ("fills", c_uint64),
        ("undecoded", c_uint64),
        ("page_end", c_uint64),
        ("lone", c_uint64),
        ("no_code", c_uint64),
        ("cpu_count", c_uint64),
        ("cpus", c_uint64 * MAX_CPUS),
        ("code_lock", c_uint64),
        ("reset_lock", c_uint64),
        ("code_start", c_uint64),
        ("code_next", c_uint64),
        ("code_end", c_uint64),
        ("map", c_uint64),
        ("map_mask", c_uint64),
        ("counter_base", c_uint64),
        ("alarm_clock", c_uint64),
        ("alarm_lock", c_uint64),
        ("alarm_at", c_uint64),
        ("alarm_stopped", c_uint64),
        ("alarm_rung", c_uint64),
        ("alarm_setting", c_uint64 * 4),
        ("due", c_uint64 * MAX_CPUS),
    ]
