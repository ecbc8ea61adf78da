"""The ABI tables: against the kernel's own headers where a cross compiler is there, and against themselves."""

from __future__ import annotations

import ctypes
import errno
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trapline.abi import arm64, arm64_vm, exits, irq, memory, stats, vcpu, vm, x86
from trapline.abi.caps import Cap, c_name
from trapline.abi.document import document
from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import Structure, struct, u32, u64
from trapline.abi.tables import calls, find, structures

CALLS = calls("arm64")
CONSTANTS = {
    **{c_name(cap): cap.value for cap in Cap},
    **{f"KVM_EXIT_{reason.name}": reason.value for reason in exits.ExitReason},
    **{f"KVM_SYSTEM_EVENT_{kind.name}": kind.value for kind in exits.SystemEventType},
    **{f"KVM_IRQFD_FLAG_{flag.name}": flag.value for flag in irq.IrqfdFlag},
    **{f"KVM_IRQ_ROUTING_{kind.name}": kind.value for kind in irq.RouteType},
    "KVM_MSI_VALID_DEVID": irq.MSI_VALID_DEVID,
    **{f"KVM_MEM_{flag.name}": flag.value for flag in vm.MemoryFlag},
    **{f"KVM_STATS_TYPE_{kind.name}": kind.value for kind in stats.StatType},
    **{f"KVM_STATS_UNIT_{unit.name}": unit.value << stats.UNIT_SHIFT for unit in stats.StatUnit},
    "KVM_CREATE_DEVICE_TEST": vm.CREATE_DEVICE_TEST,
    "KVM_MP_STATE_STOPPED": vcpu.MpState.STOPPED.value,
    "KVM_MP_STATE_SUSPENDED": vcpu.MpState.SUSPENDED.value,
    "KVM_DIRTY_GFN_F_DIRTY": memory.DirtyGfnFlag.DIRTY.value,
    "KVM_DIRTY_GFN_F_RESET": memory.DirtyGfnFlag.RESET.value,
    "KVM_DIRTY_LOG_INITIALLY_SET": memory.ManualProtect.INITIALLY_SET.value,
}
X86_CONSTANTS = {"KVM_DIRTY_LOG_PAGE_OFFSET": memory.DIRTY_LOG_PAGE_OFFSET}
"""The page offset is the same on arm64, whose headers before 6.2 had none."""

ARM64_CONSTANTS = {
    **{f"KVM_ARM_VCPU_{feature.name}": feature.value for feature in arm64.Feature},
    **{f"KVM_DEV_ARM_VGIC_GRP_{group.name}": group.value for group in arm64.VgicGroup},
    **{name: bit.value for name, bit in zip(("KVM_ARM_DEV_EL1_VTIMER", "KVM_ARM_DEV_EL1_PTIMER", "KVM_ARM_DEV_PMU"), exits.DeviceIrqLevel)},
    "KVM_REG_ARM_TIMER_CTL": arm64.REG_TIMER_CTL,
    "KVM_REG_ARM_TIMER_CVAL": arm64.REG_TIMER_CVAL,
    "KVM_REG_ARM_TIMER_CNT": arm64.REG_TIMER_CNT,
    "KVM_REG_ARM_PTIMER_CTL": arm64.REG_PTIMER_CTL,
    "KVM_REG_ARM_PTIMER_CVAL": arm64.REG_PTIMER_CVAL,
    "KVM_REG_ARM_PTIMER_CNT": arm64.REG_PTIMER_CNT,
    "KVM_REG_ARM_PSCI_VERSION": arm64.REG_PSCI_VERSION,
    "KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION": arm64.VgicAddr.V3_REDIST_REGION.value,
    "KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES": arm64.VgicCtrl.SAVE_PENDING_TABLES.value,
}
C_PATHS = {
    arm64.VcpuEvents: "exception.serror_pending exception.serror_has_esr exception.ext_dabt_pending exception.serror_esr",
    arm64_vm.Regs: "regs.sp regs.pc regs.pstate fp_regs.vregs fp_regs.fpsr fp_regs.fpcr",
    x86.VcpuEvents: "triple_fault.pending:triple_fault_pending",
    x86.GuestDebug: "arch.debugreg",
    exits.KvmRun: "mmio:union kvm_valid_regs kvm_dirty_regs s.regs.device_irq_level",
}
"""Where C has a field that is inside of another one or has another name (path, colon, our name)."""

