"""Linux tests its own drivers for cryptographic instructions when they are loaded: it must find all of them right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trapline.vmm import guests

DRIVERS = {
    "sha1_ce": "sha1-ce",
    "sha2_ce": "sha256-ce",
    "sha512_ce": "sha512-ce",
    "sha3_ce": "sha3-256-ce",
    "ghash_ce": "gcm-aes-ce",
    "polyval_ce": "polyval-ce",
    "crct10dif_ce": "crct10dif-arm64-ce",
    "aes_ce_blk": "xts-aes-ce",
    "aes_ce_ccm": "ccm-aes-ce",
}
"""Modules of Debian's kernel, and an algorithm that each brings."""

SCRIPT = "cat /proc/crypto; echo NOTESTS $(cat /sys/module/cryptomgr/parameters/notests)"


@pytest.mark.slow
def test_linux_finds_the_cryptographic_instructions_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not guests.is_ready():
        pytest.skip("NOT BOOTED: Debian's kernel has not been fetched; `trapline guest` does it")
    home = guests.prepare().kernel.parent
    monkeypatch.setattr(guests, "DRIVERS", (*guests.DRIVERS, *DRIVERS))
    ramdisk = tmp_path / "initramfs.cpio"
    ramdisk.write_bytes(guests.build_initramfs((home / "busybox").read_bytes(), home / "modules"))
    command = [sys.executable, "-m", "trapline", "run", "--backend", "software", "--kernel", str(home / "vmlinuz")]
    command += ["--initrd", str(ramdisk), "--params", f'console=ttyAMA0 run="{SCRIPT}"', "--timeout", "240"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    tested = dict(re.findall(r"^driver *: (\S+)\r?\n(?:.*\r?\n)*?selftest *: (\S+)", done.stdout, re.M))
    assert re.search(r"^NOTESTS N", done.stdout, re.M), "this kernel does not test its drivers"
    print(f"{len(tested)} algorithms tested themselves")
    assert set(DRIVERS.values()) <= tested.keys(), f"missing: {set(DRIVERS.values()) - tested.keys()}"
    assert set(tested.values()) == {"passed"}, {name: result for name, result in tested.items() if result != "passed"}
