"""Live migration: a running machine goes on in another process.

    source                                     destination (`trapline restore --incoming`)
    HELO  what the machine is made of   ->     makes such a machine
                                        <-     REDY
    PAGE  a range of memory             ->     in rounds: first all that is not zero, then what was written meanwhile
    ZERO  a range that became zero      ->
          (the machine stands still)
    PAGE  what is left                  ->
    STAT  registers, devices            ->     loads it
                                        <-     DONE
    GO    (the source forgets it)       ->     runs it

Rounds go on until what is left can be sent within the downtime that is allowed. Either side can say FAIL: the machine goes on at the
source then. It never runs on both sides: the destination starts it only when it has GO, and the source has given it up by then.
"""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final, cast

from trapline.abi.memory import PAGE
from trapline.abi.vm import MEM_LOG_DIRTY_PAGES, MEM_READONLY
from trapline.backends.memory import GuestMemory
from trapline.backends.objects import Vm
from trapline.backends.snapshot.format import FORMAT
from trapline.backends.snapshot.pages import MOST_PAGES, Range, not_zero
from trapline.devices.virtio.block import Image
from trapline.errors import BadInput, BadSnapshot, TraplineError
from trapline.vmm.board import MiB
from trapline.vmm.channel import Channel, listen, parse
from trapline.vmm.machine import Machine
from trapline.vmm.runloop import Ending, Outcome, Runner
from trapline.vmm.snapshot import SavedMachine, check_file, describe, save

RANGE: Final = Struct("<IQQ")
"""Slot, first page, how many."""
MOST_ROUNDS: Final = 30
DOWNTIME_SECONDS: Final = 0.3
"""What is allowed unless the user says otherwise."""

ZEROES: Final = bytes(MOST_PAGES * PAGE)
PAGES_OF_HOST: Final = mmap.PAGESIZE // PAGE

Say = Callable[[str], None]


def say(line: str) -> None:
    """To the user."""
    print(f"trapline: {line}", file=sys.stderr, flush=True)


# ---- the source -------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Round:
    """One round: pages that were sent, and the seconds it took."""

    pages: int = 0
    seconds: float = 0.0


