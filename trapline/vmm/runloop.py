"""Running a machine: a thread for each vCPU, the exits they come back with, and how it all ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from trapline.abi.caps import Cap
from trapline.abi.exits import Exit, IntrExit, MmioExit, NisvExit, SysregExit, SystemEvent, SystemEventType
from trapline.backends.vcpu import Vcpu
from trapline.errors import Timeout
from trapline.vmm.machine import Machine
from trapline.vmm.report import LoopDetector, describe_cpu, describe_exits

if TYPE_CHECKING:
    from trapline.bare.machine import BareVcpu  # brings the engine with it

EXITS_REMEMBERED = 16
WATCH_SECONDS = 0.5
"""How often vCPUs that stay inside KVM are looked at."""
JOIN_SECONDS = 10


class Outcome(Enum):
    """How a machine ended."""

    POWER_OFF = "the guest powered itself off"
    RESET = "the guest asked for a reset"
    CRASH = "the guest crashed"
    QUIT = "stopped from outside"
    STOPPED = "it has run as many instructions as were asked for"
    SAVED = "saved to a file"
    MIGRATED = "it goes on in another process"


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome, and for a crash what happened (`why`) and a report to act on."""

    outcome: Outcome
    why: str = ""
    report: str = ""


class VcpuThread:
    """Runs one vCPU until the machine ends."""

    def __init__(self, runner: Runner, vcpu: Vcpu | BareVcpu) -> None:
        self.runner = runner
        self.vcpu = vcpu
        self.progress = 0
        """Exits that a device answered."""
        self.progress_seen = 0
        self.recent: deque[Exit] = deque(maxlen=EXITS_REMEMBERED)
        self.errands: deque[Callable[[VcpuThread], None]] = deque()
        self.loop_detector = LoopDetector()
        self.thread = threading.Thread(target=self._run, name=f"vcpu{vcpu.id}", daemon=True)

    def _run(self) -> None:
        try:
            self.loop()
        except BaseException as error:  # noqa: B902 - whatever it is, the machine ends with a report and not with a hang
            self.runner.crash(self, f"{type(error).__name__}: {error}", error)

    def loop(self) -> None:
        """Run until the machine ends."""
        runner, vcpu, machine = self.runner, self.vcpu, self.runner.machine
        run, bus, lock, remember, queue = vcpu.run, machine.bus, machine.lock, self.recent.append, machine.queue
        while runner.ending is None:
            exit = run()
            if queue is not None and queue.is_open:
                with lock:
                    queue.drain()
            if type(exit) is MmioExit:
                remember(exit)
                if exit.is_write:
                    with lock:
                        known = bus.write(exit.phys_addr, exit.length, exit.value)
                else:
                    with lock:
                        value = bus.read(exit.phys_addr, exit.length)
                    known = value is not None
                    exit.data = value or 0
                if known:
                    self.progress += 1
                else:
                    self._nobody_answers()
            elif type(exit) is IntrExit:
                while self.errands:
                    self.errands.popleft()(self)
            else:
                remember(exit)
                self._handle(exit)

    def _handle(self, exit: Exit) -> None:
        match exit:
            case SystemEvent(type=SystemEventType.SHUTDOWN):
                self.runner.end(Ending(Outcome.POWER_OFF))
            case SystemEvent(type=SystemEventType.RESET):
                self.runner.end(Ending(Outcome.RESET))
            case SystemEvent(type=SystemEventType.CRASH):
                self.runner.crash(self, "the guest reported a crash of its own")
            case NisvExit(fault_ipa=address) if self.runner.machine.bus.find(address):
                self.runner.crash(
                    self, f"KVM cannot tell what the guest did to the device at {address:#x}: use a plain load or store there"
                )
            case NisvExit():
                self._nobody_answers()
            case SysregExit():
                pass  # no policy answered: UNDEFINED when the vCPU runs again
            case _:
                self.runner.crash(self, f"KVM returned {exit!r}")

    def _nobody_answers(self) -> None:
        """An access that no device can serve: the external abort that silicon would raise, where KVM can inject one."""
        if self.runner.can_inject_abort:
            self.vcpu.inject_external_abort()

    def ask(self, errand: Callable[[VcpuThread], None]) -> None:
        """Have `errand` done in this thread soon, outside the guest: a running vCPU answers nobody else."""
        self.errands.append(errand)
        self.vcpu.kick()

    def look_for_loop(self) -> None:
        """End the machine if the guest is lost in its exception vectors."""
        if why := self.loop_detector.look(self.vcpu):
            self.runner.crash(self, why)


