"""A backend that makes an event of every call."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from errno import errorcode
from typing import Any
from zlib import crc32

from trapline.abi.caps import Cap
from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import PAGE, Meaning, Structure
from trapline.abi.values import argument_to_data, fields_that_mean, number_to_data, pointers, tail_bytes
from trapline.abi.vcpu import KVM_RUN
from trapline.backends.base import Backend
from trapline.backends.front import Front
from trapline.backends.record.events import DECODERS, ROOM, Event, arch_of, exit_to_data, pack, state_of
from trapline.backends.record.memory import GuestPages, SharedWords, readable
from trapline.errors import KvmError, NotSupported


@dataclass
class VmBook:
    """What is known of a VM."""

    slots: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Address in this process and size of each slot."""

    pages: dict[tuple[int, int], GuestPages] = field(default_factory=dict)
    """The memory of the slots, each piece once, by address and size; in the order of the slots."""

    vcpus: int = 0
    rings: list[SharedWords] = field(default_factory=list)
    """Its vCPUs' dirty rings, in the order in which they were mapped."""

    def sizes(self) -> dict[int, int]:
        """The slots' sizes."""
        return {slot: size for slot, (_, size) in self.slots.items()}


@dataclass
class FileBook:
    """What is known of a file."""

    kind: str
    vm: VmBook
    run: SharedWords | None = None
    volatile: set[str] | None = None
    """Registers that change by themselves."""


@dataclass
class Argument:
    """An argument while its call is made."""

    value: Structure
    address: int
    content: bytes
    data: dict[str, Any]
    pieces: list[tuple[str, int, bytes]]
    """What addresses in it lead to: path, address and content."""


