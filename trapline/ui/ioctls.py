"""`trapline ioctls`: logs of KVM calls replayed and printed, and programs compared on two KVMs."""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trapline.backends.base import Backend
from trapline.backends.record.compare import compare as compare_backends
from trapline.backends.record.compare import open_on
from trapline.backends.record.difference import call_text, outcome_text
from trapline.backends.record.log import read_log, recorded
from trapline.backends.record.log import replay as replay_events
from trapline.backends.select import make_backend
from trapline.errors import BadInput
from trapline.turns import Turns
from trapline.vmm.trace import output_file

ENTRY = "main"
BACKENDS = ("software", "kvm")


def replay(options: argparse.Namespace) -> int:
    """Make a log's calls again. 1 if one was answered otherwise."""
    header, events = read_log(options.log)
    backend = open_backend(options.backend or header["backend"], header)
    calls = differing = 0
    for difference in replay_events(header, events, backend, options.patience, options.memory):
        calls += 1
        if difference is not None:
            differing += 1
            print(f"{difference}\n")
            if not options.keep_going:
                return 1
    print(f"{options.log}: {calls} calls of {header['backend']} on {backend.name}: {differing} were answered otherwise")
    return int(differing > 0)


def open_backend(name: str, header: dict[str, Any]) -> Backend:
    """The backend to replay on; a software machine is like the one that was recorded."""
    if name == "kvm":
        return make_backend("kvm")
    return make_backend("software", header.get("cpu") or "", Turns(header["seed"]) if header.get("seed") is not None else None)


def show(options: argparse.Namespace) -> int:
    """Print a log: each call, and what came of it."""
    _, events = read_log(options.log)
    for event in events:
        print(f"{call_text(event)} {outcome_text(event)}".rstrip())
    return 0


def record(options: argparse.Namespace) -> int:
    """Run a program on one backend, and log its calls."""
    program = load_program(options.program)
    with ExitStack() as stack:
        backend = make_backend(options.backend, turns=Turns() if options.deterministic else None)
        file = output_file(stack, "ioctls record", options.log)
        assert file is not None
        program(stack.enter_context(open_on(recorded(backend, file))))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Run a program on two backends. 1 if they differ."""
    names = tuple(options.backends) or BACKENDS
    if len(names) != 2 or not set(names) <= set(BACKENDS):
        raise BadInput(f"ioctls compare: name two backends of {', '.join(BACKENDS)}, or none for these")
    program = load_program(options.program)
    first, second = (make_backend(name, turns=Turns() if options.deterministic and name == "software" else None) for name in names)
    difference = compare_backends(program, first, second)
    print(difference if difference is not None else f"{options.program}: {names[0]} and {names[1]} answered alike")
    return int(difference is not None)


def load_program(path: Path) -> Callable[[Any], object]:
    """The function `main` of a Python file."""
    try:
        found = runpy.run_path(str(path)).get(ENTRY)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    if not callable(found):
        raise BadInput(f"{path} has no function {ENTRY}(kvm)")
    program: Callable[[Any], object] = found
    return program
