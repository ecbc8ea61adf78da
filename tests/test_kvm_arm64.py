"""What only arm64's KVM has: identification, hypercalls and who serves them, counters' offsets, stolen time."""

from __future__ import annotations

import ctypes
import errno
import time

import pytest

from tests.fake_engine import mmio
from tests.test_kvm_calls import code_of
from tests.test_kvm_run import UART, Guest, call, signed
from tests.test_sysreg_exits import sysreg
from trapline.abi import arm64
from trapline.abi.arm64 import Feature
from trapline.abi.arm64_vm import (
    FEATURE_ID_MASKS,
    KVM_ARM_GET_REG_WRITABLE_MASKS,
    KVM_ARM_SET_COUNTER_OFFSET,
    KVM_ARM_VCPU_FINALIZE,
    CounterOffset,
    FeatureNumber,
    HypercallFlag,
    RegMaskRange,
    SmcccAction,
)
from trapline.abi.caps import Cap
from trapline.abi.exits import HypercallExit, MmioExit
from trapline.arm64.regs import CNTP_CVAL_EL0, HCR_EL2, HCRX_EL2, TABLE, VPIDR_EL2
from trapline.backends.identity import AIDR, MIDR, REVIDR
from trapline.errors import NotSupported

ISAR0, DFR0 = TABLE["ID_AA64ISAR0_EL1"], TABLE["ID_AA64DFR0_EL1"]
CORTEX_A53 = 0x410F_D034
NOT_SUPPORTED = -1
DISCOVER = 0xC600_0040


@pytest.fixture
def guest() -> Guest:
    return Guest()


def run_once(guest: Guest, *steps) -> None:
    guest.cpu.script = [*steps, mmio(True, UART)]
    assert isinstance(guest.vcpu.run(), MmioExit)


def answer(guest: Guest, *arguments: int) -> list[int]:
    """X0 to X3 after a hypercall."""
    run_once(guest, call(*arguments))
    return [signed(getattr(guest.vcpu.regs, f"x{n}")) for n in range(4)]


# --- identification ---------------------------------------------------------------------------------------------------------------


def test_a_feature_can_be_hidden_for_all_vcpus() -> None:
    guest = Guest(vcpus=2)
    before = ISAR0(guest.vcpu.get_one_reg(ISAR0.one_reg_id))
    guest.vcpu.set_id_register("ID_AA64ISAR0_EL1", RNDR=0, Atomic=0)
    for vcpu in guest.vcpus:
        assert ISAR0(vcpu.get_one_reg(ISAR0.one_reg_id)) == before.replace(RNDR=0, Atomic=0)
    run_once(guest, sysreg(ISAR0.enc, False, rt=3))
    assert guest.vcpu.regs.x3 == before.replace(RNDR=0, Atomic=0)


def test_a_hidden_feature_can_come_back(guest: Guest) -> None:
    before = guest.vcpu.get_one_reg(ISAR0.one_reg_id)
    guest.vcpu.set_id_register("ID_AA64ISAR0_EL1", 0)
    guest.vcpu.set_id_register("ID_AA64ISAR0_EL1", before)
    assert guest.vcpu.get_one_reg(ISAR0.one_reg_id) == before


@pytest.mark.parametrize(
    ("register", "fields", "says"),
    [
        ("ID_AA64ISAR0_EL1", {"TME": 1}, "TME 0x0 -> 0x1"),
        ("ID_AA64PFR0_EL1", {"SVE": 1}, "SVE 0x0 -> 0x1"),
        ("ID_AA64PFR0_EL1", {"FP": 15}, "FP"),
        ("ID_AA64MMFR0_EL1", {"PARange": 15}, "PARange"),
        ("ID_AA64DFR0_EL1", {"DebugVer": 5}, "DebugVer"),
        ("ID_AA64DFR0_EL1", {"DoubleLock": 0}, "DoubleLock 0xf -> 0x0"),
        ("ID_AA64AFR0_EL1", {}, ""),
    ],
)
def test_a_lie_is_refused(guest: Guest, register: str, fields: dict[str, int], says: str) -> None:
    before = guest.vcpu.get_one_reg(TABLE[register].one_reg_id)
    with pytest.raises(NotSupported, match=f"{register}.*{says}.*lie"):
        guest.vcpu.set_id_register(register, None if fields else 1, **fields)
    assert guest.vcpu.get_one_reg(TABLE[register].one_reg_id) == before


