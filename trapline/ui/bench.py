"""`make bench`: Trapline and QEMU side by side, alternating, medians; written to docs/PERFORMANCE.md and docs/performance.json.

python -m trapline.ui.bench [--runs N] [--skip-first-run] [--output DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from trapline.vmm import guests
from trapline.vmm.console import Output

MARKER = b"BOOT-OK"
PARAMS = 'console=ttyAMA0 panic=-1 run="report"'
MEMORY_MIB = 512
DISK_MIB = 256
DISK_PARAMS = 'console=ttyAMA0 panic=-1 quiet run="time dd if=/dev/vda of=/dev/null bs=1M"'
LIMIT_SECONDS = 300

MMIO_ROUNDS = 20_000
MMIO_ADDRESS = 0x0B00_0000
CODE_ADDRESS = 0x4000_0000
MMIO_LOOP = (0xB940_0001, 0x17FF_FFFF)
"""LDR W1, [X0]; B to it: a guest that does nothing but read a device."""


@dataclass(slots=True)
class Boot:
    """One boot, from starting the process to its end. Times in seconds, memory in MiB."""

    marker: float
    exit: float
    cpu: float
    resident: float


Results = dict[str, dict[str, list[Boot]]]
"""Boots by kind and side."""


def trapline_command(files: guests.Guest, cpus: int, params: str = PARAMS) -> list[str]:
    """Our side."""
    command = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software"]
    command += ["--kernel", str(files.kernel), "--initrd", str(files.initrd)]
    return [*command, "--params", params, "--mem", f"{MEMORY_MIB}M", "--cpus", str(cpus), "--no-reboot"]


def qemu_command(files: guests.Guest, cpus: int, params: str = PARAMS) -> list[str]:
    """The peer's side: same machine, same guest, its fastest comparable CPU."""
    command = ["qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", "cortex-a57", "-accel", "tcg", "-m", str(MEMORY_MIB)]
    command += ["-smp", str(cpus), "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"]
    return [*command, "-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", params]


def boot(command: list[str], environment: dict[str, str] | None = None) -> Boot:
    """Run one boot and measure it; RuntimeError if it does not reach the marker and power off."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stderr is not None
    marker, seen = 0.0, bytearray()
    while time.monotonic() - start < LIMIT_SECONDS:
        ready, _, _ = select.select([process.stdout], [], [], 1)
        if not ready:
            continue
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            break
        seen += data
        if not marker and MARKER in seen:
            marker = time.monotonic() - start
    else:
        process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not marker:
        words = process.stderr.read().decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{command[0]}: status {process.returncode}, {'marker seen' if marker else 'no marker'}: {' '.join(words[:3])}")
    process.stdout.close()
    process.stderr.close()
    return Boot(marker, time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def medians(boots: list[Boot]) -> Boot:
    """The median of each column."""
    return Boot(*(statistics.median(column) for column in zip(*(asdict(one).values() for one in boots), strict=True)))


def alternate(runs: int, sides: dict[str, Callable[[], Boot]]) -> dict[str, list[Boot]]:
    """Run the sides in turn, so that a noisy neighbour disturbs them alike."""
    results: dict[str, list[Boot]] = {name: [] for name in sides}
    for number in range(runs):
        for name, side in sides.items():
            results[name].append(side())
            print(f"  {number + 1}/{runs} {name:9} {results[name][-1].exit:6.2f} s", file=sys.stderr)
    return results


def first_run(files: guests.Guest) -> Boot:
    """A boot on a machine that has never compiled anything: an empty cache."""
    with tempfile.TemporaryDirectory(prefix="trapline-bench-") as cache:
        return boot(trapline_command(files, 1), {**os.environ, "XDG_CACHE_HOME": cache})


def disk_read_rate(command: list[str]) -> float:
    """MB/s of the guest's dd through the whole disk, by its own clock."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True)
    times = re.findall(r"real\s+(\d+)m\s*([\d.]+)s", done.stdout)
    if not times:
        raise RuntimeError(f"{command[0]}: no time in the guest's output: {done.stdout[-500:]}")
    minutes, rest = times[-1]
    return DISK_MIB * 1.048576 / (60 * int(minutes) + float(rest))


def disk_rates(files: guests.Guest, runs: int, peer: bool) -> dict[str, float]:
    """Medians of sequential reads of a virtio disk whose image is in the host's cache."""
    with tempfile.NamedTemporaryFile(prefix="trapline-bench-") as image:
        image.write(os.urandom(1 << 20) * DISK_MIB)
        image.flush()
        sides = {"Trapline": [*trapline_command(files, 1, DISK_PARAMS), "--disk", image.name]}
        if peer:
            drive = ["-drive", f"file={image.name},if=none,id=d,format=raw", "-device", "virtio-blk-device,drive=d"]
            sides["QEMU"] = [*qemu_command(files, 1, DISK_PARAMS), *drive]
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(runs):
            for name, command in sides.items():
                rates[name].append(disk_read_rate(command))
        return {name: statistics.median(values) for name, values in rates.items()}


def mmio_exit_microseconds(rounds: int = MMIO_ROUNDS) -> float:
    """One MMIO read, from the guest to a Python handler and back, in microseconds."""
    import trapline

    with trapline.open("software") as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(CODE_ADDRESS, 2 << 20)
        memory[0:8] = b"".join(word.to_bytes(4, "little") for word in MMIO_LOOP)
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x0 = CODE_ADDRESS, MMIO_ADDRESS
        for _ in range(100):
            vcpu.run()
        start = time.perf_counter()
        for _ in range(rounds):
            exit = vcpu.run()
            exit.data = 0x1234  # type: ignore[attr-defined]
        return (time.perf_counter() - start) / rounds * 1e6


