"""KVM_SET_USER_MEMORY_REGION: which regions can be made, changed and deleted."""

from __future__ import annotations

from errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOEXEC

from tests.conformance.frame import GENERIC, PAGE, Case, Cases, Trial
from tests.conformance.guest import DATA, NOWHERE
from trapline.abi.caps import Cap
from trapline.abi.exits import MmioExit
from trapline.abi.memory import KVM_PRE_FAULT_MEMORY as PRE_FAULT
from trapline.abi.memory import KVM_SET_USER_MEMORY_REGION2 as SET2
from trapline.abi.vcpu import KVM_RUN
from trapline.abi.vm import KVM_GET_DIRTY_LOG, MemoryFlag
from trapline.abi.vm import KVM_SET_USER_MEMORY_REGION as SET

case = Cases(__name__)
LOG, READONLY, MEMFD = MemoryFlag.LOG_DIRTY_PAGES, MemoryFlag.READONLY, MemoryFlag.GUEST_MEMFD
TOP = 1 << 64
FAR = 0x10_0000

# --- creating ---------------------------------------------------------------------------------------------------------------------

case(SET, 0, "create", lambda t: t.region(), GENERIC)
case(SET, 0, "one page", lambda t: t.region(size=PAGE), GENERIC)
case(SET, 0, "at guest address 0", lambda t: t.region(gpa=0), GENERIC)
case(SET, 0, "that logs", lambda t: t.region(flags=LOG), GENERIC)
case(SET, 0, "that is read-only", lambda t: t.region(flags=READONLY), GENERIC)
case(SET, 0, "that is read-only and logs", lambda t: t.region(flags=LOG | READONLY), GENERIC)
case(SET, 0, "the last slot", lambda t: t.region(slot=t.cap(Cap.NR_MEMSLOTS) - 1), GENERIC)
case(SET, EINVAL, "a slot after the last", lambda t: t.region(slot=t.cap(Cap.NR_MEMSLOTS)), GENERIC)
case(SET, EINVAL, "slot 32767", lambda t: t.region(slot=32767), GENERIC)
case(SET, EINVAL, "slot 65535", lambda t: t.region(slot=65535), GENERIC)
case(SET, EINVAL, "another address space", lambda t: t.region(slot=2 << 16), GENERIC)
case(SET, EINVAL, "the second address space", lambda t: t.region(slot=1 << 16))
case(SET, EINVAL, "the last address space", lambda t: t.region(slot=0xFFFF << 16), GENERIC)
for bit in (3, 4, 16, 30, 31):
    case(SET, EINVAL, f"unknown flag bit {bit}", lambda t, bit=bit: t.region(flags=1 << bit), GENERIC)
case(SET, EINVAL, "a flag that only the newer call has", lambda t: t.region(flags=MEMFD), GENERIC)
for low in (1, 8, 0x200, 0x800, PAGE - 1):
    case(SET, EINVAL, f"size off by {low:#x}", lambda t, low=low: t.region(size=PAGE + low), GENERIC)
    case(SET, EINVAL, f"guest address off by {low:#x}", lambda t, low=low: t.region(gpa=DATA + low), GENERIC)
    case(SET, EINVAL, f"user address off by {low:#x}", lambda t, low=low: t.region(hva=t.address + low), GENERIC)
case(SET, EINVAL, "user address beyond user space", lambda t: t.region(hva=1 << 63), GENERIC)
case(SET, EINVAL, "a user range that runs out of user space", lambda t: t.region(hva=(1 << 47) - PAGE, size=1 << 48), GENERIC)
case(SET, EINVAL, "user address with a tag", lambda t: t.region(hva=t.address | 0x12 << 56), GENERIC)
case(SET, 0, "user address 0", lambda t: t.region(hva=0), GENERIC)
case(SET, 0, "user memory that is not mapped", lambda t: t.region(hva=t.nowhere & -PAGE), GENERIC)
case(SET, EINVAL, "a guest range that wraps", lambda t: t.region(gpa=TOP - PAGE, size=2 * PAGE), GENERIC)
case(SET, EINVAL, "a guest range that ends at 2^64", lambda t: t.region(gpa=TOP - 4 * PAGE), GENERIC)
case(SET, EINVAL, "a size that wraps", lambda t: t.region(size=TOP - PAGE), GENERIC)
case(SET, EINVAL, "more than 2^31 - 1 pages", lambda t: t.region(gpa=0, size=1 << 43, hva=0), GENERIC)
case(SET, EFAULT, "beyond the IPA size", lambda t: t.region(gpa=1 << 40))
case(SET, EFAULT, "that ends beyond the IPA size", lambda t: t.region(gpa=(1 << 40) - PAGE))
case(SET, 0, "that ends at the IPA size", lambda t: t.region(gpa=(1 << 40) - 4 * PAGE))
case(SET, EINVAL, "unaligned, and beyond the IPA size: alignment first", lambda t: t.region(gpa=(1 << 40) + 1))
case(SET, 0, "the same user memory twice", lambda t: [t.region(0), t.region(1, gpa=FAR)], GENERIC)
case(SET, EINVAL, "size 0 of a slot that is not there", lambda t: t.region(size=0), GENERIC)
case(SET, EINVAL, "size 0 of a slot after the last", lambda t: t.region(slot=32767, size=0), GENERIC)


