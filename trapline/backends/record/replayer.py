"""Making the calls of events again, on another backend."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from trapline.abi.caps import Cap
from trapline.abi.exits import IMMEDIATE_EXIT_OFFSET
from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import PAGE, Meaning, Structure
from trapline.abi.values import argument_from_data, fields_that_mean, number_from_data, pointers
from trapline.abi.vcpu import KVM_RUN
from trapline.backends.base import Backend
from trapline.backends.record.difference import COMPARED, Difference, differences
from trapline.backends.record.events import Event, find_call, unpack
from trapline.backends.record.recorder import Recorder, kind_of_file
from trapline.errors import BadInput, KvmError
from trapline.mapping import map_far, protect

NO_FILE = 0x3FFF_FFFF
"""A number that no open file has."""

PATIENCE = 30.0
"""Seconds that a KVM_RUN may take which took less when it was recorded."""

HISTORY = 6


class Replayer:
    """Makes the calls of one process's events, in order, and says which are answered otherwise."""

    def __init__(
        self, backend: Backend, arch: str, names: tuple[str, str], *, state: bool = False, patience: float = PATIENCE, memory: bool = True
    ) -> None:
        """`arch`: of the machine that the events are of. `names` are for reports: the recorded side's and this one's.

        `memory`: whether to compare guest memory. A guest that looks at the time writes it down somewhere.
        """
        self._parts = [part for part in COMPARED if memory or part != "memory"]
        self.arch = arch
        self.names = names
        self.patience = patience
        self.recorder = Recorder(backend, self._made, state=state)
        self.count = 0
        """Calls so far."""
        self._files: dict[int, int] = {}
        self._runs: dict[int, Any] = {}
        self._memory: list[tuple[int, int, int]] = []
        """Guest memory: its address and size when it was recorded, and its address here. The newest first."""
        self._areas: list[Any] = []
        self._buffers: list[Any] = []
        """What the argument of the present call is made of."""
        self._eventfds: dict[int, int] = {}
        self._own: Event = {}
        self._interrupted: set[int] = set()
        """Files of vCPUs whose last run was interrupted."""
        self._recent: deque[Event] = deque(maxlen=HISTORY)

    def _made(self, event: Event) -> None:
        self._own = event

    def step(self, event: Event) -> Difference | None:
        """Do again what an event tells of. None if it went as it did then, or is nothing to be done again."""
        if "call" not in event:
            self._other(event)
            return None
        self.count += 1
        call = find_call(event["call"], self.arch)
        if call is None:
            raise BadInput(f"{event['call']} is no call of {self.arch}'s KVM")
        self._call(event, call)
        found = differences(event, self._own, self.arch, self._comparable(event))
        difference = None
        if found:
            states = event.get("state", {}), self.state(event["fd"]) if event["kind"] == "vcpu" else {}
            difference = Difference(self.count, self.arch, self.names, (event, self._own), states, tuple(self._recent), found)
        self._recent.append(event)
        return difference

    def _comparable(self, event: Event) -> Iterable[str]:
        """What can be compared: where the guest was when its run was interrupted is chance, until it next leaves by itself."""
        file = event["fd"]
        if event.get("errno") == "EINTR":
            self._interrupted.add(file)
        if file not in self._interrupted:
            return self._parts
        if event["call"] == KVM_RUN.name and "exit" in event:
            self._interrupted.discard(file)
            return [part for part in COMPARED if part != "memory"]
        return ("result", "errno")

    def state(self, file: int) -> dict[str, str]:
        """The registers of the vCPU that had this file when it was recorded."""
        return self.recorder.state(self._files[file])

    def _other(self, event: Event) -> None:
        """Opening, mapping, closing."""
        if "open" in event:
            self._files[event["open"]] = self.recorder.open()
        elif "map" in event and (file := self._files.get(event["map"])) is not None:
            if "ring" in event:
                self.recorder.map_ring(file, event["ring"])
            else:
                self._runs[event["map"]] = self.recorder.map_run(file)
        elif "close" in event and (file := self._files.pop(event["close"], None)) is not None:
            self._runs.pop(event["close"], None)
            self.recorder.close(file)

    def close(self) -> None:
        """Close what the events left open, the newest first."""
        for file in reversed(list(self._files.values())):
            self.recorder.close(file)
        for file in self._eventfds.values():
            os.close(file)
        self._files.clear()
        self._eventfds.clear()

    # --- calls -----------------------------------------------------------------------------------------------------------------

    def _call(self, event: Event, call: Ioctl) -> None:
        file = self._files.get(event["fd"])
        if file is None:
            raise BadInput(f"{event['call']}: nothing has made the file {event['fd']}")
        argument, size = self._argument(event, call)
        self._write_shared(event)
        try:
            self._run(event, file) if call is KVM_RUN else self.recorder.ioctl(file, call, argument, size)
        except KvmError:
            pass  # the event has it
        self._buffers.clear()
        if "made" in event and "made" in self._own:
            self._files[event["made"]] = self._own["made"]

    def _run(self, event: Event, file: int) -> None:
        """KVM_RUN. One that was interrupted is interrupted at once; one that does not come back is interrupted after a while."""
        run = self._runs.get(event["fd"])
        if run is None or "arg" in event:
            self.recorder.ioctl(file, KVM_RUN, number_from_data(event.get("arg", 0), None))
            return
        before = run[IMMEDIATE_EXIT_OFFSET]
        if event.get("errno") == "EINTR":
            run[IMMEDIATE_EXIT_OFFSET] = 1
        watchdog = threading.Timer(self.patience, self._give_up, (file, run))
        watchdog.daemon = True
        watchdog.start()
        try:
            self.recorder.runner(file)()
        finally:
            watchdog.cancel()
            run[IMMEDIATE_EXIT_OFFSET] = before

    def _give_up(self, file: int, run: Any) -> None:
        run[IMMEDIATE_EXIT_OFFSET] = 1
        self.recorder.kick(file)

    def _argument(self, event: Event, call: Ioctl) -> tuple[int, int]:
        """A number, or the address and size of a copy of the argument, whose own addresses lead to copies here."""
        if call.struct is None:
            return number_from_data(event.get("arg", 0), Cap if call.takes == "cap" else None), 0
        if "address" in event:
            return int(event["address"], 16), 0
        content = bytearray(argument_from_data(call.struct, event["arg"]))
        value = call.struct.from_buffer(content)
        for name in fields_that_mean(call.struct, Meaning.FD):
            setattr(value, name, self._file_number(getattr(value, name), event["files"][name]))
        self._place(event, value, content, self.recorder.files[self._files[event["fd"]]].kind)
        return self._kept(bytes(content), len(content) + event.get("cut", False)), len(content)

    def _place(self, event: Event, value: Structure, content: bytearray, kind: str) -> None:
        """Let the addresses in an argument lead to memory of this side's."""
        vm = self.recorder.files[self._files[event["fd"]]].vm
        for pointer in list(pointers(value)):
            found = event.get("at", {}).get(pointer.path)
            if found is None:
                continue
            size = pointer.pointee.size(pointer.inside, kind, vm.sizes())
            place = self._guest_memory(pointer.address, size) if pointer.pointee.shared else self._kept(unpack(found), size)
            content[pointer.offset : pointer.offset + 8] = place.to_bytes(8, "little")

    def _kept(self, content: bytes, size: int) -> int:
        """The address of a copy, until the call is over. What could not be read to its end cannot be here either."""
        if len(content) >= size:
            buffer = ctypes.create_string_buffer(content, max(len(content), 1))
            self._buffers.append(buffer)
            return ctypes.addressof(buffer)
        room = -len(content) % PAGE
        area = map_far(len(content) + room + PAGE)
        self._buffers.append(area)
        start = ctypes.addressof(area)
        protect(start + room + len(content), PAGE, 0)
        ctypes.memmove(start + room, content, len(content))
        return start + room

    def _guest_memory(self, address: int, size: int) -> int:
        """Where memory that was at an address is here; it is made when it is first named."""
        for then, length, now in self._memory:
            if then <= address and address + size <= then + length:
                return now + address - then
        try:
            area = map_far(size + 2 * ALIGN)
        except (OSError, OverflowError, ValueError):
            return address  # nobody has so much memory: it was not there either
        self._areas.append(area)
        now = (ctypes.addressof(area) + ALIGN - 1 & -ALIGN) + address % ALIGN
        self._memory.insert(0, (address, size, now))
        return now

    def _file_number(self, number: int, what: str | None) -> int:
        """A file of userspace's: an eventfd for an eventfd, for all else something that is none."""
        if number in self._files:
            return self._files[number]
        if what is None:
            return number if number < 0 or kind_of_file(number) is None else NO_FILE
        if number not in self._eventfds:
            made = os.eventfd(0, os.EFD_NONBLOCK) if "eventfd" in what else os.open(os.devnull, os.O_RDWR)
            self._eventfds[number] = made
        return self._eventfds[number]

    def _write_shared(self, event: Event) -> None:
        """Write what userspace had written to shared memory."""
        for name, changes in event.get("wrote", {}).items():
            if name == "memory":
                for address, data in changes:
                    content = unpack(data)
                    ctypes.memmove(self._guest_memory(int(address, 16), len(content)), content, len(content))
                continue
            kind, _, number = name.partition(" ")
            book = self.recorder.files[self._files[event["fd"]]]
            words = book.vm.rings[int(number)] if kind == "ring" else book.run
            if words is not None:
                words.write(changes)


ALIGN = 2 << 20
"""Guest memory keeps its place within a huge page."""
