"""KVM_SET_GUEST_DEBUG of this package's KVM and of Linux's own give the same exits.

Linux's runs in a kernel that is at EL2 of the bare machine; a program in it follows the same script as `play` does here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trapline.abi import arm64
from trapline.abi.exits import DebugExit, MmioExit
from trapline.arm64.asm_program import assemble_with_labels
from trapline.arm64.regs import MDSCR_EL1, TABLE, VBAR_EL1
from trapline.arm64.regs.debug import DBGBCR, DBGBVR, DebugControl, WatchControl
from trapline.arm64.sysreg import generic_name
from trapline.backends.objects import System
from trapline.backends.software import Software
from trapline.errors import BadInput
from trapline.vmm import guests
from trapline.vmm.initramfs import Cpio

pytestmark = [pytest.mark.needs_guest, pytest.mark.slow, pytest.mark.timeout(900)]

COMPILER = "aarch64-linux-gnu-gcc"
SOURCE = Path(__file__).with_name("debugvm.c")
PARAMS = 'console=ttyAMA0 panic=-1 quiet run="/debugvm"'
BASE, DATA, DEVICE = 0x8000_0000, 0x8000_8000, 0x0900_0000
ENABLE, STEP, BRK, HARDWARE = 1, 2, 1 << 16, 1 << 17


def code(text: str) -> str:
    for name in ("VBAR_EL1", "MDSCR_EL1", "DBGBVR0_EL1", "DBGBCR0_EL1", "OSLSR_EL1", "ID_AA64ISAR0_EL1", "ACTLR_EL1"):
        text = text.replace(name, generic_name(TABLE[name].enc))
    words = assemble_with_labels(text, BASE)[0]
    return "code " + " ".join(words[k : k + 4][::-1].hex() for k in range(0, len(words), 4))


def breakpoint(n: int, offset: int) -> str:
    return f"bp {n:x} {BASE + offset:x} {int(DebugControl(E=1, PMC=3, BAS=15)):x}"


def watchpoint(n: int, address: int, kinds: int, select: int = 0xFF, mask: int = 0) -> str:
    return f"wp {n:x} {address:x} {int(WatchControl(E=1, PAC=3, LSC=kinds, BAS=select, MASK=mask)):x}"


def script() -> list[str]:
    """What is played on both. Where Linux has changed since the kernel of this test (6.1), nothing is asked: it left the guest's own
    breakpoints on while userspace stepped through the guest."""
    step, monitor = f"debug {ENABLE | STEP:x}", f"debug {ENABLE | HARDWARE:x}"
    own = [f"set {DBGBVR[0].one_reg_id:x} {BASE + 4:x}", f"set {DBGBCR[0].one_reg_id:x} {int(DebugControl(E=1, PMC=1, BAS=15)):x}"]
    vectors = ".align 11\nvectors: nop\n.align 9\nmov x9, #1\neret"
    exceptions = (
        f"adr x0, vectors\nmsr VBAR_EL1, x0\nisb\nsvc #1\nmrs x1, ID_AA64ISAR0_EL1\nmrs x2, ACTLR_EL1\nnop\nself: b self\n{vectors}"
    )
    registers = "msr DBGBVR0_EL1, x0\nmrs x1, DBGBVR0_EL1\nmrs x2, OSLSR_EL1\nmrs x3, MDSCR_EL1\nmov x4, #1\n"
    registers += "msr MDSCR_EL1, x4\nmrs x5, MDSCR_EL1\nself: b self"
    calls = "mov x0, #0x84000000\nhvc #0\nnop\nmrs x6, s3_0_c0_c0_5\nmsr daifset, #8\nnop\nldr x2, [x7], #4\nldxr x4, [x5]\nself: b self"
    state, pc = f"get {arm64.REG_PSTATE:x}", f"set {arm64.REG_PC:x}"
    fields = [arm64.reg_x(n) for n in (1, 2, 3, 5)] + [reg.one_reg_id for reg in (MDSCR_EL1, DBGBVR[0], DBGBCR[0])]
    return [
        "new", code("mov x0, #2\nagain: subs x0, x0, #1\nb.ne again\nldr w1, [x2]\nstr w1, [x2]\nbrk #5\nself: b self"),
        f"x 2 {DEVICE:x}", step, "run 5", "run 2", "run 2", "run 1", "run 2",
        "debug 0", f"debug {ENABLE | BRK:x}", "new", f"x 2 {DEVICE:x}", "run 3",
        "new", code(exceptions),
        step, "run c",
        "new", code("again: add x0, x0, #1\nbl f\nstr x0, [x1]\nldr x2, [x1, #8]\nb again\nf: ret"), f"x 1 {DATA:x}",
        "clear", breakpoint(0, 20), breakpoint(3, 8), monitor, "run 2", "clear", breakpoint(1, 8), monitor, "run 1",
        "clear", watchpoint(0, DATA, 2), monitor, "run 2", "clear", watchpoint(1, DATA + 8, 1), monitor, "run 1",
        "clear", watchpoint(2, DATA, 3, mask=12), monitor, "run 1", f"debug {ENABLE | HARDWARE | STEP:x}", "run 1",
        "clear", breakpoint(0, 0), f"debug {ENABLE | HARDWARE | STEP:x}", "run 4",
        "debug 0", "clear", "new", code(calls), "x 1 1", "x 3 3", f"x 7 {DATA:x}", f"x 5 {DATA:x}", step, "run 1", state, "run 9", state,
        *(f"get {arm64.reg_x(n):x}" for n in (1, 2, 3, 7)), f"{pc} {BASE + 16:x}", "run 2", f"set {arm64.REG_PSTATE:x} 3c0",
        f"set {VBAR_EL1.one_reg_id:x} {BASE + 0x800:x}", f"{pc} {BASE + 8:x}", "run 3", "debug 0", "clear", "new",
        code(registers), "x 0 1230", breakpoint(0, 28), monitor, "run 1", *(f"get {reg:x}" for reg in fields), "debug 0", "clear",
        "new", code("msr daifclr, #8\nnop\nnop\nself: b self\n.align 11\nnop\n.align 9\nldr x0, [x9]"), f"x 9 {DEVICE:x}", *own,
        f"set {VBAR_EL1.one_reg_id:x} {BASE + 0x800:x}", f"set {MDSCR_EL1.one_reg_id:x} {int(MDSCR_EL1(MDE=1, KDE=1)):x}",
        "run 1", f"get {arm64.REG_ELR_EL1:x}", f"get {arm64.REG_PC:x}",
    ]  # fmt: skip


class Player:
    """Follows the script on this package's KVM."""

    def __init__(self, kvm: System) -> None:
        self.lines: list[str] = []
        vm = kvm.create_vm()
        self.memory = vm.add_memory(BASE, 1 << 20)
        self.vcpu = vm.create_vcpu()
        self.debug = arm64.GuestDebug()

    def new(self) -> None:
        self.vcpu.init()
        for n in range(31):
            self.x(n, 0)
        self.vcpu.regs.pc = BASE

    def code(self, *words: int) -> None:
        self.memory[0 : 4 * len(words)] = b"".join(word.to_bytes(4, "little") for word in words)

    def x(self, n: int, value: int) -> None:
        self.vcpu.set_one_reg(arm64.reg_x(n), value)

    def set(self, reg: int, value: int) -> None:
        self.vcpu.set_one_reg(reg, value)

    def get(self, reg: int) -> None:
        self.lines.append(f"{self.vcpu.get_one_reg(reg):x}")

    def clear(self) -> None:
        self.debug = arm64.GuestDebug()

    def bp(self, n: int, value: int, control: int) -> None:
        self.debug.arch.dbg_bvr[n], self.debug.arch.dbg_bcr[n] = value, control

    def wp(self, n: int, value: int, control: int) -> None:
        self.debug.arch.dbg_wvr[n], self.debug.arch.dbg_wcr[n] = value, control

    def set_debug(self, control: int) -> None:
        self.debug.control = control
        self.vcpu._ioctl(self.vcpu.file, arm64.KVM_SET_GUEST_DEBUG, self.debug)

    def run(self, times: int) -> None:
        for _ in range(times):
            exit = self.vcpu.run()
            pc = self.vcpu.regs.pc - BASE
            if isinstance(exit, DebugExit):
                self.lines.append(f"debug {exit.hsr:x} far {exit.far:x} pc {pc:x}")
            elif isinstance(exit, MmioExit):
                self.lines.append(f"mmio {'write' if exit.is_write else 'read'} {exit.phys_addr:x} {exit.length} pc {pc:x}")
                if not exit.is_write:
                    exit.data = 0x1234
            else:
                self.lines.append(f"exit {exit.reason} pc {pc:x}")

    def play(self, commands: list[str]) -> list[str]:
        for line in commands:
            self.lines.append(f"> {line}")
            word, *numbers = line.split()
            getattr(self, "set_debug" if word == "debug" else word)(*(int(number, 16) for number in numbers))
        return self.lines


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The kernel, and a ramdisk with the program and the script."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"GUEST DEBUGGING NOT COMPARED: {COMPILER} is not installed")
    try:
        guest = guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")
    here = tmp_path_factory.mktemp("debugvm")
    subprocess.run([COMPILER, "-O1", "-static", "-Wall", "-Werror", "-o", here / "debugvm", SOURCE], check=True)
    archive = Cpio()
    archive.file("debugvm", (here / "debugvm").read_bytes(), 0o755)
    archive.file("script", "".join(line + "\n" for line in script()).encode())
    (here / "initrd").write_bytes(guest.initrd.read_bytes() + archive.finish())
    return guest.kernel, here / "initrd"


def test_linux_s_kvm_agrees(files: tuple[Path, Path]) -> None:
    kernel, initrd = map(str, files)
    words = [sys.executable, "-m", "trapline.ui.cli", "run", "--machine", "bare", "--el2", "--mem", "512M", "--timeout", "400"]
    words += ["--kernel", kernel, "--initrd", initrd, "--params", PARAMS]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=500, check=False)
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "BEGIN" in lines and "END" in lines, done.stdout[-3000:] + done.stderr
    theirs = lines[lines.index("BEGIN") + 1 : lines.index("END")]
    with System(Software()) as kvm:
        ours = Player(kvm).play(script())
    assert ours == theirs
