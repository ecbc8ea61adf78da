"""Interrupts from their source to the guest and back."""

from __future__ import annotations

import pytest
from vgic_machine import CTLR, DIST, ICACTIVER, ICENABLER, ICPENDR, ISACTIVER, ISENABLER, ISPENDR, SPURIOUS, GicMachine

from trapline.arm64 import gic_interface, gic_virtual
from trapline.arm64.regs import ICH_HCR_EL2, ICH_LR0_EL2, ICH_VMCR_EL2
from trapline.errors import KvmError

IRQ, FIQ = 1, 2
EOI_MODE = 2


@pytest.fixture
def one() -> GicMachine:
    return GicMachine(cpus=1)


def test_edge_spi(one: GicMachine) -> None:
    one.setup(40, edge=True)
    assert one.lines(0) == 0 and one.ack() == SPURIOUS
    one.pulse(40)
    assert one.lines(0) == IRQ
    assert one.ack() == 40 and one.bit(ISACTIVER, 40) == 1 and one.bit(ISPENDR, 40) == 0
    assert one.ack() == SPURIOUS
    one.eoi(40)
    assert one.bit(ISACTIVER, 40) == 0 and one.ack() == SPURIOUS


def test_edges_while_active_are_delivered_once_more(one: GicMachine) -> None:
    one.setup(40, edge=True)
    one.pulse(40)
    assert one.ack() == 40
    one.pulse(40)
    one.pulse(40)
    assert one.bit(ISPENDR, 40) == 1 and one.ack() == SPURIOUS, "active and pending is not taken"
    one.eoi(40)
    assert one.ack() == 40
    one.eoi(40)
    assert one.ack() == SPURIOUS


def test_edges_before_the_acknowledge_merge(one: GicMachine) -> None:
    one.setup(40, edge=True)
    one.pulse(40)
    assert one.lines(0) == IRQ
    one.pulse(40)
    assert one.ack() == 40
    one.eoi(40)
    assert one.ack() == SPURIOUS


def test_level_spi_is_pending_again_while_the_wire_is_high(one: GicMachine) -> None:
    one.setup(40)
    one.drive(40, True)
    for _ in range(3):
        assert one.ack() == 40
        assert one.bit(ISPENDR, 40) == 1 and one.ack() == SPURIOUS
        one.eoi(40)
    one.drive(40, False)
    assert one.lines(0) == 0 and one.ack() == SPURIOUS


def test_level_that_falls_while_active(one: GicMachine) -> None:
    one.setup(40)
    one.drive(40, True)
    assert one.ack() == 40
    one.drive(40, False)
    one.eoi(40)
    assert one.ack() == SPURIOUS


def test_ppi_stays_pending_until_its_source_is_quiet(one: GicMachine) -> None:
    one.setup(27)
    vcpu = one.vcpus[0]
    one.gic.inject(vcpu, 27, True, by=vcpu)
    assert vcpu.kicks == 0, "it is on its own thread"
    assert one.gic.pending(vcpu)
    assert one.ack() == 27 and not one.gic.pending(vcpu)
    one.eoi(27)
    assert one.ack() == 27
    one.gic.inject(vcpu, 27, False, by=vcpu)
    one.eoi(27)
    assert one.ack() == SPURIOUS and not one.gic.pending(vcpu)


def test_sgis_between_four_vcpus() -> None:
    machine = GicMachine(cpus=4)
    for n in range(4):
        machine.priority(3, 0x80, owner=n)
    machine.sgi(3, targets=0b1010, by=0)
    assert [vcpu.kicks for vcpu in machine.vcpus] == [0, 1, 0, 1]
    assert [machine.ack(n) for n in range(4)] == [SPURIOUS, 3, SPURIOUS, 3]
    machine.eoi(3, 1)
    machine.eoi(3, 3)
    machine.sgi(3, targets=1 << 40, by=2)
    assert [machine.ack(n) for n in range(4)] == [3, 3, SPURIOUS, 3]
    machine.sgi(5, targets=0b0001, by=0)
    assert machine.vcpus[0].kicks == 1, "a vCPU need not kick itself"


def test_sgi_targets_other_clusters() -> None:
    machine = GicMachine(cpus=3, mpidrs=(0, 0x10011, 0x112))
    machine.sgi(1, targets=1 << 32 | 1 << 44 | 1 << 1)
    machine.sgi(2, targets=1 << 16 | 1 << 44 | 1 << 2)
    assert [machine.ack(n) for n in range(3)] == [SPURIOUS, 1, 2]


