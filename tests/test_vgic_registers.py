"""The distributor's and redistributors' registers as a guest sees them."""

from __future__ import annotations

import pytest
from vgic_machine import (
    CTLR,
    DIST,
    ICACTIVER,
    ICENABLER,
    ICFGR,
    ICPENDR,
    IGROUPR,
    IPRIORITYR,
    IROUTER,
    ISACTIVER,
    ISENABLER,
    ISPENDR,
    REDIST,
    SGI_FRAME,
    GicMachine,
)

from trapline.errors import TableError
from trapline.gic.regmap import Plain, RegisterMap

TYPER, IIDR, PIDR2 = 4, 8, 0xFFE8
FRAMES = (DIST, REDIST + SGI_FRAME)


@pytest.fixture
def machine() -> GicMachine:
    return GicMachine(cpus=4, irqs=128)


def test_address_map(machine: GicMachine) -> None:
    inside = (DIST, DIST + 0xFFFF, REDIST, REDIST + 4 * 0x2_0000 - 1)
    outside = (0, DIST - 1, DIST + 0x1_0000, REDIST - 1, REDIST + 4 * 0x2_0000, 1 << 39)
    assert all(machine.gic.contains(ipa) for ipa in inside)
    assert not any(machine.gic.contains(ipa) for ipa in outside)


def test_identification(machine: GicMachine) -> None:
    typer = machine.read(DIST + TYPER)
    assert typer & 0x1F == 128 // 32 - 1
    assert typer >> 19 & 0x1F == 9, "INTIDs are ten bits wide"
    assert not typer >> 10 & 1 and not typer >> 17 & 1, "neither a second security state nor LPIs"
    assert machine.read(DIST + PIDR2) >> 4 & 15 == machine.read(REDIST + PIDR2) >> 4 & 15 == 3
    assert machine.read(DIST + IIDR) & 0xFFF == machine.read(REDIST + 4) & 0xFFF == 0x43B


def test_redistributor_typer(machine: GicMachine) -> None:
    for n in range(4):
        at = REDIST + 0x2_0000 * n + 8
        value = machine.read(at, 8)
        assert value >> 32 == n and value >> 8 & 0xFFFF == n and value >> 4 & 1 == (n == 3)
        assert machine.read(at) == value & 0xFFFF_FFFF and machine.read(at + 4) == value >> 32


def test_affinity_of_redistributors() -> None:
    machine = GicMachine(cpus=2, mpidrs=(0, 0x10203))
    assert machine.read(REDIST + 0x2_0000 + 8, 8) >> 32 == 0x10203


def test_distributor_control() -> None:
    machine = GicMachine(quiet=True)
    assert machine.read(DIST + CTLR) == 0x50, "ARE and DS are fixed, both groups off"
    machine.write(DIST + CTLR, 0xFFFF_FFFF)
    assert machine.read(DIST + CTLR) == 0x53
    machine.write(DIST + CTLR, 0)
    assert machine.read(DIST + CTLR) == 0x50


@pytest.mark.parametrize("intid", [0, 15, 16, 31, 32, 63, 64, 127])
def test_set_and_clear_registers(machine: GicMachine, intid: int) -> None:
    machine.write(DIST + CTLR, 0)
    for set_register, clear_register in ((ISENABLER, ICENABLER), (ISPENDR, ICPENDR), (ISACTIVER, ICACTIVER)):
        machine.set_bit(clear_register, intid)
        assert machine.bit(set_register, intid) == machine.bit(clear_register, intid) == 0
        machine.set_bit(set_register, intid)
        assert machine.bit(set_register, intid) == machine.bit(clear_register, intid) == 1
        at = machine.frame(intid) + set_register + intid // 32 * 4
        machine.write(at, 0)
        assert machine.bit(set_register, intid) == 1, "zeros do nothing"
        machine.set_bit(clear_register, intid)
        assert machine.bit(set_register, intid) == 0


def test_priorities_by_byte_and_word(machine: GicMachine) -> None:
    for frame, first in ((DIST, 32), (REDIST + SGI_FRAME, 0)):
        at = frame + IPRIORITYR + first
        machine.write(at, 0xFFA7_5800)
        assert machine.read(at) == 0xF8A0_5800, "five bits are implemented"
        assert [machine.read(at + n, 1) for n in range(4)] == [0x00, 0x58, 0xA0, 0xF8]
        machine.write(at + 2, 0x17, 1)
        assert machine.read(at) == 0xF810_5800


def test_private_priorities_are_private(machine: GicMachine) -> None:
    machine.priority(20, 0x40, owner=1)
    assert [machine.read(REDIST + 0x2_0000 * n + SGI_FRAME + IPRIORITYR + 20, 1) for n in range(4)] == [0, 0x40, 0, 0]


