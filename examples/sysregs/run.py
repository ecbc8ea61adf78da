"""Assemble guest.s and run it: `python examples/sysregs/run.py` (with policy.py), or with options of `trapline run` of your own.

    python examples/sysregs/run.py                      all 20 registers are there
    python examples/sysregs/run.py --no-policy          undefined instruction
    python examples/sysregs/run.py --list               what the guest uses, as the start of a policy file
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from trapline.arm64.asm_program import assemble_program
from trapline.ui.cli import main

HERE = Path(__file__).resolve().parent
ORIGIN = 0x4008_0000


def build(folder: Path) -> Path:
    """The guest as a flat binary."""
    path = folder / "guest.bin"
    path.write_bytes(assemble_program((HERE / "guest.s").read_text(encoding="utf-8"), ORIGIN))
    return path


def run(arguments: list[str]) -> int:
    """Run the guest; the exit status is what it says."""
    command, policy = "run", ["--sysreg", str(HERE / "policy.py")]
    if "--list" in arguments:
        command, policy = "sysregs", []
    if "--no-policy" in arguments:
        policy = []
    others = [word for word in arguments if word not in ("--list", "--no-policy")]
    with tempfile.TemporaryDirectory() as folder:
        return main([command, "--kernel", str(build(Path(folder))), "--mem", "16M", *policy, *others])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
