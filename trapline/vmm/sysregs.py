"""Finding out which implementation-defined system registers a guest uses: run it with all of them as storage, and list them."""

from __future__ import annotations

import sys
from pathlib import Path

from trapline.backends.objects import Vm
from trapline.backends.sysregs import Sysregs, storage
from trapline.errors import BadInput

HEADER = "# Implementation-defined system registers that a guest used, listed by `trapline sysregs`."


class Survey:
    """Watches the machines of one run. The list goes to `output`, or to stderr."""

    def __init__(self, output: Path | None = None) -> None:
        self.output = output
        self.machines: list[Sysregs] = []

    def watch(self, vm: Vm) -> None:
        """Let this VM's guest use every register: those without a policy of their own keep what is written to them."""
        sysregs = vm.sysregs
        sysregs.default = storage()
        self.machines.append(sysregs)

    def lines(self) -> list[str]:
        """A policy file."""
        found: dict[str, str] = {}
        for sysregs in self.machines:
            for line in sysregs.lines():
                found.setdefault(line.partition("]")[0], line)
        return [HEADER, *found.values()] if found else [f"{HEADER} None."]

    def write(self) -> None:
        """Write the list."""
        text = "\n".join(self.lines()) + "\n"
        if self.output is None:
            sys.stderr.write(text)
            return
        try:
            self.output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise BadInput(f"--output {self.output}: {error.strerror}") from error