class Runner:
    """Runs one machine to its end."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.can_inject_abort = bool(machine.vm.check_extension(Cap.ARM_INJECT_EXT_DABT))
        self.ending: Ending | None = None
        self._wake = threading.Event()
        """The main thread has something to do."""
        self._requests: deque[Callable[[], None]] = deque()
        self._end_lock = threading.Lock()
        self.threads = [VcpuThread(self, vcpu) for vcpu in machine.vcpus]

    def run(self, deadline: float | None = None) -> Ending:
        """Start the vCPUs and wait for the end. `deadline` is in `time.monotonic()` seconds; raises Timeout when it passes."""
        for vcpu in self.threads:
            vcpu.thread.start()
        try:
            while self.ending is None:
                woken = self._wake.wait(self._patience(deadline))
                self._wake.clear()
                while self._requests and self.ending is None:
                    self._requests.popleft()()
                if self.ending is None and deadline is not None and time.monotonic() >= deadline:
                    raise Timeout("the guest was still running")
                if not woken:
                    self._watch()
        finally:
            self.end(Ending(Outcome.QUIT))
            self._join()
            if self.machine.queue is not None:
                self.machine.queue.stop()
        assert self.ending is not None
        return self.ending

    def end(self, ending: Ending) -> None:
        """End the machine; the first call decides how. Safe from any thread."""
        with self._end_lock:
            if self.ending is not None:
                return
            self.ending = ending
        self._wake.set()
        for vcpu in self.machine.vcpus:
            vcpu.kick()

    def request(self, task: Callable[[], None]) -> None:
        """Have something done in the thread that called `run`, while the machine runs. From any thread."""
        self._requests.append(task)
        self._wake.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The machine stands still: no vCPU is in KVM, and none is in the middle of an access. Not for a vCPU's own thread."""
        resume, halted = threading.Event(), [threading.Event() for _ in self.threads]

        def halt(thread: VcpuThread) -> None:
            halted[self.threads.index(thread)].set()
            resume.wait()

        try:
            for thread in self.threads:
                thread.ask(halt)
            for thread, event in zip(self.threads, halted, strict=True):
                while not event.wait(WATCH_SECONDS) and thread.thread.is_alive():
                    pass
            with self.machine.lock:
                if self.machine.queue is not None:
                    self.machine.queue.close()
                yield
        finally:
            resume.set()

    def crash(self, thread: VcpuThread, why: str, error: BaseException | None = None) -> None:
        """End the machine with a report about the vCPU that crashed; called in its thread."""
        if self.ending is None:
            title = f"vCPU {thread.vcpu.id}: {why}"
            self.end(Ending(Outcome.CRASH, title, "\n".join((describe_cpu(thread.vcpu), describe_exits(thread.recent, error)))))

    def state(self) -> dict[str, Any]:
        """What decides when the vCPUs are looked at, as plain values."""
        return {"threads": [[thread.progress, thread.progress_seen] for thread in self.threads]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for thread, (progress, seen) in zip(self.threads, state["threads"], strict=True):
            thread.progress, thread.progress_seen = progress, seen

    def report_state(self, show: Callable[[str], None]) -> None:
        """Pass the registers of each vCPU to `show`, from the vCPU's own thread."""
        for thread in self.threads:
            thread.ask(lambda asked: show(describe_cpu(asked.vcpu)))

    def _patience(self, deadline: float | None) -> float:
        return WATCH_SECONDS if deadline is None else max(0.0, min(WATCH_SECONDS, deadline - time.monotonic()))

    def _watch(self) -> None:
        """Have a look at each vCPU that no device has answered since the last time: it may be lost in its exception vectors."""
        for thread in self.threads:
            if thread.progress == thread.progress_seen:
                thread.ask(VcpuThread.look_for_loop)
            thread.progress_seen = thread.progress

    def _join(self) -> None:
        for thread in self.threads:
            thread.thread.join(JOIN_SECONDS)
