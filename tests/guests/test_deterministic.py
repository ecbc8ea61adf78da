"""Deterministic runs: the same twice, other seeds differ, exact stops."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trapline
from tests.guests import tiny
from trapline.abi.exits import DebugExit, IntrExit, MmioExit
from trapline.errors import BadInput
from trapline.vmm import guests
from trapline.vmm.statehash import state_hash

RACE = """
        movz  x10, #1               // CPU_ON(n, second, n) for 1, 2 and 3
start:  mov   x1, x10
        adr   x2, second
        mov   x3, x10
        movz  w0, #0xc400, lsl #16
        movk  w0, #3
        hvc   #0
        add   x10, x10, #1
        cmp   x10, #4
        b.ne  start
        movz  x0, #0
second: add   w11, w0, #65          // A, B, C, D: each CPU prints its letter 300 times, at its own pace
        movz  x12, #300
        movz  x4, #0x0900, lsl #16
again:  movz  x13, #200
        mul   x13, x13, x11
        and   x14, x12, #7
        mul   x13, x13, x14
delay:  subs  x13, x13, #1
        b.pl  delay
        strb  w11, [x4]
        subs  x12, x12, #1
        b.ne  again
        adr   x5, count
        movz  w6, #1
more:   ldaxr w7, [x5]
        add   w7, w7, w6
        stlxr w8, w7, [x5]
        cbnz  w8, more
        cbnz  w0, sleep
last:   ldar  w7, [x5]
        cmp   w7, #4
        b.ne  last
        b     off
sleep:  wfi
        b     sleep
        .align 3
count:  .word 0
"""
"""Four CPUs that write to one console."""

LETTERS = 300


class Run:
    """One run of the program, its outputs and what it said about itself."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.console, self.errors, self.status = done.stdout, done.stderr.decode(), done.returncode
        found = re.search(r"trapline: (\d+) instructions, ([\d.]+) s of virtual time, state ([0-9a-f]{32})\n", self.errors)
        assert found, self.errors
        self.instructions, self.seconds, self.state = int(found[1]), float(found[2]), found[3]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "trapline.ui.cli", *options]


def run(tmp_path: Path, text: str, *options: str, stdin: bytes = b"") -> Run:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(tiny.build(text))
    words = command("run", "--deterministic", "--kernel", str(kernel), "--mem", "16M", "--timeout", "120", *options)
    return Run(subprocess.run(words, input=stdin, capture_output=True, timeout=180, check=False))


def test_four_cpus_race_the_same_way_twice(tmp_path: Path) -> None:
    first, second = (run(tmp_path, RACE, "--cpus", "4", "--trace", str(tmp_path / f"trace{n}")) for n in (1, 2))
    assert (first.status, len(first.console)) == (0, 4 * LETTERS), first.errors
    assert len(re.findall(rb"(.)\1*", first.console)) > 50, "the letters are mixed"
    assert (second.console, second.errors) == (first.console, first.errors)
    trace = (tmp_path / "trace1").read_text()
    assert (tmp_path / "trace2").read_text() == trace
    lines = [json.loads(line) for line in trace.splitlines()]
    assert [line["n"] for line in lines] == sorted(line["n"] for line in lines) and lines[-1]["n"] == first.instructions
    assert {line["cpu"] for line in lines} == {0, 1, 2, 3}
    assert sum(line.get("ec") == "DATA_ABORT_LOWER" and int(line["far"], 0) == 0x0900_0000 for line in lines) == 4 * LETTERS


def test_a_bare_machine_is_the_same_twice(tmp_path: Path) -> None:
    options = ("--machine", "bare", "--cpus", "4")
    first, second = (run(tmp_path, RACE, *options, "--trace", str(tmp_path / f"trace{n}")) for n in (1, 2))
    assert (first.status, len(first.console)) == (0, 4 * LETTERS), first.errors
    assert (second.console, second.errors) == (first.console, first.errors)
    assert (tmp_path / "trace2").read_bytes() == (tmp_path / "trace1").read_bytes()
    stopped = run(tmp_path, RACE, *options, "--stop-at", "12345")
    assert (stopped.status, stopped.instructions) == (0, 12345)