def test_id_registers_are_fixed_once_the_vm_ran(guest: Guest) -> None:
    run_once(guest)
    value = guest.vcpu.get_one_reg(ISAR0.one_reg_id)
    guest.vcpu.set_one_reg(ISAR0.one_reg_id, value)
    assert code_of(guest.vcpu.set_one_reg, ISAR0.one_reg_id, 0) == errno.EBUSY
    with pytest.raises(NotSupported, match="has run"):
        guest.vcpu.set_id_register("ID_AA64ISAR0_EL1", RNDR=0)


def test_hidden_memory_copies_are_undefined(guest: Guest) -> None:
    guest.vcpu.set_id_register("ID_AA64ISAR2_EL1", MOPS=0)
    run_once(guest)
    assert not guest.cpu.state.sysreg[HCRX_EL2.slot] & HCRX_EL2.MSCEn.mask


def test_writable_masks_tell_what_can_be_written() -> None:
    """Every bit of a mask can be cleared (a signed field: set to all ones) or is 0 already; no bit outside can be changed."""
    guest = Guest()
    masks = guest.vm.writable_masks()
    assert len(masks) == FEATURE_ID_MASKS == 192 and any(masks)
    for reg in TABLE:
        op0, op1, crn, crm, op2 = reg.enc
        if op0 != 3 or crn or op1 not in (0, 1, 3) or not 1 <= crm <= 7:
            continue
        mask = masks[{0: 0, 1: 64, 3: 128}[op1] + crm * 8 + op2]
        value = guest.vcpu.get_one_reg(reg.one_reg_id)
        for bit in range(64):
            if not mask >> bit & 1:
                assert code_of(guest.vcpu.set_one_reg, reg.one_reg_id, value ^ 1 << bit) == errno.EINVAL, (reg.name, bit)


def test_writable_masks_argument(guest: Guest) -> None:
    masks = (ctypes.c_uint64 * 192)()
    good = ctypes.addressof(masks)
    unknown, reserved = RegMaskRange(good, 1), RegMaskRange(good, 0)
    reserved.reserved[12] = 1
    for argument, code in ((RegMaskRange(good), 0), (unknown, errno.EINVAL), (reserved, errno.EINVAL), (RegMaskRange(0), errno.EFAULT)):
        assert code_of(guest.vm.backend.ioctl, guest.vm.file, KVM_ARM_GET_REG_WRITABLE_MASKS, argument) == code


def test_implementation_is_fixed_unless_asked(guest: Guest) -> None:
    assert guest.vm.check_extension(Cap.ARM_WRITABLE_IMP_ID_REGS) == 1
    for reg_id in (MIDR, REVIDR, AIDR):
        value = guest.vcpu.get_one_reg(reg_id)
        guest.vcpu.set_one_reg(reg_id, value)
        assert code_of(guest.vcpu.set_one_reg, reg_id, value ^ 1) == errno.EINVAL
    assert code_of(guest.vm.enable_cap, Cap.ARM_WRITABLE_IMP_ID_REGS) == errno.EINVAL, "there are vCPUs"


