"""Round trips of a running Linux guest: save it anywhere, restore it in a new machine, and nothing of what follows is different.

Deterministic machines: the console, every exit of the processors with its instruction count, and the hash of the final state are those
of a run that was never interrupted. The only exits that come in addition are aborts for memory that the new machine has not mapped yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from trapline.backends.select import open_system
from trapline.backends.snapshot.format import Snapshot
from trapline.errors import BadInput, GuestCrash
from trapline.vmm import guests
from trapline.vmm.console import Output
from trapline.vmm.deterministic import Stdin, TurnSession
from trapline.vmm.driver import Driver
from trapline.vmm.machine import Config, Deterministic, MiB, Software
from trapline.vmm.repeat import open_turns
from trapline.vmm.session import SnapshotWish
from trapline.vmm.snapshot import SavedMachine

pytestmark = [pytest.mark.needs_guest, pytest.mark.timeout(900)]

ABORTS = ("INSN_ABORT_LOWER", "DATA_ABORT_LOWER")
FAULT_TYPE, FAULT_LEVEL, TRANSLATION_FAULT = 0x3C, 0x3, 0x04
"""Of an abort's syndrome."""
SHORT, MANY, LONG = 20, 50, 1000
PATCHED = 0.2
"""Of the run, when Linux has finished patching its own code for the CPU it found. While it does that it executes instructions that it has
changed, before it tells the instruction cache: then it makes a difference which were decoded earlier."""


class Console(Output):
    """Keeps what the guest writes."""

    def __init__(self) -> None:
        super().__init__()
        self.text = b""

    def _put(self, data: bytes) -> None:
        self.text += data


@dataclass
class Story:
    """What a run, or several of which each goes on with the last one's machine, did."""

    console: bytes = b""
    exits: list[str] = field(default_factory=list)
    final: str = ""
    retired: int = 0
    status: int | None = None

    def play(self, config: Config, folder: Path, saved: Path | None = None, until: int | None = None) -> Path:
        """Run to the end, or until `until` instructions, and save the machine then. Returns where."""
        trace, goal = folder / "trace", folder / f"at-{until}"
        with ExitStack() as stack:
            system = open_turns(stack, config, 0, trace)
            console = Console()
            if saved is None:
                session = TurnSession(system, config, Software.read(config), [], output=console, stdin=Stdin.UNUSED)
            else:
                snapshot = stack.enter_context(closing(Snapshot(saved)))
                machine = SavedMachine(snapshot.document, snapshot)
                session = TurnSession(system, machine.config(), None, [], output=console, stdin=Stdin.UNUSED, saved=machine)
            if until is not None:
                session.snapshot = SnapshotWish(goal, until)
            session.run()
            self.retired = session.turns.retired
        self.console += console.text
        self.exits += map(comparable, trace.read_text().splitlines())
        self.final, self.status = session.final, session.exit_status
        return goal


def boot(script: str, cpus: int = 1) -> Config:
    try:
        files = guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")
    params = f'console=ttyAMA0 panic=-1 quiet run="{script}"'
    return Config(kernel=files.kernel, initrd=files.initrd, params=params, cpus=cpus, memory=256 * MiB, deterministic=Deterministic())


def comparable(line: str) -> str:
    """Of exits other than aborts, FAR_EL2 is still that of the last abort. At which level a walk of stage 2 found nothing depends on
    what is mapped beside it at the moment."""
    exit = json.loads(line)
    if exit.get("ec") not in ABORTS:
        exit.pop("far", None)
    elif int(exit["esr"], 16) & FAULT_TYPE == TRANSLATION_FAULT:
        exit["esr"] = hex(int(exit["esr"], 16) & ~FAULT_LEVEL)
    return json.dumps(exit)


