"""KVM calls as data: every declared argument there and back; programs on two backends side by side; logs and their replay."""

from __future__ import annotations

import ctypes
import io
import json
import random
import runpy
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from x86_machine import needs_x86_kvm

from tests.conformance.frame import Case, Trial, all_cases, answer, applies
from trapline import x86
from trapline.abi.arm64 import KVM_ARM_PREFERRED_TARGET
from trapline.abi.caps import Cap
from trapline.abi.ioctl import Ioctl
from trapline.abi.system import KVM_CHECK_EXTENSION, KVM_GET_VCPU_MMAP_SIZE
from trapline.abi.tables import calls
from trapline.abi.values import REST, TAIL, argument_from_data, argument_to_data
from trapline.abi.vcpu import (
    KVM_GET_ONE_REG,
    KVM_GET_REG_LIST,
    KVM_RUN,
    KVM_SET_MP_STATE,
    KVM_SET_ONE_REG,
    MpState,
    reg_list,
)
from trapline.abi.vm import KVM_SET_USER_MEMORY_REGION
from trapline.backends.dev_kvm import DevKvm
from trapline.backends.objects import System
from trapline.backends.record.compare import Compared, compare
from trapline.backends.record.difference import Difference
from trapline.backends.record.log import read_log, recorded, replay
from trapline.backends.software import Software
from trapline.errors import BadInput, KvmError, Timeout
from trapline.turns import Turns
from trapline.ui.cli import main

pytest.importorskip("llvmlite")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "compare_kvms.py"
RAM, DEVICE = 0x4000_0000, 0x0900_0000
GUEST = (0xB940_0001, 0x8B01_0042, 0xF900_0062, 0xB900_0402, 0x17FF_FFFC)
"""Reads a device, adds to X2, stores X2 at X3, writes it to the device, again."""

COUNTER = (0xD53B_E041, 0xF900_0001, 0x17FF_FFFE)
"""MRS X1, CNTVCT_EL0; STR X1, [X0]; again."""


# --- arguments -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [call for call in calls() if call.struct is not None], ids=lambda call: f"{call.name}-{call.arch}")
def test_arguments_there_and_back(call: Ioctl) -> None:
    numbers = random.Random(call.name)
    assert call.struct is not None
    for _ in range(20):
        value = call.struct.from_buffer_copy(bytes(numbers.getrandbits(8) * numbers.randrange(2) for _ in range(call.size)))
        if call.struct.tail is not None:
            setattr(value, call.struct.tail[0], numbers.randrange(4))
        content = bytes(value) + numbers.randbytes(numbers.choice((0, 0, 8, 40, 120)))
        data = json.loads(json.dumps(argument_to_data(call.struct, content)))
        assert argument_from_data(call.struct, data) == content


def test_arguments_are_readable() -> None:
    region = KVM_SET_USER_MEMORY_REGION.make(slot=1, flags=0x13, guest_phys_addr=RAM, memory_size=4096)
    assert argument_to_data(type(region), bytes(region)) == {
        "slot": "1",
        "flags": "LOG_DIRTY_PAGES|READONLY|0x10",
        "guest_phys_addr": "0x40000000",
        "memory_size": "0x1000",
    }
    listed = reg_list(2)
    listed.reg[0] = 0x6030_0000_0010_0040
    assert KVM_GET_REG_LIST.struct is not None
    assert argument_to_data(KVM_GET_REG_LIST.struct, bytes(listed)) == {"n": "0x2", TAIL: ["0x6030000000100040"]}
    assert argument_to_data(KVM_GET_REG_LIST.struct, bytes(listed)[:12]) == {"n": "0x2", REST: [4, "400010"]}


# --- side by side --------------------------------------------------------------------------------------------------------------


