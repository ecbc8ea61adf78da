"""The ABI tables: against the kernel's own headers where a cross compiler is there, and against themselves."""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from trapline.abi import arm64, device, exits, irq, system, vcpu, vm
from trapline.abi.caps import C_NAMES, Cap
from trapline.abi.document import document
from trapline.abi.ioctl import Ioctl, declared
from trapline.abi.struct import Structure, struct, u32, u64

CALLS = declared(system, vm, irq, vcpu, device, arm64)
STRUCTS = sorted(
    {
        value
        for module in (exits, vm, irq, vcpu, device, arm64)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ctypes.Structure) and hasattr(value, "c_name")
    },
    key=lambda cls: cls.__name__,
)
CONSTANTS = {
    **{C_NAMES.get(cap, f"KVM_CAP_{cap.name}"): cap.value for cap in Cap},
    **{f"KVM_EXIT_{reason.name}": reason.value for reason in exits.ExitReason},
    **{f"KVM_SYSTEM_EVENT_{kind.name}": kind.value for kind in exits.SystemEventType},
    **{f"KVM_ARM_VCPU_{feature.name}": feature.value for feature in arm64.Feature},
    **{f"KVM_DEV_ARM_VGIC_GRP_{group.name}": group.value for group in arm64.VgicGroup},
    **{f"KVM_IRQFD_FLAG_{flag.name}": flag.value for flag in irq.IrqfdFlag},
    **{f"KVM_IRQ_ROUTING_{kind.name}": kind.value for kind in irq.RouteType},
    "KVM_MSI_VALID_DEVID": irq.MSI_VALID_DEVID,
    "KVM_MEM_LOG_DIRTY_PAGES": vm.MEM_LOG_DIRTY_PAGES,
    "KVM_MEM_READONLY": vm.MEM_READONLY,
    "KVM_MEM_GUEST_MEMFD": vm.MEM_GUEST_MEMFD,
    "KVM_CREATE_DEVICE_TEST": vm.CREATE_DEVICE_TEST,
    "KVM_MP_STATE_STOPPED": vcpu.MpState.STOPPED.value,
    "KVM_MP_STATE_SUSPENDED": vcpu.MpState.SUSPENDED.value,
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
RENAMED = {"padding1": None, "padding2": None, "union": None, "kvm_valid_regs": None, "kvm_dirty_regs": None, "device_irq_level": None}
"""Fields whose C names are other ones, or that are unions."""


def c_fields(cls: type) -> list[str]:
    names = [name for name, _ in cls._fields_ if not name.startswith(("pad", "reserved"))]
    return [name for name in names if name not in RENAMED and cls is not arm64.VcpuEvents]


def program() -> str:
    """C that prints one `name value` line for everything the header knows."""
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/kvm.h>", "int main(void) {"]
    for name in [call.name for call in CALLS] + list(CONSTANTS):
        # Capabilities and calls are macros, the rest may be enumerators: only macros can be tested for.
        body = f'printf("{name} %llu\\n", (unsigned long long)({name}));'
        lines += [f"#ifdef {name}", body, "#endif"]
    for cls in STRUCTS:
        lines.append(f'printf("sizeof.{cls.c_name} %zu\\n", sizeof(struct {cls.c_name}));')
        for field in c_fields(cls):
            lines.append(f'printf("{cls.c_name}.{field} %zu\\n", offsetof(struct {cls.c_name}, {field}));')
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module")
def kernel_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    for tool, package in (("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), ("qemu-aarch64", "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: install Debian's {package} to compare the ABI tables with <linux/kvm.h>")
    folder: Path = tmp_path_factory.mktemp("abi")
    source, binary = folder / "abi.c", folder / "abi"
    source.write_text(program())
    subprocess.run(["aarch64-linux-gnu-gcc", "-static", "-o", binary, source], check=True, timeout=120)
    output = subprocess.run(["qemu-aarch64", binary], check=True, capture_output=True, text=True, timeout=60).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_request_numbers(kernel_values: dict[str, int]) -> None:
    found = [call for call in CALLS if call.name in kernel_values]
    assert {call.name: call.number for call in found} == {call.name: kernel_values[call.name] for call in found}
    assert len(found) == len(CALLS)


def test_constants(kernel_values: dict[str, int]) -> None:
    found = {name: value for name, value in CONSTANTS.items() if name in kernel_values}
    assert found == {name: kernel_values[name] for name in found}
    assert len(found) > 90, "an older header lacks the newest capabilities, not more"


def test_layouts(kernel_values: dict[str, int]) -> None:
    for cls in STRUCTS:
        if cls is not exits.KvmRun:  # grows with the header: only what is laid out below has to agree
            assert ctypes.sizeof(cls) == kernel_values[f"sizeof.{cls.c_name}"], cls.__name__
        for field in c_fields(cls):
            assert getattr(cls, field).offset == kernel_values[f"{cls.c_name}.{field}"], f"{cls.__name__}.{field}"


MEASURED = {
    "KVM_GET_API_VERSION": 0xAE00, "KVM_CREATE_VM": 0xAE01, "KVM_CHECK_EXTENSION": 0xAE03, "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_CREATE_VCPU": 0xAE41, "KVM_GET_DIRTY_LOG": 0x4010AE42, "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_IRQ_LINE": 0x4008AE61, "KVM_RUN": 0xAE80, "KVM_GET_MP_STATE": 0x8004AE98, "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_SET_GUEST_DEBUG": 0x4208AE9B, "KVM_GET_VCPU_EVENTS": 0x8040AE9F, "KVM_SET_VCPU_EVENTS": 0x4040AEA0, "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_GET_ONE_REG": 0x4010AEAB, "KVM_SET_ONE_REG": 0x4010AEAC, "KVM_ARM_VCPU_INIT": 0x4020AEAE,
    "KVM_ARM_PREFERRED_TARGET": 0x8020AEAF, "KVM_GET_REG_LIST": 0xC008AEB0, "KVM_CREATE_DEVICE": 0xC00CAEE0,
    "KVM_SET_GSI_ROUTING": 0x4008AE6A, "KVM_IRQFD": 0x4020AE76, "KVM_IOEVENTFD": 0x4040AE79, "KVM_SIGNAL_MSI": 0x4020AEA5,
    "KVM_SET_DEVICE_ATTR": 0x4018AEE1, "KVM_GET_DEVICE_ATTR": 0x4018AEE2, "KVM_HAS_DEVICE_ATTR": 0x4018AEE3,
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


def test_numbers_are_unique_per_file_kind() -> None:
    seen: dict[tuple[str, int], Ioctl] = {}
    for call in CALLS:
        for kind in call.kinds:
            assert seen.setdefault((kind, call.number), call) is call


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
    page = Path(__file__).resolve().parent.parent / "docs" / "api.md"
    assert page.read_text(encoding="utf-8") == document(), "run: python -m trapline.abi.document > docs/api.md"
