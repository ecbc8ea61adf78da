"""Debian's U-Boot for this board, as firmware in the flash and as a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guests.console import Conversation

U_BOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")

pytestmark = pytest.mark.skipif(not U_BOOT.exists(), reason="needs U-Boot for QEMU arm64: install the Debian package u-boot-qemu")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("option", ["--bios", "--kernel"])
def test_u_boot_reaches_its_prompt(option: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\xde\xad\xbe\xef".ljust(1 << 20, b"\0"))
    with Conversation(option, str(U_BOOT), "--disk", str(disk), "--mem", "256M", "--timeout", "300") as guest:
        guest.expect(b"DRAM:  256 MiB")
        guest.expect(b"Hit any key to stop autoboot")
        guest.say(b"\r")
        guest.expect(b"=> ")
        guest.say(b"virtio read 0x48000000 0 1; md.b 0x48000000 4\r")
        guest.expect(b"48000000: de ad be ef")
        guest.say(b"poweroff\r")
        assert guest.end() == 0