def program(kvm: System) -> None:
    with kvm.create_vm() as vm:
        assert vm.ioctl(KVM_ARM_PREFERRED_TARGET) == 0 and vm.check_extension(Cap.USER_MEMORY)
        ram = vm.add_memory(RAM, 2 << 20)
        ram[0 : 4 * len(GUEST)] = b"".join(word.to_bytes(4, "little") for word in GUEST)
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x0, vcpu.regs.x3 = RAM, DEVICE, RAM + 0x1000
        for number in range(3):
            vcpu.run().data = number + 1  # type: ignore[attr-defined]
            assert int.from_bytes(vcpu.run().data, "little") == sum(range(number + 2))  # type: ignore[attr-defined]
            ram[0x2000 + number] = number + 1
        assert vcpu.mp_state == MpState.RUNNABLE
        with pytest.raises(KvmError):
            vcpu.set_one_reg(0x6030_0000_0010_FFFF, 0)


def broken(call: Ioctl, body: Callable[[Callable[[], int], Any, Any], int]) -> Software:
    """A software machine on which one call is answered by `body`, which is given the real one."""
    backend = Software()
    real = backend.bodies[call]

    def answer(target: Any, argument: Any) -> int:
        return body(lambda: real(target, argument), target, argument)

    backend.bodies = MappingProxyType({**backend.bodies, call: answer})
    return backend


def wrong_errno(real: Callable[[], int], target: Any, argument: Any) -> int:
    if argument.id & 0xFFFF == 0xFFFF:
        raise KvmError(22)
    return real()


def wrong_register(real: Callable[[], int], target: Any, argument: Any) -> int:
    result = real()
    if argument.id == 0x6030_0000_0010_0006:  # X3
        target.arch.x[7] = 1
    return result


def wrong_argument(real: Callable[[], int], target: Any, argument: Any) -> int:
    result = real()
    argument.target = 4
    return result


def wrong_result(real: Callable[[], int], target: Any, argument: Any) -> int:
    return real() + 1


class Runs:
    """Spoils the fourth KVM_RUN."""

    def __init__(self, spoil: Callable[[Any], None]) -> None:
        self.count, self.spoil = 0, spoil

    def __call__(self, real: Callable[[], int], target: Any, argument: Any) -> int:
        result = real()
        self.count += 1
        if self.count == 4:
            self.spoil(target)
        return result


def spoil_exit(target: Any) -> None:
    target.run[32] ^= 8


def spoil_memory(target: Any) -> None:
    target.vm.memory.write(RAM + 0x5000, b"spoiled")


def test_two_of_a_kind_answer_alike() -> None:
    assert compare(program, Software(), Software()) is None


@pytest.mark.parametrize(
    ("call", "body", "where", "mine", "other"),
    [
        (KVM_SET_ONE_REG, wrong_errno, "errno", "ENOENT", "EINVAL"),
        (KVM_SET_ONE_REG, wrong_register, "state.x7", "0x0", "0x1"),
        (KVM_ARM_PREFERRED_TARGET, wrong_argument, "out.target", "5", "4"),
        (KVM_CHECK_EXTENSION, wrong_result, "result", "1", "2"),
        (KVM_RUN, spoil_exit, "exit.phys_addr", "0x9000004", "0x900000c"),
        (KVM_RUN, spoil_memory, "memory", None, None),
    ],
)
def test_a_mistake_is_noticed_at_its_call(call: Ioctl, body: Any, where: str, mine: str, other: str) -> None:
    found = compare(program, Software(), broken(call, Runs(body) if call is KVM_RUN else body))
    assert found is not None and found.events[0]["call"] == call.name
    assert (where, mine, other) in [(row[0], mine and row[1], other and row[2]) for row in found.what]
    if call is KVM_RUN:
        assert found.states[0]["x2"] == "0x3" and len(found.before) == 6
        assert sum(event["call"] == "KVM_RUN" for event in found.before) >= 3


def test_a_report_is_read_at_once() -> None:
    report = str(compare(program, Software(), broken(KVM_SET_ONE_REG, wrong_register)))
    lines = [line.split() for line in report.splitlines()]
    assert report.startswith("software 1 and software 2 differ at call 9:\n")
    assert ["state.x7", "0x0", "0x1"] in lines and ["x7", "0x0", "0x1", "<--"] in lines and ["pc", "0x40000000", "0x40000000"] in lines
    assert "KVM_SET_ONE_REG(5, {id=x3, " in report and "-> 0x40001000" in report


