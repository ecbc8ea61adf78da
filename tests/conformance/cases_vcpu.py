"""vCPUs: running, states, registers, events; and what only arm64 has of that."""

from __future__ import annotations

from errno import E2BIG, EBUSY, EEXIST, EINTR, EINVAL, ENODEV, ENOENT, ENOEXEC, ENOSYS, ENXIO

from tests.conformance.cases_irq import gic
from tests.conformance.cases_system import same, true
from tests.conformance.frame import GENERIC, Cases, Trial
from tests.conformance.guest import NOWHERE
from trapline.abi import arm64, arm64_vm
from trapline.abi.arm64 import DeviceType, Feature, IrqType, VcpuGroup, irq_word
from trapline.abi.caps import Cap
from trapline.abi.device import KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR
from trapline.abi.exits import IMMEDIATE_EXIT_OFFSET, NisvExit
from trapline.abi.vcpu import (
    KVM_GET_MP_STATE,
    KVM_GET_ONE_REG,
    KVM_GET_REG_LIST,
    KVM_RUN,
    KVM_SET_MP_STATE,
    KVM_SET_ONE_REG,
    MpState,
    reg_list,
)
from trapline.abi.vm import CREATE_DEVICE_TEST, KVM_CREATE_DEVICE, KVM_IRQ_LINE

case = Cases(__name__)
INIT, FINALIZE = arm64.KVM_ARM_VCPU_INIT, arm64_vm.KVM_ARM_VCPU_FINALIZE
PSCI = 1 << Feature.PSCI_0_2


def bare(t: Trial) -> int:
    """A vCPU that was never initialised."""
    return t.add_vcpu(0, init=False)


# --- KVM_RUN ----------------------------------------------------------------------------------------------------------------------

case(KVM_RUN, EINVAL, "an argument", lambda t: t(KVM_RUN, 1), GENERIC)
case(KVM_RUN, ENOEXEC, "not initialised", lambda t: t(KVM_RUN, on=bare(t)))
case(KVM_RUN, EINVAL, "not initialised, and an argument: that first", lambda t: t(KVM_RUN, 1, on=bare(t)))


@case.of(KVM_RUN, EINTR, "immediate_exit", GENERIC)
def _immediate(t: Trial):
    t.program(("store", NOWHERE, 1))
    t.runs[t.vcpu][IMMEDIATE_EXIT_OFFSET] = 1
    yield
    t.run()


@case.of(KVM_RUN, 0, "immediate_exit taken back", GENERIC)
def _immediate_over(t: Trial):
    t.program(("store", NOWHERE, 1))
    t.runs[t.vcpu][IMMEDIATE_EXIT_OFFSET] = 1
    yield
    t.runs[t.vcpu][IMMEDIATE_EXIT_OFFSET] = 0
    t.run()


@case.of(KVM_RUN, EINTR, "immediate_exit completes the access that exited", GENERIC)
def _immediate_completes(t: Trial):
    t.program(("store", NOWHERE, 1), ("store", NOWHERE + 1, 2))
    t.run()
    t.runs[t.vcpu][IMMEDIATE_EXIT_OFFSET] = 1
    yield
    t.run()


@case.of(KVM_RUN, EINTR, "a kick before it", GENERIC)
def _kicked(t: Trial):
    t.program()
    t.kick(t.vcpu)
    yield
    t.run()


case(KVM_RUN, EINTR, "a vCPU that is off sleeps until it is interrupted", lambda t: off(t))


def off(t: Trial) -> None:
    """Run a stopped vCPU that was kicked."""
    t(KVM_SET_MP_STATE, mp_state=MpState.STOPPED)
    t.kick(t.vcpu)
    t.run()


@case.of(KVM_RUN, ENXIO, "an interrupt controller without addresses")
def _no_addresses(t: Trial):
    t.program(("store", NOWHERE, 1))
    t.add_device(DeviceType.ARM_VGIC_V3)
    yield
    t.run()


@case.of(KVM_RUN, EINVAL, "two timers with one interrupt")
def _timers_clash(t: Trial):
    t.program(("store", NOWHERE, 1))
    gic(t)
    t.set_attr(t.vcpu, VcpuGroup.TIMER_CTRL, 0, 30)
    yield
    t.run()