class Recorder(Front):
    """Passes everything on to another backend, and an event of each call to `write`, after the call.

    With `state`, events of calls on vCPUs tell all of the vCPU's registers, but for those that change by themselves.
    """

    def __init__(self, inner: Backend, write: Callable[[Event], object], *, state: bool = False) -> None:
        super().__init__(inner)
        self.arch = arch_of(inner)
        self.files: dict[int, FileBook] = {}
        self._write = write
        self._state = state

    def with_cpu(self, cpu: str) -> Backend:
        """A record is one machine's."""
        raise NotSupported("calls of one machine are recorded: choose its CPU when opening the KVM")

    def open(self) -> int:
        """A file of the KVM device."""
        file = self.inner.open()
        self.files[file] = FileBook("system", VmBook())
        self._write({"open": file})
        return file

    # --- calls -----------------------------------------------------------------------------------------------------------------

    def ioctl(self, file: int, call: Ioctl, argument: Any = 0, size: int = 0) -> int:
        """Make the call, and an event of it. An argument given by its address can have a known size."""
        return self._record(file, call, argument, lambda: self.inner.ioctl(file, call, argument), size)

    def _record(self, file: int, call: Ioctl, argument: Any, make: Callable[[], int], size: int = 0) -> int:
        book = self.files[file]
        event: Event = {"call": call.name, "fd": file, "kind": book.kind}
        before = self._describe(event, book, call, argument, size)
        readable_argument = before is not None or call.struct is None
        guest = readable_argument and call.guest(before.value if before is not None else None)
        if wrote := self._written(book, call, guest):
            event["wrote"] = wrote
        try:
            result = make()
        except KvmError as error:
            event["errno"] = errorcode.get(error.errno or 0, str(error.errno))
            self._finish(event, file, book, call, before, guest)
            raise
        event["result"] = result
        self._finish(event, file, book, call, before, guest)
        return result

    def _describe(self, event: Event, book: FileBook, call: Ioctl, argument: Any, size: int) -> Argument | None:
        """Note what the call is given. None if that is no structure, or none that can be read."""
        if call.struct is None:
            if call.takes or argument:
                event["arg"] = number_to_data(argument, Cap if call.takes == "cap" else None, 0)
            return None
        address = argument if isinstance(argument, int) else ctypes.addressof(argument)
        if isinstance(argument, int):
            content = readable(address, size or call.size)
            if len(content) == call.size and not size:
                content = readable(address, call.size + min(tail_bytes(call.struct.from_buffer_copy(content)), ROOM))
        else:
            content = bytes(argument)
        if len(content) < call.size:
            event["address"] = hex(address)
            return None
        value = call.struct.from_buffer_copy(content)
        made = Argument(value, address, content, argument_to_data(call.struct, content), [])
        event["arg"] = made.data
        if isinstance(argument, int) and not size and len(content) < call.size + min(tail_bytes(value), ROOM):
            event["cut"] = True
        self._follow(event, made, value, book)
        if files := {name: kind_of_file(getattr(value, name)) for name in fields_that_mean(call.struct, Meaning.FD)}:
            event["files"] = files
        return made

    def _follow(self, event: Event, made: Argument, value: Structure, book: FileBook) -> None:
        """Note what the argument's addresses lead to."""
        for pointer in pointers(value):
            size = pointer.pointee.size(pointer.inside, book.kind, book.vm.sizes())
            if not size:
                continue
            found = readable(pointer.address, 1 if pointer.pointee.shared else size)
            event.setdefault("at", {})[pointer.path] = ("" if pointer.pointee.shared else pack(found)) if found else None
            if found and not pointer.pointee.shared:
                made.pieces.append((pointer.path, pointer.address, found))

    def _finish(self, event: Event, file: int, book: FileBook, call: Ioctl, before: Argument | None, guest: bool) -> None:
        """Note what came of the call."""
        if before is not None:
            self._compare(event, before)
        if "result" in event:
            self._learn(event, book, call)
        if call is KVM_RUN and "result" in event and book.run is not None:
            event["exit"] = exit_to_data(DECODERS[self.arch](book.run.view))
        if shared := dict(self._shared_words(book, call, PAGE)):
            event["shared"] = shared
        if guest and book.vm.vcpus <= 1:  # others may be writing it now
            changed = b"".join(at.to_bytes(8, "little") + content for pages in book.vm.pages.values() for at, content in pages.changes())
            if changed:
                event["memory"] = hex(crc32(changed))
        if self._state and book.kind == "vcpu":
            event["state"] = self.state(file)
        self._write(event)

    def _compare(self, event: Event, before: Argument) -> None:
        """Note which fields, and what that they lead to, the call has changed."""
        content = readable(before.address, len(before.content))
        if content != before.content and len(content) >= ctypes.sizeof(before.value):
            after = argument_to_data(type(before.value), content)
            names = dict.fromkeys((*before.data, *after))
            event["out"] = {name: after.get(name, 0) for name in names if after.get(name) != before.data.get(name)}
        for path, address, piece in before.pieces:
            now = readable(address, len(piece))
            if now != piece:
                event.setdefault("got", {})[path] = pack(now)

    def _learn(self, event: Event, book: FileBook, call: Ioctl) -> None:
        """A file that was made, a slot that was set."""
        if call.makes:
            made = fields_that_mean(call.struct, Meaning.MADE) if call.struct is not None else []
            number = event.get("out", {}).get(made[0], 0) if made else event["result"]
            if not made or number:
                event["made"] = number = int(str(number), 0)
                vm = VmBook() if call.makes == "vm" else book.vm
                vm.vcpus += call.makes == "vcpu"
                self.files[number] = FileBook(call.makes, vm)
        if call.struct is not None and any(pointee.shared for pointee in call.struct.pointees.values()):
            data = event["arg"]
            self._set_slot(book.vm, data.get("slot", 0), int(data.get("userspace_addr", "0"), 0), int(data.get("memory_size", "0"), 0))

    def _set_slot(self, vm: VmBook, slot: Any, address: int, size: int) -> None:
        vm.slots.pop(int(str(slot), 0), None)
        if size:
            vm.slots[int(str(slot), 0)] = (address, size)
        wanted = [vm.slots[number] for number in sorted(vm.slots) if readable(vm.slots[number][0], 1)]
        vm.pages = {place: vm.pages.get(place) or GuestPages(*place) for place in wanted}

    # --- shared memory ---------------------------------------------------------------------------------------------------------

    def _written(self, book: FileBook, call: Ioctl, guest: bool) -> dict[str, Any]:
        """What userspace has written to shared memory that the call may look at."""
        wrote: dict[str, Any] = dict(self._shared_words(book, call, 0))
        if guest:
            memory = [[hex(pages.address + at), pack(content)] for pages in book.vm.pages.values() for at, content in pages.changes()]
            if memory:
                wrote["memory"] = memory
        return wrote

    def _shared_words(self, book: FileBook, call: Ioctl, first: int) -> Iterator[tuple[str, list[list[Any]]]]:
        """Changes of kvm_run from an offset on, where the call is KVM_RUN, and of all rings of the VM."""
        if call is KVM_RUN and book.run is not None and (changes := book.run.changes(first)):
            yield "run", changes
        for number, ring in enumerate(book.vm.rings):
            if changes := ring.changes():
                yield f"ring {number}", changes

    def state(self, file: int) -> dict[str, str]:
        """The vCPU's registers, but for those that change by themselves."""
        book = self.files[file]
        state = state_of(self.inner, file, self.arch)
        if book.volatile is None:
            again = state_of(self.inner, file, self.arch)
            book.volatile = {name for name in state if again.get(name) != state[name]}
        return {name: value for name, value in state.items() if name not in book.volatile}

    # --- the rest of a backend -------------------------------------------------------------------------------------------------

    def runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN of a vCPU."""
        run = self.inner.runner(file)
        return lambda: self._record(file, KVM_RUN, 0, run)

    def close(self, file: int) -> None:
        """Close a file."""
        self.files.pop(file, None)
        self.inner.close(file)
        self._write({"close": file})

    def map_run(self, file: int) -> Any:
        """Share a vCPU's kvm_run."""
        run = self.inner.map_run(file)
        self.files[file].run = SharedWords(run)
        self._write({"map": file})
        return run

    def map_ring(self, file: int, size: int) -> Any:
        """Share a vCPU's dirty ring."""
        ring = self.inner.map_ring(file, size)
        self.files[file].vm.rings.append(SharedWords(ring))
        self._write({"map": file, "ring": size})
        return ring


def kind_of_file(number: int) -> str | None:
    """What an open file of this process is, in the host's words; None if there is none of that number."""
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return None
