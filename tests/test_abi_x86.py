"""x86 exits and constants: against the kernel's own headers where a C compiler is there, and against themselves."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from trapline.abi import exits, x86, x86_exits, x86_msr, x86_vm

CONSTANTS = {
    **{f"KVM_EXIT_{reason.name}": reason.value for reason in x86_exits.ExitReason},
    **{f"KVM_INTERNAL_ERROR_{kind.name}": kind.value for kind in x86_exits.InternalErrorKind},
    **{f"KVM_MSR_EXIT_REASON_{reason.name}": reason.value for reason in x86_msr.MsrExitReason},
    **{f"KVM_MSR_FILTER_{flag.name}": flag.value for flag in x86_msr.MsrFilterFlag},
    **{f"KVM_CPUID_FLAG_{flag.name}": flag.value for flag in x86_msr.CpuidFlag},
    **{f"KVM_GUESTDBG_{flag.name}": flag.value for flag in x86.GuestDebugFlag},
    **{f"KVM_VCPUEVENT_VALID_{flag.name}": flag.value for flag in x86.EventFlag},
    **{f"KVM_X86_SHADOW_INT_{flag.name}": flag.value for flag in x86.Shadow},
    **{f"KVM_MP_STATE_{state.name}": state.value for state in x86.MpState},
    **{f"KVM_IRQCHIP_{chip.name}": chip.value for chip in x86_vm.IrqchipId},
    **{f"KVM_CLOCK_{flag.name}": flag.value for flag in x86_vm.ClockFlag},
    **{f"KVM_PIT_FLAGS_{flag.name}": flag.value for flag in x86_vm.PitFlag},
    "KVM_PIT_SPEAKER_DUMMY": x86_vm.PIT_SPEAKER_DUMMY,
    "KVM_IOAPIC_NUM_PINS": x86_vm.IOAPIC_PINS,
    "KVM_MSR_FILTER_MAX_RANGES": x86_msr.MSR_FILTER_RANGES,
    "KVM_MSR_FILTER_MAX_BITMAP_SIZE": x86_msr.MSR_FILTER_BITMAP_SIZE,
    "KVM_MSR_FILTER_DEFAULT_DENY": x86_msr.MSR_FILTER_DEFAULT_DENY,
    "KVM_SREGS2_FLAGS_PDPTRS_VALID": x86.SREGS2_PDPTRS_VALID,
    "KVM_APIC_REG_SIZE": x86.LAPIC_SIZE,
}
RUN_FIELDS = {
    "ex.exception": 32, "ex.error_code": 36, "io.direction": 32, "io.size": 33, "io.port": 34, "io.count": 36, "io.data_offset": 40,
    "hypercall.nr": 32, "hypercall.args": 40, "hypercall.ret": x86_exits.HYPERCALL_RET_OFFSET,
    "debug.arch.exception": 32, "debug.arch.pc": 40, "debug.arch.dr6": 48, "debug.arch.dr7": 56,
    "mmio.phys_addr": 32, "mmio.data": 40, "mmio.len": 48, "mmio.is_write": 52, "fail_entry.cpu": 40,
    "internal.suberror": 32, "internal.data": 40, "emulation_failure.insn_size": 48, "tpr_access.is_write": 40,
    "msr.error": x86_exits.MSR_ERROR_OFFSET, "msr.reason": 40, "msr.index": 44, "msr.data": x86_exits.MSR_DATA_OFFSET,
}  # fmt: skip
"""Offsets in struct kvm_run that the decoders rely on."""


def program() -> str:
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/kvm.h>", "int main(void) {"]
    for name in CONSTANTS:
        lines += [f"#ifdef {name}", f'printf("{name} %llu\\n", (unsigned long long)({name}));', "#endif"]
    lines += [f'printf("run.{name} %zu\\n", offsetof(struct kvm_run, {name}));' for name in RUN_FIELDS]
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module")
def kernel_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    compiler = shutil.which("cc") if platform.machine() == "x86_64" else None
    if compiler is None or not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip(
            "needs an x86-64 host with a C compiler and the kernel's headers (Debian's build-essential) to compare with <linux/kvm.h>"
        )
    folder: Path = tmp_path_factory.mktemp("abi")
    source, binary = folder / "abi.c", folder / "abi"
    source.write_text(program())
    subprocess.run([compiler, "-o", binary, source], check=True, timeout=120)
    output = subprocess.run([binary], check=True, capture_output=True, text=True, timeout=60).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_constants(kernel_values: dict[str, int]) -> None:
    found = {name: value for name, value in CONSTANTS.items() if name in kernel_values}
    assert found == {name: kernel_values[name] for name in found}
    assert len(found) > 60, "an older header lacks the newest capabilities, not more"


def test_places_in_kvm_run(kernel_values: dict[str, int]) -> None:
    assert {name: kernel_values[f"run.{name}"] for name in RUN_FIELDS} == RUN_FIELDS


def pretend(reason: int, layout: str, *values: int | bytes) -> bytearray:
    import struct

    run = bytearray(4096 * 2)
    run[exits.EXIT_REASON_OFFSET] = reason
    struct.pack_into(layout, run, exits.UNION_OFFSET, *values)
    return run


def test_port_output() -> None:
    run = pretend(2, "<BBHIQ", 1, 2, 0x3F8, 1, 4096)
    run[4096:4098] = b"\x34\x12"
    exit = x86_exits.decode_exit(run)
    assert isinstance(exit, x86_exits.IoExit) and (exit.port, exit.size, exit.value, exit.is_out) == (0x3F8, 2, 0x1234, 1)
    with pytest.raises(AttributeError, match="only an input"):
        exit.data = b"\0"
    match exit:
        case x86_exits.IoExit(0x3F8, b"\x34\x12", 2, 1):
            pass
        case _:
            pytest.fail("an exit can be matched by position")


def test_port_input_is_answered_in_place() -> None:
    run = pretend(2, "<BBHIQ", 0, 4, 0xCFC, 2, 4096)
    exit = x86_exits.decode_exit(run)
    assert isinstance(exit, x86_exits.IoExit)
    exit.data = bytes(range(1, 9))
    assert run[4096:4104] == bytes(range(1, 9))
    exit.data = -1
    assert run[4096:4105] == b"\xff" * 8 + b"\0"


def test_msr_exits_are_answered_in_place() -> None:
    read = x86_exits.decode_exit(run := pretend(29, "<B7xIIQ", 0, 2, 0x1234, 0))
    assert isinstance(read, x86_exits.RdmsrExit) and read.index == 0x1234 and read.msr_reason == x86_msr.MsrExitReason.UNKNOWN
    read.value = 0x1122334455667788
    read.error = True
    assert run[48:56] == (0x1122334455667788).to_bytes(8, "little") and run[32] == 1
    write = x86_exits.decode_exit(pretend(30, "<B7xIIQ", 0, 4, 0x40000108, 1))
    assert isinstance(write, x86_exits.WrmsrExit) and (write.index, write.value, write.error) == (0x40000108, 1, False)


def test_emulation_failure_names_the_instruction() -> None:
    code = bytes.fromhex("660fefc0").ljust(15, b"\x90")
    words = [1, int.from_bytes(bytes([4]) + code[:7], "little"), int.from_bytes(code[7:], "little")]
    error = x86_exits.decode_exit(pretend(17, "<II5Q", 1, 5, *words, 0, 0))
    assert isinstance(error, exits.InternalError)
    assert x86_exits.instruction_bytes(error) == code[:4]
    assert x86_exits.instruction_bytes(exits.InternalError(2, (1, 2, 3))) == b""


def test_every_reason_has_a_class() -> None:
    known = set(x86_exits.DECODERS)
    assert known == {reason.value for reason in x86_exits.ExitReason} - {x86_exits.ExitReason.UNKNOWN}
    exit = x86_exits.decode_exit(pretend(200, "<Q", 7))
    assert isinstance(exit, exits.UnknownExit) and exit.number == 200 and exit.raw[0] == 7


def test_other_exits() -> None:
    hypercall = x86_exits.decode_exit(run := pretend(3, "<Q6QQQ", 12, 1, 2, 3, 4, 5, 6, 0, 1))
    assert isinstance(hypercall, x86_exits.HypercallExit) and (hypercall.nr, hypercall.args) == (12, (1, 2, 3, 4, 5, 6))
    hypercall.ret = -1
    assert run[88:96] == b"\xff" * 8 and hypercall.ret == (1 << 64) - 1
    assert x86_exits.decode_exit(pretend(4, "<IIQQQ", 3, 0, 0x1234, 0xFFFF0FF0, 0x400)) == x86_exits.DebugExit(3, 0x1234, 0xFFFF0FF0, 0x400)
    assert x86_exits.decode_exit(pretend(9, "<QI", 0x8000_0021, 1)) == exits.FailEntry(0x8000_0021, 1)
    assert x86_exits.decode_exit(pretend(26, "<B", 0x31)) == x86_exits.IoapicEoi(0x31)
    assert x86_exits.decode_exit(pretend(37, "<I", 1)) == x86_exits.NotifyExit(1)
    mmio = x86_exits.decode_exit(pretend(6, "<Q8sIB", 0x1000, b"\1\2\3\4", 4, 1))
    assert isinstance(mmio, exits.MmioExit) and (mmio.phys_addr, mmio.value) == (0x1000, 0x04030201)
