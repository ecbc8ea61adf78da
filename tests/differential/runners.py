"""Who runs a program: user-mode QEMU, Unicorn, and Trapline's engine. Each returns the records as the program left them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.differential.generate import NO_KEYS
from tests.differential.machine import HCR, MODES
from tests.differential.program import CODE, DATA, PAGE, TAIL_BYTES, Program
from tests.differential.templates import Template, slot
from tests.oracles import LACKED_BY
from trapline.arm64.models import parse
from trapline.arm64.regs import (
    CONTEXTIDR_EL1,
    CPACR_EL1,
    ELR_EL2,
    ESR_EL2,
    FAR_EL2,
    HCR_EL2,
    MDSCR_EL1,
    OSLSR_EL1,
    SCTLR_EL1,
    SPSR_EL2,
)
from trapline.arm64.regs.debug import DBGBCR, DBGBVR, DBGWCR, DBGWVR, DebugControl, WatchControl
from trapline.engine import Cpu, Engine
from trapline.engine.state import PAGE_INSNS, RECORD_SIZE
from trapline.engine.stencil.arena import Stencils
from trapline.engine.stencil.template import NONE
from trapline.engine.tier1.builder import RegionBuilder
from trapline.engine.tier1.install import Texts, link
from trapline.engine.tier1.regions import supported

EMULATOR = "qemu-aarch64"
CODE_BYTES, DATA_BYTES = 64 << 20, 128 << 20
MAP_FIXED_NOREPLACE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE = 0x100000, 2, 0x20, 0x4000


Wrong = dict[str, Callable[[dict[str, int]], bool]]

WRONG: Wrong = {
    # FCVTZS Hd, Hn, #fbits: the sign goes to bits 31:16 as well, which the manual says are zero.
    "half_scalar_fixed_point_fcvtzs": lambda shape: True,
    # FJCVTZS: Z is set for a positive denormal that is flushed (see tests/fp_cases.py).
    "fp_javascript_convert": lambda shape: True,
}
"""What QEMU and its descendants have in common."""


class RunError(Exception):
    """The program did not come to its end."""


class Whole:
    """A runner that has one way to run everything."""

    compiled: set[int] | None = None

    def compiles(self, t: Template) -> bool:
        return True


class Qemu(Whole):
    """User-mode QEMU: the main oracle."""

    name = EMULATOR
    wrong: Wrong = WRONG
    lacks = ()
    groups = NO_KEYS

    @staticmethod
    def missing() -> str | None:
        return None if shutil.which(EMULATOR) else f"{EMULATOR} is not installed (Debian package qemu-user)"

    def run(self, program: Program) -> bytes:
        with tempfile.TemporaryDirectory(prefix="trapline-differential-") as directory:
            image = Path(directory, "program")
            image.write_bytes(program.elf())
            image.chmod(0o700)
            command = [EMULATOR, "-cpu", "max", str(image)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
        if done.returncode or len(done.stdout) != len(program.data):
            raise RunError(f"{EMULATOR} ended with {done.returncode} after {len(done.stdout)} bytes: {done.stderr[-300:]!r}")
        return done.stdout

    @staticmethod
    def version() -> str:
        text = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True).stdout
        return text.splitlines()[0]


class Unicorn(Whole):
    """Unicorn's largest CPU model; old, so it lacks some features."""

    name = "unicorn"
    wrong: Wrong = {
        # The element is not sign-extended before it is compared.
        "load_operate": lambda shape: shape["opc"] in (4, 5) and shape["size"] < 3,
        # FPSR takes exceptions of elements that do not exist.
        "complex_by_element_h_half_fcmla": lambda shape: True,
        **WRONG,
    }
    lacks = tuple(feature.removeprefix("FEAT_") for feature, programs in LACKED_BY.items() if "unicorn" in programs)
    groups = NO_KEYS

    @staticmethod
    def missing() -> str | None:
        try:
            import unicorn  # noqa: F401
        except ImportError:
            return "the Python package unicorn is not installed"
        return None

    def run(self, program: Program) -> bytes:
        import unicorn
        from unicorn import arm64_const as names

        machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        machine.ctl_set_cpu_model(names.UC_CPU_ARM64_MAX)
        for start, content in ((CODE, program.code), (DATA, program.data)):
            first, end = start & -PAGE, start + len(content)
            machine.mem_map(first, end - first + -end % PAGE)
            machine.mem_write(start, content)
        machine.reg_write(names.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        try:
            machine.emu_start(CODE, program.end)
        except unicorn.UcError as error:
            raise RunError(f"unicorn: {error} at {machine.reg_read(names.UC_ARM64_REG_PC):#x}") from error
        return bytes(machine.mem_read(DATA, len(program.data)))


class Trapline(Whole):
    """The engine, at EL0 with translation off: the program lies at its addresses in this process."""

    name = "trapline"
    wrong: Wrong = {}
    lacks = ()
    groups = NO_KEYS
    mode = MODES[0]
    _mapped: list[int] = []

    def __init__(self, cpu: str = "") -> None:
        """`cpu` as in `models.parse`."""
        if not self._mapped:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
            for start, size in ((CODE, CODE_BYTES), (DATA & -PAGE, DATA_BYTES + PAGE)):
                got = libc.mmap(ctypes.c_void_p(start), ctypes.c_size_t(size), 3, flags, -1, ctypes.c_long(0))
                if got != start:
                    raise RunError(f"cannot map {start:#x}")
                self._mapped.append(start)
        self.engine = Engine(parse(cpu))
        self.cpu: Cpu = self.engine.create_cpu()
        self.cpu[HCR_EL2] = int(HCR[0])
        self.cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)
        self.cpu[SCTLR_EL1] = SCTLR_EL1.res1 | SCTLR_EL1(SPAN=1, UCI=1, UCT=1)

    def run(self, program: Program) -> bytes:
        assert len(program.code) <= CODE_BYTES and len(program.data) <= DATA_BYTES
        ctypes.memmove(CODE, program.code, len(program.code))
        ctypes.memmove(DATA, program.data, len(program.data))
        self.engine.drop_code(CODE, len(program.code))
        return self.finish(program)

    def finish(self, program: Program) -> bytes:
        """Run what lies in memory; the records afterwards."""
        cpu = self.cpu
        cpu[ELR_EL2], cpu[SPSR_EL2] = CODE, self.mode
        cpu.enter()
        if self.syndrome() >> 26 != 0x15 or cpu.state.x[8] != 64:
            raise RunError(f"trapline: ESR {cpu[ESR_EL2]:#x} FAR {cpu[FAR_EL2]:#x} at {cpu[ELR_EL2]:#x}")
        return ctypes.string_at(DATA, len(program.data))


    def syndrome(self) -> int:
        """Why the run ended."""
        return self.cpu[ESR_EL2]


