"""Files that runs write: the exit trace, one line of JSON for each time a vCPU's processor came back to the hypervisor."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from trapline.arm64.exceptions import EC
from trapline.arm64.regs import ELR_EL2, ESR_EL2, FAR_EL2
from trapline.errors import BadInput
from trapline.turns import Turns

EC_SHIFT = 26
NAMES = {int(ec): ec.name for ec in EC}


TO_EL2 = ("sync", "irq", "serror")
"""Exits that are exceptions to the hypervisor; a bare machine has others, and goes on where it was."""


def output_file(stack: ExitStack, option: str, path: Path | None) -> TextIO | None:
    """A file that an option names, opened for writing while the stack lasts. None if it names none."""
    if path is None:
        return None
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{option} {path}: {error.strerror}") from error


class TraceWriter:
    """Writes the trace of a deterministic machine to a file, while the context lasts.

    n: instructions that all vCPUs have retired. cpu: which one exited. kind: `sync`, `irq` (a timer, another vCPU, or the end of the
    turn) or `serror`. pc: where the guest goes on. For `sync` also the exception class `ec`, and `esr` and `far` in hexadecimal.
    """

    def __init__(self, turns: Turns, path: Path) -> None:
        self.turns = turns
        try:
            self.file = path.open("w", encoding="ascii")
        except OSError as error:
            raise BadInput(f"--trace {path}: {error.strerror}") from error

    def __enter__(self) -> TraceWriter:
        self.turns.trace = self.write
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.turns.trace = None
        self.file.close()

    def write(self, cpu: Any, kind: str) -> None:
        """Note an exit of the processor `cpu`."""
        more = ""
        if kind == "sync":
            esr = cpu[ESR_EL2]
            name = NAMES.get(esr >> EC_SHIFT, hex(esr >> EC_SHIFT))
            more = f', "ec": "{name}", "esr": "{esr:#x}", "far": "{cpu[FAR_EL2]:#x}"'
        pc = cpu[ELR_EL2] if kind in TO_EL2 else cpu.state.pc
        self.file.write(f'{{"n": {self.turns.retired}, "cpu": {cpu.index}, "kind": "{kind}", "pc": "{pc:#x}"{more}}}\n')