def more_aborts(parts: Iterable[str], whole: Sequence[str]) -> int:
    """How many aborts `parts` has in addition to `whole`; AssertionError if they differ in anything else."""
    extra, at = 0, 0
    for line in parts:
        if at < len(whole) and line == whole[at]:
            at += 1
        else:
            assert json.loads(line).get("ec") in ABORTS, f"exit {at} was {whole[at] if at < len(whole) else 'the last'}, and is {line}"
            extra += 1
    assert at == len(whole), f"exit {at} is missing: {whole[at]}"
    return extra


def trip_all_the_way(config: Config, whole: Story, points: Sequence[int], folder: Path) -> Story:
    """The same run in pieces, saved and restored at each point."""
    pieces, saved = Story(), None
    for until in points:
        before, saved = saved, pieces.play(config, folder, saved, until)
        assert until <= pieces.retired, f"saved at {pieces.retired} instead of {until}"
        if before is not None:
            before.unlink()
    pieces.play(config, folder, saved)
    return pieces


def check_trips(config: Config, whole: Story, trips: int, seed: int, folder: Path) -> None:
    random = Random(seed)
    points = sorted(random.sample(range(int(PATCHED * whole.retired), whole.retired), trips))
    pieces = trip_all_the_way(config, whole, points, folder)
    assert pieces.console == whole.console
    assert (pieces.retired, pieces.status) == (whole.retired, whole.status)
    more_aborts(pieces.exits, whole.exits)
    assert pieces.final == whole.final


@contextmanager
def reference(config: Config, folder: Path) -> Iterator[Story]:
    whole = Story()
    whole.play(config, folder)
    assert whole.status == 0 and b"done" in whole.console
    yield whole


def test_linux_does_not_notice_twenty_round_trips(tmp_path: Path) -> None:
    config = boot("uname -a; ls /proc | head -c 200; echo done")
    with reference(config, tmp_path) as whole:
        check_trips(config, whole, SHORT, seed=1, folder=tmp_path)


BUSY = "for i in 1 2 3 4; do uname -a; sleep 0.01; (ls -lR /proc/self | wc; true) & done; wait; echo done"


@pytest.fixture(scope="module")
def busy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, Story]]:
    """A guest with so many CPUs that has something to do, and what it does when nobody saves it."""
    config = boot(BUSY, cpus=request.param)
    with reference(config, tmp_path_factory.mktemp("busy")) as whole:
        yield config, whole


@pytest.mark.slow
@pytest.mark.parametrize("busy", [1], indirect=True, ids=["1-cpu"])
@pytest.mark.parametrize("seed", range(LONG // MANY))
def test_linux_does_not_notice_a_thousand_round_trips(busy: tuple[Config, Story], seed: int, tmp_path: Path) -> None:
    check_trips(*busy, MANY, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("busy", [4], indirect=True, ids=["4-cpus"])
@pytest.mark.parametrize("seed", range(4))
def test_linux_on_four_cpus_does_not_notice_two_hundred_round_trips(busy: tuple[Config, Story], seed: int, tmp_path: Path) -> None:
    check_trips(*busy, MANY, seed, tmp_path)


def test_a_test_suite_boots_once_and_restores_for_each_test(tmp_path: Path) -> None:
    config = boot("")
    config.params, config.deterministic = "console=ttyAMA0 panic=-1 quiet", None
    with open_system("software") as kvm:
        with Driver.boot(config, kvm) as guest:
            guest.expect("# ")
            guest.command("touch /tmp/before")
            guest.save(tmp_path / "booted")
            assert guest.command("ls /tmp") == "before\n", "it goes on"
        with Snapshot(tmp_path / "booted") as booted, Driver.restore(booted, kvm) as one, Driver.restore(booted, kvm) as other:
            one.command("touch /tmp/one")
            assert (one.command("ls /tmp").split(), other.command("ls /tmp").split()) == (["before", "one"], ["before"])
            with pytest.raises(GuestCrash, match="'false' ended with status 1"):
                one.command("false")
            assert one.command("uname -m") == "aarch64\n"