# --- states -----------------------------------------------------------------------------------------------------------------------

case(KVM_GET_MP_STATE, 0, "the first vCPU runs", lambda t: [t(KVM_GET_MP_STATE), same(t.last.mp_state, 0)], GENERIC)
for state in (MpState.RUNNABLE, MpState.STOPPED, MpState.SUSPENDED):
    case(KVM_SET_MP_STATE, 0, f"{state.name}", lambda t, state=state: state_is(t, state))
for number in (1, 2, 3, 4, 6, 7, 8, 9, 11, 0xFFFF_FFFF):
    case(KVM_SET_MP_STATE, EINVAL, f"state {number}, which arm64 lacks", lambda t, number=number: t(KVM_SET_MP_STATE, mp_state=number))


def state_is(t: Trial, state: int) -> None:
    """Set a state and read it."""
    t(KVM_SET_MP_STATE, mp_state=state)
    t(KVM_GET_MP_STATE)
    same(t.last.mp_state, state)


# --- initialisation ---------------------------------------------------------------------------------------------------------------


def init(t: Trial, *words: int, target: int = arm64.TARGET_GENERIC_V8) -> None:
    """KVM_ARM_VCPU_INIT of a fresh vCPU."""
    t.init_vcpu(bare(t), words=words, target=target)


case(INIT, 0, "no features", lambda t: init(t, 0))
case(INIT, 0, "PSCI 0.2", lambda t: init(t, PSCI))
case(INIT, 0, "powered off", lambda t: init(t, PSCI | 1))
case(INIT, 0, "both pointer authentications", lambda t: init(t, 3 << Feature.PTRAUTH_ADDRESS))
case(INIT, EINVAL, "one pointer authentication without the other", lambda t: init(t, 1 << Feature.PTRAUTH_ADDRESS))
case(INIT, EINVAL, "generic pointer authentication alone", lambda t: init(t, 1 << Feature.PTRAUTH_GENERIC))
case(INIT, EINVAL, "EL2 on a machine without it", lambda t: init(t, 1 << Feature.HAS_EL2))
case(INIT, EINVAL, "SVE on a machine without it", lambda t: init(t, 1 << Feature.SVE))
case(INIT, EINVAL, "AArch32 on a machine without it", lambda t: init(t, 1 << Feature.EL1_32BIT))
for bit in (10, 15, 31):
    case(INIT, ENOENT, f"unknown feature {bit}", lambda t, bit=bit: init(t, 1 << bit))
for word in range(1, 7):
    case(INIT, ENOENT, f"a feature in word {word}", lambda t, word=word: init(t, *[0] * word, 1))
for target in (0, 1, 4, 6, 0xFFFF_FFFF):
    case(INIT, EINVAL, f"target {target}", lambda t, target=target: init(t, PSCI, target=target))
case(INIT, 0, "the same again", lambda t: [init(t, PSCI), t.init_vcpu(next(iter(t.runs)))])
case(INIT, 0, "again, and powered off", lambda t: [init(t, PSCI), t.init_vcpu(next(iter(t.runs)), words=(PSCI | 1,))])


@case.of(INIT, EINVAL, "again with other features")
def _other_features(t: Trial):
    init(t, PSCI)
    yield
    t.init_vcpu(next(iter(t.runs)), words=(0,))


@case.of(INIT, EINVAL, "a second vCPU with other features")
def _second_vcpu(t: Trial):
    init(t, PSCI)
    second = t.add_vcpu(1, init=False)
    yield
    t.init_vcpu(second, words=(0,))


@case.of(INIT, 0, "after a failure, with what is right")
def _after_failure(t: Trial):
    file = bare(t)
    try:
        t.init_vcpu(file, words=(1 << 12,))
    except OSError:
        pass
    yield
    t.init_vcpu(file)


@case.of(INIT, 0, "off means the state STOPPED")
def _off(t: Trial):
    init(t, PSCI | 1)
    t(KVM_GET_MP_STATE, on=next(iter(t.runs)))
    same(t.last.mp_state, MpState.STOPPED)


