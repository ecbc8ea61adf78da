"""Policies for implementation-defined registers: what the guest gets, and what the user reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_engine import mmio
from tests.test_kvm_run import UART, Guest
from tests.test_sysreg_exits import HERE, HID4, VECTORS, is_undefined, sysreg
from trapline.abi.exits import MmioExit, SysregExit
from trapline.arm64.regs import MIDR_EL1, VBAR_EL1
from trapline.backends.sysregs import UNDEFINED, Sysregs, constant, log, raz_wi, storage, undefined
from trapline.errors import BadInput, NotSupported
from trapline.vmm.machine import Config, Deterministic

NAME = "S3_0_C15_C4_0"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "sysregs"


class Asked:
    """A guest on a scripted machine that reads and writes registers, and what was said."""

    def __init__(self, vcpus: int = 1) -> None:
        self.guest = Guest(vcpus)
        self.sysregs = self.guest.vm.sysregs
        self.said: list[str] = []
        self.sysregs.say = self.said.append  # type: ignore[method-assign]

    def run(self, *steps, vcpu: int = 0):
        cpu, runner = self.guest.engine.cpus[vcpu], self.guest.vcpus[vcpu]
        runner.immediate_exit = True
        runner.run()  # completes the store before
        runner.immediate_exit = False
        runner.regs.pc = HERE
        cpu.state.sysreg[VBAR_EL1.slot] = VECTORS
        cpu.script = [*steps, mmio(True, UART)]
        return runner.run()

    def read(self, enc=HID4, vcpu: int = 0) -> int:
        self.guest.vcpus[vcpu].regs.x1 = 0xDEAD
        assert isinstance(self.run(sysreg(enc, False, rt=1), vcpu=vcpu), MmioExit)
        assert self.guest.vcpus[vcpu].regs.pc == HERE + 4
        return self.guest.vcpus[vcpu].regs.x1

    def write(self, value: int, enc=HID4, vcpu: int = 0) -> None:
        self.guest.vcpus[vcpu].regs.x1 = value
        assert isinstance(self.run(sysreg(enc, True, rt=1), vcpu=vcpu), MmioExit)
        assert self.guest.vcpus[vcpu].regs.pc == HERE + 4


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_storage_is_each_vcpus_own() -> None:
    asked = Asked(vcpus=2)
    asked.sysregs[NAME] = storage(reset=7)
    assert asked.read() == 7
    asked.write(0x1234)
    assert (asked.read(), asked.read(vcpu=1)) == (0x1234, 7)


def test_shared_storage() -> None:
    asked = Asked(vcpus=2)
    asked.sysregs[NAME] = storage(shared=True)
    asked.write(9, vcpu=1)
    assert asked.read() == 9


def test_storage_of_a_family_is_one_value_for_each_register(asked: Asked) -> None:
    asked.sysregs["S3_0_C15_C*_0"] = storage
    asked.write(4)
    assert (asked.read(), asked.read((3, 0, 15, 5, 0))) == (4, 0)


def test_read_as_zero_write_ignored(asked: Asked) -> None:
    asked.sysregs[NAME] = raz_wi
    asked.write(5)
    assert asked.read() == 0


def test_constant_cannot_be_written(asked: Asked) -> None:
    asked.sysregs[NAME] = constant(0x80)
    assert asked.read() == 0x80
    asked.run(sysreg(HID4, True))
    assert is_undefined(asked.guest)


def test_function(asked: Asked) -> None:
    written = []

    def policy(access: SysregExit) -> int | None:
        return written.append(access.value) if access.is_write else len(written)

    asked.sysregs[NAME] = policy
    asked.write(5)
    asked.write(6)
    assert (asked.read(), written) == (2, [5, 6])


@pytest.mark.parametrize("answer", [None, UNDEFINED])
def test_function_may_say_undefined(asked: Asked, answer) -> None:
    asked.sysregs[NAME] = lambda access: answer
    asked.run(sysreg(HID4, False))
    assert is_undefined(asked.guest)


def test_register_before_family_and_later_family_first(asked: Asked) -> None:
    asked.sysregs[NAME] = constant(1)
    asked.sysregs["S3_*_C15_*"] = constant(2)
    asked.sysregs["S3_0_C15_C5_*"] = constant(3)
    assert [asked.read(enc) for enc in (HID4, (3, 1, 15, 0, 0), (3, 0, 15, 5, 0))] == [1, 2, 3]


def test_unknown_register_prints_a_line_once_and_is_asked_about(asked: Asked) -> None:
    asked.guest.vcpu.regs.x1 = 0x99
    exit = asked.run(sysreg(HID4, True, rt=1))
    assert isinstance(exit, SysregExit) and exit.value == 0x99
    assert asked.said == [f'sysregs["{NAME}"] = storage()  # vCPU 0 wrote 0x99 at PC 0x4000']
    exit.done()
    assert isinstance(asked.guest.vcpu.run(), MmioExit)
    exit = asked.run(sysreg(HID4, False, rt=1))
    exit.value = 5
    assert isinstance(asked.guest.vcpu.run(), MmioExit) and asked.guest.vcpu.regs.x1 == 5
    assert len(asked.said) == 1


def test_the_printed_line_is_a_policy(asked: Asked) -> None:
    asked.run(sysreg(HID4, False))
    exec(asked.said[0], {"sysregs": asked.sysregs, "storage": storage})
    assert asked.read() == 0


def test_unanswered_is_undefined(asked: Asked) -> None:
    asked.run(sysreg(HID4, False))
    asked.guest.vcpu.run()
    assert is_undefined(asked.guest)


def test_default_and_undefined(asked: Asked) -> None:
    asked.sysregs.default = raz_wi
    asked.sysregs[NAME] = undefined
    assert asked.read((3, 0, 15, 5, 0)) == 0
    asked.run(sysreg(HID4, False))
    assert is_undefined(asked.guest)


def test_log_tells_every_access(asked: Asked) -> None:
    asked.sysregs[NAME] = log(storage(3))
    asked.read()
    asked.write(8)
    assert asked.said == [f"vCPU 0: {NAME} -> 0x3 at 0x4000", f"vCPU 0: {NAME} <- 0x8 at 0x4000"]


def test_what_the_guest_used(asked: Asked) -> None:
    asked.sysregs.default = storage()
    asked.read((3, 0, 15, 10, 0))
    asked.write(1)
    asked.read()
    assert list(asked.sysregs.lines()) == [
        f'sysregs["{NAME}"] = storage()  # 1 read, 1 write, last wrote 0x1, first at PC 0x4000',
        'sysregs["S3_0_C15_C10_0"] = constant(0)  # 1 read, first at PC 0x4000',
    ]


def test_not_a_policy(asked: Asked) -> None:
    with pytest.raises(TypeError, match="is not a policy"):
        asked.sysregs[NAME] = 5  # type: ignore[assignment]


@pytest.mark.parametrize("content", ["sysregs[", "sysregs['S3_0_C15_C0_0'] = storag()", "import nothing_like_this"])
def test_bad_file_is_one_line(asked: Asked, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(BadInput, match="bad.py") as failure:
        asked.sysregs.load(path)
    assert "\n" not in str(failure.value)
    with pytest.raises(BadInput, match="none.py"):
        asked.sysregs.load(tmp_path / "none.py")


def test_a_kvm_without_the_extension_says_so() -> None:
    class Linux:
        name = "kvm"

    class Vm:
        backend = Linux()

        def check_extension(self, cap: int) -> int:
            return 0

    with pytest.raises(NotSupported, match="Linux's KVM injects UNDEFINED"):
        Sysregs(Vm())  # type: ignore[arg-type]


def test_refused_combinations(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    with pytest.raises(BadInput, match="bare machine"):
        Config(kernel=path, sysreg=[path], machine="bare").check()
    with pytest.raises(BadInput, match="--record"):
        Config(kernel=path, sysreg=[path], deterministic=Deterministic(record=path)).check()


def test_a_policy_file_can_name_the_processor(tmp_path: Path) -> None:
    guest = Guest(vcpus=0)
    path = tmp_path / "identity.py"
    path.write_text("vm.identify(midr=0x410FD034)")
    guest.vm.sysregs.load(path)
    assert guest.vm.create_vcpu().get_one_reg(MIDR_EL1.one_reg_id) == 0x410F_D034


# --- the example ------------------------------------------------------------------------------------------------------------------


def example(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "run.py"), "--backend", "software", "--timeout", "120", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_example_guest_boots_with_its_policy_file() -> None:
    done = example()
    assert (done.returncode, done.stdout, done.stderr) == (0, "looking for my silicon\nall 20 registers are there\n", "")
    lines = [line for line in (EXAMPLE / "policy.py").read_text().splitlines() if line.startswith("sysregs[")]
    assert len(lines) == 5, "a policy file of a few lines"


def test_example_guest_without_policy() -> None:
    done = example("--no-policy")
    assert (done.returncode, done.stdout) == (2, "looking for my silicon\nundefined instruction\nEXIT: STATUS=5\n"), done.stderr


def test_example_guest_with_an_empty_policy_prints_the_line_to_add(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    done = example("--no-policy", "--sysreg", str(path))
    assert done.returncode == 2
    assert done.stderr == 'sysregs["S3_0_C15_C0_0"] = storage()  # vCPU 0 read it at PC 0x40080018\n'


def test_example_guest_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "list.py"
    example("--list", "-o", str(path))
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#") and len(lines) == 16, "the guest stops at the counters, which do not count as storage"
    assert lines[1] == 'sysregs["S3_0_C15_C0_0"] = storage()  # 2 reads, 1 write, last wrote 0x100, first at PC 0x40080018'
    done = example("--list", "-o", str(path), "--sysreg", str(EXAMPLE / "policy.py"), "--deterministic")
    assert done.returncode == 0 and len(path.read_text().splitlines()) == 21