def test_group0_sgi_register_does_not_make_group1_sgis() -> None:
    machine = GicMachine(cpus=2)
    machine.group(4, 0, owner=1)
    machine.sgi(5, targets=0b10, group=0)
    machine.sgi(4, targets=0b10, group=0)
    assert machine.lines(1) == FIQ
    assert machine.ack(1, group=1) == SPURIOUS and machine.ack(1, group=0) == 4
    assert machine.ack(1) == SPURIOUS


def test_priority_preemption(one: GicMachine) -> None:
    for intid, priority in ((40, 0xA0), (41, 0x80), (42, 0x80)):
        one.setup(intid, priority, edge=True)
    one.pulse(40)
    assert one.ack() == 40 and one.icc(0, "RPR") == 0xA0
    one.pulse(42)
    one.pulse(41)
    assert one.lines(0) == IRQ
    assert one.ack() == 41 and one.icc(0, "RPR") == 0x80
    assert one.lines(0) == 0 and one.ack() == SPURIOUS, "equal priority does not pre-empt"
    one.eoi(41)
    assert one.ack() == 42
    one.eoi(42)
    assert one.icc(0, "RPR") == 0xA0
    one.eoi(40)
    assert one.icc(0, "RPR") == 0xFF


def test_binary_point_decides_what_preempts(one: GicMachine) -> None:
    one.setup(40, 0xA0, edge=True)
    one.setup(41, 0x80, edge=True)
    one.icc(0, "BPR1", 6)
    one.pulse(40)
    assert one.ack() == 40
    one.pulse(41)
    assert one.icc(0, "RPR") == 0x80, "the group priority of 0xA0"
    assert one.ack() == SPURIOUS and one.icc(0, "HPPIR1") == 41
    one.eoi(40)
    one.icc(0, "BPR1", 5)
    one.pulse(40)
    assert one.ack() == 41
    one.eoi(41)
    assert one.ack() == 40
    one.pulse(41)
    assert one.ack() == 41


def test_priority_mask(one: GicMachine) -> None:
    one.setup(40, 0xA0, edge=True)
    one.icc(0, "PMR", 0xA0)
    one.pulse(40)
    assert one.lines(0) == 0 and not one.gic.pending(one.vcpus[0])
    one.icc(0, "PMR", 0xA8)
    assert one.lines(0) == IRQ and one.gic.pending(one.vcpus[0])
    assert one.ack() == 40


def test_active_state_by_distributor(one: GicMachine) -> None:
    one.setup(40, edge=True)
    one.set_bit(ISACTIVER, 40)
    one.pulse(40)
    assert one.lines(0) == 0 and one.ack() == SPURIOUS
    one.set_bit(ICACTIVER, 40)
    assert one.ack() == 40
    one.set_bit(ICACTIVER, 40)
    one.pulse(40)
    assert one.lines(0) == 0, "its priority is still active"
    one.eoi(40)
    assert one.ack() == 40


def test_active_state_while_in_a_list_register(one: GicMachine) -> None:
    one.setup(40, edge=True)
    one.pulse(40)
    one.gic.flush(one.vcpus[0])
    one.set_bit(ISACTIVER, 40)
    assert one.bit(ISACTIVER, 40) == 1 and one.bit(ISPENDR, 40) == 1
    assert one.ack() == SPURIOUS
    one.set_bit(ICACTIVER, 40)
    assert one.ack() == 40


@pytest.mark.parametrize("edge", [True, False])
def test_disable_while_pending(one: GicMachine, edge: bool) -> None:
    one.setup(40, edge=edge)
    one.drive(40, True)
    one.gic.flush(one.vcpus[0])
    one.set_bit(ICENABLER, 40)
    assert one.vcpus[0].kicks == 1, "only the injection; the writer is on its own thread"
    assert one.lines(0) == 0 and one.ack() == SPURIOUS and one.bit(ISPENDR, 40) == 1
    one.set_bit(ISENABLER, 40)
    assert one.ack() == 40


def test_clear_pending_while_in_a_list_register(one: GicMachine) -> None:
    one.setup(40, edge=True)
    one.pulse(40)
    one.gic.flush(one.vcpus[0])
    one.set_bit(ICPENDR, 40)
    assert one.bit(ISPENDR, 40) == 0
    one.pulse(40)
    one.set_bit(ICPENDR, 40)
    assert one.ack() == SPURIOUS
    one.pulse(40)
    assert one.ack() == 40


