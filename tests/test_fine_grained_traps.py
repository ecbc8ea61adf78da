"""Fine-grained traps: every bit traps what the manual's table says, from EL1 and EL0, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from trapline.abi.exits import MmioExit
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.exceptions import EC, SysregSyndrome
from trapline.arm64.regs import ELR_EL2, ESR_EL2, HCR_EL2, SCTLR_EL1, TABLE
from trapline.arm64.regs.system import SYSTEM_OPS
from trapline.bare.machine import BareSystem, BareVm

RAM, UART = 0x4000_0000, 0x0900_0000
VECTORS, CODE = RAM, RAM + 0x1000

REGISTERS = """
AFSR0_EL1 0 rw      AFSR1_EL1 1 rw       AIDR_EL1 2 r          AMAIR_EL1 3 rw       APDAKeyLo_EL1 4 rw   APDAKeyHi_EL1 4 rw
APDBKeyLo_EL1 5 rw  APGAKeyHi_EL1 6 rw   APIAKeyLo_EL1 7 rw    APIBKeyHi_EL1 8 rw   CCSIDR_EL1 9 r       CLIDR_EL1 10 r
CONTEXTIDR_EL1 11 rw CPACR_EL1 12 rw     CSSELR_EL1 13 rw      CTR_EL0 14 r         DCZID_EL0 15 r       ESR_EL1 16 rw
FAR_EL1 17 rw       ISR_EL1 18 r         MAIR_EL1 24 rw        MIDR_EL1 25 r        MPIDR_EL1 26 r       PAR_EL1 27 rw
REVIDR_EL1 28 r     SCTLR_EL1 29 rw      SCXTNUM_EL1 30 rw     SCXTNUM_EL0 31 rw    TCR_EL1 32 rw        TPIDR_EL1 33 rw
TPIDRRO_EL0 34 rw   TPIDR_EL0 35 rw      TTBR0_EL1 36 rw       TTBR1_EL1 37 rw      VBAR_EL1 38 rw       ICC_IGRPEN0_EL1 39 rw
ICC_IGRPEN1_EL1 39 rw
"""
"""Name, bit of HFGRTR_EL2 and HFGWTR_EL2, directions."""

DEBUG_REGISTERS = """
DBGBCR0_EL1 0 rw    DBGBVR1_EL1 1 rw     DBGWCR1_EL1 2 rw      DBGWVR0_EL1 3 rw     MDSCR_EL1 4 rw       DBGCLAIMSET_EL1 5 rw
DBGCLAIMCLR_EL1 5 rw DBGAUTHSTATUS_EL1 6 r DBGPRCR_EL1 7 rw    OSLAR_EL1 8 w        OSLSR_EL1 9 r        OSECCR_EL1 10 rw
OSDLR_EL1 11 rw
"""
"""The same of HDFGRTR_EL2 and HDFGWTR_EL2."""

INSTRUCTIONS = """
IC_IALLUIS 0  IC_IALLU 1  IC_IVAU 2  DC_IVAC 3  DC_ISW 4  DC_CSW 5  DC_CISW 6  DC_CVAU 7  DC_CVAP 8  DC_CVADP 9  DC_CIVAC 10  DC_ZVA 11
AT_S1E1R 12  AT_S1E1W 13  AT_S1E0R 14  AT_S1E0W 15  AT_S1E1RP 16  AT_S1E1WP 17
TLBI_VMALLE1OS 18  TLBI_VAE1OS 19  TLBI_ASIDE1OS 20  TLBI_VAAE1OS 21  TLBI_VALE1OS 22  TLBI_VAALE1OS 23
TLBI_RVAE1OS 24  TLBI_RVAAE1OS 25  TLBI_RVALE1OS 26  TLBI_RVAALE1OS 27
TLBI_VMALLE1IS 28  TLBI_VAE1IS 29  TLBI_ASIDE1IS 30  TLBI_VAAE1IS 31  TLBI_VALE1IS 32  TLBI_VAALE1IS 33
TLBI_RVAE1IS 34  TLBI_RVAAE1IS 35  TLBI_RVALE1IS 36  TLBI_RVAALE1IS 37
TLBI_RVAE1 38  TLBI_RVAAE1 39  TLBI_RVALE1 40  TLBI_RVAALE1 41
TLBI_VMALLE1 42  TLBI_VAE1 43  TLBI_ASIDE1 44  TLBI_VAAE1 45  TLBI_VALE1 46  TLBI_VAALE1 47
CFP_RCTX 48  DVP_RCTX 49  CPP_RCTX 50  DC_CVAC 54
"""
"""System instructions and their bits of HFGITR_EL2."""

ALL = (1 << 64) - 1


def words_of(text: str, width: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return (tuple(words[k : k + width]) for k in range(0, len(words), width))


@pytest.fixture(scope="module")
def vm() -> Iterator[BareVm]:
    with BareSystem(el2=True) as system:
        machine = system.create_vm()
        memory = machine.add_memory(RAM, 1 << 20)
        vector = assemble_program(f"movz x19, #{UART >> 16}, lsl #16\nstr x0, [x19]")
        for k in range(16):
            memory[0x80 * k : 0x80 * k + len(vector)] = vector
        machine.create_vcpu(0)
        machine.create_gic(0x0800_0000, 0x080A_0000, 64)
        machine.vcpus[0].is_on = True
        yield machine
        machine.close()


def taken(vm: BareVm, word: int, el: int, controls: dict[str, int]) -> tuple[int, int]:
    """Run an instruction at an exception level: the level and syndrome of the exception; HVC or SVC if it goes through."""
    cpu = vm.vcpus[0]
    cpu.reset(CODE)
    state, memory = cpu.state, vm.memory[0]
    memory[0x1000:0x1008] = struct.pack("<II", word, 0xD400_0002 if el else 0xD400_0001)
    vm.engine.drop_code(memory.address + 0x1000, 8)
    state.el = el
    values = {
        "HCR_EL2": int(HCR_EL2(RW=1, API=1, APK=1, EnSCXT=1)),
        "SCTLR_EL1": int(SCTLR_EL1(UCT=1, UCI=1, DZE=1, UMA=1, EnRCTX=1)),
        "CPACR_EL1": 3 << 20,
        "VBAR_EL2": VECTORS,
        "VBAR_EL1": VECTORS,
    }
    for name, value in (values | controls).items():
        state.sysreg[TABLE[name].slot] = value
    exit = cpu.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == UART, exit
    cpu._pending = None
    return state.el, state.sysreg[(ESR_EL2 if state.el == 2 else TABLE["ESR_EL1"]).slot]


def is_trap(found: tuple[int, int], encoding: int, read: bool) -> bool:
    syndrome = SysregSyndrome(found[1])
    return found[0] == 2 and syndrome.EC == EC.SYSREG and syndrome.encoding == encoding and syndrome.READ == read


def goes_through(found: tuple[int, int], el: int) -> bool:
    return found[1] >> 26 == (EC.HVC64 if el else EC.SVC64)


@pytest.mark.parametrize(
    ("table", "registers"),
    [(REGISTERS, ("HFGRTR_EL2", "HFGWTR_EL2")), (DEBUG_REGISTERS, ("HDFGRTR_EL2", "HDFGWTR_EL2"))],
    ids=["registers", "debug"],
)
def test_registers(vm: BareVm, table: str, registers: tuple[str, str]) -> None:
    features = vm.engine.features
    tested = 0
    for name, bit, directions in words_of(table, 3):
        reg = TABLE[name]
        if not reg.exists(features):
            continue
        for read in (True, False):
            word = 0xD510_0000 | (reg.encoding & 0x7FFF) << 5 | read << 21 | 3
            mine, other = registers if read else registers[::-1]
            if ("r" if read else "w") not in directions:
                assert TABLE[mine].write_mask >> int(bit) & 1 == 0, f"{mine} has a bit for {name}"
                continue
            tested += 1
            assert is_trap(taken(vm, word, 1, {mine: 1 << int(bit)}), reg.encoding, read), (name, read)
            rest = {mine: ALL ^ 1 << int(bit), other: ALL}
            assert goes_through(taken(vm, word, 1, rest), 1), (name, read, "trapped by another bit")
            if (reg.read_el if read else reg.write_el) == 0:
                assert is_trap(taken(vm, word, 0, {mine: 1 << int(bit)}), reg.encoding, read), (name, read, "EL0")
                host = {mine: 1 << int(bit), "SCTLR_EL2": int(SCTLR_EL1(UCT=1)), "CPTR_EL2": 3 << 20}
                host["HCR_EL2"] = int(HCR_EL2(RW=1, E2H=1, TGE=1))
                assert goes_through(taken(vm, word, 0, host), 0), (name, read, "a host's EL0")
    assert tested > 15


def test_instructions(vm: BareVm) -> None:
    operations = {op.mnemonic.replace(" ", "_"): op for op in SYSTEM_OPS}
    tested = 0
    for name, bit in words_of(INSTRUCTIONS, 2):
        op = operations[name]
        if op.feature is not None and op.feature not in vm.engine.features:
            continue
        tested += 1
        word = 0xD508_0000 | (op.encoding & 0x3FFF) << 5 | 31  # XZR is the operand
        if name == "DC_ZVA" or name == "IC_IVAU":
            word = word & ~31 | 2
        found = taken(vm, word, 1, {"HFGITR_EL2": 1 << int(bit)})
        assert is_trap(found, op.encoding, False), (name, found)
        if name not in ("DC_ZVA", "IC_IVAU"):
            assert goes_through(taken(vm, word, 1, {"HFGITR_EL2": ALL ^ 1 << int(bit) ^ 1 << 51}), 1), (name, "trapped by another bit")
        if op.el == 0:
            assert is_trap(taken(vm, word, 0, {"HFGITR_EL2": 1 << int(bit)}), op.encoding, False), (name, "EL0")
    assert tested > 25


def test_calls_and_returns(vm: BareVm) -> None:
    svc, eret, eretaa, eretab = 0xD400_0021, 0xD69F_03E0, 0xD69F_0BFF, 0xD69F_0FFF
    trap = int(EC.SVC64) << 26 | 1 << 25 | 1
    assert taken(vm, svc, 0, {"HFGITR_EL2": 1 << 52}) == (2, trap)
    assert vm.vcpus[0].sysreg[ELR_EL2.slot] == CODE, "it has not been executed"
    assert taken(vm, svc, 1, {"HFGITR_EL2": 1 << 53}) == (2, trap)
    assert taken(vm, svc, 0, {"HFGITR_EL2": 1 << 53}) == (1, trap)
    assert taken(vm, svc, 1, {"HFGITR_EL2": 1 << 52}) == (1, trap)
    for word, iss in ((eret, 0), (eretaa, 2), (eretab, 3)):
        assert taken(vm, word, 1, {"HFGITR_EL2": 1 << 51}) == (2, int(EC.ERET) << 26 | 1 << 25 | iss), hex(word)
