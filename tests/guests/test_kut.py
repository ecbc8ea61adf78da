"""`trapline kut` on flat images of our own that report as kvm-unit-tests do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests import tiny

SAY = """
        adr   x1, text
        bl    print
        b     off
text:   .asciz "{text}"
        .align 2
"""


def image(*lines: str, status: int) -> bytes:
    """A guest that prints lines, announces a status and powers off."""
    return tiny.build(SAY.format(text="\\n".join((*lines, "", f"EXIT: STATUS={status}")) + "\\n"))


def kut(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trapline.ui.cli", "kut", "--backend", "software", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False)


def rows(output: str) -> dict[str, list[str]]:
    """The table without its heading and its sum: test name to the words of its row."""
    return {words[0]: words[1:] for words in map(str.split, output.splitlines()[1:-1])}


def test_verdicts(tmp_path: Path) -> None:
    for name, content in {
        "cache": image("PASS: one", "PASS: two", "SUMMARY: 2 tests", status=1),
        "timer": image("PASS: one", "FAIL: two", "SUMMARY: 2 tests, 1 unexpected failures", status=3),
        "pl031": image("SKIP: nothing to test", "SUMMARY: 1 tests, 1 skipped", status=77),
        "psci": tiny.build(tiny.SILENT),
        "pci-test": tiny.build(tiny.LOST),
    }.items():
        (tmp_path / f"{name}.flat").write_bytes(content)
    done = kut(tmp_path, "cache", "timer", "pl031", "psci", "pci-test", "fpu-context", "mte-sync", "--timeout", "20")
    found = rows(done.stdout)
    assert done.returncode == 1, done.stdout + done.stderr
    assert found["cache"][:3] == ["PASS", "2", "pass"]
    assert found["timer"][:5] == ["FAIL", "1", "pass", "1", "fail"] and "FAIL: two" in done.stdout
    assert found["pl031"][0] == "SKIP" and "SKIP: nothing to test" in done.stdout
    assert found["psci"][0] == "TIMEOUT"
    assert found["pci-test"][0] == "CRASH" and "faults itself" in done.stdout
    assert found["fpu-context"][0] == "SKIP" and "fpu.flat is not in the folder" in done.stdout
    assert found["mte-sync"][0] == "SKIP" and "no MTE" in done.stdout
    assert sorted(done.stdout.splitlines()[-1].split(", ")) == ["1 CRASH", "1 FAIL", "1 PASS", "1 TIMEOUT", "3 SKIP"]


def test_all_well(tmp_path: Path) -> None:
    (tmp_path / "cache.flat").write_bytes(image("PASS: one", status=1))
    done = kut(tmp_path, "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 PASS"


@pytest.mark.parametrize(
    ("files", "words", "says"), [((), (), "no .flat images there"), (("cache.flat",), ("cash",), "no test called cash")]
)
def test_refusals(tmp_path: Path, files: tuple[str, ...], words: tuple[str, ...], says: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    done = kut(tmp_path, *words)
    assert done.returncode == 125
    assert says in done.stderr and len(done.stderr.splitlines()) == 1
