"""The x86 examples and what `trapline doctor` says about x86 guests, on the real /dev/kvm; helpers that need none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from x86_machine import needs_x86_kvm

from trapline import x86
from trapline.backends.x86.msr_filter import Range, verdict
from trapline.errors import BadInput
from trapline.x86_64 import segments
from trapline.x86_64.asm import assemble
from trapline.x86_64.msr import msr_name
from trapline.x86_64.paging import GIB1, KIB4, MIB2, MIB4, PROTECTED_MODE, PageEntry, PageTables

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
OUTPUT = {
    "x86_hello.py": "Hello from real mode!\n",
    "x86_long_mode.py": "it may write now",
    "x86_msr_policy.py": "WrmsrExit(0x40000108, 0x1, <MsrExitReason.UNKNOWN: 2>) -> #GP",
}


@needs_x86_kvm
@pytest.mark.needs_kvm
@pytest.mark.parametrize("name", OUTPUT)
def test_example(name: str) -> None:
    result = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert OUTPUT[name] in result.stdout


@needs_x86_kvm
@pytest.mark.needs_kvm
@pytest.mark.timeout(60)
def test_doctor_tells_what_x86_guests_can_have() -> None:
    from trapline.ui.doctor import x86_guests

    rows = {name: text for name, text, usable in x86_guests()}
    assert "16-bit real: yes" in rows["x86 modes"] and "64-bit: yes" in rows["x86 modes"]
    assert "slots" in rows["x86 memory"] and rows["x86 an exit"].endswith("us, Python included")


@needs_x86_kvm
@pytest.mark.needs_kvm
def test_an_arm64_guest_is_refused_by_the_kvm_of_an_x86_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trapline.ui.cli import main

    kernel = tmp_path / "flat"
    kernel.write_bytes(b"\0" * 64)
    assert main(["run", "--kernel", str(kernel), "--backend", "kvm"]) == 125
    assert "its KVM cannot run arm64 guests" in capsys.readouterr().err


def test_assembler() -> None:
    assert assemble("mov al, 42; out 0x10, al; hlt", bits=16) == bytes.fromhex("b02ae610f4")
    assert assemble("a: jmp a\nmov rax, [rbx]") == bytes.fromhex("ebfe488b03")
    with pytest.raises(BadInput, match="frob"):
        assemble("frob eax")
    with pytest.raises(BadInput, match="address"):
        assemble("call elsewhere")
    with pytest.raises(BadInput, match="16, 32, 64"):
        assemble("nop", bits=8)


# Descriptors as the manuals' figures have them, and as Linux's boot code spells them out.
DESCRIPTORS = {
    "00cf9b000000ffff": segments.CODE32,
    "00cf93000000ffff": segments.DATA32,
    "00af9b000000ffff": segments.CODE64,
    "00009b000000ffff": segments.CODE16,
    "000093012340ffff": segments.DATA16.at(0x12340),
    "00cffb000000ffff": segments.CODE32.for_user(),
    "12cf9334567 8ffff".replace(" ", ""): segments.DATA32.at(0x1234_5678),
}


@pytest.mark.parametrize("word", DESCRIPTORS)
def test_segment_descriptors(word: str) -> None:
    assert DESCRIPTORS[word].descriptor()[::-1].hex() == word


def test_tables_and_gates() -> None:
    table = segments.Table()
    assert table.add(segments.CODE64.descriptor()) == 8 and table.add(segments.DATA64.for_user().descriptor(), dpl=3) == 0x13
    assert segments.tss_descriptor(0x1_2345_6789)[8:] == b"\1\0\0\0\0\0\0\0"
    assert segments.gate64(0x1122_3344_5566_7788, 8, dpl=3, ist=2)[::-1].hex() == "00000000112233445566ee0200087788"
    assert segments.gate32(0x1234_5678, 8, segments.TYPE_TRAP_GATE)[::-1].hex() == "12348f0000085678"
    assert segments.gate16(0x1234, 0xF000) == bytes.fromhex("341200f0")
    with pytest.raises(BadInput, match="end of a page"):
        segments.SegmentKind(3, 0x12_3456).descriptor()
    with pytest.raises(BadInput, match="no descriptor"):
        segments.SegmentKind(3, base=1 << 32).descriptor()


def test_page_tables_of_four_levels() -> None:
    memory = bytearray(0x1_0000)
    tables = PageTables(memory, 0x1000, 0x8000)
    tables.map(0, 0, GIB1, page=MIB2)
    tables.map(0xFFFF_FFFF_8000_0000, 0x20_0000, KIB4, writable=False, executable=False)
    assert tables.root == 0x1000
    assert tables.translate(0x1234_5678) == 0x1234_5678 and tables.translate(0x4000_0000) is None
    assert tables.translate(0xFFFF_FFFF_8000_0ABC) == 0x20_0ABC and tables.translate(0xFFFF_FFFF_8000_1000) is None
    # A page within a large one: what is around it stays.
    tables.map(0x40_3000, 0x7000, KIB4)
    assert [tables.translate(address) for address in (0x40_2FFF, 0x40_3000, 0x40_4000)] == [0x40_2FFF, 0x7000, 0x40_4000]
    tables.unmap(0x40_3000)
    assert tables.translate(0x40_3000) is None
    entries = [int.from_bytes(memory[at : at + 8], "little") for at in range(0x1000, 0x9000, 8)]
    assert sum(entry & PageEntry.NX.mask != 0 for entry in entries) == 1
    with pytest.raises(BadInput, match="used up"):
        for index in range(16):
            tables.map(index << 39, 0, KIB4)
    for arguments in ((1, 0, KIB4), (0, 0, 100), (0, 0, 0)):
        with pytest.raises(BadInput, match="whole pages"):
            tables.map(*arguments)
    with pytest.raises(BadInput, match="of 0x1000, 0x200000, 0x40000000"):
        tables.map(0, 0, MIB4, page=MIB4)


def test_page_tables_of_two_levels() -> None:
    memory = bytearray(0x3000)
    tables = PageTables(memory, 0x10_0000, 0x3000, PROTECTED_MODE, offset=0x10_0000)
    tables.map(0, 0, MIB4, page=MIB4)
    tables.map(0xC000_0000, 0x1000, 2 * KIB4, user=True)
    assert memory[:4] == bytes.fromhex("e3000000"), "present, writable, accessed, dirty, large"
    assert (tables.translate(0x12_3456), tables.translate(0xC000_1004), tables.translate(0xC000_2000)) == (0x12_3456, 0x2004, None)


def test_msr_names_and_verdicts() -> None:
    assert msr_name(0xC000_0082) == "0xc0000082 (LSTAR)" and msr_name(7) == "0x7"
    assert not verdict([Range(8)], x86.MSR_FILTER_DEFAULT_ALLOW, 8, x86.MsrFilterFlag.READ)
    assert verdict([], x86.MSR_FILTER_DEFAULT_ALLOW, 8, x86.MsrFilterFlag.READ)
    assert verdict([], x86.MSR_FILTER_DEFAULT_DENY, 0x8FF, x86.MsrFilterFlag.WRITE)
    with pytest.raises(BadInput, match="not in the range"):
        _ = Range(8, 2, {10}).bitmap
    assert len(Range(0, 65).bitmap) == 16 and len(Range(0, 0).bitmap) == 8