def test_input_from_a_pipe_is_the_same_however_slowly_it_comes(tmp_path: Path) -> None:
    text = b"some text, longer than the FIFO of the UART is deep; q"
    first = run(tmp_path, tiny.ECHO, stdin=text)
    assert (first.status, first.console) == (0, text)
    words = command("run", "--deterministic", "--kernel", str(tmp_path / "guest.bin"), "--mem", "16M")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as slow:
        assert slow.stdin is not None
        for byte in text[:3]:
            slow.stdin.write(bytes([byte]))
            slow.stdin.flush()
        out, err = slow.communicate(text[3:], timeout=120)
    assert (out, err.decode()) == (first.console, first.errors)


def test_a_guest_that_sleeps_for_ever_is_told_from_one_that_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "wfi\nb off")
    assert done.status == 124 and "nothing will ever wake it" in done.errors
    assert run(tmp_path, tiny.SILENT, "--timeout", "1").status == 124


def test_a_guest_that_is_lost_is_recognised_at_a_fixed_instruction(tmp_path: Path) -> None:
    first, second = (run(tmp_path, tiny.LOST) for _ in range(2))
    assert first.status == 126 and "faults itself" in first.errors
    assert first.errors == second.errors


def test_stop_shows_the_cpu_at_exactly_that_instruction(tmp_path: Path) -> None:
    text = "movz x0, #0\nloop: add x0, x0, #1\nb loop"
    for stop in (2, 3, 1_000_000, 1_000_001):
        done = run(tmp_path, text, "--stop-at", str(stop))
        assert (done.status, done.instructions) == (0, stop)
        assert f"x0 {stop // 2:016x}" in done.errors
        assert f"pc {tiny.ORIGIN + 4 + 4 * ((stop - 1) % 2):016x}" in done.errors


def test_options_that_need_another(tmp_path: Path) -> None:
    wrong = {"--seed needs --deterministic": ["--seed", "1"], "only the software": ["--deterministic", "--backend", "kvm"]}
    for complaint, options in wrong.items():
        done = subprocess.run(command("run", "--kernel", "x", *options), capture_output=True, text=True, check=False)
        assert done.returncode == 125 and complaint in done.stderr


# ---- from Python -----------------------------------------------------------------------------------------------------------------


def seeded(seed: int) -> tuple[list[int], str, int]:
    """A guest that asks for random numbers and the time, and counts; stopped after 5,000 instructions."""
    with trapline.open(deterministic=True, seed=seed) as kvm, kvm.create_vm() as vm:
        assert kvm.turns is not None
        ram = vm.add_memory(0x4000_0000, 2 << 20)
        code = tiny.assemble_program(
            """
            movz  w0, #0xc400, lsl #16
            movk  w0, #0x53         // TRNG_RND64
            movz  x1, #64
            hvc   #0
            str   x3, [x20]
            mrs   x5, s3_3_c14_c0_2
            str   x5, [x20]
    loop:   add   x6, x6, #1
            b     loop
            """,
            0x4000_0000,
        )
        ram[0 : len(code)] = code
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x20 = 0x4000_0000, 0x0900_0000
        kvm.stop_at(5000)
        seen = []
        while not isinstance(exit := vcpu.run(), IntrExit):
            assert isinstance(exit, MmioExit)
            seen.append(exit.value)
        assert kvm.turns.retired == 5000
        stopped_at = vcpu.regs.x6
        digest = state_hash(vm)
        assert isinstance(vcpu.run(), IntrExit) and vcpu.regs.x6 == stopped_at
        kvm.stop_at(5002)
        assert isinstance(vcpu.run(), IntrExit) and vcpu.regs.x6 == stopped_at + 1
        return seen, digest, stopped_at


def test_the_seed_decides() -> None:
    first = seeded(1)
    assert seeded(1) == first
    other = seeded(2)
    assert other[0][0] != first[0][0] and other[0][1] == first[0][1] and other[1] != first[1]