@pytest.mark.parametrize("stay", [True, False])
@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("count", [4, 5, 9, 31])
def test_more_interrupts_than_list_registers(one: GicMachine, count: int, edge: bool, stay: bool) -> None:
    one.stay = stay
    intids = range(40, 40 + count)
    for intid in intids:
        one.setup(intid, 8 * (1 + intid * 7 % 13), edge)
        one.drive(intid, True)
    order = sorted(intids, key=lambda intid: (intid * 7 % 13, intid))
    taken = []
    while one.lines(0):
        taken.append(one.ack())
        one.drive(taken[-1], False)
        one.eoi(taken[-1])
    assert taken == order


@pytest.mark.parametrize("stay", [True, False])
@pytest.mark.parametrize("split", [False, True])
def test_more_active_interrupts_than_list_registers(one: GicMachine, split: bool, stay: bool) -> None:
    one.stay = stay
    one.icc(0, "CTLR", EOI_MODE * split)
    nest = list(range(40, 52))
    for depth, intid in enumerate(nest):
        one.setup(intid, 0xF0 - 0x10 * depth, edge=True)
        one.pulse(intid)
        assert one.ack() == intid
    one.setup(60, 0xF0, edge=True)
    one.pulse(60)
    for intid in reversed(nest):
        assert one.lines(0) == 0
        one.eoi(intid)
        if split:
            assert one.bit(ISACTIVER, intid) == 1
            if one.vcpus[0].cpu.state.sysreg[ICH_HCR_EL2.slot] & ICH_HCR_EL2.TDIR.mask:
                one.gic.write_dir(one.vcpus[0], intid)
            else:
                one.icc(0, "DIR", intid)
        assert one.bit(ISACTIVER, intid) == 0
    assert one.icc(0, "RPR") == 0xFF and one.ack() == 60


@pytest.mark.parametrize("stay", [True, False])
def test_group_switches_change_what_is_next(one: GicMachine, stay: bool) -> None:
    one.stay = stay
    one.icc(0, "IGRPEN0", 0)
    for intid in range(40, 46):
        one.setup(intid, 0xA0, edge=True)
        one.pulse(intid)
    for intid, priority in ((50, 0x10), (51, 0xF0)):
        one.setup(intid, priority, edge=True)
        one.group(intid, 0)
        one.pulse(intid)
    assert one.lines(0) == IRQ
    one.icc(0, "IGRPEN0", 1)
    assert one.lines(0) == FIQ and one.ack(group=0) == 50
    one.eoi(50, group=0)
    assert one.lines(0) == IRQ
    one.icc(0, "IGRPEN1", 0)
    assert one.lines(0) == FIQ and one.ack(group=0) == 51
    one.eoi(51, group=0)
    assert one.lines(0) == 0
    one.icc(0, "IGRPEN1", 1)
    assert one.lines(0) == IRQ and one.ack() == 40


def test_completion_reaches_an_interrupt_without_list_register(one: GicMachine) -> None:
    """Nested seven deep, the guest completes all of them without any other reason to leave."""
    one.stay = True
    nest = list(range(40, 47))
    for depth, intid in enumerate(nest):
        one.setup(intid, 0xF0 - 0x10 * depth, edge=True)
        one.pulse(intid)
        assert one.ack() == intid
    for number, intid in enumerate(reversed(nest), 1):
        one.eoi(intid)
        left = [each for each in nest if one.bit(ISACTIVER, each)]
        assert left == nest[: len(nest) - number]


def test_distributor_group_enable(one: GicMachine) -> None:
    one.setup(40, edge=True)
    one.write(DIST + CTLR, 1)
    one.pulse(40)
    assert one.lines(0) == 0 and not one.gic.pending(one.vcpus[0])
    one.write(DIST + CTLR, 2)
    assert one.lines(0) == IRQ and one.ack() == 40


def test_fiq_and_irq(one: GicMachine) -> None:
    one.setup(40, 0x80)
    one.setup(41, 0x90)
    one.group(40, 0)
    one.drive(40, True)
    one.drive(41, True)
    assert one.lines(0) == FIQ and one.ack(group=1) == SPURIOUS
    assert one.ack(group=0) == 40
    one.eoi(40, group=0)
    one.drive(40, False)
    assert one.lines(0) == IRQ and one.ack() == 41


def test_routing() -> None:
    machine = GicMachine(cpus=2)
    machine.setup(40, edge=True, cpu=1)
    machine.pulse(40)
    assert machine.lines(0) == 0 and machine.lines(1) == IRQ
    machine.route(40, 0)
    assert machine.vcpus[1].kicks == 2, "it has to give the interrupt back"
    assert machine.lines(1) == 0 and machine.lines(0) == IRQ
    assert machine.ack(0) == 40
    machine.route(40, 1)
    machine.pulse(40)
    assert machine.lines(1) == 0, "active on the other vCPU"
    machine.eoi(40, 0)
    assert machine.lines(0) == 0 and machine.ack(1) == 40
    machine.eoi(40, 1)
    machine.route(40, 77)
    machine.pulse(40)
    assert machine.lines(0) == machine.lines(1) == 0
    machine.route(40, 0)
    assert machine.ack(0) == 40


