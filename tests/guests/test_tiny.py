"""The whole program on small guests: console, exit statuses, reset, timeout, crash report, CPUs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.guests import tiny


def run(tmp_path: Path, text: str, *options: str, stdin: bytes = b"", form: str = "flat") -> subprocess.CompletedProcess[bytes]:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(tiny.FORMATS[form](tiny.build(text)))
    command = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software", "--kernel", str(kernel), "--mem", "16M"]
    return subprocess.run([*command, "--timeout", "120", *options], input=stdin, capture_output=True, timeout=180, check=False)


@pytest.mark.parametrize("form", tiny.FORMATS)
def test_hello_on_stdout_and_announced_status(tmp_path: Path, form: str) -> None:
    done = run(tmp_path, tiny.HELLO, form=form)
    assert (done.returncode, done.stdout) == (21, b"hello from the guest\nEXIT: STATUS=43\n"), done.stderr
    assert done.stderr == b"", "nothing to say when all is well"


def test_input_reaches_a_guest_that_polls(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.ECHO, stdin=b"some text, longer than the FIFO of the UART is deep; q")
    assert (done.returncode, done.stdout) == (0, b"some text, longer than the FIFO of the UART is deep; q"), done.stderr


def test_input_reaches_a_guest_that_has_polled_for_long(tmp_path: Path) -> None:
    """It reads the UART's flags from memory by then; each character has to put an end to that."""
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(tiny.build(tiny.PATIENT_ECHO))
    command = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software", "--kernel", str(kernel), "--mem", "16M"]
    with subprocess.Popen([*command, "--timeout", "120"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdin is not None and guest.stdout is not None
        assert guest.stdout.read(1) == b"!"
        for letter in (b"a", b"b", b"q"):
            guest.stdin.write(letter)
            guest.stdin.flush()
            assert guest.stdout.read(1) == letter
        assert guest.wait(60) == 0


def test_second_cpu(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.FIRST_CPU, "--cpus", "2")
    assert (done.returncode, done.stdout) == (0, b"the second CPU was here\n"), done.stderr


def test_reset_ends_or_starts_again(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.REBOOT, "--no-reboot")
    assert (done.returncode, done.stdout) == (3, b"once more\n"), done.stderr
    done = run(tmp_path, tiny.REBOOT, "--timeout", "8")
    assert done.returncode == 124 and done.stdout.startswith(b"once more\nonce more\n"), done.stderr


def test_timeout(tmp_path: Path) -> None:
    start = time.monotonic()
    done = run(tmp_path, tiny.SILENT, "--timeout", "1")
    assert done.returncode == 124
    assert done.stderr.endswith(b"trapline: stopped after 1 seconds: the guest was still running\n")
    assert time.monotonic() - start < 60


def test_guest_lost_in_its_vectors_gets_a_report(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.LOST)
    assert done.returncode == 126
    report = done.stderr.decode()
    assert "the exception vector at 0xb000200 faults itself" in report
    assert "VBAR_EL1 000000000b000000" in report and "instruction abort from EL1" in report and "it made no exits" in report
    assert "Traceback" not in report