case(arm64.KVM_ARM_PREFERRED_TARGET, 0, "the generic one", lambda t: [t(arm64.KVM_ARM_PREFERRED_TARGET), same(t.last.target, 5)])
case(FINALIZE, EINVAL, "SVE that was not asked for", lambda t: t(FINALIZE, feature=Feature.SVE))
case(FINALIZE, EINVAL, "what need not be finalised", lambda t: t(FINALIZE, feature=Feature.PMU_V3))
case(FINALIZE, EINVAL, "an unknown feature", lambda t: t(FINALIZE, feature=-1))
case(FINALIZE, ENOEXEC, "not initialised", lambda t: t(FINALIZE, on=bare(t), feature=Feature.SVE))

# --- registers --------------------------------------------------------------------------------------------------------------------

PC = arm64.REG_PC
REFUSED = (
    (EINVAL, "another architecture's id", 0x2030_0000_0010_0000),
    (EINVAL, "no architecture", 0x0030_0000_0010_0000),
    (EINVAL, "the upper half of a core register", arm64.CORE_U64 | 1),
    (EINVAL, "half a core register", arm64.CORE_U32 | 4),
    (EINVAL, "a core register of 128 bits", arm64.CORE_U128 | 0),
    (EINVAL, "half a SIMD register", arm64.CORE_U64 | 0x54),
    (EINVAL, "FPSR of 64 bits", arm64.CORE_U64 | 0xD4),
    (ENOENT, "beyond the core registers", arm64.CORE_U64 | 0x1000),
    (ENOENT, "an unknown group", arm64.REG_ARCH | arm64.SIZE_U64 | 0x1F << 16),
    (ENOENT, "a system register that does not exist", arm64.reg_sysreg(3, 7, 15, 15, 7)),
    (ENOENT, "an implementation-defined register", arm64.reg_sysreg(3, 0, 15, 0, 0)),
    (ENOENT, "a register of EL2 of a vCPU without it", arm64.reg_sysreg(3, 4, 1, 1, 0)),
    (ENOENT, "an unknown firmware register", arm64.REG_ARCH | arm64.SIZE_U64 | arm64.GROUP_FW | 99),
    (ENOENT, "SVE registers of a vCPU without it", arm64.REG_ARCH | 8 << 52 | arm64.GROUP_SVE),
)
for errno, cause, reg in REFUSED:
    case(KVM_GET_ONE_REG, errno, cause, lambda t, reg=reg: t.get_reg(reg))
    case(KVM_SET_ONE_REG, errno, cause, lambda t, reg=reg: t.set_reg(reg, 0))
case(KVM_GET_ONE_REG, ENOEXEC, "not initialised", lambda t: t.get_reg(PC, on=bare(t)))
case(KVM_SET_ONE_REG, ENOEXEC, "not initialised", lambda t: t.set_reg(PC, 0, on=bare(t)))


def holds(t: Trial, reg: int) -> None:
    """A register gives back what it was set to."""
    t.set_reg(reg, 0x1234_5678_9000)
    same(t.get_reg(reg), 0x1234_5678_9000)


HELD = {
    "x0": arm64.reg_x(0), "x30": arm64.reg_x(30), "sp_el0": arm64.REG_SP, "pc": PC, "sp_el1": arm64.REG_SP_EL1,
    "elr_el1": arm64.REG_ELR_EL1, "v0": arm64.reg_v(0), "v31": arm64.reg_v(31), "ttbr0_el1": arm64.reg_sysreg(3, 0, 2, 0, 0),
    "vbar_el1": arm64.reg_sysreg(3, 0, 12, 0, 0), "tpidr_el0": arm64.reg_sysreg(3, 3, 13, 0, 2), "far_el1": arm64.reg_sysreg(3, 0, 6, 0, 0),
}  # fmt: skip
for name, reg in HELD.items():
    case(KVM_SET_ONE_REG, 0, f"{name} holds a value", lambda t, reg=reg: holds(t, reg))
MODES = ((0, "EL0t", 0x0), (0, "EL1t", 0x4), (0, "EL1h", 0x5), (EINVAL, "EL2h without EL2", 0x9), (EINVAL, "EL3h", 0xD),
         (EINVAL, "a reserved mode", 0x6), (EINVAL, "AArch32 supervisor", 0x13), (EINVAL, "AArch32 user", 0x10))  # fmt: skip
