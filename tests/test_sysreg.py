"""System registers: the notation, the table's checks, and encodings against binutils and against what kernels execute."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trapline.arm64 import regs
from trapline.arm64.regs import HCR_EL2, ICC_IAR1_EL1, SCTLR_EL1, SP_EL0, TABLE, TCR_EL1
from trapline.arm64.regs.system import BY_ENCODING, SYSTEM_OPS
from trapline.arm64.sysreg import RW, R, Sysreg, SysregTable, decode, encode, generic_name
from trapline.errors import TableError
from trapline.registers import Field

EXECUTED = Path(__file__).parent / "vectors" / "sysregs_executed.txt"
ASSEMBLER = shutil.which("aarch64-linux-gnu-as")
NEWER_THAN_BINUTILS = {
    "ID_AA64PFR2_EL1",
    "ID_AA64FPFR0_EL1",
    "ID_AA64ISAR3_EL1",
    "ID_AA64MMFR3_EL1",
    "ID_AA64MMFR4_EL1",
    "CNTPCTSS_EL0",
    "CNTVCTSS_EL0",
    "VNCR_EL2",
    "DBGDTRRX_EL0",
}
"""Names that some assemblers in use do not know, so that a failure to assemble says nothing."""


def test_class_gives_the_field_and_instance_its_value() -> None:
    assert TCR_EL1.TG1.mask == 0xC000_0000
    assert TCR_EL1(T0SZ=25, TG1=2).TG1 == 2
    assert int(TCR_EL1(T0SZ=25, TG1=2)) == 0x8000_0019
    assert repr(HCR_EL2(VM=1, SWIO=1)) == "HCR_EL2(0x3: VM=1 SWIO=1)"
    assert TCR_EL1(0x19).replace(T0SZ=16) == 16


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"TCR_EL1.T0SZ\[5:0\]"):
        TCR_EL1(T0SZ=64)


def test_identity_of_a_register() -> None:
    assert TCR_EL1.enc == (3, 0, 2, 0, 2)
    assert TCR_EL1.encoding == 0xC102
    assert TCR_EL1.one_reg_id == 0x6030_0000_0013_C102
    assert TABLE["TCR_EL1"] is TABLE[0xC102] is TABLE[(3, 0, 2, 0, 2)] is TCR_EL1
    assert generic_name((3, 0, 15, 0, 0)) == "S3_0_C15_C0_0"
    assert all(encode(decode(reg.encoding)) == reg.encoding for reg in TABLE)


def test_slots_are_dense_and_only_aliases_share() -> None:
    own = [reg.slot for reg in TABLE if reg.alias is None]
    assert own == list(range(len(own)))
    assert regs.CNTV_TVAL_EL0.slot == regs.CNTV_CVAL_EL0.slot


def test_overlapping_fields_are_refused() -> None:
    with pytest.raises(TableError, match="overlaps"):

        class Bad(Sysreg, enc=(3, 0, 15, 0, 0)):
            A = Field(3, 0)
            B = Field(3)


def test_duplicate_encodings_are_refused() -> None:
    class Again(Sysreg, enc=(3, 0, 2, 0, 2)):
        """Same place as TCR_EL1."""

    with pytest.raises(TableError, match="share encoding"):
        SysregTable([*TABLE, Again])


def test_trap_notation() -> None:
    trap = R @ HCR_EL2.TRVM
    assert (trap.reads, trap.writes, trap.target, trap.from_els) == (True, False, 2, (0, 1))
    trap = RW @ ~SCTLR_EL1.UMA
    assert (trap.target, trap.from_els) == (1, (0,))
    assert trap.when.holds(lambda register: 0)
    assert not trap.when.holds(lambda register: SCTLR_EL1.UMA.mask)


def test_every_access_function_or_storage_is_declared_consistently() -> None:
    for reg in TABLE:
        if reg.access == "RO":
            assert reg.write is None, reg.name
        if reg.access == "WO":
            assert reg.read is None, reg.name
    assert SP_EL0.read == "sp_el0_read"
    assert ICC_IAR1_EL1.read == "icv_iar1_read"


def test_el12_names() -> None:
    assert TABLE.el12[encode((3, 5, 2, 0, 2))] is TCR_EL1
    assert TABLE.el12[encode((3, 5, 14, 3, 1))] is regs.CNTV_CTL_EL0


def assemble(lines: list[str], tmp_path: Path) -> tuple[list[int], str]:
    """Words of one instruction per line, and the assembler's complaints."""
    source, result = tmp_path / "x.s", tmp_path / "x.o"
    source.write_text("\n".join(lines) + "\n")
    run = subprocess.run(
        [str(ASSEMBLER), "-march=armv8.7-a+sve+memtag+rng+profile+sme", "-o", str(result), str(source)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if run.returncode:
        return [], run.stderr
    binary = tmp_path / "x.bin"
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", str(result), str(binary)], check=True, timeout=60)
    data = binary.read_bytes()
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)], ""


@pytest.mark.skipif(ASSEMBLER is None, reason="needs binutils for aarch64 (Debian: binutils-aarch64-linux-gnu)")
def test_encodings_agree_with_binutils(tmp_path: Path) -> None:
    def line(reg: type[Sysreg]) -> str:
        return f"msr {reg.mnemonic}, x0" if reg.access == "WO" else f"mrs x0, {reg.mnemonic}"

    known = [reg for reg in TABLE]
    words, errors = assemble([line(reg) for reg in known], tmp_path)
    if errors:
        refused = {int(number) - 1 for number in re.findall(r"x\.s:(\d+): Error", errors)}
        unexpected = {known[i].name for i in refused} - NEWER_THAN_BINUTILS
        assert not unexpected, errors
        known = [reg for i, reg in enumerate(known) if i not in refused]
        words, errors = assemble([line(reg) for reg in known], tmp_path)
    assert not errors
    for reg, word in zip(known, words, strict=True):
        base = 0xD500_0000 if reg.access == "WO" else 0xD520_0000
        assert word == base | reg.encoding << 5, reg.name


@pytest.mark.skipif(ASSEMBLER is None, reason="needs binutils for aarch64 (Debian: binutils-aarch64-linux-gnu)")
def test_system_instructions_agree_with_binutils(tmp_path: Path) -> None:
    ops = SYSTEM_OPS
    for op in ops:
        lines = [f"{op.mnemonic.lower()}, x0", op.mnemonic.lower()]
        texts = [assemble([line], tmp_path) for line in lines]
        words = [words[0] for words, errors in texts if not errors]
        assert words, texts
        assert words[0] | 0x1F == 0xD500_0000 | op.encoding << 5 | 0x1F, op.mnemonic


def test_what_real_kernels_execute_is_declared() -> None:
    for line in EXECUTED.read_text().splitlines():
        if line.startswith("#"):
            continue
        enc = tuple(int(number) for number in line.split())
        assert len(enc) == 5
        key = encode(enc)
        assert key in BY_ENCODING or key in TABLE.by_encoding or key in TABLE.el12, enc
