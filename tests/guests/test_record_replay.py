"""Recorded runs repeat exactly: console input, disk reads, time; and stop where they are told to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests import tiny
from tests.guests.console import Conversation
from trapline.errors import BadInput
from trapline.vmm import guests
from trapline.vmm.console import Output
from trapline.vmm.recording import Diverged
from trapline.vmm.repeat import replay

CLOCKED_ECHO = """
        movz  x4, #0x0900, lsl #16
        adr   x1, ready
        bl    print
again:  mov   x7, #0
wait:   add   x7, x7, #1            // how long it took is part of the state
        ldr   w5, [x4, #0x18]
        tbnz  w5, #4, wait
        ldr   w6, [x4]
        mrs   x8, s3_3_c14_c0_2     // CNTVCT_EL0
        eor   x8, x8, x7
        and   w8, w8, #15
        add   w8, w8, #65
        strb  w6, [x4]
        strb  w8, [x4]
        cmp   w6, #113              // q
        b.ne  again
        b     off
ready:  .asciz "ready "
        .align 2
"""
"""Echoes each character, and after it a letter that depends on when it came."""


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "trapline.ui.cli", *options]


def run(*options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*options), stdin=subprocess.DEVNULL, capture_output=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A conversation with the echo, and what it printed."""
    folder = tmp_path_factory.mktemp("recording")
    kernel, file = folder / "guest.bin", folder / "recording"
    kernel.write_bytes(tiny.build(CLOCKED_ECHO))
    with Conversation("--kernel", str(kernel), "--mem", "16M", "--timeout", "120", "--record", str(file)) as talk:
        talk.expect(b"ready ")
        for key in b"abcq":
            talk.say(bytes([key]))
            talk.expect(bytes([key]))
        assert talk.end() == 0
        return file, bytes(talk.seen)


def test_console_input_comes_at_the_same_instructions_again(recorded: tuple[Path, bytes], tmp_path: Path) -> None:
    file, printed = recorded
    console, report = printed.split(b"trapline: ", 1)
    first, second = (run("replay", str(file), "--trace", str(tmp_path / f"trace{n}")) for n in (1, 2))
    assert (first.returncode, first.stdout) == (0, console), first.stderr
    assert first.stderr == b"trapline: " + report + b"trapline: the recorded run ended in the same state\n"
    assert (second.stdout, second.stderr) == (first.stdout, first.stderr)
    assert (tmp_path / "trace1").read_bytes() == (tmp_path / "trace2").read_bytes()


def test_stopping_anywhere(recorded: tuple[Path, bytes]) -> None:
    """The count of polls in X7 grows by one every three instructions of the waiting loop."""
    file, printed = recorded
    total = int(re.search(rb"trapline: (\d+) instructions", printed)[1])  # type: ignore[index]
    seen: list[tuple[int, int]] = []
    states = []
    for stop in (3000, 3001, 3002, 3003, total - 1):
        with open(os.devnull, "wb") as nowhere:
            session = replay(
                file,
                stop,
                Output(nowhere.fileno()),
                inspect=lambda machine: seen.append((machine.vcpus[0].regs.pc, machine.vcpus[0].regs.x7)),
            )
        assert session.turns.retired == stop
        assert f"pc {seen[-1][0]:016x}" in session.registers[0]
        states.append(session.final)
    assert seen[3] == (seen[0][0], seen[0][1] + 1)
    assert len({pc for pc, _ in seen[:3]}) == 3 and len(set(states)) == len(states)
    done = run("replay", str(file), "--stop-at", "3000")
    assert done.returncode == 0 and f"x7 {seen[0][1]:016x}" in done.stderr.decode() and states[0] in done.stderr.decode()


def test_a_replay_that_goes_astray_says_so(recorded: tuple[Path, bytes], tmp_path: Path) -> None:
    file, _ = recorded
    lines = file.read_text().splitlines()
    posts = [number for number, line in enumerate(lines) if '"post"' in line]
    wrong = tmp_path / "wrong"

    def change(post: int, **to: object) -> None:
        changed = {posts[post]: json.dumps({**json.loads(lines[posts[post]]), **to})}
        wrong.write_text("".join(changed.get(number, line) + "\n" for number, line in enumerate(lines)))

    change(-1, data="x")
    with pytest.raises(Diverged, match="goes on"):
        replay(wrong)
    change(1, n=12345)
    with pytest.raises(Diverged, match="12345"):
        replay(wrong)
    change(1, at=2)
    with pytest.raises(Diverged):
        replay(wrong)


def test_a_recording_that_was_cut_off_is_repeated_as_far_as_it_goes(recorded: tuple[Path, bytes], tmp_path: Path) -> None:
    file, printed = recorded
    text = file.read_text()
    short = tmp_path / "short"
    short.write_text(text[: text.rindex('{"at"', 0, text.rindex('"post"')) + 10])
    done = run("replay", str(short))
    assert done.returncode == 0 and len(done.stdout) >= len(b"ready aAbBcC") - 1 and printed.startswith(done.stdout)


def test_files_that_cannot_be_replayed(recorded: tuple[Path, bytes], tmp_path: Path) -> None:
    file, _ = recorded
    other = tmp_path / "other"
    header, rest = file.read_text().split("\n", 1)
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(b"something else")
    changed = json.loads(header)
    changed["files"]["kernel"][0] = str(kernel)
    for text, complaint in (("no recording", "not a recording"), (json.dumps(changed) + "\n" + rest, "not the kernel that")):
        other.write_text(text)
        with pytest.raises(BadInput, match=complaint):
            replay(other)
    with pytest.raises(BadInput, match="No such file"):
        replay(tmp_path / "absent")


def test_a_run_that_was_stopped_is_replayed_to_where_it_was(tmp_path: Path) -> None:
    kernel, file = tmp_path / "guest.bin", tmp_path / "recording"
    kernel.write_bytes(tiny.build(tiny.SILENT))
    done = run("run", "--kernel", str(kernel), "--mem", "16M", "--timeout", "2", "--record", str(file))
    assert done.returncode == 124
    count = int(re.search(rb"trapline: (\d+) instructions", done.stderr)[1])  # type: ignore[index]
    again = run("replay", str(file))
    assert again.returncode == 0 and f"trapline: {count} instructions".encode() in again.stderr


@pytest.mark.slow
@pytest.mark.needs_guest
@pytest.mark.timeout(900)
def test_linux_with_a_disk_that_changes(tmp_path: Path) -> None:
    """The disk is gone when the run is repeated: what was read is in the recording."""
    try:
        files = guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")
    image, file = tmp_path / "disk.img", tmp_path / "recording"
    image.write_bytes(os.urandom(1 << 20))
    options = ["--kernel", str(files.kernel), "--initrd", str(files.initrd), "--params", "console=ttyAMA0 panic=-1 quiet"]
    with Conversation(*options, "--disk", str(image), "--timeout", "300", "--record", str(file)) as talk:
        talk.expect(b"~ # ")
        talk.say(b"sha256sum /dev/vda; date; echo new | dd of=/dev/vda conv=notrunc; sync; sleep 1\n")
        talk.expect(b"records out")
        talk.expect(b"~ # ")
        talk.say(b"echo $((6 * 7)); exit\n")
        talk.expect(b"\n42")
        assert talk.end() == 0
        printed = bytes(talk.seen)
    assert image.read_bytes().startswith(b"new\n")
    image.unlink()
    done = run("replay", str(file))
    assert done.returncode == 0 and b"ended in the same state" in done.stderr, done.stderr
    assert printed.startswith(done.stdout) and b"\n42" in done.stdout