def test_two_vcpus_from_python_take_turns() -> None:
    """Both write to one device; the order in which their writes come out is the same every time."""

    def orders() -> list[int]:
        with trapline.open(deterministic=True) as kvm, kvm.create_vm() as vm:
            assert kvm.turns is not None
            ram = vm.add_memory(0x4000_0000, 2 << 20)
            code = tiny.assemble_program("loop: cbz x0, go\nyield\ngo: str x0, [x20]\nb loop", 0x4000_0000)
            ram[0 : len(code)] = code
            seen: list[int] = []

            def work(number: int) -> None:
                vcpu = vm.create_vcpu(number)
                vcpu.regs.pc, vcpu.regs.x0, vcpu.regs.x20 = 0x4000_0000, number, 0x0900_0000
                for _ in range(20):
                    assert isinstance(exit := vcpu.run(), MmioExit)
                    seen.append(exit.value)

            kvm.turns.run([lambda: work(0), lambda: work(1)])
            return seen

    first = orders()
    assert first == orders() and sorted(first) == [0] * 20 + [1] * 20


def test_single_steps_count_one_instruction_each() -> None:
    """The instruction count is what a debugger sees: also where memory is mapped at the first access."""
    with trapline.open(deterministic=True) as kvm, kvm.create_vm() as vm:
        assert kvm.turns is not None
        ram = vm.add_memory(0x4000_0000, 2 << 20)
        code = tiny.assemble_program("loop: add x0, x0, #1\nldr x1, [x2]\nb loop", 0x4000_0000)
        ram[0 : len(code)] = code
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x2 = 0x4000_0000, 0x4010_0000
        vcpu.set_guest_debug(single_step=True)
        for count in range(1, 10):
            assert isinstance(vcpu.run(), DebugExit)
            assert (kvm.turns.retired, vcpu.regs.pc, vcpu.regs.x0) == (count, 0x4000_0000 + 4 * (count % 3), (count + 2) // 3)
        vcpu.set_guest_debug(enable=False)
        kvm.stop_at(1000)
        assert isinstance(vcpu.run(), IntrExit)
        assert (kvm.turns.retired, vcpu.regs.x0) == (1000, 334)


@pytest.mark.slow
def test_a_run_that_compiles_everything_is_like_one_that_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = run(tmp_path, RACE, "--cpus", "4", "--trace", str(tmp_path / "warm"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cold = run(tmp_path, RACE, "--cpus", "4", "--trace", str(tmp_path / "cold"))
    assert (cold.console, cold.errors) == (warm.console, warm.errors)
    assert (tmp_path / "cold").read_bytes() == (tmp_path / "warm").read_bytes()


# ---- Linux -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.needs_guest
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cpus,options", [(1, []), (4, []), (4, ["--machine", "bare", "--el2"])])
def test_linux_twice(tmp_path: Path, cpus: int, options: list[str]) -> None:
    """Console, every exit, and the state at power-off; with another seed the kernel lies elsewhere and its random numbers differ."""
    try:
        files = guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")
    params = 'console=ttyAMA0 panic=-1 run="report; head -c 16 /dev/hwrng | od -x; date"'
    runs = []
    for seed in (1, 1, 2):
        trace = tmp_path / f"trace{len(runs)}"
        words = command("run", *options, "--deterministic", "--seed", str(seed), "--cpus", str(cpus), "--trace", str(trace))
        words += ["--timeout", "300", "--kernel", str(files.kernel), "--initrd", str(files.initrd), "--params", params]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=400, check=False)
        runs.append((Run(done), trace.read_bytes()))
    (first, trace), (second, trace2), (third, trace3) = runs
    assert first.status == 0 and b"BOOT-OK" in first.console, first.console[-2000:]
    assert re.search(rb"Jan  1 00:00:0. UTC 2026", first.console), first.console[-2000:]
    assert len(re.findall(rb"^processor\s*: \d+", first.console, re.MULTILINE)) == cpus
    assert (second.console, second.errors, trace2) == (first.console, first.errors, trace)
    assert third.status == 0 and third.state != first.state and third.console != first.console and trace3 != trace