def boot_in_process(files: guests.Guest, counting: bool) -> tuple[int, float]:
    """Boot on 1 CPU in this process: instructions retired (0 unless `counting`) and CPU seconds inside compiled code."""
    from trapline.arm64.features import Features
    from trapline.backends.objects import System
    from trapline.backends.software import Software as SoftwareBackend
    from trapline.engine import Engine
    from trapline.kvm.arm64.machine import Arm64
    from trapline.vmm.machine import Config, Software
    from trapline.vmm.session import Session

    features = Features()
    engine = Engine(features, counting)
    seconds = 0.0

    def timed(call: Callable[[int], int]) -> Callable[[int], int]:
        def run(address: int) -> int:
            nonlocal seconds
            start = time.thread_time()
            code = call(address)
            seconds += time.thread_time() - start
            return code

        return run

    plain = engine.entry.enter, engine.entry.proceed
    engine.entry.enter, engine.entry.proceed = (timed(call) for call in plain)
    config = Config(kernel=files.kernel, initrd=files.initrd, params=PARAMS, memory=MEMORY_MIB << 20, timeout=LIMIT_SECONDS)
    try:
        with System(SoftwareBackend(Arm64(engine, features))) as system, open(os.devnull, "wb") as nowhere:
            Session(system, config, Software.read(config), [], Output(nowhere.fileno())).run()
    finally:
        engine.entry.enter, engine.entry.proceed = plain
    return sum(int(cpu.state.icount) for cpu in engine.cpus), seconds


def describe_host() -> str:
    """The machine the figures are from."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{model}, {os.cpu_count()} CPUs, Linux {kernel}, CPython {platform.python_version()}, load average {load}"


def table(results: Results) -> list[str]:
    """The boots as rows of Markdown."""
    rows = ["| boot | marker s | exit s | CPU s | resident MiB |", "|---|---|---|---|---|"]
    for name, sides in results.items():
        for side, boots in sides.items():
            m = medians(boots)
            rows.append(f"| {name}, {side} | {m.marker:.2f} | {m.exit:.2f} | {m.cpu:.2f} | {m.resident:.0f} |")
        if len(sides) == 2:
            ours, peer = (medians(boots) for boots in sides.values())
            rows.append(f"| {name}, ratio | {ours.marker / peer.marker:.2f} | {ours.exit / peer.exit:.2f} | {ours.cpu / peer.cpu:.2f} | |")
    return rows


@dataclass(slots=True)
class Figures:
    """Everything that was measured."""

    runs: int
    boots: Results
    mmio_exit_microseconds: list[float]
    boot_instructions: int
    compiled_seconds: list[float]
    disk_read_mb_per_s: dict[str, float]
    peer: str
    host: str


def measure(runs: int, with_first_run: bool) -> Figures:
    """Measure everything; progress goes to stderr."""
    files = guests.prepare()
    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None:
        print("qemu-system-aarch64 is not installed (Debian package qemu-system-arm): measuring our side only", file=sys.stderr)
    boot(trapline_command(files, 1))  # fills our caches, and the host's for both
    boots: Results = {}
    for cpus in (1, 2):
        print(f"{cpus} CPU:", file=sys.stderr)
        sides: dict[str, Callable[[], Boot]] = {"Trapline": partial(boot, trapline_command(files, cpus))}
        if qemu:
            sides["QEMU"] = partial(boot, qemu_command(files, cpus))
        boots[f"{cpus} CPU"] = alternate(runs, sides)
    if with_first_run:
        boots["first run ever, 1 CPU"] = {"Trapline": [first_run(files)]}
    return Figures(
        runs=runs,
        boots=boots,
        mmio_exit_microseconds=[mmio_exit_microseconds() for _ in range(runs)],
        boot_instructions=boot_in_process(files, counting=True)[0],
        compiled_seconds=[boot_in_process(files, counting=False)[1] for _ in range(runs)],
        disk_read_mb_per_s=disk_rates(files, runs, qemu is not None),
        peer=subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0] if qemu else "absent",
        host=describe_host(),
    )


def page(figures: Figures) -> str:
    """The figures as a page of Markdown."""
    rate = figures.boot_instructions / medians(figures.boots["1 CPU"]["Trapline"]).exit
    inside = figures.boot_instructions / statistics.median(figures.compiled_seconds)
    disks = ", ".join(f"{speed:.0f} MB/s ({side})" for side, speed in figures.disk_read_mb_per_s.items())
    return f"""# Performance

Written by `make bench`. {figures.host}. Peer: {figures.peer}, `-cpu cortex-a57 -accel tcg`.
Medians of {figures.runs} runs, the two sides alternating. The guest is Debian's arm64 cloud kernel with {MEMORY_MIB} MiB: from the
start of the process to the init's marker, and to the end of the process after power-off.

{chr(10).join(table(figures.boots))}

- The boot on 1 CPU retires {figures.boot_instructions / 1e6:.0f} million instructions: {inside / 1e6:.0f} million in a CPU second of
  the interpreter, {rate / 1e6:.0f} million in a second of the whole process, start-up and devices included.
- A bare MMIO exit to a Python handler and back: {statistics.median(figures.mmio_exit_microseconds):.1f} microseconds.
- `dd` in the guest reads {DISK_MIB} MiB of a virtio disk, its image in the host's cache: {disks}.
"""


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (5)")
    parser.add_argument("--skip-first-run", action="store_true", help="leave out the boot with an empty cache")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for the two files (docs)")
    options = parser.parse_args()
    figures = measure(options.runs, not options.skip_first_run)
    (options.output / "PERFORMANCE.md").write_text(page(figures))
    (options.output / "performance.json").write_text(json.dumps(asdict(figures), indent=1) + "\n")
    print(page(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
