"""The only places where a task can be switched, or can look at a clock: locks, waiting, threads, time, randomness.

Hypervisor code (kvm/, host/) uses these and nothing of `threading`, `time` or `random`. In production each is the real primitive
behind a thin name. A checker replaces them by installing a `Hooks` object: every operation that another task could observe then
reports itself first, which makes it a scheduling point.

Locks carry their documentation: what they protect, and which lock is to be held before them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random as Generator
from random import SystemRandom
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Hooks(Protocol):
    """What a checker implements. `point` is called before every operation that another task can observe."""

    def point(self, kind: str, name: str) -> None:
        """About to do `kind` ("lock", "load", "wait", ...) on the primitive called `name`."""


class _Installed:
    """Holder of the hooks: None in production, so that an operation costs one test."""

    def __init__(self) -> None:
        self.hooks: Hooks | None = None


_installed = _Installed()
"""An object, because CPython finds its attributes sooner than a class's."""


def install(hooks: Hooks | None) -> None:
    """Install a checker's hooks, or remove them with None."""
    _installed.hooks = hooks


class Lock:
    """A mutex. `after` names the lock that is taken before this one; `protects` says what it is for."""

    __slots__ = ("_lock", "after", "name", "protects")

    def __init__(self, name: str, *, after: Lock | None = None, protects: str = "") -> None:
        self.name = name
        self.after = after
        self.protects = protects
        self._lock = threading.Lock()

    def __enter__(self) -> Lock:
        if _installed.hooks is not None:
            _installed.hooks.point("lock", self.name)
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def try_acquire(self) -> bool:
        """Take the lock if it is free; say whether it was."""
        if _installed.hooks is not None:
            _installed.hooks.point("try_lock", self.name)
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Give back what `try_acquire` took."""
        self._lock.release()

    def held(self) -> bool:
        """Whether any task holds the lock: for assertions."""
        return self._lock.locked()


class Condition:
    """Waiting for a change of what a lock protects. Used with that lock held."""

    __slots__ = ("_condition", "name")

    def __init__(self, lock: Lock, name: str) -> None:
        self.name = name
        self._condition = threading.Condition(lock._lock)

    def wait(self, timeout: float | None = None) -> bool:
        """Give up the lock, sleep until notified or for `timeout` seconds, take it again. False after a timeout."""
        if _installed.hooks is not None:
            _installed.hooks.point("wait", self.name)
        return self._condition.wait(timeout)

    def notify_all(self) -> None:
        """Wake every waiter."""
        self._condition.notify_all()


class WaitQueue:
    """Where one task sleeps until others tell it to look again. A wake-up that comes before the sleep is not lost."""

    __slots__ = ("_event", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._event = threading.Event()

    def prepare(self) -> None:
        """Forget earlier wake-ups. To be called before testing the condition that is waited for."""
        self._event.clear()

    def wait(self, deadline_ns: int | None = None) -> bool:
        """Sleep until woken after `prepare`, or until the monotonic clock reads `deadline_ns`. False after the deadline."""
        if _installed.hooks is not None:
            _installed.hooks.point("wait", self.name)
        if deadline_ns is None:
            return self._event.wait()
        remaining = max(0, deadline_ns - time.monotonic_ns()) / 1e9
        return self._event.wait(min(remaining, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """End the current or next wait."""
        if _installed.hooks is not None:
            _installed.hooks.point("wake", self.name)
        self._event.set()


class Cell(Generic[T]):
    """One shared variable that is read and written without a lock. Each access is atomic."""

    __slots__ = ("_value", "name")

    def __init__(self, name: str, value: T) -> None:
        self.name = name
        self._value = value

    def load(self) -> T:
        """The value."""
        if _installed.hooks is not None:
            _installed.hooks.point("load", self.name)
        return self._value

    def store(self, value: T) -> None:
        """Replace the value."""
        if _installed.hooks is not None:
            _installed.hooks.point("store", self.name)
        self._value = value


class Bits:
    """A shared word of request bits: set by anybody, tested and cleared by its owner."""

    __slots__ = ("_lock", "_value", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._value = 0
        self._lock = threading.Lock()

    def set(self, mask: int) -> None:
        """Set the bits of `mask`."""
        if _installed.hooks is not None:
            _installed.hooks.point("set", self.name)
        with self._lock:
            self._value |= mask

    def take(self, mask: int) -> int:
        """Clear the bits of `mask` and return those that were set."""
        if _installed.hooks is not None:
            _installed.hooks.point("take", self.name)
        with self._lock:
            taken = self._value & mask
            self._value &= ~mask
        return taken

    def any(self) -> int:
        """The bits, without clearing."""
        if _installed.hooks is not None:
            _installed.hooks.point("load", self.name)
        return self._value


class Srcu:
    """Read-copy-update with sleeping readers: `synchronize` returns when every reader that was inside has left."""

    __slots__ = ("_changed", "_generation", "_lock", "_readers", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._generation = 0
        self._readers = [0, 0]

    def enter(self) -> int:
        """Begin reading. The number returned is for `leave`."""
        if _installed.hooks is not None:
            _installed.hooks.point("srcu_enter", self.name)
        with self._lock:
            side = self._generation & 1
            self._readers[side] += 1
        return side

    def leave(self, side: int) -> None:
        """End reading."""
        if _installed.hooks is not None:
            _installed.hooks.point("srcu_leave", self.name)
        with self._lock:
            self._readers[side] -= 1
            if not self._readers[side]:
                self._changed.notify_all()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """`enter` and `leave` around a block."""
        side = self.enter()
        try:
            yield
        finally:
            self.leave(side)

    def synchronize(self) -> None:
        """Wait for the readers that are inside now. Not to be called by a reader."""
        if _installed.hooks is not None:
            _installed.hooks.point("srcu_synchronize", self.name)
        with self._lock:
            # Twice, because a reader may have chosen its side just before an earlier flip.
            for _ in range(2):
                side = self._generation & 1
                self._generation += 1
                while self._readers[side]:
                    self._changed.wait()


class Thread:
    """A task. Starts at once; `join` waits for its end and raises what it raised."""

    __slots__ = ("_error", "_thread", "name")

    def __init__(self, name: str, body: Callable[[], object]) -> None:
        self.name = name
        self._error: BaseException | None = None

        def guarded() -> None:
            try:
                body()
            except BaseException as error:  # handed to whoever joins
                self._error = error

        self._thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end, at most `timeout` seconds; say whether it came."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True


def spawn(name: str, body: Callable[[], object]) -> Thread:
    """Start a task."""
    return Thread(name, body)


def current_task() -> int:
    """A number that tells the running task from the others."""
    return threading.get_ident()


class Clock:
    """Monotonic time in nanoseconds."""

    __slots__ = ()

    def now(self) -> int:
        """Nanoseconds since some fixed point."""
        if _installed.hooks is not None:
            _installed.hooks.point("clock", "monotonic")
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        """Sleep until the clock reads at least `deadline_ns`."""
        delay = deadline_ns - self.now()
        if delay > 0:
            time.sleep(delay / 1e9)


class Random:
    """Numbers nobody can predict."""

    __slots__ = ("_source",)

    def __init__(self) -> None:
        self._source: Generator = SystemRandom()

    def bits(self, count: int) -> int:
        """`count` random bits."""
        if _installed.hooks is not None:
            _installed.hooks.point("random", "system")
        return self._source.getrandbits(count)


class World:
    """What a hypervisor shares with the rest of the world: a clock, randomness, and the way its tasks sleep. Here the host's own."""

    clock: Clock
    random: Random

    def __init__(self) -> None:
        self.clock = Clock()
        self.random = Random()

    def wait_queue(self, name: str) -> WaitQueue:
        """Somewhere for one task to sleep."""
        return WaitQueue(name)

    def call_at(self, deadline_ns: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called, on a thread of its own, when the clock reads `deadline_ns`. Returns what cancels it."""
        delay = max(0, deadline_ns - self.clock.now()) / 1e9
        timer = threading.Timer(min(delay, threading.TIMEOUT_MAX), callback)
        timer.daemon = True
        timer.start()
        return timer.cancel

    def wall_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def keep(self, name: str, get: Callable[[], int], set: Callable[[int], None]) -> None:
        """A number that belongs to the state of a world that can be saved: which this one cannot."""

    def waits_again(self) -> bool:
        """Asked by a task whose wait has ended without what it waited for: whether whoever goes on from here will wait for it."""
        return False

    def run_delay(self) -> int:
        """For how many nanoseconds the running task was ready to run, in all, while others had the processor; 0 if the host can't say."""
        try:
            file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)  # `open` takes five times as long
            try:
                return int(os.read(file, 100).split()[1])
            finally:
                os.close(file)
        except (OSError, IndexError, ValueError):
            return 0