def test_private_interrupts_are_not_in_the_distributor(machine: GicMachine) -> None:
    for register in (IGROUPR, ISENABLER, ISPENDR, ISACTIVER, IPRIORITYR, ICFGR, ICFGR + 4):
        machine.write(DIST + register, 0xFFFF_FFFF)
        assert machine.read(DIST + register) == 0
    assert machine.read(DIST + IROUTER, 8) == 0


def test_configuration(machine: GicMachine) -> None:
    frame = REDIST + SGI_FRAME
    assert machine.read(frame + ICFGR) == 0xAAAA_AAAA, "SGIs are edge-triggered"
    machine.write(frame + ICFGR, 0)
    machine.write(frame + ICFGR + 4, 0xFFFF_FFFF)
    assert machine.read(frame + ICFGR) == 0xAAAA_AAAA and machine.read(frame + ICFGR + 4) == 0
    machine.write(DIST + ICFGR + 8, 0xFFFF_FFFF)
    assert machine.read(DIST + ICFGR + 8) == 0xAAAA_AAAA, "the low bit of each pair is reserved"


def test_groups(machine: GicMachine) -> None:
    for frame, at in ((DIST, 4), (REDIST + SGI_FRAME, 0)):
        assert machine.read(frame + IGROUPR + at) == 0xFFFF_FFFF
        machine.write(frame + IGROUPR + at, 0x1234_5678)
        assert machine.read(frame + IGROUPR + at) == 0x1234_5678


def test_routes_by_word_and_double_word(machine: GicMachine) -> None:
    at = DIST + IROUTER + 8 * 40
    machine.write(at, 0xFFFF_FFFF_FFFF_FFFF, 8)
    assert machine.read(at, 8) == 0xFF_FFFF, "neither Aff3 nor one-of-N routing exists"
    machine.write(at, 3)
    assert machine.read(at, 8) == 3
    machine.write(at + 4, 0xFF)
    assert machine.read(at, 8) == 3 and machine.read(at + 4) == 0


@pytest.mark.parametrize("length", [1, 2, 8])
def test_bad_widths_read_zero_and_write_nothing(machine: GicMachine, length: int) -> None:
    for frame in FRAMES:
        at = frame + ISENABLER + 4 * (frame == DIST)
        machine.write(at, 0xFF)
        before = machine.read(at)
        machine.write(at, 0xFF00 if length > 1 else 0, length)
        assert machine.read(at, length) == 0 and machine.read(at) == before


@pytest.mark.parametrize("offset", [0x14, 0x40, 0x5000, 0xBF00, 0xFFFC])
def test_reserved_offsets_read_zero(machine: GicMachine, offset: int) -> None:
    for frame in FRAMES:
        machine.write(frame + offset, 0xFFFF_FFFF)
        assert machine.read(frame + offset) == (0 if frame + offset != DIST + 0xFFFC else machine.read(DIST + 0xFFFC))


def test_misaligned_access(machine: GicMachine) -> None:
    machine.write(DIST + ISENABLER + 5, 0xFFFF_FFFF)
    assert machine.read(DIST + ISENABLER + 4) == 0 and machine.read(DIST + TYPER + 2) == 0


def test_interrupts_that_do_not_exist(machine: GicMachine) -> None:
    for register, step in ((ISENABLER, 4), (ISPENDR, 4), (IPRIORITYR, 32)):
        at = DIST + register + step * 4
        machine.write(at, 0xFFFF_FFFF)
        assert machine.read(at) == 0


def test_pending_of_a_level_interrupt_follows_its_wire(machine: GicMachine) -> None:
    machine.drive(40, True)
    machine.set_bit(ICPENDR, 40)
    assert machine.bit(ISPENDR, 40) == 1, "the wire is still high"
    machine.drive(40, False)
    assert machine.bit(ISPENDR, 40) == 0
    machine.set_bit(ISPENDR, 40)
    machine.drive(40, True)
    machine.drive(40, False)
    assert machine.bit(ISPENDR, 40) == 1, "software made it pending"
    machine.set_bit(ICPENDR, 40)
    assert machine.bit(ISPENDR, 40) == 0


def test_pending_of_an_edge_interrupt_is_latched(machine: GicMachine) -> None:
    machine.edge(40)
    machine.pulse(40)
    assert machine.bit(ISPENDR, 40) == 1
    machine.set_bit(ICPENDR, 40)
    assert machine.bit(ISPENDR, 40) == 0


def test_overlapping_rows_are_refused() -> None:
    with pytest.raises(TableError, match="overlap"):
        RegisterMap([Plain("A", 0, 8), Plain("B", 4, 4)])