NEWER_THAN_CALLS = {"kvm_smccc_filter": "KVM_ARM_VM_SMCCC_CTRL"}
"""Structures that no call takes and that an older header lacks, with a macro that came with them."""

TOOLCHAINS = {
    "arm64": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64"], "gcc-aarch64-linux-gnu and qemu-user"),
    "x86": (["gcc"], [], "gcc, on an x86-64 host"),
}


def c_fields(cls: type, arch: str) -> dict[str, str]:
    """The fields to compare, each with its path in C."""
    paths = {}
    for path in C_PATHS.get(cls, "").split():
        path, _, name = path.partition(":")
        paths[name or path.rpartition(".")[2]] = path
    absent = {"device_irq_level"} if arch == "x86" else set()
    names = [name for name, _ in cls._fields_ if not name.startswith(("pad", "reserved")) and name not in absent]
    return {name: paths.get(name, name) for name in names}


def structures_of(arch: str) -> Iterator[type[Structure]]:
    """The structures that C knows on an architecture."""
    other = "x86" if arch == "arm64" else "arm64"
    return (cls for module, cls in structures() if cls.c_name and not module.startswith(other))


def guard(cls: type[Structure], arch: str) -> str:
    """A macro that is defined if the header knows the structure."""
    users = [call.name for call in calls(arch) if call.struct is cls]
    return NEWER_THAN_CALLS.get(cls.c_name) or (users[0] if users else "KVMIO")


