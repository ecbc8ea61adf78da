"""Calls as text: traces of a backend, and the pages that `trapline abi` prints."""

from __future__ import annotations

import ctypes
import errno

import pytest

from tests.fake_engine import mmio, open_fake
from trapline.abi.arm64 import KVM_ARM_VCPU_INIT, VcpuInit
from trapline.abi.caps import Cap
from trapline.abi.memory import KVM_CLEAR_DIRTY_LOG
from trapline.abi.system import KVM_CHECK_EXTENSION, KVM_CREATE_VM
from trapline.abi.text import call_text
from trapline.abi.vcpu import KVM_RUN, KVM_SET_MP_STATE, MpStateArgument
from trapline.abi.vm import KVM_ENABLE_CAP, KVM_SET_USER_MEMORY_REGION, EnableCap, UserspaceMemoryRegion
from trapline.backends.objects import System
from trapline.backends.traced import Traced
from trapline.errors import BadInput, KvmError
from trapline.ui.abi import pages_of, print_pages

REGION = UserspaceMemoryRegion(1, 0x13, 0x4000_0000, 0x20_0000, 0x7F00_0000_0000)
INIT = VcpuInit(5, (ctypes.c_uint32 * 7)(0x64))
ENABLE = EnableCap(Cap.HALT_POLL, 0, (ctypes.c_uint64 * 4)(200))


@pytest.mark.parametrize(
    ("call", "argument", "outcome", "line"),
    [
        (KVM_RUN, 0, {}, "KVM_RUN(4) = 0"),
        (KVM_CREATE_VM, 40, {"result": 9}, "KVM_CREATE_VM(4, 0x28) = 9"),
        (KVM_CHECK_EXTENSION, 32, {"result": 1}, "KVM_CHECK_EXTENSION(4, KVM_CAP_IRQFD) = 1"),
        (KVM_CHECK_EXTENSION, 7777, {}, "KVM_CHECK_EXTENSION(4, 0x1e61) = 0"),
        (KVM_SET_MP_STATE, MpStateArgument(5), {}, "KVM_SET_MP_STATE(4, {mp_state=STOPPED}) = 0"),
        (KVM_SET_MP_STATE, MpStateArgument(3), {"error": errno.EINVAL}, "KVM_SET_MP_STATE(4, {mp_state=3}) = -1 EINVAL (unknown state)"),
        (
            KVM_SET_USER_MEMORY_REGION,
            REGION,
            {},
            "KVM_SET_USER_MEMORY_REGION(4, {slot=1, flags=LOG_DIRTY_PAGES|READONLY|0x10, guest_phys_addr=0x40000000, "
            "memory_size=0x200000, userspace_addr=0x7f0000000000}) = 0",
        ),
        (KVM_ARM_VCPU_INIT, INIT, {}, "KVM_ARM_VCPU_INIT(4, {target=5, features=[0x64]}) = 0"),
        (KVM_ENABLE_CAP, ENABLE, {}, "KVM_ENABLE_CAP(4, {cap=KVM_CAP_HALT_POLL, flags=0, args=[0xc8]}) = 0"),
        (KVM_CLEAR_DIRTY_LOG, 0x1000, {"error": errno.EXDEV}, "KVM_CLEAR_DIRTY_LOG(4, 0x1000) = -1 EXDEV (not declared)"),
    ],
)
def test_lines(call, argument, outcome, line) -> None:
    assert call_text(call, 4, argument, **outcome) == line


def test_a_traced_backend_tells_of_calls_and_exits() -> None:
    lines: list[str] = []
    inner, engine = open_fake()
    with System(Traced(inner.backend, lines.append)) as kvm:
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu()
        engine.cpus[0].script = [mmio(True, 0x900_0000)]
        vcpu.run()
        with pytest.raises(KvmError):
            vm.create_vcpu(id=0)
        vcpu.kick()
        vcpu.run()
        vm.close()
    assert any(line.startswith("KVM_ARM_VCPU_INIT(") and "target=5" in line for line in lines)
    assert any(line.endswith("= 0 MmioExit(write of 4 at 0x9000000, data=00000000)") for line in lines)
    assert any("-1 EEXIST (there is a vCPU with this id)" in line for line in lines)
    assert any(line.startswith("KVM_RUN(") and "-1 EINTR" in line for line in lines)
    assert lines[0].startswith("open(KVM)") and lines[-1].startswith("close(")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("KVM_IRQFD", "EBUSY"),
        ("irqfd", "resamplefd"),
        ("0x4020ae76", "KVM_IRQFD"),
        ("kvm_userspace_memory_region", "guest_phys_addr: a guest physical address"),
        ("KVM_CAP_ONE_REG", "KVM_GET_ONE_REG"),
    ],
)
def test_pages(name: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_pages([name]) == 0
    assert expected in capsys.readouterr().out


def test_architectures_may_have_calls_of_the_same_name() -> None:
    assert len(list(pages_of("KVM_GET_REGS"))) == 2


def test_the_list_of_calls(capsys: pytest.CaptureFixture[str]) -> None:
    print_pages([])
    assert "0x4020ae46  KVM_SET_USER_MEMORY_REGION\n" in capsys.readouterr().out


def test_no_such_page() -> None:
    with pytest.raises(BadInput, match="trapline abi"):
        print_pages(["KVM_NONSENSE"])
