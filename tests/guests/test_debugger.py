"""A debugger inside Linux: single steps, breakpoints and watchpoints through ptrace, with the same results as under QEMU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trapline.errors import BadInput
from trapline.vmm import guests
from trapline.vmm.initramfs import Cpio

pytestmark = [pytest.mark.needs_guest, pytest.mark.timeout(600)]

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-system-aarch64"
SOURCE = Path(__file__).with_name("debugger.c")
PARAMS = 'console=ttyAMA0 panic=-1 quiet run="/debugger"'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The kernel, and a ramdisk with the program in it."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"DEBUGGER NOT COMPARED: {tool} is not installed")
    try:
        guest = guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")
    here = tmp_path_factory.mktemp("debugger")
    subprocess.run([COMPILER, "-O1", "-static", "-Wall", "-Werror", "-march=armv8.1-a", "-o", here / "debugger", SOURCE], check=True)
    archive = Cpio()
    archive.file("debugger", (here / "debugger").read_bytes(), 0o755)
    (here / "initrd").write_bytes(guest.initrd.read_bytes() + archive.finish())
    return guest.kernel, here / "initrd"


def said(words: list[str]) -> list[str]:
    """What the program said under a machine."""
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if not line.startswith("[")]  # what the kernel says is another matter
    assert "END" in lines, done.stdout[-3000:] + done.stderr
    first = next(k for k, line in enumerate(lines) if line.startswith("steps:"))
    return lines[first : lines.index("END")]


def test_a_debugger_sees_what_it_sees_under_qemu(files: tuple[Path, Path]) -> None:
    kernel, initrd = map(str, files)
    trapline = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software", "--mem", "512M", "--timeout", "240"]
    trapline += ["--kernel", kernel, "--initrd", initrd, "--params", PARAMS]
    qemu = [EMULATOR, "-M", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on", "-m", "512", "-nodefaults"]
    qemu += ["-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", PARAMS]
    ours, theirs = said(trapline), said(qemu)
    assert ours == theirs
    assert ours[0].endswith(" 14") and len(ours) > 40, "it got to the end of what it stepped through"