for errno, cause, mode in MODES:
    case(KVM_SET_ONE_REG, errno, f"PSTATE of {cause}", lambda t, mode=mode: t.set_reg(arm64.REG_PSTATE, 0x3C0 | mode))
for version in (0x2, 0x1_0000, 0x1_0001):
    case(KVM_SET_ONE_REG, 0, f"PSCI version {version:#x}", lambda t, version=version: t.set_reg(arm64.REG_PSCI_VERSION, version))
for version in (0x1, 0x3, 0x2_0000, 0x1_00FF):
    case(KVM_SET_ONE_REG, EINVAL, f"PSCI version {version:#x}", lambda t, version=version: t.set_reg(arm64.REG_PSCI_VERSION, version))
case(KVM_GET_ONE_REG, 0, "PSTATE after reset", lambda t: same(t.get_reg(arm64.REG_PSTATE), 0x3C5))
case(KVM_GET_ONE_REG, 0, "MPIDR of vCPU 0", lambda t: same(t.get_reg(arm64.reg_sysreg(3, 0, 0, 0, 5)), 0x8000_0000))
case(KVM_GET_ONE_REG, 0, "MPIDR of vCPU 0x12", lambda t: same(t.get_reg(arm64.reg_sysreg(3, 0, 0, 0, 5), on=t.add_vcpu(0x12)), 0x8000_0102))
case(KVM_SET_ONE_REG, EINVAL, "a cache geometry that it has not", lambda t: t.set_reg(arm64.reg_ccsidr(0), 1))

case(KVM_GET_REG_LIST, E2BIG, "no room", lambda t: t(KVM_GET_REG_LIST, reg_list(0)))
case(KVM_GET_REG_LIST, ENOEXEC, "not initialised", lambda t: t(KVM_GET_REG_LIST, reg_list(0), on=bare(t)))


@case.of(KVM_GET_REG_LIST, 0, "as long as E2BIG said, each once and readable")
def _list(t: Trial):
    room = reg_list(0)
    try:
        t(KVM_GET_REG_LIST, room)
    except OSError:
        pass
    yield
    full = reg_list(room.n)
    t(KVM_GET_REG_LIST, full)
    ids = list(full.reg)
    assert len(set(ids)) == room.n > 100
    for reg_id in ids:
        t.get_reg(reg_id)


@case.of(KVM_GET_REG_LIST, E2BIG, "one too short")
def _short(t: Trial):
    room = reg_list(0)
    try:
        t(KVM_GET_REG_LIST, room)
    except OSError:
        pass
    yield
    t(KVM_GET_REG_LIST, reg_list(room.n - 1))


# --- events and debugging ---------------------------------------------------------------------------------------------------------

GET_EVENTS, SET_EVENTS, DEBUG = arm64.KVM_GET_VCPU_EVENTS, arm64.KVM_SET_VCPU_EVENTS, arm64.KVM_SET_GUEST_DEBUG
case(GET_EVENTS, 0, "nothing pending", lambda t: [t(GET_EVENTS), same(bytes(t.last).count(0), 64)])
case(GET_EVENTS, ENOEXEC, "not initialised", lambda t: t(GET_EVENTS, on=bare(t)))
case(SET_EVENTS, ENOEXEC, "not initialised", lambda t: t(SET_EVENTS, on=bare(t)))
case(SET_EVENTS, 0, "an SError", lambda t: [t(SET_EVENTS, serror_pending=1), t(GET_EVENTS), same(t.last.serror_pending, 1)])


@case.of(SET_EVENTS, 0, "an external abort, which is taken at once")
def _abort(t: Trial):
    t(SET_EVENTS, ext_dabt_pending=1)
    t(GET_EVENTS)
    same(t.last.ext_dabt_pending, 0)


for field in ("pad0", "pad1", "reserved1", "reserved2"):
    case(SET_EVENTS, EINVAL, f"{field} is not zero", lambda t, field=field: t(SET_EVENTS, **{field: 1}))
case(SET_EVENTS, 0, "a syndrome without an SError means nothing", lambda t: t(SET_EVENTS, serror_has_esr=1))
for control in (0, 1, 3, 0x1_0001, 0x2_0001, 0x3_0003):
    case(DEBUG, 0, f"control {control:#x}", lambda t, control=control: t(DEBUG, control=control))
