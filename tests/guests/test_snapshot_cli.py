"""Saving, restoring and migrating machines by the command line, with guests that check their own memory."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests import tiny
from tests.guests.console import Conversation
from trapline.ui.cli import main

pytestmark = pytest.mark.timeout(600)


@dataclass
class Done:
    """What a command of this process said."""

    returncode: int
    stdout: str
    stderr: str


Tool = Callable[..., Done]


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Tool:
    def run(*words: str) -> Done:
        status = main(words)
        return Done(status, *capfd.readouterr())

    return run


@contextmanager
def ledger(tmp_path: Path, *options: str) -> Iterator[tuple[Conversation, str]]:
    """A guest that counts in its memory and echoes; and its control socket."""
    kernel, control = tmp_path / "guest.bin", str(tmp_path / "control")
    kernel.write_bytes(tiny.build(tiny.LEDGER))
    with Conversation("--kernel", str(kernel), "--mem", "16M", "--control", control, *options) as guest:
        guest.say(b"a")
        guest.expect(b"a")
        yield guest, control


@contextmanager
def waiting(address: str) -> Iterator[Conversation]:
    """A process that waits for a machine."""
    with Conversation("--incoming", address, command="restore") as there:
        there.expect(b"waiting at")
        yield there


def finish(guest: Conversation) -> None:
    guest.say(b"zq")
    guest.expect(b"zq: nothing lost")
    assert guest.end() == 0


@pytest.mark.parametrize("gic", ["2", "3"])
def test_a_machine_that_is_saved_goes_on_here_and_wherever_it_is_restored(tmp_path: Path, gic: str, tool: Tool) -> None:
    path = str(tmp_path / "saved")
    with ledger(tmp_path, "--cpus", "2", "--gic", gic) as (guest, control):
        done = tool("snapshot", control, path)
        assert done.returncode == 0 and f"go on with: trapline restore {path}" in done.stdout, done.stderr
        finish(guest)
    for _ in range(2 if gic == "3" else 1):
        with Conversation(path, command="restore") as again:
            finish(again)


def test_a_text_on_the_console_saves_and_ends_the_machine(tmp_path: Path) -> None:
    path = str(tmp_path / "saved")
    with ledger(tmp_path, "--snapshot", path, "--snapshot-at", "abc") as (guest, _):
        guest.say(b"bc")
        guest.expect(b"go on with: trapline restore")
        assert guest.end() == 0
    with Conversation(path, "--snapshot", path, "--snapshot-at", "abcd", command="restore") as again:
        again.say(b"d")  # the line that began before goes on
        again.expect(b"go on with: trapline restore")
        assert again.end() == 0
    with Conversation(path, "--snapshot", path, "--snapshot-at", "never", command="restore") as last:
        finish(last)
        assert b"nothing was saved: the machine ended before 'never' came" in last.seen


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_running_machine_moves_to_another_process(tmp_path: Path, kind: str, tool: Tool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"unix:{tmp_path / 'incoming'}" if kind == "unix" else f"tcp:127.0.0.1:{port}"
    with waiting(address) as there, ledger(tmp_path) as (guest, control):
        done = tool("migrate", control, address, "--downtime", "5")
        assert done.returncode == 0, done.stderr
        summary = re.fullmatch(r"migrated in .* s: (\d+) rounds, (\d+) pages .*, downtime (\d+) ms\n", done.stdout)
        assert summary and int(summary[1]) >= 2 and int(summary[2]) >= 64 and int(summary[3]) < 5000
        guest.expect(b"migration: round 1: ")
        assert guest.end() == 0
        there.expect(b"goes on here")
        finish(there)


def test_a_machine_stays_if_the_other_side_is_gone_or_the_bound_cannot_be_kept(tmp_path: Path, tool: Tool) -> None:
    address = f"unix:{tmp_path / 'incoming'}"
    with ledger(tmp_path) as (guest, control):
        done = tool("migrate", control, address)
        assert done.returncode == 125 and "No such file" in done.stderr
        with waiting(address) as there:
            done = tool("migrate", control, address, "--downtime", "0.000001")
            assert done.returncode == 125 and "rounds it would still have to stand still" in done.stderr
            assert there.end() != 0
            assert b"the other side says: after 30 rounds" in there.seen
        done = tool("migrate", control, "elsewhere")
        assert done.returncode == 125 and "give tcp:HOST:PORT or unix:PATH" in done.stderr
        finish(guest)


def test_a_disk_moves_along_and_a_changed_one_is_refused(tmp_path: Path, tool: Tool) -> None:
    disk, path, address = tmp_path / "disk.img", str(tmp_path / "saved"), f"unix:{tmp_path / 'incoming'}"
    disk.write_bytes(bytes(1 << 20))
    with ExitStack() as stack:
        guest, control = stack.enter_context(ledger(tmp_path, "--disk", str(disk)))
        there = stack.enter_context(waiting(address))
        assert tool("migrate", control, address, "--downtime", "5").returncode == 0
        guest.end()
        there.expect(b"goes on here")
        finish(there)
    with ledger(tmp_path, "--disk", str(disk), "--snapshot", path, "--snapshot-at", "0.3s") as (guest, _):
        assert guest.end() == 0
    with Conversation(path, command="restore") as again:
        finish(again)
    time.sleep(0.01)
    disk.write_bytes(b"other" + bytes((1 << 20) - 5))
    done = tool("restore", path)
    assert done.returncode == 125 and f"{disk}: this disk has changed since the machine was saved" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--bios", "x", "--snapshot", "f"), "say when"),
        (("run", "--bios", "/dev/null", "--snapshot-at", "1s"), "say where"),
        (("run", "--bios", "/dev/null", "--snapshot", "f", "--snapshot-at", "100"), "100s is seconds"),
        (("run", "--bios", "/dev/null", "--deterministic", "--snapshot", "f", "--snapshot-at", "1s"), "a number of instructions"),
        (("run", "--bios", "/dev/null", "--record", "r", "--snapshot", "f", "--snapshot-at", "1"), "a recording begins at power-on"),
        (("run", "--bios", "/dev/null", "--machine", "bare", "--snapshot", "f", "--snapshot-at", "1s"), "no KVM is there"),
        (("restore",), "give the FILE of a snapshot, or --incoming ADDRESS"),
        (("restore", "/dev/null"), "not a snapshot"),
        (("restore", "/no/where"), "No such file"),
        (("snapshot", "/no/where", "f"), "is a machine with --control there"),
    ],
)
def test_wrong_words_get_one_line(words: tuple[str, ...], message: str, tool: Tool) -> None:
    done = tool(*words)
    assert done.returncode == 125 and message in done.stderr and len(done.stderr.splitlines()) == 1
