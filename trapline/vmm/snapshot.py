"""Snapshots of whole machines: what KVM has of them (backends/snapshot/), and what this VMM has: configuration, devices, disks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from trapline.backends.memory import Stored
from trapline.backends.objects import Vm
from trapline.backends.snapshot import state as vm_state
from trapline.backends.snapshot.format import Snapshot, write
from trapline.backends.snapshot.restore import Restore
from trapline.devices.pl061 import POWER_KEY_LINE
from trapline.devices.virtio.block import Image
from trapline.errors import BadInput, BadSnapshot
from trapline.vmm.machine import Config, Deterministic, Machine

SETTINGS = ("params", "cpus", "cpu", "memory", "machine", "el2", "virtio_console", "pci_testdev", "reboot", "gic")
"""What of a configuration is kept as it is."""
FILES = ("kernel", "initrd", "firmware")
"""What a reboot reads again."""
MACHINE = "machine"
"""The part of a snapshot's document that is about the machine."""


def describe(machine: Machine, disks: Sequence[Image]) -> dict[str, Any]:
    """What another process needs to make a machine like this one. Plain values. BadInput for one that cannot be saved."""
    config = machine.config
    if config.machine == "bare":
        raise BadInput("a bare machine cannot be saved: no KVM is there to be asked what it is")
    if config.prepare is not None:
        raise BadInput("a machine that is being surveyed cannot be saved")
    return {
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "files": {name: file_id(path) for name in FILES if (path := getattr(config, name)) is not None},
        "sysreg": [str(path.resolve()) for path in config.sysreg],
        "disks": [[*file_id(disk.path), disk.read_only] for disk in disks],
        "deterministic": machine.turns is not None,
    }


def save_devices(machine: Machine) -> dict[str, Any]:
    """The state of every device on the bus, by address."""
    return {f"{base:x}": {"kind": type(device).__name__, **device.state()} for base, device in machine.devices.items()}


def save(machine: Machine, disks: Sequence[Image], **more: Any) -> dict[str, Any]:
    """The state of a machine that stands still, less its memory, which is to be read after this."""
    state = vm_state.save(cast(Vm, machine.vm))
    for disk in disks:
        if not disk.read_only:
            disk.flush()
    return {
        MACHINE: {**describe(machine, disks), "devices": save_devices(machine), **more},
        "vm": state,
        "turns": machine.turns.save() if machine.turns is not None else None,
    }


def save_to(path: Path, machine: Machine, disks: Sequence[Image], **more: Any) -> int:
    """Write a machine that stands still to a file; how many bytes of memory it took."""
    vm = cast(Vm, machine.vm)
    return write(path, [memory for memory in vm.memory if memory.slot >= 0], save(machine, disks, **more))


def file_id(path: Path) -> list[Any]:
    """A file's path, size and time of last change: by this we know that it is what it was."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def check_file(saved: list[Any], what: str) -> Path:
    """The path of a file that has not changed since; BadInput if it has."""
    path = Path(saved[0])
    if file_id(path) != saved[:3]:
        raise BadInput(f"{path}: this {what} has changed since the machine was saved")
    return path


class SavedMachine:
    """A machine as it was saved. `snapshot` has its memory; None if that is brought otherwise (migration)."""

    def __init__(self, document: dict[str, Any], snapshot: Snapshot | None = None) -> None:
        if MACHINE not in document:
            where = snapshot.path if snapshot is not None else "the incoming machine"
            raise BadSnapshot(f"{where}: this is not a machine of `trapline run` but a VM of a program's: use System.restore")
        self.document = document
        self.snapshot = snapshot

    @property
    def machine(self) -> dict[str, Any]:
        """What describes the machine."""
        return cast("dict[str, Any]", self.document[MACHINE])

    @property
    def is_deterministic(self) -> bool:
        """Whether its time was made of instructions."""
        return bool(self.machine["deterministic"])

    def config(self, **changes: Any) -> Config:
        """The configuration that it had, with changes."""
        files: dict[str, Any] = {name: Path(saved[0]) for name, saved in self.machine["files"].items()}
        config = Config(**self.machine["settings"], **files, sysreg=[Path(path) for path in self.machine["sysreg"]])
        config.disks = [(Path(path), bool(read_only)) for path, _, _, read_only in self.machine["disks"]]
        if self.is_deterministic:
            config.deterministic = Deterministic(self.document["turns"]["seed"])
        return replace(config, **changes)

    def open_disks(self) -> list[Image]:
        """The disks: the same files, unchanged since, or the guest's memory of them would be wrong. BadInput if not."""
        return [Image(check_file(saved, "disk"), bool(saved[3])) for saved in self.machine["disks"]]

    def check_files(self) -> None:
        """BadInput if what a reboot needs has changed."""
        for name, saved in self.machine["files"].items():
            check_file(saved, name)

    # ---- what a `Machine` asks ------------------------------------------------------------------------------------------------

    def has_memory(self, base: int) -> bool:
        """Whether there was memory at a guest physical address."""
        return any(row[1] == base for row in self.document["memory"])

    def stored(self, base: int) -> Stored | None:
        """What it held."""
        if self.snapshot is None:
            return None
        part = next((part for part in self.snapshot.parts if part.guest_phys_addr == base), None)
        return part.stored(self.snapshot.file) if part is not None else None

    def load(self, machine: Machine) -> None:
        """Registers, interrupt controllers, devices, time."""
        if machine.turns is not None and self.document["turns"] is not None:
            machine.turns.load(self.document["turns"])
        Restore(cast(Vm, machine.vm), self.snapshot, self.document["vm"]).everything()
        self.load_devices(machine)

    def load_devices(self, machine: Machine) -> None:
        """BadSnapshot if the machine has others than the saved one had."""
        saved: dict[str, dict[str, Any]] = self.machine["devices"]
        there = {base: state["kind"] for base, state in saved.items()}
        here = {f"{base:x}": type(device).__name__ for base, device in machine.devices.items()}
        if there != here:
            raise BadSnapshot(f"the saved machine has other devices: {there}, and this one has {here}")
        for base, device in machine.devices.items():
            try:
                device.load(saved[f"{base:x}"])
            except (KeyError, ValueError, TypeError) as error:
                raise BadSnapshot(f"the state of {type(device).__name__} at {base:#x} is not one of this version's: {error!r}") from error
            if machine.config.gic == 2:
                device.irq.tell_again()
        if machine.gpio.inputs >> POWER_KEY_LINE & 1:
            machine.release_power_key()