def after(errno: int, cause: str, body, generic: bool = GENERIC) -> None:
    """A case about slot 0, four pages at DATA, that exists; and slot 1 at FAR."""

    @case.of(SET, errno, cause, generic)
    def _(t: Trial):
        t.region()
        t.region(1, gpa=FAR, hva=t.address + 8 * PAGE)
        yield
        body(t)


# --- changing ---------------------------------------------------------------------------------------------------------------------

after(0, "the same again", lambda t: t.region())
after(EINVAL, "larger", lambda t: t.region(size=8 * PAGE))
after(EINVAL, "smaller", lambda t: t.region(size=PAGE))
after(EINVAL, "other user memory", lambda t: t.region(hva=t.address + PAGE))
after(EINVAL, "read-only from now on", lambda t: t.region(flags=READONLY))
after(0, "log from now on", lambda t: t.region(flags=LOG))
after(0, "log, and no more", lambda t: [t.region(flags=LOG), t.region()])
after(EINVAL, "log and read-only from now on", lambda t: t.region(flags=LOG | READONLY))
after(0, "moved away", lambda t: t.region(gpa=0x8_0000))
after(0, "moved over itself", lambda t: t.region(gpa=DATA + PAGE))
after(0, "moved up to its neighbour", lambda t: t.region(gpa=FAR - 4 * PAGE))
after(EEXIST, "moved onto another", lambda t: t.region(gpa=FAR))
after(EEXIST, "moved to overlap another's first page", lambda t: t.region(gpa=FAR - 3 * PAGE))
after(EEXIST, "moved to overlap another's last page", lambda t: t.region(gpa=FAR + 3 * PAGE))
after(EINVAL, "moved, with other user memory", lambda t: t.region(gpa=0x8_0000, hva=t.address + PAGE))
after(EINVAL, "moved and resized", lambda t: t.region(gpa=0x8_0000, size=PAGE))
after(0, "moved and logging", lambda t: t.region(gpa=0x8_0000, flags=LOG))
after(EFAULT, "moved beyond the IPA size", lambda t: t.region(gpa=1 << 40), False)
after(EEXIST, "a new slot on another", lambda t: t.region(2, gpa=FAR))
after(EEXIST, "a new slot on another's last page", lambda t: t.region(2, gpa=DATA + 3 * PAGE, size=PAGE))
after(EEXIST, "a new slot around another", lambda t: t.region(2, gpa=FAR - PAGE, size=16 * PAGE))
after(0, "a new slot right before another", lambda t: t.region(2, gpa=FAR - PAGE, size=PAGE))
after(0, "a new slot right after another", lambda t: t.region(2, gpa=FAR + 4 * PAGE, size=PAGE))

# --- deleting ---------------------------------------------------------------------------------------------------------------------

after(0, "deleted", lambda t: t.region(size=0))
after(0, "deleted, whatever the flags that it knows", lambda t: t.region(size=0, flags=LOG))
after(0, "deleted, whatever the guest address", lambda t: t.region(size=0, gpa=FAR))
after(EINVAL, "deleted with an unknown flag", lambda t: t.region(size=0, flags=1 << 20))
after(EINVAL, "deleted with an unaligned guest address", lambda t: t.region(size=0, gpa=1))
after(EINVAL, "deleted with an unaligned user address", lambda t: t.region(size=0, hva=1))
after(0, "deleted and made anew, larger", lambda t: [t.region(size=0), t.region(size=8 * PAGE)])
after(0, "deleted, and its place taken", lambda t: [t.region(size=0), t.region(5)])
after(EINVAL, "a slot that is not there deleted", lambda t: t.region(2, size=0))


@case.of(SET, EINVAL, "deleted twice", GENERIC)
def _twice(t: Trial):
    t.region()
    t.region(size=0)
    yield
    t.region(size=0)


@case.of(SET, 0, "read-only stays read-only when it begins to log", GENERIC)
def _readonly_log(t: Trial):
    t.region(flags=READONLY)
    yield
    t.region(flags=READONLY | LOG)


@case.of(SET, EINVAL, "read-only made writable", GENERIC)
def _writable(t: Trial):
    t.region(flags=READONLY)
    yield
    t.region()


# --- the newer call ---------------------------------------------------------------------------------------------------------------


def newer(row: Case):
    """The same by the newer call."""

    def body(t: Trial):
        t.set_region = SET2
        return row.body(t)

    return body


for row in list(case.rows):
    case(SET2, row.errno, row.cause, newer(row), row.generic, needs=Cap.USER_MEMORY2, differs=row.differs)
case(SET2, EINVAL, "a guest_memfd where there are none", lambda t: t(SET2, flags=MEMFD, memory_size=PAGE), GENERIC, needs=Cap.USER_MEMORY2)

# --- what a guest sees ------------------------------------------------------------------------------------------------------------