for control in (4, 8, 1 << 18, 1 << 31):
    case(DEBUG, EINVAL, f"control {control:#x}", lambda t, control=control: t(DEBUG, control=control))
for call in (arm64_vm.KVM_GET_REGS, arm64_vm.KVM_SET_REGS, arm64_vm.KVM_GET_SREGS, arm64_vm.KVM_SET_SREGS, arm64_vm.KVM_GET_FPU,
             arm64_vm.KVM_SET_FPU, arm64_vm.KVM_TRANSLATE):  # fmt: skip
    case(call, EINVAL, "arm64 has registers by id", lambda t, call=call: t(call))

# --- interrupt lines and devices --------------------------------------------------------------------------------------------------


def line(t: Trial, kind: int, number: int, vcpu: int = 0) -> None:
    """KVM_IRQ_LINE on a VM with one vCPU."""
    assert t.vcpu
    t(KVM_IRQ_LINE, irq=kind << 24 | irq_word(IrqType.CPU, number, vcpu), level=1)


case(KVM_IRQ_LINE, 0, "a vCPU's IRQ pin", lambda t: line(t, IrqType.CPU, 0))
case(KVM_IRQ_LINE, 0, "a vCPU's FIQ pin", lambda t: line(t, IrqType.CPU, 1))
case(KVM_IRQ_LINE, EINVAL, "a third pin", lambda t: line(t, IrqType.CPU, 2))
case(KVM_IRQ_LINE, EINVAL, "a vCPU that is not there", lambda t: line(t, IrqType.CPU, 0, 1))
case(KVM_IRQ_LINE, EINVAL, "a vCPU above 255 that is not there", lambda t: line(t, IrqType.CPU, 0, 256))
case(KVM_IRQ_LINE, ENXIO, "an SPI without a controller", lambda t: line(t, IrqType.SPI, 40))
case(KVM_IRQ_LINE, ENXIO, "a PPI without a controller", lambda t: line(t, IrqType.PPI, 20))
for kind in (3, 7, 15):
    case(KVM_IRQ_LINE, EINVAL, f"type {kind}", lambda t, kind=kind: line(t, kind, 0))

case(KVM_CREATE_DEVICE, ENODEV, "no such type", lambda t: t(KVM_CREATE_DEVICE, type=0x7FFF_FFFF), GENERIC)
case(KVM_CREATE_DEVICE, ENODEV, "type 0", lambda t: t(KVM_CREATE_DEVICE, type=0), GENERIC)
case(KVM_CREATE_DEVICE, ENODEV, "no such type, only tested", lambda t: t(KVM_CREATE_DEVICE, type=999, flags=CREATE_DEVICE_TEST), GENERIC)
case(KVM_CREATE_DEVICE, 0, "flags that nobody knows are ignored", lambda t: t(KVM_CREATE_DEVICE, type=DeviceType.ARM_VGIC_V3, flags=6))
case(KVM_CREATE_DEVICE, 0, "a GICv3", lambda t: t.add_device(DeviceType.ARM_VGIC_V3))
case(KVM_CREATE_DEVICE, 0, "a GICv3, only tested", lambda t: [t(KVM_CREATE_DEVICE, type=7, flags=1), t(KVM_CREATE_DEVICE, type=7)])


@case.of(KVM_CREATE_DEVICE, EEXIST, "a second GICv3")
def _second_gic(t: Trial):
    t.add_device(DeviceType.ARM_VGIC_V3)
    yield
    t.add_device(DeviceType.ARM_VGIC_V3)


@case.of(KVM_CREATE_DEVICE, EBUSY, "a GICv3 after a vCPU ran")
def _late_gic(t: Trial):
    t.program(("store", NOWHERE, 1))
    t.run()
    yield
    t.add_device(DeviceType.ARM_VGIC_V3)


ATTRIBUTES = (KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR)
for call in ATTRIBUTES:
    case(call, ENXIO, "a group that vCPUs lack", lambda t, call=call: t(call, on=t.vcpu, group=99))
    case(call, ENXIO, "a group that GICs lack", lambda t, call=call: t(call, on=t.add_device(DeviceType.ARM_VGIC_V3), group=99))