def test_implementation_can_be_another() -> None:
    guest = Guest(vcpus=0)
    guest.vm.identify(midr=CORTEX_A53, revidr=0x180, aidr=5)
    guest.vcpus = [guest.vm.create_vcpu(), guest.vm.create_vcpu()]
    guest.vcpu, guest.cpu = guest.vcpus[0], guest.engine.cpus[0]
    assert [guest.vcpus[1].get_one_reg(reg_id) for reg_id in (MIDR, REVIDR, AIDR)] == [CORTEX_A53, 0x180, 5]
    assert code_of(guest.vcpu.set_one_reg, MIDR, 1 << 32) == errno.EINVAL
    masks = guest.vm.writable_masks()
    assert (masks[0], masks[6], masks[64 + 7]) == ((1 << 32) - 1, (1 << 64) - 1, (1 << 64) - 1)
    run_once(guest, sysreg((3, 0, 0, 0, 6), False, rt=1), sysreg((3, 1, 0, 0, 7), False, rt=2))
    stored = guest.cpu.state.sysreg
    assert (stored[VPIDR_EL2.slot], guest.vcpu.regs.x1, guest.vcpu.regs.x2) == (CORTEX_A53, 0x180, 5)
    assert stored[HCR_EL2.slot] & HCR_EL2.TID1.mask
    assert code_of(guest.vcpu.set_one_reg, MIDR, 0x410F_D080) == errno.EBUSY


@pytest.mark.parametrize("midr", [0x4100_D034, 1 << 40 | CORTEX_A53])
def test_impossible_identity(midr: int) -> None:
    with pytest.raises(NotSupported, match="MIDR_EL1"):
        Guest(vcpus=0).vm.identify(midr=midr)


def test_identity_comes_before_vcpus(guest: Guest) -> None:
    with pytest.raises(NotSupported, match="before"):
        guest.vm.identify(midr=CORTEX_A53)


def test_guest_discovers_the_implementations_it_may_run_on() -> None:
    """The protocol of Linux's Documentation/virt/kvm/arm/hypercalls.rst."""
    guest = Guest(vcpus=0)
    guest.vm.identify(others=[(CORTEX_A53, 0x180, 0), (0x410F_D080, 0, 1)])
    guest.vcpu = guest.vm.create_vcpu()
    guest.cpu = guest.engine.cpus[0]
    assert answer(guest, 0x8600_0000)[2] == 3, "both functions are announced"
    assert answer(guest, DISCOVER)[:3] == [0, 0x1_0000, 2]
    assert answer(guest, DISCOVER + 1, 0) == [0, CORTEX_A53, 0x180, 0]
    assert answer(guest, DISCOVER + 1, 1) == [0, 0x410F_D080, 0, 1]
    assert answer(guest, DISCOVER + 1, 2)[0] == -3


# --- hypercalls -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "count", "action", "code"),
    [
        (0xC600_0000, 1, SmcccAction.DENY, 0),
        (0xC600_0000, 0, SmcccAction.DENY, errno.EINVAL),
        (0xFFFF_FFFF, 1, SmcccAction.DENY, 0),
        (0xFFFF_FFFF, 2, SmcccAction.DENY, errno.EINVAL),
        (0xC600_0000, 1, 3, errno.EINVAL),
        (0x8000_0000, 1, SmcccAction.HANDLE, errno.EEXIST),
        (0x7FFF_FFFF, 2, SmcccAction.DENY, errno.EEXIST),
        (0xC000_FFFF, 1, SmcccAction.DENY, errno.EEXIST),
        (0x8400_0000, 0x20, SmcccAction.FWD_TO_USER, 0),
    ],
)
def test_filter_arguments(guest: Guest, base: int, count: int, action: int, code: int) -> None:
    assert code_of(guest.vm.set_smccc_filter, base, count, action) == code


def test_filter_ranges_do_not_overlap_and_come_before_the_first_run(guest: Guest) -> None:
    guest.vm.set_smccc_filter(0xC600_0000, 16, SmcccAction.DENY)
    assert code_of(guest.vm.set_smccc_filter, 0xC600_000F, 1, SmcccAction.DENY) == errno.EEXIST
    guest.vm.set_smccc_filter(0xC600_0010, 1, SmcccAction.DENY)
    run_once(guest)
    assert code_of(guest.vm.set_smccc_filter, 0xC700_0000, 1, SmcccAction.DENY) == errno.EBUSY


