"""`python -m tests.conformance [--backend NAME] [WORD...]`: the list of cases, what each backend answers, and the differences."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from tests.conformance.frame import Case, Trial, all_cases, answer, applies, error_name, host_arch
from trapline.backends.base import Backend
from trapline.errors import NotSupported, TraplineError


def backends(wanted: str) -> Iterator[tuple[str, Backend, str]]:
    """Name, backend and architecture of what can be asked here."""
    if wanted in ("", "software"):
        from trapline.backends.software import Software

        yield "software", Software(), "arm64"
    if wanted in ("", "kvm") and os.access("/dev/kvm", os.R_OK | os.W_OK):
        from trapline.backends.dev_kvm import DevKvm

        yield "kvm", DevKvm(), host_arch()


def ask(case: Case, backend: Backend, system: int, arch: str) -> str:
    """The errno that a backend answers with, or why it was not asked."""
    trial = Trial(backend, system, arch)
    try:
        if not applies(case, trial):
            return "-"
        return error_name(answer(case, trial))
    except NotSupported:
        return "-"
    except (AssertionError, TraplineError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        trial.close()


def main(arguments: list[str]) -> int:
    """Print the list; the exit status says whether an answer was unexpected and unexplained."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--backend", default="", choices=("", "software", "kvm"))
    parser.add_argument("--quiet", action="store_true", help="only the differences and the sum")
    parser.add_argument("words", nargs="*", help="only cases whose names have all of these")
    options = parser.parse_args(arguments)
    opened = [(name, backend, backend.open(), arch) for name, backend, arch in backends(options.backend)]
    cases = [case for case in all_cases() if all(word.lower() in case.name.lower() for word in options.words)]
    explained, wrong, asked = [], [], 0
    for case in cases:
        for name, backend, system, arch in opened:
            got, expected = ask(case, backend, system, arch), error_name(case.errno)
            if not options.quiet:
                print(f"{name:9} {got:8} {case.name}")
            asked += got != "-"
            if got not in ("-", expected):
                known = case.differs is not None and got == error_name(case.differs[0]) and name == "kvm"
                (explained if known else wrong).append(f"{name}: {case.name}: {got}" + (f" ({case.differs[1]})" if known else ""))
    print(f"\n{len(cases)} cases, {asked} answers, {len(explained)} explained differences, {len(wrong)} others")
    for line in explained + wrong:
        print(f"  {line}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