class DirtyPages:
    """What is written to a machine's memory while a context lasts: by its vCPUs, which KVM logs, and by its devices, which we note."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.vm = cast(Vm, machine.vm)
        self.logged = [memory for memory in self.vm.memory if memory.slot >= 0 and not memory.flags & MEM_READONLY]

    def __enter__(self) -> DirtyPages:
        with self.machine.lock:
            self.machine.ram.written = set()
        self._log(MEM_LOG_DIRTY_PAGES)
        return self

    def __exit__(self, *_: object) -> None:
        self._log(0)
        with self.machine.lock:
            self.machine.ram.written = None

    def _log(self, flag: int) -> None:
        for memory in self.logged:
            self.vm.set_user_memory_region(memory.slot, memory.flags | flag, memory.guest_phys_addr, memory.size, memory.address)

    def take(self, machine_stands_still: bool = False) -> list[tuple[GuestMemory, list[Range]]]:
        """The ranges written since the last time."""
        if machine_stands_still:  # whoever holds it still holds the lock
            ours, self.machine.ram.written = self.machine.ram.written or set(), set()
        else:
            with self.machine.lock:
                ours, self.machine.ram.written = self.machine.ram.written or set(), set()
        found = []
        for memory in self.logged:
            logged = self.vm.get_dirty_ranges(memory.slot, memory.size // mmap.PAGESIZE)  # KVM's pages are the host's
            ranges = [(first * PAGES_OF_HOST, count * PAGES_OF_HOST) for first, count in logged]
            if memory is self.machine.memory and ours:
                ranges = _join({page for first, count in ranges for page in range(first, first + count)} | ours)
            found.append((memory, ranges))
        return found


def _join(pages: Iterable[int]) -> list[Range]:
    """Ranges of the pages."""
    ranges: list[Range] = []
    for page in sorted(pages):
        if ranges and sum(ranges[-1]) == page:
            ranges[-1] = ranges[-1][0], ranges[-1][1] + 1
        else:
            ranges.append((page, 1))
    return ranges


class Emigration:
    """Sends a running machine away."""

    def __init__(self, runner: Runner, disks: Sequence[Image], channel: Channel, downtime: float, tell: Say = say) -> None:
        if runner.machine.turns is not None:
            raise BadInput("a deterministic machine cannot be migrated: its time would stop and go. Save it to a file")
        self.runner = runner
        self.machine = runner.machine
        self.disks = disks
        self.channel = channel
        self.allowed = downtime
        self.tell = tell
        self.rounds: list[Round] = []
        self.fixed = 0.0
        """Seconds of the downtime that registers and devices take, at both ends."""
        self.downtime = 0.0

    def run(self, more: Callable[[], dict[str, Any]]) -> str:
        """All of it; what happened in one line. `more` gives what else is to be known there. After an error the machine goes on here."""
        vm, start = cast(Vm, self.machine.vm), time.monotonic()
        slots = [memory for memory in vm.memory if memory.slot >= 0]
        rows = [[memory.slot, memory.guest_phys_addr, memory.size, memory.flags, 0, []] for memory in slots]
        sectors = [disk.sectors for disk in self.disks]
        self.channel.send_document(
            b"HELO", {"format": FORMAT, "machine": {**describe(self.machine, self.disks), "sectors": sectors}, "memory": rows}
        )
        self.channel.receive(b"REDY")
        try:
            with DirtyPages(self.machine) as dirty:
                self._round((memory, not_zero(memory)) for memory in slots)
                self._rehearse()
                left = dirty.take()
                while (due := self._seconds_for(left)) > self.allowed:
                    if len(self.rounds) >= MOST_ROUNDS:
                        raise BadInput(
                            f"after {len(self.rounds)} rounds it would still have to stand still for {due:.3f} s, "
                            f"and {self.allowed:g} s are allowed (--downtime)"
                        )
                    self._round(left)
                    left = dirty.take()
                with self.runner.paused():
                    self._finish(dirty, left, more)
        except TraplineError as error:
            self.channel.fail(str(error))
            raise
        pages = sum(each.pages for each in self.rounds)
        return (
            f"migrated in {time.monotonic() - start:.2f} s: {len(self.rounds)} rounds, {pages} pages ({pages * PAGE / MiB:.1f} MiB), "
            f"downtime {self.downtime * 1000:.0f} ms"
        )

    def _rehearse(self) -> None:
        """Stop the machine for as long as it takes to save it without its memory: how long that is depends on the host."""
        with self.runner.paused():
            start = time.monotonic()
            save(self.machine, self.disks)
            self.fixed = 2 * (time.monotonic() - start)

    def _finish(self, dirty: DirtyPages, left: list[tuple[GuestMemory, list[Range]]], more: Callable[[], dict[str, Any]]) -> None:
        """The machine stands still: send the rest, and let go of it."""
        start = time.monotonic()
        document = save(self.machine, self.disks, **more())
        self._round([*left, *dirty.take(machine_stands_still=True)])
        for disk in self.disks:
            disk.release()
        try:
            self.channel.send_document(b"STAT", document)
            self.channel.receive(b"DONE")
        except TraplineError:
            for disk in self.disks:
                disk.claim()
            raise
        self.downtime = time.monotonic() - start
        self.runner.end(Ending(Outcome.MIGRATED))
        self.channel.send(b"GO..")

    def _seconds_for(self, left: list[tuple[GuestMemory, list[Range]]]) -> float:
        """How long the machine would stand still if it were stopped now: by the pace of the rounds so far."""
        pages, seconds = sum(each.pages for each in self.rounds), sum(each.seconds for each in self.rounds)
        waiting = sum(count for _, ranges in left for _, count in ranges)
        return self.fixed + waiting * seconds / max(pages, 1)

    def _round(self, work: Iterable[tuple[GuestMemory, Iterable[Range]]]) -> None:
        start, sent = time.monotonic(), Round()
        for memory, ranges in work:
            for first, count in _pieces(ranges):
                sent.pages += count
                self._send(memory, first, count)
        sent.seconds = time.monotonic() - start
        self.rounds.append(sent)
        self.tell(f"migration: round {len(self.rounds)}: {sent.pages} pages ({sent.pages * PAGE / MiB:.1f} MiB) in {sent.seconds:.3f} s")

    def _send(self, memory: GuestMemory, first: int, count: int) -> None:
        """A range as it is at this moment. Copied first: the guest may write it while it is sent, and the checksum has to hold."""
        data = memory[first * PAGE : (first + count) * PAGE]
        head = RANGE.pack(memory.slot, first, count)
        if data != ZEROES[: len(data)]:
            self.channel.send(b"PAGE", head, data)
        else:
            self.channel.send(b"ZERO", head)


def _pieces(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same in pieces of at most MOST_PAGES."""
    for first, count in ranges:
        for start in range(first, first + count, MOST_PAGES):
            yield start, min(MOST_PAGES, first + count - start)