def test_known_differences_can_be_passed_over() -> None:
    known = broken(KVM_CHECK_EXTENSION, wrong_result)
    backend = Compared(Software(), known, ignore=lambda found: found.events[0]["call"] == "KVM_CHECK_EXTENSION")
    with System(backend) as kvm:
        program(kvm)
    assert backend.found is None and [found.what for found in backend.ignored] == [[("result", "1", "2")]]
    backend.replayer.close()


def test_deterministic_machines_have_the_same_time() -> None:
    def asks(kvm: System) -> None:
        with kvm.create_vm() as vm:
            ram = vm.add_memory(RAM, 2 << 20)
            ram[0 : 4 * len(COUNTER)] = b"".join(word.to_bytes(4, "little") for word in COUNTER)
            vcpu = vm.create_vcpu()
            vcpu.regs.pc, vcpu.regs.x0 = RAM, DEVICE
            for _ in range(3):
                vcpu.run()

    assert compare(asks, Software(turns=Turns(1)), Software(turns=Turns(1))) is None
    found = compare(asks, Software(), Software())
    assert found is not None and found.events[0]["call"] == "KVM_RUN"


CASES = [case for case in all_cases() if case.area in ("memory", "pointers", "coalesced")]


@pytest.fixture(scope="module")
def machines() -> tuple[Software, Software]:
    return Software(), Software()


def side_by_side(case: Case, backend: Compared) -> None:
    """One case of the conformance list, on both."""
    trial = Trial(backend, backend.open(), "arm64")
    try:
        if applies(case, trial):
            assert answer(case, trial) == case.errno
    finally:
        trial.close()
        backend.replayer.close()
    assert backend.found is None, backend.found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_calls_are_made_again_as_they_were(case: Case, machines: tuple[Software, Software]) -> None:
    side_by_side(case, Compared(*machines, state=False))


# --- logs ----------------------------------------------------------------------------------------------------------------------


def log_of(run: Callable[[System], None], path: Path, backend: Any) -> Path:
    with path.open("w") as file, System(recorded(backend, file)) as kvm:
        run(kvm)
    return path


def differences(path: Path, backend: Any) -> list[Difference | None]:
    return list(replay(*read_log(path), backend))


def test_a_log_is_json_by_the_line(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in log_of(program, tmp_path / "log", Software()).read_text().splitlines()]
    assert {name: lines[0][name] for name in ("version", "backend", "arch", "seed")} == {
        "version": 1, "backend": "software", "arch": "arm64", "seed": None,
    }  # fmt: skip
    runs = [line for line in lines if line.get("call") == "KVM_RUN"]
    assert runs[1]["exit"] == {"class": "MmioExit", "phys_addr": "0x9000004", "data": "01000000", "length": 4, "is_write": True}
    assert runs[1]["wrote"]["run"] == [[40, "0100000000000000"]] and "memory" in runs[1]
    assert runs[0]["wrote"]["memory"] and runs[2]["wrote"]["memory"] and "memory" not in runs[1]["wrote"]
    (failed,) = (line for line in lines if "errno" in line)
    assert (failed["call"], failed["kind"], failed["errno"]) == ("KVM_SET_ONE_REG", "vcpu", "ENOENT")


def test_a_log_is_replayed(tmp_path: Path) -> None:
    path = log_of(program, tmp_path / "log", Software())
    found = differences(path, Software())
    assert len(found) > 12 and not any(found)
    first = next(one for one in differences(path, broken(KVM_RUN, Runs(spoil_exit))) if one is not None)
    assert first.events[0]["call"] == "KVM_RUN" and first.names == ("software (log)", "software")
    assert first.what == [("exit.phys_addr", "0x9000004", "0x900000c")]