def test_denied_call(guest: Guest) -> None:
    guest.vm.set_smccc_filter(0x8400_0000, 1, SmcccAction.DENY)
    assert answer(guest, 0x8400_0000) == [NOT_SUPPORTED, 0, 0, 0]
    assert answer(guest, 0x8400_0006)[0] == 2, "its neighbour is served as before"


@pytest.mark.parametrize("smc", [False, True])
def test_forwarded_call(guest: Guest, smc: bool) -> None:
    """The PC is behind the instruction, the arguments are in the registers, and what userspace puts there are the results."""
    guest.vm.set_smccc_filter(0xC400_0003, 1, SmcccAction.FWD_TO_USER)
    guest.vcpu.regs.pc = 0x1000
    guest.cpu.script = [call(0xC400_0003, 7, 8, smc=smc), mmio(True, UART)]
    exit = guest.vcpu.run()
    assert exit == HypercallExit(0xC400_0003, HypercallFlag.SMC if smc else 0)
    assert guest.vcpu.regs.pc == (0x1004 if smc else 0x1000), "an HVC's trap comes after it"
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.x2) == (7, 8)
    guest.vcpu.regs.x0 = 0x77
    assert isinstance(guest.vcpu.run(), MmioExit)
    assert guest.vcpu.regs.x0 == 0x77


def test_services_can_be_switched_off(guest: Guest) -> None:
    assert guest.vcpu.get_one_reg(arm64.REG_STD_BMAP) == 1
    guest.vcpu.set_one_reg(arm64.REG_STD_BMAP, 0)
    assert answer(guest, 0x8400_0050)[0] == NOT_SUPPORTED
    assert code_of(guest.vcpu.set_one_reg, arm64.REG_STD_BMAP, 1) == errno.EBUSY
    guest.vcpu.set_one_reg(arm64.REG_STD_BMAP, 0)


def test_service_bitmaps(guest: Guest) -> None:
    registers = (arm64.REG_STD_BMAP, arm64.REG_STD_HYP_BMAP, arm64.REG_VENDOR_HYP_BMAP, arm64.REG_VENDOR_HYP_BMAP_2)
    assert [guest.vcpu.get_one_reg(reg_id) for reg_id in registers] == [1, 1, 3, 0]
    assert set(registers) <= set(guest.vcpu.reg_list())
    for reg_id, beyond in zip(registers, (2, 2, 4, 4), strict=True):
        assert code_of(guest.vcpu.set_one_reg, reg_id, beyond) == errno.EINVAL


