"""Files of statistics, and which signals interrupt a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EFAULT, EINTR, EINVAL, ENOTTY

from tests.conformance.cases_system import same, true
from tests.conformance.frame import GENERIC, Cases, Trial
from tests.conformance.guest import NOWHERE
from trapline.abi.caps import Cap
from trapline.abi.exits import MmioExit
from trapline.abi.stats import KVM_GET_STATS_FD, NAME_SIZE, StatsHeader, StatType, StatUnit
from trapline.abi.system import KVM_CHECK_EXTENSION
from trapline.abi.vcpu import KVM_RUN, KVM_SET_SIGNAL_MASK, SignalMask, signal_mask
from trapline.abi.vm import KVM_CREATE_VCPU
from trapline.backends.statistics import Statistics

case = Cases(__name__)

case(KVM_CHECK_EXTENSION, 0, "BINARY_STATS_FD", lambda t: same(t.cap(Cap.BINARY_STATS_FD), 1), GENERIC)
case(KVM_GET_STATS_FD, 0, "of a VM", lambda t: t(KVM_GET_STATS_FD, on=t.vm), GENERIC)
case(KVM_GET_STATS_FD, 0, "of a vCPU", lambda t: t(KVM_GET_STATS_FD, on=t.vcpu), GENERIC)
case(KVM_GET_STATS_FD, 0, "twice", lambda t: true(t(KVM_GET_STATS_FD) != t(KVM_GET_STATS_FD)), GENERIC)
case(KVM_GET_STATS_FD, EINVAL, "of the KVM device", lambda t: t(KVM_GET_STATS_FD, on=t.system), GENERIC)
case(KVM_CREATE_VCPU, ENOTTY, "on a file of statistics", lambda t: t(KVM_CREATE_VCPU, 0, on=t(KVM_GET_STATS_FD)), GENERIC)


@case.of(KVM_GET_STATS_FD, 0, "the header says where everything is", GENERIC)
def _header(t: Trial):
    file = t(KVM_GET_STATS_FD, on=t.vcpu)
    header = StatsHeader.from_buffer_copy(t.backend.read(file, 24, 0))
    same(header.name_size, NAME_SIZE)
    same(header.id_offset, 24)
    same(header.desc_offset, 24 + NAME_SIZE)
    same(header.data_offset, header.desc_offset + header.num_desc * (16 + NAME_SIZE))


@case.of(KVM_GET_STATS_FD, 0, "names and units that every vCPU has", GENERIC)
def _names(t: Trial):
    t.made.append(KVM_GET_STATS_FD)
    with Statistics(t.backend, t.vcpu) as statistics:
        assert statistics.name.startswith("kvm-") and statistics.name.endswith("/vcpu-0")
        values = statistics.read()
    for name in ("halt_successful_poll", "halt_attempted_poll", "halt_poll_invalid", "halt_wakeup"):
        assert (values[name].kind, values[name].unit, len(values[name].values)) == (StatType.CUMULATIVE, StatUnit.NONE, 1)
    for name in ("halt_poll_success_ns", "halt_poll_fail_ns", "halt_wait_ns"):
        assert (values[name].kind, values[name].unit, values[name].exponent) == (StatType.CUMULATIVE, StatUnit.SECONDS, -9)
    for name in ("halt_poll_success_hist", "halt_poll_fail_hist", "halt_wait_hist"):
        assert (values[name].kind, values[name].unit, len(values[name].values)) == (StatType.LOG_HIST, StatUnit.SECONDS, 32)
    assert (values["blocking"].kind, values["blocking"].unit, values["blocking"].value) == (StatType.INSTANT, StatUnit.BOOLEAN, 0)
    assert "signal_exits" in values and "exits" in values


@case.of(KVM_GET_STATS_FD, 0, "names that every VM has", GENERIC)
def _vm_names(t: Trial):
    t.made.append(KVM_GET_STATS_FD)
    with Statistics(t.backend, t.vm) as statistics:
        assert statistics.name.startswith("kvm-") and "vcpu" not in statistics.name
        assert {"remote_tlb_flush", "remote_tlb_flush_requests"} <= set(statistics.read())


@case.of(KVM_GET_STATS_FD, 0, "exits are counted")
def _exits(t: Trial):
    t.made.append(KVM_GET_STATS_FD)
    t.program(("store", NOWHERE, 1), ("store", NOWHERE, 2))
    with Statistics(t.backend, t.vcpu) as statistics:
        before = statistics.read()
        t.run()
        t.run()
        after = statistics.read()
    same(after["mmio_exit_user"].value - before["mmio_exit_user"].value, 2)
    true(after["exits"].value - before["exits"].value >= 2)
    same(after["signal_exits"].value, 0)


@case.of(KVM_GET_STATS_FD, 0, "reading stops at the end", GENERIC)
def _end(t: Trial):
    file = t(KVM_GET_STATS_FD)
    whole = t.backend.read(file, 1 << 20, 0)
    assert t.backend.read(file, 8, len(whole) - 8) == whole[-8:]
    assert t.backend.read(file, 8, len(whole)) == b""
    assert t.backend.read(file, 24, 0) == whole[:24]


# --- signals ----------------------------------------------------------------------------------------------------------------------

MASK = KVM_SET_SIGNAL_MASK
case(MASK, 0, "no signals", lambda t: t(MASK, signal_mask(())), GENERIC)
case(MASK, 0, "all signals", lambda t: t(MASK, signal_mask(range(1, 65))), GENERIC)
case(MASK, 0, "a null pointer", lambda t: t(MASK, 0), GENERIC)
for length in (0, 4, 16, 128, 0xFFFF_FFFF):
    case(MASK, EINVAL, f"{length:#x} bytes", lambda t, length=length: t(MASK, t.put(length.to_bytes(4, "little") + bytes(16))), GENERIC)


@case.of(MASK, EFAULT, "a mask that ends on a page that is not there", GENERIC)
def _cut(t: Trial):
    t(MASK, t.edge(SignalMask(8)))


@contextmanager
def blocked() -> Iterator[None]:
    """A signal is pending, and this thread blocks it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.raise_signal(signal.SIGUSR2)
    try:
        yield
    finally:
        signal.sigtimedwait([signal.SIGUSR2], 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@case.of(KVM_RUN, EINTR, "a pending signal that only the thread blocks", GENERIC)
def _interrupted(t: Trial):
    t.program(("store", NOWHERE, 1))
    t(MASK, signal_mask([signal.SIGUSR1]))
    yield
    with blocked(), t.own_handler():
        t.run()


@case.of(KVM_RUN, 0, "a pending signal that the mask blocks", GENERIC)
def _masked(t: Trial):
    t.program(("store", NOWHERE, 1))
    t(MASK, signal_mask([signal.SIGUSR2]))
    with blocked():
        assert isinstance(t.run(), MmioExit)


@case.of(KVM_RUN, 0, "a pending signal that the thread blocks, and no mask", GENERIC)
def _no_mask(t: Trial):
    t.program(("store", NOWHERE, 1))
    t(MASK, signal_mask(()))
    t(MASK, 0)
    with blocked():
        assert isinstance(t.run(), MmioExit)


@case.of(KVM_RUN, EINTR, "a signal while the guest runs", GENERIC)
def _while_running(t: Trial):
    t.program()
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    try:
        yield
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        t.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