# ---- the destination --------------------------------------------------------------------------------------------------------------


class LateImage(Image):
    """A disk that another machine still has: it is opened when that has let go of it."""

    def __init__(self, saved: list[Any], sectors: int) -> None:
        self.path, self.read_only, self.sectors = Path(saved[0]), bool(saved[3]), sectors
        self.fd = -1

    def open(self, saved: list[Any]) -> None:
        """It is ours now, and what it was when the machine stopped."""
        Image.__init__(self, check_file(saved, "disk"), self.read_only)

    def close(self) -> None:
        """If it was opened."""
        if self.fd >= 0:
            super().close()


class Immigration(SavedMachine):
    """A machine that arrives: made from what it is made of, then filled."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        document = channel.receive_document(b"HELO")
        if document.get("format") != FORMAT:
            raise BadSnapshot(f"the machine comes in format {document.get('format')}, and this version of Trapline reads {FORMAT}")
        super().__init__(document)
        self.disks = [LateImage(saved, count) for saved, count in zip(self.machine["disks"], self.machine["sectors"], strict=True)]
        self.pages = 0

    def load(self, machine: Machine) -> None:
        """Receive memory and state, and return when the machine is ours."""
        self.channel.send(b"REDY")
        slots = {memory.slot: memory for memory in cast(Vm, machine.vm).memory}
        while (frame := self.channel.receive(b"PAGE", b"ZERO", b"STAT"))[0] != b"STAT":
            self._fill(slots, *frame)
        self.document = {**parse(frame[1]), "memory": self.document["memory"]}
        for disk, saved in zip(self.disks, self.machine["disks"], strict=True):
            disk.open(saved)
        super().load(machine)
        self.channel.send(b"DONE")
        self.channel.receive(b"GO..")
        say(f"the machine has arrived ({self.pages} pages) and goes on here")

    def _fill(self, slots: dict[int, GuestMemory], kind: bytes, contents: bytearray) -> None:
        slot, first, count = RANGE.unpack_from(contents)
        memory, data = slots.get(slot), memoryview(contents)[RANGE.size :]
        if memory is None or (first + count) * PAGE > memory.size or (kind == b"PAGE" and len(data) != count * PAGE):
            raise BadSnapshot(f"the other side sends pages {first} to {first + count - 1} of memory slot {slot}, which are not there")
        memory[first * PAGE : (first + count) * PAGE] = data if kind == b"PAGE" else bytes(count * PAGE)
        self.pages += count


def wait(address: str) -> Channel:
    """Wait at an address for one call."""
    with listen(address) as waiting:
        say(f"waiting at {address} for a machine")
        connection, _ = waiting.accept()
    return Channel(connection)


def receive(stack: ExitStack, channel: Channel) -> Immigration:
    """The machine that somebody sends. What it opens is closed with `stack`, and the other side told if nothing comes of it."""

    def tell(kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            channel.fail(str(error))

    stack.enter_context(channel)
    stack.push(tell)
    arriving = Immigration(channel)
    for disk in arriving.disks:
        stack.callback(disk.close)
    return arriving


