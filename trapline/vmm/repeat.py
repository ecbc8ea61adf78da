"""Runs that can be repeated: deterministic, recorded, replayed. Each is a session on a machine whose vCPUs take turns."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from trapline.backends.objects import System
from trapline.backends.select import open_system
from trapline.devices.virtio.block import Image
from trapline.errors import BadInput
from trapline.turns import Turns
from trapline.vmm.console import Output
from trapline.vmm.deterministic import Stdin, TurnSession
from trapline.vmm.machine import Config, Deterministic, Machine, Software
from trapline.vmm.recording import Diverged, RecordedImage, Recorder, ReplayedImage, Replayer, header_for, load
from trapline.vmm.snapshot import SavedMachine
from trapline.vmm.trace import TraceWriter, output_file

if TYPE_CHECKING:
    from trapline.bare.machine import BareSystem

SEED_BYTES = 8


def repeatable_session(stack: ExitStack, config: Config, software: Software, end_of_input: bytes = b"") -> TurnSession:
    """A deterministic run, or one that is recorded. What it opens is closed, and its report printed, with `stack`."""
    wanted = config.deterministic
    assert wanted is not None
    if wanted.record is not None:
        return recorded_session(stack, config, software, wanted.record, end_of_input)
    system = open_turns(stack, config, wanted.seed or 0, wanted.trace)
    disks = [stack.enter_context(closing(Image(image, read_only))) for image, read_only in config.disks]
    session = TurnSession(system, config, software, disks, end_of_input=end_of_input, stop_at=wanted.stop_at)
    stack.callback(session.report)
    return session


def restored_session(stack: ExitStack, config: Config, saved: SavedMachine, stop_at: int | None, trace: Path | None) -> TurnSession:
    """A deterministic run that goes on from where it was saved."""
    assert config.deterministic is not None
    system = open_turns(stack, config, config.deterministic.seed or 0, trace)
    disks = [stack.enter_context(closing(disk)) for disk in saved.open_disks()]
    session = TurnSession(system, config, None, disks, saved=saved, stop_at=stop_at)
    stack.callback(session.report)
    return session


def recorded_session(stack: ExitStack, config: Config, software: Software, path: Path, end_of_input: bytes) -> TurnSession:
    """A run in the host's time whose input, disk reads and clock are written to `path`."""
    wanted = config.deterministic or Deterministic()
    seed = wanted.seed if wanted.seed is not None else int.from_bytes(os.urandom(SEED_BYTES), "little")
    system = open_turns(stack, config, seed, wanted.trace)
    assert system.turns is not None
    disks = [stack.enter_context(closing(RecordedImage(image, read_only))) for image, read_only in config.disks]
    header = header_for(config, disks, seed)
    try:
        file = stack.enter_context(path.open("w", encoding="ascii", buffering=1))  # by lines: a run that is killed can be replayed
    except OSError as error:
        raise BadInput(f"--record {path}: {error.strerror}") from error
    recorder = Recorder(system.turns, file, header)
    for number, disk in enumerate(disks):
        disk.recorder, disk.number = recorder, number
    session = TurnSession(
        system, config, software, list(disks), inbox=recorder, end_of_input=end_of_input, stdin=Stdin.LIVE, stop_at=wanted.stop_at
    )

    def finish() -> None:
        session.report()
        recorder.end(session.runner is not None and session.runner.ending is not None, session.final)

    stack.callback(finish)
    return session


def replayed_session(
    stack: ExitStack,
    path: Path,
    stop_at: int | None = None,
    trace: Path | None = None,
    timeout: float | None = None,
    output: Output | None = None,
    inspect: Callable[[Machine], None] = lambda machine: None,
) -> TurnSession:
    """The run that was recorded in `path`, again; to the end, or for `stop_at` instructions.

    `inspect` gets the machine when it stands still. Closing `stack` raises Diverged if the run ended in another state than the
    recorded one.
    """
    header, events = load(path)
    config = replace(header.config(), timeout=timeout)
    software = Software.read(config)
    system = open_turns(stack, config, header.seed, trace)
    assert system.turns is not None
    system.turns.epoch = header.epoch
    disks = [ReplayedImage(number, sectors, bool(read_only)) for number, (sectors, read_only) in enumerate(header.disks)]
    replayer = Replayer(system.turns, events)
    for disk in disks:
        disk.replayer = replayer
    last = events[-1] if events else {}
    complete = bool(last.get("end"))
    if "end" in last and not complete:  # it was stopped from outside, in the middle
        stop_at = last["n"] if stop_at is None else min(stop_at, last["n"])
    session = TurnSession(
        system,
        config,
        software,
        list(disks),
        output=output or Output(),
        stdin=Stdin.UNUSED,
        stop_at=stop_at,
        inbox=replayer,
        inspect=inspect,
    )
    def finish() -> None:
        session.report()
        stopped = session.turns.stop_at is not None and session.turns.retired >= session.turns.stop_at
        if complete and session.runner is not None and session.runner.ending is not None and not stopped:
            if (session.turns.retired, session.final) != (last["n"], last["state"]):
                raise Diverged(f"the recorded run ended after {last['n']} instructions in state {last['state']}")
            print("trapline: the recorded run ended in the same state", file=sys.stderr)

    stack.callback(finish)
    return session


def replay(
    path: Path, stop_at: int | None = None, output: Output | None = None, inspect: Callable[[Machine], None] = lambda machine: None
) -> TurnSession:
    """Repeat a recording, for `stop_at` instructions or to its end: for Python programs.

    Afterwards `final` is the hash of the state, `registers` has a text for each vCPU, and `turns.retired` the instructions. `inspect`
    is called before that with the machine at a standstill: its registers and memory are there to be read.
    """
    with ExitStack() as stack:
        session = replayed_session(stack, path, stop_at, output=output, inspect=inspect)
        session.run()
    return session


def make_system(config: Config, seed: int, ioctls: TextIO | None = None) -> System | BareSystem:
    """A deterministic KVM, perhaps with a log of its calls, or where bare machines come from."""
    if config.machine != "bare":
        return open_system("software", config.cpu, deterministic=True, seed=seed, record=ioctls)
    from trapline.bare.machine import BareSystem, features_of

    return BareSystem(config.el2, features_of(config.cpu, config.el2), Turns(seed))


def open_turns(stack: ExitStack, config: Config, seed: int, trace: Path | None) -> System | BareSystem:
    """What makes a deterministic machine, with its exits written to a file if one is named."""
    system = make_system(config, seed, output_file(stack, "--record-ioctls", config.ioctls))
    stack.callback(system.close)
    if trace is not None:
        assert system.turns is not None
        stack.enter_context(TraceWriter(system.turns, trace))
    return system
