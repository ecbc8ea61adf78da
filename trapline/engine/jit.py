"""Machine code: LLVM IR to objects, and objects to memory.

Objects are linked by name into one MCJIT engine; its memory is either writable or executable, never both. `libllvmlite` is
large, so this module is imported only when a software machine is opened.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

SOURCES = ("bits", "arm64", "engine")
"""Packages whose text decides what compiled code looks like."""
PLAIN = frozenset(
    (
        "asm", "asm_elements", "asm_program", "walker", "cpu", "engine", "timers", "turn_cpu", "client", "install", "manager", "arena",
        "server", "cache", "log", "stored", "haste",
    )
)  # fmt: skip
"""Modules of theirs that have no part in it."""


def source_key(package: Path, configuration: str) -> str:
    """A digest of everything that decides the compiled code: sources, features, LLVM, host CPU."""
    digest = hashlib.sha256(configuration.encode())
    for name in SOURCES:
        for path in sorted((package / name).rglob("*.py")):
            if path.stem in PLAIN:
                continue
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    digest.update(repr((llvmlite.__version__, llvm.llvm_version_info, llvm.get_host_cpu_name())).encode())
    digest.update(llvm.get_host_cpu_features().flatten().encode())
    return digest.hexdigest()[:20]


def _machine(relocation: str, level: int = 2) -> llvm.TargetMachine:
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=level,
        reloc=relocation,
        codemodel="small",
    )


PEELED = 300
"""A loop of so many of LLVM's units of size at most is peeled: what its first turn alone has to find out is no variable of the others."""


@functools.cache
def _choose_passes() -> None:
    """Once for a process. No strength reduction: it gives every address of a loop a register of its own, and there are too few."""
    llvm.set_option("", "-disable-lsr")
    llvm.set_option("", f"-unroll-threshold={PEELED}")


CODE_ROOM, DATA_ROOM = 128 << 20, 32 << 20
"""Bytes for code, and each for constants and data. LLVM's memory manager maps twice as many, which cost nothing until they are used; what
does not fit goes where the host puts it."""
X86 = ("x86_64", "AMD64")
SECTION_HEADERS, COUNT_OF_HEADERS, HEADER_SIZE = 0x28, 0x3C, 64
"""Of an ELF file: where it says where its section headers are, and how many; the size of one."""
TYPE, FLAGS, ALIGNMENT = slice(4, 8), slice(8, 16), slice(48, 56)
"""Of a section header."""
SHT_PROGBITS, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4


def _room(machine: llvm.TargetMachine) -> bytes:
    """An object whose sections ask for so large an alignment that LLVM's memory manager maps far more than they need, and keeps it.

    It has a place for code, one for constants and one for data, and takes more from the host piece by piece. Each piece goes to
    whatever gap it fits in: in a process with much other memory that may be more than 2 GiB away from where the rest of the same object
    is, and then linking ends the process. (Threads alone do that: every one has a stack and a heap of its own.)
    """
    text = """
        @trapline_constants = constant [4 x i64] [i64 1, i64 2, i64 3, i64 4]
        @trapline_data = global i64 1
        define void @trapline_code() {
          ret void
        }"""
    data = bytearray(machine.emit_object(llvm.parse_assembly(f'target triple = "{machine.triple}"{text}')))
    first, count = int.from_bytes(data[SECTION_HEADERS : SECTION_HEADERS + 8], "little"), data[COUNT_OF_HEADERS]
    for number in range(count):
        header = memoryview(data)[first + number * HEADER_SIZE :][:HEADER_SIZE]
        flags = int.from_bytes(header[FLAGS], "little")
        if flags & SHF_ALLOC and int.from_bytes(header[TYPE], "little") == SHT_PROGBITS:
            header[ALIGNMENT] = (CODE_ROOM if flags & SHF_EXECINSTR else DATA_ROOM).to_bytes(8, "little")
    return bytes(data)


class Jit:
    """Compiles IR and loads objects into this process."""

    def __init__(self) -> None:
        _choose_passes()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._machine = _machine("pic")
        empty = llvm.parse_assembly(f'target triple = "{self._machine.triple}"\n')
        self._engine = llvm.create_mcjit_compiler(empty, self._machine)
        self._objects: list[object] = []
        if platform.machine() in X86:
            self.load(_room(self._machine))

    def compile(self, ir: str, speed: int = 2) -> bytes:
        """Optimise and compile a module to an object file."""
        options = llvm.create_pipeline_tuning_options(speed_level=speed)
        options.loop_vectorization = options.slp_vectorization = False
        return self._compile(ir, self._machine, options)

    def compile_in_haste(self, ir: str) -> bytes:
        """Compile a module without making its code good, in a third of the time."""
        return self._compile(ir, _machine("pic", level=0), llvm.create_pipeline_tuning_options(speed_level=0))

    def compile_absolute(self, ir: str) -> bytes:
        """Compile a module whose undefined symbols are absolute values."""
        return self._compile(ir, _machine("static"), llvm.create_pipeline_tuning_options(speed_level=2))

    @staticmethod
    def _compile(ir: str, machine: llvm.TargetMachine, options: llvm.PipelineTuningOptions) -> bytes:
        module = llvm.parse_assembly(f'target triple = "{machine.triple}"\n' + ir)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        return machine.emit_object(module)

    def compile_once_through(self, ir: str) -> bytes:
        """Compile a module of straight code: the few passes that it gains from, in a quarter of the time."""
        module = llvm.parse_assembly(f'target triple = "{self._machine.triple}"\n' + ir)
        builder = llvm.create_pass_builder(self._machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes = llvm.create_new_function_pass_manager()
        passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
        passes.add_new_gvn_pass()
        passes.add_jump_threading_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
        passes.add_dead_store_elimination_pass()
        for function in module.functions:
            if not function.is_declaration:
                passes.run(function, builder)
        return self._machine.emit_object(module)

    def load(self, *files: bytes) -> None:
        """Link object files, which may refer to each other; their symbols become known to later ones.

        Many at once take half the time that they take one by one, and a tenth of the mappings.
        """
        objects = [llvm.ObjectFileRef.from_data(data) for data in files]
        for each in objects:
            self._engine.add_object_file(each)
        self._engine.finalize_object()
        self._objects += objects

    def address(self, symbol: str) -> int:
        """Address of a loaded symbol; KeyError if there is none."""
        found = self._engine.get_global_value_address(symbol) or self._engine.get_function_address(symbol)
        if not found:
            raise KeyError(symbol)
        return found

    def define(self, symbol: str, address: int) -> None:
        """Make a host function known by name."""
        llvm.add_symbol(symbol, address)

    def table(self, symbol: str, count: int) -> list[int]:
        """Read a loaded constant table of `count` addresses."""
        return list((ctypes.c_uint64 * count).from_address(self.address(symbol)))
