"""Machine, run loop, session and console over a KVM that is not one."""

from __future__ import annotations

import os
import pty
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_kvm import FakeSystem, FakeVcpu, prints, read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from trapline.abi.exits import Exit, IntrExit, SystemEvent, SystemEventType, UnknownExit
from trapline.errors import BadInput, Timeout
from trapline.vmm.board import RAM_BASE, MiB
from trapline.vmm.console import Keyboard, Output, RawTerminal
from trapline.vmm.images import FlatImage, LinuxImage
from trapline.vmm.machine import Config, Machine, Software
from trapline.vmm.report import EL1_REGISTERS, LOOKS_TO_PROBE, LoopDetector, describe_syndrome
from trapline.vmm.runloop import Ending, Outcome, Runner
from trapline.vmm.session import Session

UART, RTC, GPIO, NOWHERE = 0x0900_0000, 0x0901_0000, 0x0903_0000, 0x0B00_0000
OFF = SystemEvent(SystemEventType.SHUTDOWN, ())
RESET = SystemEvent(SystemEventType.RESET, ())
FILES = Software(FlatImage(b"\x1f\x20\x03\xd5"), b"", b"")


def config(**options: Any) -> Config:
    return Config(kernel=Path("kernel"), memory=8 * MiB, **options)


def run(program: Any, cpus: int = 1, timeout: float = 20.0) -> tuple[Ending, bytes, FakeSystem]:
    system, sent = FakeSystem(program), bytearray()
    machine = Machine(system, config(cpus=cpus), FILES, [], sent.extend)  # type: ignore[arg-type]
    ending = Runner(machine).run(time.monotonic() + timeout)
    return ending, bytes(sent), system


def test_console_and_power_off() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        yield from prints("hello\n")
        yield read(UART + 0x18)
        assert vcpu.answer == 0x90
        yield OFF

    ending, sent, system = run(guest, cpus=3)
    assert (ending.outcome, sent) == (Outcome.POWER_OFF, b"hello\n")
    assert len(system.vms[0].vcpus) == 3


def test_first_cpu_starts_as_linux_wants() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        assert vcpu.regs.pc == RAM_BASE + 0x80000 and vcpu.regs.x0 == RAM_BASE + 4 * MiB
        yield OFF

    ending, _, system = run(guest)
    assert ending.outcome is Outcome.POWER_OFF
    assert bytes(system.vms[0].memory[RAM_BASE].view[:4]) == b"\xd0\x0d\xfe\xed"


def test_interrupt_lines_reach_kvm() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        yield write(UART + 0x38, 0x20)
        yield write(UART, ord("x"))
        yield write(UART + 0x44, 0x20)
        yield OFF

    _, _, system = run(guest)
    assert system.vms[0].lines == [(33, True), (33, False)]


def test_access_to_nothing_is_an_external_abort() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        yield read(NOWHERE)
        yield write(NOWHERE, 1)
        yield OFF

    _, _, system = run(guest)
    assert system.vms[0].vcpus[0].aborts == 2


def test_unknown_exit_is_a_crash_with_a_report() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        yield read(RTC)
        yield UnknownExit(99, b"")

    ending, _, _ = run(guest)
    assert ending.outcome is Outcome.CRASH
    assert "UnknownExit" in ending.why and "vCPU 0" in ending.why
    assert "MmioExit(read of 4 at 0x9010000" in ending.report and "pc" in ending.report


def test_error_in_a_vcpu_thread_is_a_crash_and_not_a_hang() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        raise RuntimeError("the engine broke")
        yield OFF

    ending, _, _ = run(guest)
    assert ending.outcome is Outcome.CRASH
    assert "the engine broke" in ending.why and "Traceback" in ending.report


def test_timeout_stops_a_silent_guest() -> None:
    start = time.monotonic()
    with pytest.raises(Timeout):
        run(lambda vcpu: iter(()), cpus=2, timeout=0.2)
    assert time.monotonic() - start < 5


