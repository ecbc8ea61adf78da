"""How Debian's kernel starts over and ends: reboot, reset, timeout, panic, power key; and many CPUs, and time seen from outside."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

import pytest

from tests.guests.console import Conversation
from trapline.errors import BadInput
from trapline.vmm import guests

pytestmark = [pytest.mark.needs_guest, pytest.mark.slow, pytest.mark.timeout(900)]

TROUBLE = (b"Oops", b"BUG:", b"WARNING:", b"rcu: INFO", b"stall", b"Unable to handle")


@pytest.fixture(scope="module")
def files() -> guests.Guest:
    """The guest, booted once: what compiling there is for it is done, and times mean something."""
    try:
        found = guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")
    with boot(found, "exit 0") as guest:
        assert guest.end(300) == 0, bytes(guest.seen)
    return found


def boot(files: guests.Guest, script: str, *options: str, timeout: int = 300, terminal: bool = False) -> Conversation:
    """Boot and run a script."""
    command = f"run=base64:{base64.b64encode(script.encode()).decode()}"
    words = ["--kernel", str(files.kernel), "--initrd", str(files.initrd), "--params", f"console=ttyAMA0 panic=-1 quiet {command}"]
    return Conversation(*words, "--mem", "512M", "--timeout", str(timeout), *options, terminal=terminal)


def test_reboot_starts_again_with_what_was_written(files: guests.Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    script = "[ $(head -c 5 /dev/vda) = again ] && exit 6; echo again > /dev/vda; sync; reboot -f; sleep 60"
    with boot(files, script, "--cpus", "2", "--disk", str(disk)) as guest:
        guest.expect(b"BOOT-OK")
        guest.expect(b"reboot: Restarting system")
        guest.expect(b"BOOT-OK")
        assert guest.end() == 6
    assert disk.read_bytes().startswith(b"again\n")


@pytest.mark.parametrize(
    ("script", "last_words"),
    [("reboot -f; sleep 60", b"reboot: Restarting system"), ("echo c > /proc/sysrq-trigger", b"Kernel panic - not syncing: sysrq")],
    ids=["reset", "panic"],
)
def test_reset_without_reboot(files: guests.Guest, script: str, last_words: bytes) -> None:
    with boot(files, script, "--no-reboot") as guest:
        guest.expect(last_words)
        assert guest.end() == 3


def test_timeout_ends_a_guest_that_idles(files: guests.Guest) -> None:
    with boot(files, "echo READY; sleep 600", "--cpus", "2", timeout=30) as guest:
        guest.expect(b"READY")
        start = time.monotonic()
        assert guest.end() == 124
        assert time.monotonic() - start < 40
    assert guest.seen.endswith(b"trapline: stopped after 30 seconds: the guest was still running\n")


def test_power_key_is_a_line_of_the_gpio_controller(files: guests.Guest) -> None:
    script = """
        base=$(cat /sys/class/gpio/gpiochip*/base)
        echo $((base + 3)) > /sys/class/gpio/export
        cd /sys/class/gpio/gpio$((base + 3))
        echo both > edge
        echo READY
        while [ $(cat value) = 0 ]; do :; done
        echo PRESSED
        while [ $(cat value) = 1 ]; do :; done
        grep -i pl061 /proc/interrupts
        exit 0
    """
    with boot(files, script, terminal=True) as guest:
        guest.expect(b"READY")
        guest.say(b"\x01p")
        guest.expect(b"PRESSED")
        assert guest.end() == 0


def test_sleep_measured_by_the_host(files: guests.Guest) -> None:
    """The shortest of three within 5%, as the host may be busy."""
    with boot(files, "for i in 1 2 3; do echo FROM $i; sleep 2; echo TO $i; done", "--cpus", "2") as guest:
        spans = []
        for number in (b"1", b"2", b"3"):
            start = guest.expect(b"FROM " + number)
            spans.append(guest.expect(b"TO " + number) - start)
        assert guest.end() == 0
    assert 1.9 <= min(spans) <= 2.1, spans


def test_eight_cpus(files: guests.Guest) -> None:
    with boot(files, "nproc; grep arch_timer /proc/interrupts; dmesg", "--cpus", "8") as guest:
        guest.expect(b"BOOT-OK")
        assert guest.end() == 0
    assert b"\n8\r\n" in guest.seen
    timer = re.search(rb"\n *\d+: +((?:\d+ +)+)GICv3 +27 ", guest.seen)
    assert timer and len(timer[1].split()) == 8 and all(int(count) for count in timer[1].split())
    assert not [word for word in TROUBLE if word in guest.seen]