TIMER = VcpuGroup.TIMER_CTRL
case(KVM_GET_DEVICE_ATTR, ENXIO, "a timer that is not there", lambda t: t.get_attr(t.vcpu, TIMER, 9))
case(KVM_HAS_DEVICE_ATTR, ENXIO, "a timer that is not there", lambda t: t.has_attr(t.vcpu, TIMER, 9))
case(KVM_SET_DEVICE_ATTR, ENXIO, "a timer that is not there", lambda t: [gic(t), t.set_attr(t.vcpu, TIMER, 9, 20)])
case(KVM_SET_DEVICE_ATTR, EINVAL, "an unknown timer on no PPI: the interrupt first", lambda t: [gic(t), t.set_attr(t.vcpu, TIMER, 9, 1)])
case(KVM_SET_DEVICE_ATTR, EINVAL, "a timer's interrupt without an interrupt controller", lambda t: t.set_attr(t.vcpu, TIMER, 0, 20))
case(KVM_GET_DEVICE_ATTR, 0, "the virtual timer's interrupt", lambda t: same(t.get_attr(t.vcpu, TIMER, 0), 27))
case(KVM_GET_DEVICE_ATTR, 0, "the physical timer's interrupt", lambda t: same(t.get_attr(t.vcpu, TIMER, 1), 30))
case(KVM_SET_DEVICE_ATTR, 0, "the virtual timer's interrupt", lambda t: [gic(t), t.set_attr(t.vcpu, TIMER, 0, 20)])
for number in (0, 15, 32, 1020):
    case(KVM_SET_DEVICE_ATTR, EINVAL, f"a timer on interrupt {number}", lambda t, n=number: [gic(t), t.set_attr(t.vcpu, TIMER, 0, n)])
case(KVM_HAS_DEVICE_ATTR, 0, "the virtual timer", lambda t: t.has_attr(t.vcpu, TIMER, 0))


@case.of(KVM_SET_DEVICE_ATTR, EBUSY, "a timer's interrupt after the vCPU ran")
def _late_timer(t: Trial):
    t.program(("store", NOWHERE, 1))
    gic(t)
    t.run()
    yield
    t.set_attr(t.vcpu, TIMER, 0, 20)


case(KVM_RUN, 0, "registers survive", lambda t: registers_survive(t))


def registers_survive(t: Trial) -> None:
    """A run that exits at once leaves what it did not touch."""
    t.program(("store", NOWHERE, 7))
    t.set_reg(arm64.reg_x(20), 0x1234)
    t.run()
    same(t.get_reg(arm64.reg_x(20)), 0x1234)
    same(t.get_reg(arm64.reg_x(0)), NOWHERE)
    true(t.get_reg(PC) % 4 == 0)


LDP = 0xA940_0801  # ldp x1, x2, [x0]


def pair(t: Trial) -> None:
    """A guest that loads two registers from where no memory is: the abort says neither which nor how wide."""
    t.code((0xD280_0000 | NOWHERE << 5).to_bytes(4, "little") + LDP.to_bytes(4, "little"))


@case.of(KVM_RUN, ENOSYS, "an access to a device without a syndrome")
def _no_syndrome(t: Trial):
    pair(t)
    yield
    t.run()


@case.of(KVM_RUN, 0, "an access to a device without a syndrome, which userspace wants to see")
def _to_user(t: Trial):
    pair(t)
    t.enable(Cap.ARM_NISV_TO_USER)
    exit = t.run()
    assert isinstance(exit, NisvExit) and exit.fault_ipa == NOWHERE
    same(t.get_reg(PC) % 4096, 4)


@case.of(arm64_vm.KVM_CREATE_IRQCHIP, EBUSY, "a vCPU has run")
def _late_irqchip(t: Trial):
    t.program(("store", NOWHERE, 1))
    t.run()
    yield
    t(arm64_vm.KVM_CREATE_IRQCHIP)


@case.of(arm64_vm.KVM_CREATE_IRQCHIP, E2BIG, "nine vCPUs")
def _nine(t: Trial):
    for number in range(9):
        t.add_vcpu(number)
    yield
    t(arm64_vm.KVM_CREATE_IRQCHIP)