def test_guest_lost_in_its_vectors_is_a_crash() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        vcpu.sysregs = {EL1_REGISTERS["VBAR_EL1"]: 0x1000, EL1_REGISTERS["ESR_EL1"]: 0x21 << 26 | 0x10, EL1_REGISTERS["FAR_EL1"]: 0x1200}
        vcpu.sticky = {EL1_REGISTERS["ESR_EL1"]}
        vcpu.regs.elr_el1 = vcpu.regs.pc = 0x1200
        yield IntrExit()

    ending, _, _ = run(guest)
    assert ending.outcome is Outcome.CRASH
    assert "0x1200 faults itself" in ending.why and "external abort" in ending.why


ESR = EL1_REGISTERS["ESR_EL1"]
FAULT = 0x25 << 26


def looks(detector: LoopDetector, vcpu: FakeVcpu, count: int) -> list[str]:
    return [detector.look(vcpu) for _ in range(count)]  # type: ignore[arg-type]


def test_loop_detector_needs_the_same_sight_several_times() -> None:
    vcpu, detector = FakeVcpu(0, lambda vcpu: iter(())), LoopDetector()
    vcpu.sysregs, vcpu.sticky = {ESR: FAULT}, {ESR}
    for address in range(0, 0x800, 0x80):
        vcpu.sysregs[EL1_REGISTERS["FAR_EL1"]] = address  # moves on: progress
        assert looks(detector, vcpu, 1) == [""]
    assert looks(detector, vcpu, LOOKS_TO_PROBE - 1) == [""] * (LOOKS_TO_PROBE - 1)
    assert "faults itself, endlessly" in detector.look(vcpu)  # type: ignore[arg-type]
    vcpu.regs.pc = 0x9000
    assert looks(detector, vcpu, 1) == [""], "neither in a vector nor at the instruction"


def test_loop_detector_spares_a_guest_that_waits_where_it_once_faulted() -> None:
    vcpu, detector = FakeVcpu(0, lambda vcpu: iter(())), LoopDetector()
    vcpu.sysregs = {ESR: FAULT}
    vcpu.regs.pc = vcpu.regs.elr_el1 = 0x4000
    assert not any(looks(detector, vcpu, 10 * LOOKS_TO_PROBE))
    while vcpu.sysregs[ESR] != FAULT:
        detector.look(vcpu)  # type: ignore[arg-type]


def test_syndromes_in_words() -> None:
    assert describe_syndrome(0x25 << 26 | 0x47) == "data abort from EL1, translation fault, level 3, write"
    assert describe_syndrome(0x21 << 26 | 0x10) == "instruction abort from EL1, external abort"
    assert describe_syndrome(0) == "unknown reason (undefined instruction)"


def session(system: FakeSystem, **options: Any) -> Session:
    return Session(system, config(**options), FILES, [], Output(os.open(os.devnull, os.O_WRONLY)))  # type: ignore[arg-type]


def test_reset_makes_a_new_machine() -> None:
    def second(vcpu: FakeVcpu) -> Iterator[Exit]:
        yield from prints("EXIT: STATUS=7\n")
        yield OFF

    system = FakeSystem(lambda vcpu: iter([RESET]), second)
    ran = session(system)
    assert ran.run().outcome is Outcome.POWER_OFF
    assert ran.exit_status == 3
    assert len(system.vms) == 2 and all(vm.closed for vm in system.vms)


def test_reset_can_be_the_end() -> None:
    system = FakeSystem(lambda vcpu: iter([RESET]))
    assert session(system, reboot=False).run().outcome is Outcome.RESET
    assert len(system.vms) == 1


def test_quit_and_power_key() -> None:
    def guest(vcpu: FakeVcpu) -> Iterator[Exit]:
        for offset, value in ((0x40C, 8), (0x410, 8)):
            yield write(GPIO + offset, value)
        ran.press_power_key()
        ran.quit()

    system = FakeSystem(guest)
    ran = session(system)
    assert ran.run().outcome is Outcome.QUIT
    assert system.vms[0].lines[0] == (39, True)