def test_a_guest_that_does_not_come_back_is_a_difference(tmp_path: Path) -> None:
    path = log_of(program, tmp_path / "log", Software())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first = next(line for line in lines if line.get("call") == "KVM_RUN")
    first["wrote"]["memory"] = [[first["wrote"]["memory"][0][0], (0x1400_0000).to_bytes(4, "little").hex()]]  # a branch to itself
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = next(one for one in replay(*read_log(path), Software(), 0.5) if one is not None)
    assert ("errno", "-", "EINTR") in found.what


HEADER = '{"format": "ioctls of trapline", "version": 1, "backend": "software", "arch": "arm64"}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a line of such a log"),
        ("{}\n", "no log of KVM calls"),
        ('{"format": "ioctls of trapline", "version": 9}\n', "has version 9"),
        (HEADER + '{"call": "KVM_R', "line 2"),
        (HEADER + '{"call": "KVM_NO", "fd": 3}\n', "KVM_NO"),
        (HEADER + '{"call": "KVM_RUN", "fd": 3}\n', "file 3"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(BadInput, match=says):
        differences(tmp_path / "log", Software())


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log_of(program, tmp_path / "log", Software())
    assert main(["ioctls", "replay", str(path)]) == 0
    assert "0 were answered otherwise" in capsys.readouterr().out
    exit = '"exit":{"class":"MmioExit","phys_addr":"0x9000004"'
    path.write_text(path.read_text().replace(f'"result":0,{exit}', f'"errno":"EFAULT",{exit}', 1))
    assert main(["ioctls", "replay", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "software (log) and software differ at call" in printed and "= -1 EFAULT" in printed
    assert main(["ioctls", "show", str(path)]) == 0
    assert "KVM_ARM_VCPU_INIT(5, {target=5, features=[4]}) = 0" in capsys.readouterr().out
    assert main(["ioctls", "compare", str(EXAMPLE), "software", "software"]) == 0
    assert "answered alike" in capsys.readouterr().out
    assert main(["ioctls", "compare", str(tmp_path / "none.py")]) == 125


def test_a_deterministic_run_is_replayed(tmp_path: Path) -> None:
    from tests.guests import tiny

    (tmp_path / "guest").write_bytes(tiny.build(HELLO))
    log = str(tmp_path / "log")
    words = ["--kernel", str(tmp_path / "guest"), "--mem", "64M", "--deterministic", "--timeout", "60"]
    assert main(["run", *words, "--record-ioctls", log]) == 0
    assert main(["ioctls", "replay", log]) == 0


HELLO = """
        adr   x1, text
        bl    print
        mrs   x2, s3_3_c14_c0_2
        adr   x3, text
        str   x2, [x3]
        b     off
text:   .asciz "hello, hello"
        .align 3
"""


# --- with the host's KVM -------------------------------------------------------------------------------------------------------


OWN_ANSWERS = (KVM_CHECK_EXTENSION.name, KVM_GET_VCPU_MMAP_SIZE.name)
"""Calls that each KVM answers for itself."""


def in_common(case: Case) -> bool:
    """A case about memory slots that needs no guest, whose code would be another architecture's, and not the number of slots."""
    return case.generic and case.area == "memory" and case.call is not KVM_RUN and "last slot" not in case.cause


@pytest.mark.needs_kvm
@needs_x86_kvm
@pytest.mark.parametrize("case", [case for case in CASES if in_common(case)], ids=lambda case: case.name)
def test_memory_slots_are_those_of_the_hosts_kvm(case: Case, machines: tuple[Software, Software]) -> None:
    backend = Compared(machines[0], DevKvm(), state=False, ignore=lambda found: found.events[0]["call"] in OWN_ANSWERS)
    trial = Trial(backend, backend.open(), "arm64")
    try:
        if applies(case, trial):
            answer(case, trial)
    finally:
        trial.close()
        backend.replayer.close()
    found = backend.found
    assert found is None or found.events[0]["call"] in ("KVM_ARM_VCPU_INIT", "KVM_RUN"), found  # another architecture's


def port_guest(kvm: x86.X86System) -> None:
    with kvm.create_vm() as vm:
        ram = vm.add_memory(0, 1 << 20)
        ram[0x1000:0x100A] = bytes.fromhex("e412 a20020 fec0 e610 f4")  # in al, 0x12; mov [0x2000], al; inc al; out 0x10, al; hlt
        vcpu = vm.create_vcpu()
        x86.real_mode(vcpu, ip=0x1000)
        vcpu.run(timeout=10).data = 7  # type: ignore[attr-defined]
        assert vcpu.run(timeout=10).value == 8  # type: ignore[attr-defined]
        assert isinstance(vcpu.run(timeout=10), x86.HltExit)
        assert ram[0x2000] == 7


def depends_on_the_cpu(found: Difference) -> bool:
    """The host's processors have numbers, and tell them; and which parts of XSAVE's state are in use is up to the host."""
    return found.events[0]["call"] == "KVM_GET_SUPPORTED_CPUID" or all(where.startswith("state.xsave") for where, *_ in found.what)


@pytest.mark.needs_kvm
@needs_x86_kvm
def test_x86_guests(tmp_path: Path) -> None:
    assert compare(port_guest, DevKvm(), DevKvm(), ignore=depends_on_the_cpu) is None
    file = io.StringIO()
    with x86.X86System(recorded(DevKvm(), file)) as kvm:
        port_guest(kvm)
    path = tmp_path / "log"
    path.write_text(file.getvalue())
    assert all(one is None or depends_on_the_cpu(one) for one in differences(path, DevKvm()))
    path.write_text(file.getvalue().replace('"port":"0x10","data":"08"', '"port":"0x10","data":"09"'))
    found = next(one for one in differences(path, DevKvm()) if one is not None and not depends_on_the_cpu(one))
    assert found.what == [("exit.data", "09", "08")]


def test_the_example_says_what_it_does() -> None:
    assert compare(runpy.run_path(str(EXAMPLE))["main"], Software(), Software()) is None


def test_calls_by_hand_are_recorded_too(tmp_path: Path) -> None:
    """Addresses instead of structures, null pointers, numbers."""

    def by_hand(kvm: System) -> None:
        with kvm.create_vm() as vm:
            vcpu = vm.create_vcpu()
            for address in (0, 0x1000, 1 << 63):
                with pytest.raises(KvmError):
                    vcpu.ioctl(KVM_SET_MP_STATE, address)
                with pytest.raises(KvmError):
                    vcpu.ioctl(KVM_GET_ONE_REG, id=0x6030_0000_0010_0040, addr=address)
            state = KVM_SET_MP_STATE.make(mp_state=MpState.STOPPED)
            vcpu.ioctl(KVM_SET_MP_STATE, ctypes.addressof(state))
            assert vcpu.mp_state == MpState.STOPPED
            assert vm.ioctl(KVM_CHECK_EXTENSION, int(Cap.USER_MEMORY)) == 1

    assert not any(differences(log_of(by_hand, tmp_path / "log", Software()), Software()))


def test_where_a_guest_is_interrupted_is_chance(tmp_path: Path) -> None:
    def kicked(kvm: System) -> None:
        with kvm.create_vm() as vm:
            ram = vm.add_memory(RAM, 2 << 20)
            ram[0 : 4 * len(COUNTS)] = b"".join(word.to_bytes(4, "little") for word in COUNTS)
            vcpu = vm.create_vcpu()
            vcpu.regs.pc, vcpu.regs.x0, vcpu.regs.x3 = RAM, DEVICE, RAM + 0x1000
            with pytest.raises(Timeout):
                vcpu.run(timeout=0.2)
            assert vcpu.regs.x2
            vcpu.set_one_reg(0x6030_0000_0010_0000 | 2 * 4, 1)  # X4: enough
            vcpu.run()

    path = log_of(kicked, tmp_path / "log", Software())
    assert '"errno":"EINTR"' in path.read_text()
    assert all(one is None or one.what[0][0] == "exit.data" for one in differences(path, Software())), "only how far it has counted"


COUNTS = (0x9100_0442, 0xF900_0062, 0xB4FF_FFC4, 0xB900_0002, 0x17FF_FFFC)
"""Counts X2 up and stores it at X3 until X4 is not zero; then tells the device."""