def test_deactivation_from_another_vcpu() -> None:
    machine = GicMachine(cpus=2)
    machine.setup(40, edge=True)
    machine.pulse(40)
    assert machine.ack() == 40
    machine.gic.flush(machine.vcpus[0])
    kicks = machine.vcpus[0].kicks
    machine.set_bit(ICACTIVER, 40, by=1)
    assert machine.vcpus[0].kicks == kicks + 1 and machine.bit(ISACTIVER, 40) == 0
    machine.gic.flush(machine.vcpus[0])
    assert machine.vcpus[0].cpu.state.sysreg[ICH_LR0_EL2.slot] == 0


def test_wire_that_falls_and_rises_wakes_a_sleeper(one: GicMachine) -> None:
    vcpu = one.vcpus[0]
    one.setup(40)
    one.drive(40, True)
    one.gic.flush(vcpu)
    one.gic.sync(vcpu)
    one.drive(40, False)
    assert not one.gic.pending(vcpu)
    kicks = vcpu.kicks
    one.drive(40, True)
    assert vcpu.kicks == kicks + 1 and one.gic.pending(vcpu)


def test_reset_keeps_interrupts_and_clears_the_interface(one: GicMachine) -> None:
    one.setup(40, edge=True)
    one.setup(41, 0x80, edge=True)
    one.pulse(41)
    assert one.ack() == 41
    one.pulse(40)
    vcpu = one.vcpus[0]
    one.gic.flush(vcpu)
    for n in range(4):
        vcpu.cpu.state.sysreg[ICH_LR0_EL2.slot + n] = 0
    one.gic.reset_vcpu(vcpu)
    assert one.icc(0, "RPR") == 0xFF and one.icc(0, "PMR") == 0 and one.icc(0, "IGRPEN1") == 0
    assert one.bit(ISPENDR, 40) == 1 and one.bit(ISACTIVER, 41) == 1
    one.open_interface(0)
    assert one.ack() == 40


def test_completions_are_reported(one: GicMachine) -> None:
    seen: list[int] = []
    one.gic.on_eoi = seen.append
    one.setup(40)
    one.setup(41)
    one.gic.watch_eoi(40)
    for intid in (40, 41):
        one.drive(intid, True)
    for _ in range(2):
        intid = one.ack()
        one.drive(intid, False)
        one.eoi(intid)
    assert seen == [40]


def test_nothing_to_do_costs_no_lock(one: GicMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    one.setup(40)
    one.drive(40, True)
    assert one.lines(0) == IRQ
    monkeypatch.setattr(one.gic, "lock", None)
    one.gic.flush(one.vcpus[0])
    one.gic.sync(one.vcpus[0])
    one.gic.inject(None, 40, True)


def test_injection_errors() -> None:
    machine = GicMachine(cpus=2, irqs=64)
    for vcpu, intid in ((None, 31), (None, 64), (0, 15), (0, 32), (None, -1)):
        with pytest.raises(KvmError, match="no wire"):
            machine.gic.inject(None if vcpu is None else machine.vcpus[vcpu], intid, True)


def test_initial_interface() -> None:
    machine = GicMachine(quiet=True)
    vmcr = ICH_VMCR_EL2(int(machine.vcpus[0].cpu.state.sysreg[ICH_VMCR_EL2.slot]))
    assert (vmcr.VPMR, vmcr.VENG0, vmcr.VENG1) == (0, 0, 0)
    assert machine.icc(0, "BPR0") == gic_interface.MIN_BPR0 and machine.icc(0, "BPR1") == gic_interface.MIN_BPR1


def test_rerouted_while_active_and_pending() -> None:
    machine = GicMachine(cpus=2)
    machine.setup(40, edge=True, cpu=1)
    machine.pulse(40)
    assert machine.ack(1) == 40
    machine.pulse(40)
    machine.route(40, 0)
    state = machine.vcpus[1].cpu.state
    machine.gic.flush(machine.vcpus[1])
    gic_virtual.icv_eoir1_write(state, 40)
    assert gic_virtual.virtual_lines(state) == gic_interface.LINE_MAINTENANCE, "not delivered here again"
    machine.gic.sync(machine.vcpus[1])
    assert machine.vcpus[0].kicks == 1 and machine.ack(0) == 40