@case.of(KVM_RUN, 0, "memory is written without an exit", GENERIC)
def _write(t: Trial):
    t.region()
    t.program(("store", DATA + 5, 0x5A), ("store", NOWHERE, 1))
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == NOWHERE and exit.is_write and exit.data == b"\1"
    assert t.buffer[5] == 0x5A


@case.of(KVM_RUN, 0, "a load from nowhere exits", GENERIC)
def _load(t: Trial):
    t.program(("load", NOWHERE, 0))
    exit = t.run()
    assert isinstance(exit, MmioExit) and (exit.phys_addr, exit.length, exit.is_write) == (NOWHERE, 1, False)


@case.of(KVM_RUN, 0, "a write to a read-only slot exits and changes nothing", GENERIC)
def _readonly(t: Trial):
    t.region(flags=READONLY)
    t.program(("load", DATA, 0), ("store", DATA + 1, 7))
    exit = t.run()
    assert isinstance(exit, MmioExit) and (exit.phys_addr, exit.data, exit.is_write) == (DATA + 1, b"\7", True)
    assert t.buffer[1] == 0


@case.of(KVM_RUN, 0, "a deleted slot is nowhere", GENERIC)
def _deleted(t: Trial):
    t.region()
    t.program(("store", DATA, 1), ("store", NOWHERE, 1), ("store", DATA, 2))
    t.run()
    t.region(size=0)
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == DATA
    assert t.buffer[0] == 1


@case.of(KVM_RUN, 0, "a moved slot is at its new place only", GENERIC)
def _moved(t: Trial):
    t.region(size=PAGE)
    t.program(("store", DATA, 1), ("store", NOWHERE, 1), ("store", DATA + PAGE, 2), ("store", DATA, 3))
    t.run()
    t.region(size=PAGE, gpa=DATA + PAGE)
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == DATA
    assert t.buffer[0] == 2


@case.of(KVM_RUN, EFAULT, "memory of the guest that the host does not have")
def _hole(t: Trial):
    t.region(hva=t.nowhere & -PAGE)
    t.program(("store", DATA, 1))
    yield
    t.run()


# --- KVM_PRE_FAULT_MEMORY ---------------------------------------------------------------------------------------------------------

AHEAD = Cap.PRE_FAULT_MEMORY


def ahead(t: Trial, gpa: int = DATA, size: int = 4 * PAGE, flags: int = 0) -> tuple[int, int]:
    """Make the call on the first vCPU; what it says is left."""
    t(PRE_FAULT, on=t.vcpu, gpa=gpa, size=size, flags=flags)
    return t.last.gpa, t.last.size


for flag in (1, 1 << 63):
    case(PRE_FAULT, EINVAL, f"flag {flag:#x}", lambda t, flag=flag: ahead(t, flags=flag), needs=AHEAD)
case(PRE_FAULT, EINVAL, "an address within a page", lambda t: ahead(t, gpa=DATA + 8), needs=AHEAD)
case(PRE_FAULT, EINVAL, "a size that is no pages", lambda t: ahead(t, size=PAGE + 1), needs=AHEAD)
case(PRE_FAULT, EINVAL, "nothing", lambda t: ahead(t, size=0), needs=AHEAD)
case(PRE_FAULT, EINVAL, "a range that wraps", lambda t: ahead(t, gpa=TOP - PAGE, size=2 * PAGE), needs=AHEAD)
case(PRE_FAULT, EINVAL, "up to the end of addresses", lambda t: ahead(t, gpa=TOP - PAGE, size=PAGE), needs=AHEAD)
case(
    PRE_FAULT,
    EINVAL,
    "a flag on a vCPU that was never initialised",
    lambda t: t(PRE_FAULT, on=t.add_vcpu(0, init=False), flags=1),
    needs=AHEAD,
)
case(PRE_FAULT, ENOEXEC, "not initialised", lambda t: t(PRE_FAULT, on=t.add_vcpu(0, init=False), gpa=DATA, size=PAGE), needs=AHEAD)
case(PRE_FAULT, ENOENT, "no slot", lambda t: ahead(t, gpa=NOWHERE), needs=AHEAD)


@case.of(PRE_FAULT, 0, "a slot", needs=AHEAD)
def _all_of_it(t: Trial):
    t.region()
    yield
    assert ahead(t) == (DATA + 4 * PAGE, 0)
    assert ahead(t) == (DATA + 4 * PAGE, 0)  # which is mapped now


@case.of(PRE_FAULT, 0, "more than a slot: as far as it goes", needs=AHEAD)
def _as_far_as_it_goes(t: Trial):
    t.region()
    yield
    assert ahead(t, DATA + PAGE, 8 * PAGE) == (DATA + 4 * PAGE, 5 * PAGE)


@case.of(PRE_FAULT, EFAULT, "nothing behind the slot", needs=AHEAD)
def _nothing_behind(t: Trial):
    t.region(hva=1 << 44)
    yield
    ahead(t)


@case.of(PRE_FAULT, 0, "is no write", needs=AHEAD)
def _no_write(t: Trial):
    t.region(flags=LOG)
    yield
    ahead(t)
    t(KVM_GET_DIRTY_LOG, slot=0, dirty_bitmap=t.bitmap())
    assert t.bits() == 0
