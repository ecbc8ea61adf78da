"""A small assembler for guests: LLVM's, in Intel's syntax, for code of 16, 32 or 64 bits.

    assemble("mov al, 42; out 0x10, al; hlt", bits=16)

Labels work, relative to each other. LLVM ends the process over a mistake in the text, so it runs in one of its own:
`python -m trapline.x86_64.asm BITS` with the text on standard input.
"""

from __future__ import annotations

import io
import subprocess
import sys
from functools import lru_cache

from trapline.errors import BadInput

MODES = (16, 32, 64)
SECONDS = 60


@lru_cache(maxsize=256)
def assemble(text: str, bits: int = 64) -> bytes:
    """Machine code; BadInput with LLVM's words for what it does not understand. Statements end with a semicolon or the line."""
    if bits not in MODES:
        raise BadInput(f"there is code of {', '.join(map(str, MODES))} bits, not {bits}")
    command = [sys.executable, "-m", __name__, str(bits)]
    result = subprocess.run(command, input=text.encode(), capture_output=True, timeout=SECONDS, check=False)
    if result.returncode:
        words = [line for line in result.stderr.decode(errors="replace").splitlines() if "error" in line] or ["no reason given"]
        raise BadInput(f"the assembler refuses this: {words[0]}")
    return result.stdout


def translate(text: str, bits: int) -> bytes:
    """The same in this process, which a mistake in the text ends."""
    from elftools.elf.elffile import ELFFile
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    lines = [".intel_syntax noprefix", f".code{bits}", *text.splitlines()]
    directives = "".join(f'module asm "{line}"\n' for line in (line.replace("\\", r"\5C").replace('"', r"\22") for line in lines))
    triple = "x86_64-unknown-linux-gnu"
    module = binding.parse_assembly(f'target triple = "{triple}"\n{directives}')
    machine = binding.Target.from_triple(triple).create_target_machine()
    elf = ELFFile(io.BytesIO(machine.emit_object(module)))
    text_section = elf.get_section_by_name(".text")
    if elf.get_section_by_name(".rela.text") is not None or text_section is None:
        sys.exit("error: the code names an address that is not in it")
    return bytes(text_section.data())


if __name__ == "__main__":
    sys.stdout.buffer.write(translate(sys.stdin.read(), int(sys.argv[1])))
