"""Debian's kernel as a guest: what a user would check first. Needs the package manager (or its cache) for the guest's files."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trapline.errors import BadInput
from trapline.vmm import guests

pytestmark = [pytest.mark.needs_guest, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def files() -> guests.Guest:
    try:
        return guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")


def boot(files: guests.Guest, command: str, *options: str, params: str = "quiet", timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """Boot to the init and run a command there."""
    assert '"' not in command
    line = f'console=ttyAMA0 panic=-1 {params} run="{command}"'
    words = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software", "--mem", "512M", "--timeout", str(timeout)]
    words += ["--kernel", str(files.kernel), "--initrd", str(files.initrd), "--params", line, *options]
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout + 60, check=False)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_boots_with_all_cpus(files: guests.Guest, cpus: int) -> None:
    done = boot(files, "report", "--cpus", str(cpus), params="")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "BOOT-OK" in done.stdout and "aarch64 GNU/Linux" in done.stdout
    assert len(re.findall(r"^processor\s*: \d+", done.stdout, re.MULTILINE)) == cpus
    timer = re.search(r"^ *\d+: +((?:\d+ +)+)GICv3 +27 .*arch_timer", done.stdout, re.MULTILINE)
    assert timer and len(timer[1].split()) == cpus and all(int(count) > 0 for count in timer[1].split())
    if cpus > 1:
        calls = re.search(r"^IPI\d: +((?:\d+ +)+)Function call interrupts", done.stdout, re.MULTILINE)
        assert calls and sum(int(count) > 0 for count in calls[1].split()) >= cpus - 1
    for bad in ("Oops", "BUG:", "WARNING:", "rcu: INFO", "Unable to handle"):
        assert bad not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("cpus", [1, 4])
def test_boots_with_a_gicv2(files: guests.Guest, cpus: int) -> None:
    done = boot(files, "cat /proc/interrupts", "--cpus", str(cpus), "--gic", "2", params="")
    assert done.returncode == 0 and "BOOT-OK" in done.stdout, done.stdout[-2000:] + done.stderr
    timer = re.search(r"^ *\d+: +((?:\d+ +)+)GIC-0 +27 .*arch_timer", done.stdout, re.MULTILINE)
    assert timer and len(timer[1].split()) == cpus and all(int(count) > 0 for count in timer[1].split())
    for bad in ("Oops", "BUG:", "WARNING:", "rcu: INFO", "Unable to handle", "GICv3"):
        assert bad not in done.stdout


def test_finds_the_its_and_what_kvm_does_for_guests(files: guests.Guest) -> None:
    done = boot(files, "true", params="")
    for line in ("ITS [mem 0x08080000-0x0809ffff]", "using allocated LPI pending table", "/intc@8000000/its@8080000 domain created"):
        assert line in done.stdout
    for line in ("KVM: hypervisor services detected", "arm-pv: using stolen time PV", "armv8_pmuv3 PMU driver, 7 counters available"):
        assert line in done.stdout


def test_believes_to_be_another_processor(files: guests.Guest, tmp_path: Path) -> None:
    policy = tmp_path / "identity.py"
    policy.write_text("vm.identify(midr=0x410FD034, revidr=0x180)")
    done = boot(files, "cat /proc/cpuinfo /sys/devices/system/cpu/cpu0/regs/identification/revidr_el1", "--sysreg", str(policy))
    assert done.returncode == 0 and re.search(r"CPU part\s*: 0xd03", done.stdout) and "0x0000000000000180" in done.stdout, done.stdout


def test_exit_status_of_the_command(files: guests.Guest) -> None:
    assert boot(files, "exit 5").returncode == 5


def test_disk_reads_and_writes(files: guests.Guest, tmp_path: Path) -> None:
    """A checksum of 64 MiB read by the guest, and what it writes is there after power-off."""
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(64 << 20))
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    script = "sha256sum /dev/vda; echo written by the guest | dd of=/dev/vda bs=512 seek=9 conv=notrunc; sync"
    done = boot(files, script, "--disk", str(image))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert before in done.stdout
    assert image.read_bytes()[9 * 512 :].startswith(b"written by the guest\n")


def test_read_only_disk(files: guests.Guest, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"as it was".ljust(1 << 20, b"\0"))
    done = boot(files, "cat /sys/block/vda/ro /sys/block/vda/size; echo no > /dev/vda; true", "--disk", f"{image},ro")
    assert done.returncode == 0 and "\n1\n2048\n" in done.stdout.replace("\r", ""), done.stdout
    assert image.read_bytes().startswith(b"as it was")


def test_sleep_takes_its_time(files: guests.Guest) -> None:
    """Guest time and host time agree; the shortest of three, as the host may be busy."""
    done = boot(files, "for i in 1 2 3; do read a x </proc/uptime; sleep 2; read b x </proc/uptime; echo SLEPT $a $b; done")
    spans = [float(end) - float(start) for start, end in re.findall(r"SLEPT (\S+) (\S+)", done.stdout)]
    assert len(spans) == 3, done.stdout + done.stderr
    assert 2.0 - 0.02 <= min(spans) <= 2.1, spans


def test_forking_on_two_cpus(files: guests.Guest) -> None:
    loop = "for i in $(seq 20); do (end=$(($(date +%s)+10)); while [ $(date +%s) -lt $end ]; do /bin/busybox true; done) & done; wait"
    done = boot(files, loop + "; dmesg -l emerg,alert,crit,err,warn; echo FORKED", "--cpus", "2")
    assert done.returncode == 0 and "FORKED" in done.stdout, done.stdout[-3000:] + done.stderr
    for bad in ("Oops", "BUG:", "stall", "Unable to handle"):
        assert bad not in done.stdout


def test_virtio_console_and_rng(files: guests.Guest) -> None:
    done = boot(
        files,
        "ls /sys/bus/virtio/drivers/virtio_rng; head -c 16 /dev/hwrng | wc -c",
        "--console",
        "virtio",
        params="tty=/dev/hvc0 quiet",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "virtio0" in done.stdout and "\n16\n" in done.stdout.replace("\r", "")


def test_script_on_standard_input(files: guests.Guest) -> None:
    words = [sys.executable, "-m", "trapline.ui.cli", "guest", "--backend", "software", "--timeout", "300"]
    start = time.monotonic()
    done = subprocess.run(words, input="echo $((6 * 7))\nexit 4\n", capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode, "42" in done.stdout) == (4, True), done.stdout + done.stderr
    assert time.monotonic() - start < 300