@pytest.mark.parametrize(
    ("reg_id", "level", "good", "bad"),
    [
        (arm64.REG_WORKAROUND_1, 2, (0, 1, 2), (3, 16, 1 << 32)),
        (arm64.REG_WORKAROUND_2, 3, (0, 1, 2, 3, 2 | 16), (4, 16, 3 | 16, 32)),
        (arm64.REG_WORKAROUND_3, 2, (0, 1, 2), (3,)),
    ],
)
def test_workaround_levels(guest: Guest, reg_id: int, level: int, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    assert guest.vcpu.get_one_reg(reg_id) == level
    assert [code_of(guest.vcpu.set_one_reg, reg_id, value) for value in good] == [0] * len(good)
    assert [code_of(guest.vcpu.set_one_reg, reg_id, value) for value in bad] == [errno.EINVAL] * len(bad)
    assert guest.vcpu.get_one_reg(reg_id) == level


def test_hypervisor_says_who_it_is(guest: Guest) -> None:
    words = [value & 0xFFFF_FFFF for value in answer(guest, 0x8600_FF01)]
    uuid = b"".join(word.to_bytes(4, "little") for word in words)
    assert uuid.hex() == "28b46fb62ec511e9a9ca4b564d003a74", "the one by which Linux knows KVM"
    assert answer(guest, 0x8600_0000) == [3, 0, 0, 0]


def test_clock_for_the_guest(guest: Guest) -> None:
    before = time.time_ns()
    high, low, count_high, count_low = answer(guest, 0x8600_0001, 0)
    assert before <= high << 32 | low <= time.time_ns()
    assert 0 < (count_high << 32 | count_low) <= guest.vcpu.get_one_reg(arm64.REG_TIMER_CNT)
    assert answer(guest, 0x8600_0001, 2)[0] == NOT_SUPPORTED


# --- counters ---------------------------------------------------------------------------------------------------------------------


def test_counter_offset_argument(guest: Guest) -> None:
    ioctl, file = guest.vm.backend.ioctl, guest.vm.file
    assert code_of(ioctl, file, KVM_ARM_SET_COUNTER_OFFSET, CounterOffset(5, 1)) == errno.EINVAL
    core = guest.vm.backend.system.files.get(guest.vcpu.file)
    with core.mutex:
        assert code_of(guest.vm.set_counter_offset, 5) == errno.EBUSY


def test_counter_offset_moves_both_counters_for_good(guest: Guest) -> None:
    real = guest.vcpu.get_one_reg(arm64.REG_PTIMER_CNT)
    guest.vm.set_counter_offset(real - 1000)
    for reg_id in (arm64.REG_TIMER_CNT, arm64.REG_PTIMER_CNT):
        first = guest.vcpu.get_one_reg(reg_id)
        assert 1000 <= first < 1000 + 62_500_000 * 60
        guest.vcpu.set_one_reg(reg_id, 1 << 60)
        assert first <= guest.vcpu.get_one_reg(reg_id) < 1 << 59, "ignored, as the manual says"


def test_physical_timer_of_a_guest_with_an_offset(guest: Guest) -> None:
    guest.vm.set_counter_offset(1 << 40)
    guest.vcpu.set_one_reg(arm64.REG_PTIMER_CVAL, 500)
    assert guest.vcpu.get_one_reg(arm64.REG_PTIMER_CVAL) == 500
    assert guest.cpu.state.sysreg[CNTP_CVAL_EL0.slot] == 500 + (1 << 40), "the machine compares with its own counter"
    guest.vcpu.regs.x1 = 700
    run_once(
        guest,
        sysreg((3, 3, 14, 2, 2), True, rt=1),
        sysreg((3, 3, 14, 2, 2), False, rt=2),
        sysreg((3, 3, 14, 0, 1), False, rt=3),
        sysreg((3, 3, 14, 2, 0), False, rt=4),
    )
    assert guest.cpu.state.sysreg[CNTP_CVAL_EL0.slot] == 700 + (1 << 40) and guest.vcpu.regs.x2 == 700
    lag = guest.vcpu.get_one_reg(arm64.REG_PTIMER_CNT) - guest.vcpu.regs.x3
    assert 0 <= lag < 62_500_000 * 60
    assert 0 <= (700 - guest.vcpu.regs.x4 - guest.vcpu.regs.x3) & 0xFFFF_FFFF < 62_500_000 * 60, "TVAL is CVAL less the counter"


def test_reset_keeps_the_offset(guest: Guest) -> None:
    guest.vm.set_counter_offset(1 << 40)
    guest.vcpu.init()
    assert guest.vcpu.get_one_reg(arm64.REG_PTIMER_CVAL) == 0


# --- stolen time ------------------------------------------------------------------------------------------------------------------

RAM = 0x4000_0000
PV_TIME_FEATURES, PV_TIME_ST = 0xC500_0020, 0xC500_0021


def test_stolen_time_attribute(guest: Guest) -> None:
    assert guest.vm.check_extension(Cap.STEAL_TIME) == 1
    guest.vm.add_memory(RAM, 0x1_0000)

    def put(address: int) -> int:
        return code_of(guest.vcpu.set_attr, arm64.VcpuGroup.PVTIME_CTRL, 0, address, 8)

    assert guest.vcpu.has_attr(arm64.VcpuGroup.PVTIME_CTRL, 0) and not guest.vcpu.has_attr(arm64.VcpuGroup.PVTIME_CTRL, 1)
    assert [put(address) for address in (RAM + 8, 0x1000, RAM + 64, RAM + 128)] == [errno.EINVAL, errno.EINVAL, 0, errno.EEXIST]
    assert guest.vcpu.get_attr(arm64.VcpuGroup.PVTIME_CTRL, 0, 8) == RAM + 64


def test_stolen_time_of_a_vm_without(guest: Guest) -> None:
    assert answer(guest, 0x8000_0001, PV_TIME_FEATURES)[0] == 0
    assert answer(guest, PV_TIME_FEATURES, PV_TIME_FEATURES)[0] == 0
    assert answer(guest, PV_TIME_FEATURES, PV_TIME_ST)[0] == NOT_SUPPORTED
    assert answer(guest, PV_TIME_ST)[0] == NOT_SUPPORTED


def test_stolen_time_is_added_in_guest_memory(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    ram = guest.vm.add_memory(RAM, 0x1_0000)
    ram[64:128] = b"\xff" * 64
    guest.vcpu.set_attr(arm64.VcpuGroup.PVTIME_CTRL, 0, RAM + 64, 8)
    world = guest.vm.backend.system.arch.world
    delay = iter((1_000_000, 1_000_000, 1_000_000, 1_700_000, 1_650_000, 1_650_500))
    monkeypatch.setattr(world, "run_delay", lambda: next(delay))
    monkeypatch.setattr("trapline.kvm.arm64.pvtime.LOOK_NS", 0)
    assert answer(guest, PV_TIME_FEATURES, PV_TIME_ST)[0] == 0
    assert answer(guest, PV_TIME_ST)[0] == RAM + 64
    assert ram[64:128] == bytes(64), "nothing before the guest asked"
    seen = []
    for _ in range(3):
        run_once(guest)
        seen.append(int.from_bytes(ram[72:80], "little"))
    assert seen == [700_000, 700_000, 700_500]


# --- the rest ---------------------------------------------------------------------------------------------------------------------


def test_finalize_has_nothing_to_complete() -> None:
    guest = Guest(vcpus=0)
    vcpu = guest.vm.create_vcpu(features=None)
    assert code_of(guest.vm.backend.ioctl, vcpu.file, KVM_ARM_VCPU_FINALIZE, FeatureNumber(4)) == errno.ENOEXEC
    vcpu.init()
    for number in (4, 5, 99):
        assert code_of(guest.vm.backend.ioctl, vcpu.file, KVM_ARM_VCPU_FINALIZE, FeatureNumber(number)) == errno.EINVAL


def test_registers_of_features_come_with_them() -> None:
    """The list is what KVM has for such a vCPU: ids of a group ascend, and there are no keys without pointer authentication."""
    guest = Guest(vcpus=0)
    plain = guest.vm.create_vcpu().reg_list()
    signing = guest.system.create_vm().create_vcpu(features=[Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC]).reg_list()
    keys = {reg.one_reg_id for reg in TABLE if reg.name.startswith("AP") and "Key" in reg.name}
    assert set(signing) - set(plain) == keys and len(keys) == 10
    system = [reg_id for reg_id in signing if reg_id & arm64.REG_GROUP_MASK == arm64.GROUP_SYSREG]
    assert system == sorted(system)
    groups = [reg_id & arm64.REG_GROUP_MASK for reg_id in signing]
    order = (arm64.GROUP_CORE, arm64.GROUP_FW, arm64.GROUP_FW_BITMAP, arm64.GROUP_SYSREG, arm64.GROUP_DEMUX)
    assert [groups.index(group) for group in order] == sorted(groups.index(group) for group in order) and set(groups) == set(order)


def test_registers_of_aarch32_are_kept_for_nobody(guest: Guest) -> None:
    """Linux saves and restores them on every machine."""
    fpexc32, dacr32 = arm64.reg_sysreg(3, 4, 5, 3, 0), arm64.reg_sysreg(3, 4, 3, 0, 0)
    assert guest.vcpu.get_one_reg(fpexc32) == 0x700
    guest.vcpu.set_one_reg(dacr32, 5)
    assert guest.vcpu.get_one_reg(dacr32) == 5
    guest.vcpu.init()
    assert guest.vcpu.get_one_reg(dacr32) == 0
