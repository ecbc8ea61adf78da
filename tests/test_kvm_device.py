"""The /dev/kvm backend: against the real device where it is, else against a pretended one."""

from __future__ import annotations

import errno
import os
import platform

import pytest

from trapline.abi.exits import MmioExit
from trapline.abi.system import KVM_CREATE_VM, KVM_GET_API_VERSION
from trapline.backends import select
from trapline.backends.dev_kvm import DevKvm, probe
from trapline.backends.objects import System
from trapline.errors import BadInput, KvmError, NotSupported

HERE = os.access("/dev/kvm", os.R_OK | os.W_OK)
needs_kvm = pytest.mark.skipif(not HERE, reason="/dev/kvm cannot be opened here")
needs_arm = pytest.mark.skipif(platform.machine() != "aarch64" or not HERE, reason="needs /dev/kvm of an arm64 host")


def test_no_device() -> None:
    with pytest.raises(NotSupported, match="cannot be opened"):
        System(DevKvm("/nonexistent/kvm"))
    assert "nonexistent" in probe("/nonexistent/kvm")


def test_errno_of_a_failed_call_has_its_declared_cause() -> None:
    backend = DevKvm("/dev/null")
    device = backend.open()
    with pytest.raises(KvmError) as failure:
        backend.ioctl(device, KVM_GET_API_VERSION, 0)
    assert failure.value.errno == errno.ENOTTY
    assert "KVM_GET_API_VERSION" in str(failure.value)
    backend.close(device)


@needs_kvm
def test_version_and_errors() -> None:
    with System(DevKvm()) as kvm:
        assert kvm.api_version == 12
        with pytest.raises(KvmError) as failure:
            kvm.backend.ioctl(kvm.file, KVM_CREATE_VM, 1 << 40)
        assert failure.value.errno == errno.EINVAL
        assert "API version 12" in probe()


@needs_kvm
def test_memory_slots() -> None:
    with System(DevKvm()) as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(0x10_0000, 0x10000)
        with pytest.raises(KvmError) as failure:
            vm.add_memory(0x10_8000, 0x10000)
        assert failure.value.errno == errno.EEXIST
        memory.close()
        vm.add_memory(0x10_8000, 0x10000)


@needs_arm
def test_store_to_a_device_exits() -> None:
    with System(DevKvm()) as kvm, kvm.create_vm() as vm:
        ram = vm.add_memory(0x4000_0000, 0x10000)
        ram[0:4] = (0xB900_0020).to_bytes(4, "little")  # str w0, [x1]
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x0, vcpu.regs.x1 = 0x4000_0000, 0x1234, 0x900_0000
        exit = vcpu.run()
        assert isinstance(exit, MmioExit) and exit.phys_addr == 0x900_0000 and exit.value == 0x1234


def test_choice_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    choice = select.choose()
    assert choice.name in ("software", "kvm") and choice.reason
    select.warn_once.cache_clear()
    select.warn_once("testing")
    select.warn_once("testing")
    assert capsys.readouterr().err.count("testing") == 1


def test_unknown_backend() -> None:
    with pytest.raises(BadInput, match="auto, software, kvm"):
        select.open_system("xen")