class Debugged(Trapline):
    """The engine again, one instruction at a time and past the TLB: a breakpoint could be anywhere, and all data is watched at EL1."""

    name = "debugged"

    def __init__(self) -> None:
        super().__init__()
        cpu = self.cpu
        cpu[OSLSR_EL1], cpu[MDSCR_EL1], cpu[CONTEXTIDR_EL1] = OSLSR_EL1(OSLM1=1), MDSCR_EL1(MDE=1), 1
        cpu[DBGBVR[5]], cpu[DBGBCR[5]] = 2, DebugControl(E=1, PMC=3, BT=2, BAS=15)
        for n, start in enumerate((DATA, DATA + (1 << 30))):
            cpu[DBGWVR[n]], cpu[DBGWCR[n]] = start & -1 << 30, WatchControl(E=1, PAC=1, LSC=3, BAS=255, MASK=30)


class Here:
    """The pages around a block, all mapped where they lie."""

    def __init__(self, engine: Engine, page: int, texts: Texts) -> None:
        self._engine, self._page, self._texts = engine, page, texts

    def records(self, distance: int) -> int | None:
        return self._engine.entry.find_records(self._engine.shared_address, self._page + (distance << 12)) or None

    def text(self, distance: int) -> bytes | None:
        records = self.records(distance)
        return None if records is None else self._texts.read(records)


class Regions(Trapline):
    """The engine again, with every block of the program compiled as regions before it runs: as few as its instructions allow."""

    name = "regions"

    def __init__(self) -> None:
        super().__init__()
        self.builder = RegionBuilder(self.engine.features, self.engine.code.cache)
        self.texts = Texts()
        self.compiled = set()
        self.instructions = 0
        """How many there are in regions so far."""

    def run(self, program: Program) -> bytes:
        super().run(program)  # decodes everything
        self.compiled = set()
        for start, end in zip(program.starts, (*program.starts[1:], program.end), strict=True):
            for address in range(start, end - TAIL_BYTES, 4):
                if address not in self.compiled:
                    self.compiled |= self._compile(address)
        self.instructions += len(self.compiled)
        ctypes.memmove(DATA, program.data, len(program.data))
        return self.finish(program)

    def compiles(self, t: Template) -> bool:
        """Whether regions may contain it."""
        return supported(t.insn.record_word(t.base, slot))

    def _compile(self, address: int) -> set[int]:
        """Make the region of an address and put it into service; the addresses of its instructions."""
        here, index = Here(self.engine, address & -PAGE, self.texts), address % PAGE >> 2
        region = self.builder.explore(index, here.text)
        if region is None:
            return set()
        (linked,) = link([self.builder.build(region)], self.engine.code)
        if not linked.install(self.engine, here, self.texts):
            return set()
        return {(address & -PAGE) + (page << 12) + (at << 2) for page, at, _ in linked.built.words}


class Stencilled(Trapline):
    """The engine again, with every instruction that has a stencil assembled before the program runs."""

    name = "stencils"

    def __init__(self) -> None:
        super().__init__()
        self.builder = RegionBuilder(self.engine.features, self.engine.code.cache)
        self.texts = Texts()
        self.stencils = Stencils(self.engine, self._make)
        self.compiled = set()
        self.instructions = 0
        """How many there are so far."""

    def compiles(self, t: Template) -> bool:
        """Whether there is a stencil, or nobody asked for it yet."""
        return self.engine.code.templates.table[self.engine.entry.decode(t.base, 0)] != NONE

    def _make(self, shapes: list[int]) -> bool:
        self.engine.code.templates.add(self.builder.stencils(shapes))
        return True

    def run(self, program: Program) -> bytes:
        super().run(program)  # decodes everything
        self.stencils.forget()
        here = Here(self.engine, CODE, self.texts)
        self.compiled = set()
        for page in range(-(-len(program.code) // PAGE)):
            records = here.records(page)
            if records is not None:
                for _ in range(3):  # the first looks may be for templates
                    self.instructions += self.stencils.assemble(records, self.texts.read)
                at = (ctypes.c_uint64 * (PAGE_INSNS * RECORD_SIZE // 8)).from_address(records)[:: RECORD_SIZE // 8]
                self.compiled |= {CODE + page * PAGE + 4 * k for k, handler in enumerate(at) if self.stencils.owns(handler)}
        ctypes.memmove(DATA, program.data, len(program.data))
        return self.finish(program)