@pytest.mark.parametrize("moment", ["_attach_input", "_make_machine"])
def test_quit_is_not_forgotten_while_no_machine_runs(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Keys count from the moment that the terminal is raw, and while the machine is made that a reboot wants."""
    system = FakeSystem(lambda vcpu: iter([RESET]), lambda vcpu: iter([OFF]))
    ran = session(system)
    then = getattr(Session, moment)

    def press(*args: Any) -> Any:
        if moment == "_attach_input" or system.vms:
            ran.quit()
        return then(*args)

    monkeypatch.setattr(Session, moment, press)
    assert ran.run().outcome is Outcome.QUIT
    assert all(vm.closed for vm in system.vms)


def test_machine_is_closed_when_it_cannot_be_built() -> None:
    system = FakeSystem(lambda vcpu: iter(()))

    def fail(*_: object) -> None:
        raise BadInput("no")

    with pytest.raises(BadInput), pytest.MonkeyPatch.context() as patch:
        patch.setattr("trapline.vmm.boot.load", fail)
        Machine(system, config(), FILES, [], print)  # type: ignore[arg-type]
    assert system.vms[0].closed


def test_keyboard_escapes() -> None:
    fed, quits = bytearray(), []
    keyboard = Keyboard(fed.extend, {"x": lambda: quits.append(1)}, escapes=True)
    keyboard.typed(b"a\x01")
    keyboard.typed(b"xb\x01\x01\x01ac\x01z")
    assert (fed, quits) == (b"ab\x01\x01c", [1])


def test_pipes_are_passed_on_as_they_are() -> None:
    fed = bytearray()
    Keyboard(fed.extend, {}, escapes=False).typed(b"\x01x\x00")
    assert fed == b"\x01x\x00"


def test_output_finds_the_announced_status_across_writes() -> None:
    read_end, write_end = os.pipe()
    output = Output(write_end)
    for piece in (b"EXIT: STA", b"TUS=1", b"55\r", b"\nmore"):
        output.write(piece)
    assert output.status == 77
    assert os.read(read_end, 100) == b"EXIT: STATUS=155\r\nmore"
    os.close(read_end)
    output.write(b"nobody listens\n")
    assert output.broken


def test_terminal_is_restored() -> None:
    user, guest = pty.openpty()
    before = termios.tcgetattr(guest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.tcgetpgrp", lambda fd: os.getpgrp())
        with pytest.raises(KeyError), RawTerminal(guest):
            raw = termios.tcgetattr(guest)
            assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG) and raw[1] & termios.OPOST
            raise KeyError
    assert termios.tcgetattr(guest) == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "nothing to boot"),
        ({"kernel": Path("k"), "firmware": Path("f")}, "fw_cfg"),
        ({"firmware": Path("f"), "initrd": Path("i")}, "needs --kernel"),
        ({"kernel": Path("k"), "cpus": 0}, "choose 1 to"),
        ({"kernel": Path("k"), "cpus": 1000}, "choose 1 to"),
        ({"kernel": Path("k"), "memory": 1000}, "choose 1M"),
        ({"kernel": Path("k"), "disks": [(Path("d"), False)] * 40}, "room for"),
    ],
)
def test_impossible_machines_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        Config(**options).check()


ACCESS = st.tuples(
    st.sampled_from((UART, RTC, GPIO, 0x0A00_0000, 0x0A00_0200, 0x1000_0000, 0x3EFF_0000, 0x40_1000_8000)),
    st.one_of(st.integers(0, 0x1FF), st.integers(0, 0xFFF), st.sampled_from((0xFE0, 0xFFC, 0x400, 0x3FC, 0x70, 0x50, 0x44))),
    st.sampled_from((1, 2, 4, 8)),
    st.one_of(st.none(), st.integers(0, 255), st.integers(0, (1 << 64) - 1)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ACCESS, max_size=120))
def test_no_access_of_a_guest_can_break_a_device(accesses: list[tuple[int, int, int, int | None]]) -> None:
    """Any width, alignment and value, in any order: reads fit their width, and nothing raises."""
    options = config(virtio_console=True, pci_testdev=True)
    software = Software(LinuxImage(b"\0", 0, 1), b"", b"")
    machine = Machine(FakeSystem(lambda vcpu: iter(())), options, software, [], lambda data: None)  # type: ignore[arg-type]
    machine.receive(b"input" * 20)
    for base, offset, size, value in accesses:
        if value is None:
            got = machine.bus.read(base + offset, size)
            assert got is None or 0 <= got < 1 << 8 * size
        else:
            machine.bus.write(base + offset, size, value & (1 << 8 * size) - 1)
    machine.bus.reset()