def program(arch: str) -> str:
    """C that prints one `name value` line for everything the header knows."""
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/kvm.h>", "int main(void) {"]
    for name in [call.name for call in calls(arch)] + list(CONSTANTS) + list(ARM64_CONSTANTS if arch == "arm64" else X86_CONSTANTS):
        # Capabilities and calls are macros, the rest may be enumerators: only macros can be tested for.
        body = f'printf("{name} %llu\\n", (unsigned long long)({name}));'
        lines += [f"#ifdef {name}", body, "#endif"]
    for cls in structures_of(arch):
        lines.append(f"#ifdef {guard(cls, arch)}")
        kind = cls.c_name if cls.c_name.startswith("union ") else f"struct {cls.c_name}"
        lines.append(f'printf("sizeof.{cls.c_name} %zu\\n", sizeof({kind}));')
        for field, path in c_fields(cls, arch).items():
            lines.append(f'printf("{cls.c_name}.{field} %zu\\n", offsetof({kind}, {path}));')
        lines.append("#endif")
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module", params=["arm64", "x86"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, int]]:
    """An architecture, and what its <linux/kvm.h> says."""
    arch = request.param
    compiler, runner, packages = TOOLCHAINS[arch]
    if not all(shutil.which(tool) for tool in (compiler[0], *runner)) or (arch == "x86" and platform.machine() != "x86_64"):
        pytest.skip(f"install {packages} to compare the ABI tables with <linux/kvm.h> of {arch}")
    folder: Path = tmp_path_factory.mktemp("abi")
    source, binary = folder / "abi.c", folder / "abi"
    source.write_text(program(arch))
    subprocess.run([*compiler, "-o", binary, source], check=True, timeout=120)
    output = subprocess.run([*runner, binary], check=True, capture_output=True, text=True, timeout=60).stdout
    return arch, {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_request_numbers(kernel: tuple[str, dict[str, int]]) -> None:
    arch, values = kernel
    found = [call for call in calls(arch) if call.name in values]
    assert {call.name: f"{call.number:#x}" for call in found} == {call.name: f"{values[call.name]:#x}" for call in found}
    missing = {call.name for call in calls(arch)} - {call.name for call in found}
    assert missing <= set(MEASURED), "what an older header lacks is at least in the table below"


def test_constants(kernel: tuple[str, dict[str, int]]) -> None:
    arch, values = kernel
    declared = CONSTANTS | (ARM64_CONSTANTS if arch == "arm64" else X86_CONSTANTS)
    found = {name: value for name, value in declared.items() if name in values}
    assert found == {name: values[name] for name in found}
    assert len(found) > 80, "an older header lacks the newest capabilities, not more"


def test_layouts(kernel: tuple[str, dict[str, int]]) -> None:
    arch, values = kernel
    for cls in structures_of(arch):
        if f"sizeof.{cls.c_name}" not in values:
            continue
        if cls is not exits.KvmRun:  # grows with the header: only what is laid out below has to agree
            assert ctypes.sizeof(cls) == values[f"sizeof.{cls.c_name}"], cls.__name__
        for field in c_fields(cls, arch):
            assert getattr(cls, field).offset == values[f"{cls.c_name}.{field}"], f"{cls.__name__}.{field}"


MEASURED = {
    "KVM_GET_API_VERSION": 0xAE00, "KVM_CREATE_VM": 0xAE01, "KVM_CHECK_EXTENSION": 0xAE03, "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_CREATE_VCPU": 0xAE41, "KVM_GET_DIRTY_LOG": 0x4010AE42, "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_IRQ_LINE": 0x4008AE61, "KVM_RUN": 0xAE80, "KVM_GET_MP_STATE": 0x8004AE98, "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_SET_GUEST_DEBUG": 0x4208AE9B, "KVM_GET_VCPU_EVENTS": 0x8040AE9F, "KVM_SET_VCPU_EVENTS": 0x4040AEA0, "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_GET_ONE_REG": 0x4010AEAB, "KVM_SET_ONE_REG": 0x4010AEAC, "KVM_ARM_VCPU_INIT": 0x4020AEAE,
    "KVM_ARM_PREFERRED_TARGET": 0x8020AEAF, "KVM_GET_REG_LIST": 0xC008AEB0, "KVM_CREATE_DEVICE": 0xC00CAEE0,
    "KVM_SET_DEVICE_ATTR": 0x4018AEE1, "KVM_GET_DEVICE_ATTR": 0x4018AEE2, "KVM_HAS_DEVICE_ATTR": 0x4018AEE3,
    "KVM_SET_USER_MEMORY_REGION2": 0x40A0AE49, "KVM_CREATE_IRQCHIP": 0xAE60, "KVM_REGISTER_COALESCED_MMIO": 0x4010AE67,
    "KVM_UNREGISTER_COALESCED_MMIO": 0x4010AE68, "KVM_SET_GSI_ROUTING": 0x4008AE6A, "KVM_IRQFD": 0x4020AE76,
    "KVM_IOEVENTFD": 0x4040AE79, "KVM_GET_REGS": 0x8360AE81, "KVM_SET_REGS": 0x4360AE82, "KVM_GET_SREGS": 0x8000AE83,
    "KVM_SET_SREGS": 0x4000AE84, "KVM_TRANSLATE": 0xC018AE85, "KVM_SET_SIGNAL_MASK": 0x4004AE8B, "KVM_GET_FPU": 0x8000AE8C,
    "KVM_SET_FPU": 0x4000AE8D, "KVM_SIGNAL_MSI": 0x4020AEA5, "KVM_ARM_SET_DEVICE_ADDR": 0x4010AEAB,
    "KVM_ARM_MTE_COPY_TAGS": 0x8030AEB4, "KVM_ARM_SET_COUNTER_OFFSET": 0x4010AEB5, "KVM_ARM_GET_REG_WRITABLE_MASKS": 0x8040AEB6,
    "KVM_CLEAR_DIRTY_LOG": 0xC018AEC0, "KVM_ARM_VCPU_FINALIZE": 0x4004AEC2, "KVM_RESET_DIRTY_RINGS": 0xAEC7,
    "KVM_GET_STATS_FD": 0xAECE, "KVM_SET_MEMORY_ATTRIBUTES": 0x4020AED2, "KVM_CREATE_GUEST_MEMFD": 0xC040AED4,
    "KVM_PRE_FAULT_MEMORY": 0xC040AED5,
}  # fmt: skip


def test_numbers_without_headers() -> None:
    assert {call.name: call.number for call in CALLS} == MEASURED


def test_register_ids() -> None:
    assert arm64.reg_x(30) == 0x6030_0000_0010_003C
    assert arm64.REG_PC == 0x6030_0000_0010_0040
    assert arm64.reg_v(1) == 0x6040_0000_0010_0058
    assert arm64.REG_FPCR == 0x6020_0000_0010_00D5
    assert arm64.REG_TIMER_CNT == 0x6030_0000_0013_DF1A
    assert arm64.reg_bytes(arm64.reg_v(0)) == 16
    assert arm64.irq_word(arm64.IrqType.PPI, 27, 0x203) == 0x2203_001B


def test_every_call_is_documented() -> None:
    for call in CALLS:
        assert call.doc.endswith("."), call.name
        assert all(code in errno.errorcode and cause for code, cause in call.causes.items())
        assert call.name in call.describe() and f"{call.number:#010x}" in call.describe()


@pytest.mark.parametrize("arch", ["arm64", "x86"])
def test_numbers_are_unique_per_file_kind(arch: str) -> None:
    seen: dict[tuple[str, int], Ioctl] = {}
    for call in calls(arch):
        for kind in call.kinds:
            assert seen.setdefault((kind, call.number), call) is call


def test_what_a_field_means_is_declared_with_it() -> None:
    assert vm.UserspaceMemoryRegion.meanings["flags"] is vm.MemoryFlag
    assert vcpu.MpStateArgument.meanings["mp_state"] is vcpu.MpState


def test_calls_are_found_by_name() -> None:
    assert find("set_user_memory_region") == find("KVM_SET_USER_MEMORY_REGION") == [vm.KVM_SET_USER_MEMORY_REGION]
    assert find("nonsense") == []


def test_wrong_size_is_refused() -> None:
    with pytest.raises(TypeError, match="8 bytes, declared as 12"):

        @struct(size=12, c_name="x")
        class Wrong(Structure):
            a: u32
            b: u32


def test_struct_is_readable() -> None:
    @struct(size=16, c_name="pair")
    class Pair(Structure):
        first: u64
        second: u64

    assert repr(Pair(1, 0xFF)) == "Pair(first=0x1, second=0xff)"


@pytest.mark.parametrize(
    "exit",
    [
        exits.SystemEvent(exits.SystemEventType.RESET, (1, 2)),
        exits.InternalError(4, (1, 2, 3)),
        exits.NisvExit(0x40, 0x900_0000),
        exits.MemoryFault(8, 0x1000, 0x2000),
        exits.SeaExit(1, 2, 3, 4),
        exits.DebugExit(0xF2_0000_0000 | 0x3C00_0000, 0x1234),
        exits.HypercallExit(0x8400_0000, 1),
        exits.FailEntry(1, 3),
        exits.IntrExit(),
    ],
)
def test_exits_survive_kvm_run(exit: exits.Exit) -> None:
    run = bytearray(ctypes.sizeof(exits.KvmRun))
    exits.encode_exit(run, exit)
    assert exits.decode_exit(run) == exit
    assert exits.KvmRun.from_buffer(run).exit_reason == exit.reason


def test_unknown_exit_is_passed_on() -> None:
    run = bytearray(ctypes.sizeof(exits.KvmRun))
    run[exits.EXIT_REASON_OFFSET] = 99
    run[exits.UNION_OFFSET] = 7
    exit = exits.decode_exit(run)
    assert isinstance(exit, exits.UnknownExit) and exit.number == 99 and exit.raw[0] == 7


def test_answering_a_write_is_refused() -> None:
    with pytest.raises(AttributeError):
        exits.MmioExit(0, b"\0", 1, True).data = b"\1"


def test_the_reference_is_fresh() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "abi.md"
    assert page.read_text(encoding="utf-8") == document(), "run: python -m trapline.abi.document > docs/abi.md"
