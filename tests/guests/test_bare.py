"""Machines without a hypervisor of ours: the project's own guests, U-Boot and Debian's kernel, at EL1 and at EL2."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests import nested, tiny
from tests.guests.console import Conversation
from tests.guests.test_linux import boot
from tests.guests.test_tiny import run
from trapline.errors import BadInput
from trapline.vmm import guests

U_BOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
EL1, EL2 = ("--machine", "bare"), ("--machine", "bare", "--el2")


def test_own_guest_at_el1(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.HELLO, *EL1)
    assert (done.returncode, done.stdout, done.stderr) == (21, b"hello from the guest\nEXIT: STATUS=43\n", b"")


def test_second_cpu(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.FIRST_CPU, *EL1, "--cpus", "2")
    assert (done.returncode, done.stdout) == (0, b"the second CPU was here\n"), done.stderr


def test_lost_guest_gets_a_report(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.LOST, *EL1)
    assert done.returncode == 126 and b"the exception vector at 0xb000200 faults itself" in done.stderr


def test_lost_guest_at_el2_gets_a_report(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.LOST_AT_EL2, *EL2)
    report = done.stderr.decode()
    assert done.returncode == 126 and "the exception vector at 0xb000200 faults itself" in report
    assert "VBAR_EL2 000000000b000000" in report and "instruction abort from EL2" in report


def test_own_guest_at_el2(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.AT_EL2, *EL2)
    assert (done.returncode, done.stdout) == (0, b"2shtuiv\n"), done.stderr


def test_el2_is_for_bare_machines_only(tmp_path: Path) -> None:
    done = run(tmp_path, tiny.HELLO, "--el2")
    assert done.returncode == 125 and b"--machine bare" in done.stderr


@pytest.mark.skipif(not U_BOOT.exists(), reason="needs U-Boot for QEMU arm64: install the Debian package u-boot-qemu")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("machine", [EL1, EL2], ids=["el1", "el2"])
def test_u_boot_reaches_its_prompt(machine: tuple[str, ...], tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\xde\xad\xbe\xef".ljust(1 << 20, b"\0"))
    with Conversation("--bios", str(U_BOOT), *machine, "--disk", str(disk), "--mem", "256M", "--timeout", "300") as guest:
        guest.expect(b"DRAM:  256 MiB")
        guest.expect(b"Hit any key to stop autoboot")
        guest.say(b"\r")
        guest.expect(b"=> ")
        guest.say(b"virtio read 0x48000000 0 1; md.b 0x48000000 4\r")
        guest.expect(b"48000000: de ad be ef")
        guest.say(b"poweroff\r")
        assert guest.end() == 0


@pytest.fixture(scope="module")
def files() -> guests.Guest:
    try:
        return guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")


LINUX = {
    "el1": (EL1, "", ("started at EL1", r"GICv3 +27 .*arch_timer")),
    "el1-smp": ((*EL1, "--cpus", "4"), "", (r"GICv3 +27 .*arch_timer", "Brought up 1 node, 4 CPUs")),
    "nvhe": (EL2, "kvm-arm.mode=nvhe", ("started at EL2", r"kvm \[1\]: Hyp mode initialized successfully", r"GICv3 +30 .*arch_timer")),
    "no-vhe": ((*EL2, "--cpu", "-vhe"), "", ("started at EL2", r"kvm \[1\]: Hyp mode initialized successfully")),
    "vhe": (EL2, "", ("started at EL2", r"kvm \[1\]: VHE mode initialized successfully", r"GICv3 +26 .*arch_timer")),
    "vhe-smp": ((*EL2, "--cpus", "4"), "", (r"kvm \[1\]: VHE mode initialized successfully", "Brought up 1 node, 4 CPUs")),
}
"""Options, kernel parameters, and what has to be in the log: which timer is used says at which level the kernel is."""


@pytest.mark.slow
@pytest.mark.needs_guest
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LINUX)
def test_linux_to_power_off(files: guests.Guest, name: str) -> None:
    options, params, wanted = LINUX[name]
    done = boot(files, "report; cat /proc/interrupts", *options, params=params)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for text in ("BOOT-OK", *wanted):
        assert re.search(text, done.stdout), f"no {text} in {done.stdout[-6000:]}"
    for bad in ("Oops", "BUG:", "WARNING:", "rcu: INFO", "Unable to handle", "call trace"):
        assert bad not in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.needs_guest
@pytest.mark.timeout(900)
@pytest.mark.parametrize("params", ["", "kvm-arm.mode=nvhe"], ids=["vhe", "nvhe"])
def test_linux_s_own_kvm_runs_a_guest(files: guests.Guest, params: str, tmp_path: Path) -> None:
    """The kernel at EL2 is a hypervisor: stage 2, traps, its virtual interrupts and timers, all by the processors' means."""
    ramdisk = tmp_path / "initrd"
    ramdisk.write_bytes(files.initrd.read_bytes() + nested.archive("nested", nested.program()))
    done = boot(replace(files, initrd=ramdisk), "/nested; echo ' ends with' $?; /nested", *EL2, params=f"quiet {params}")
    assert "AVIIIIISD ends with 0" in done.stdout and "AVIIIIISDEXIT" in done.stdout.replace("\n", ""), done.stdout[-2000:] + done.stderr
    assert done.returncode == 0
