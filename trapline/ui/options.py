"""The options of `trapline run`, and how a word of the user's becomes a value. Wrong words are BadInput: one line, exit status 125."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from trapline.errors import BadInput
from trapline.vmm.board import MiB
from trapline.vmm.machine import Config, Deterministic
from trapline.vmm.session import SnapshotWish

UNITS = {"": MiB, "K": 1 << 10, "M": MiB, "G": 1 << 30, "T": 1 << 40}
BACKENDS = ("auto", "software", "kvm")
MACHINES = ("virt", "bare")
CPU = "--cpu"
READ_ONLY_SUFFIX = ",ro"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are errors of this program's, not of the parser's own kind."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parser's own; `--cpu -lse` means `--cpu=-lse`."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        for at in [k for k, word in enumerate(words[: max(0, end - 1)]) if word == CPU][::-1]:
            words[at : at + 2] = [f"{CPU}={words[at + 1]}"]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Complain in one line."""
        raise BadInput(f"{message} (see {self.prog} --help)")


def size(text: str) -> int:
    """Bytes from "512M", "2G" or a plain number of MiB."""
    match = re.fullmatch(r"(\d+)([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 512M or 2G")
    return int(match[1]) * UNITS[match[2].upper()]


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def count(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def number(text: str) -> int:
    """A whole number, not negative; 0x and underscores as in Python."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return value


def disk(text: str) -> tuple[Path, bool]:
    """A disk image, and whether it is read-only: FILE or FILE,ro."""
    read_only = text.endswith(READ_ONLY_SUFFIX)
    return Path(text.removesuffix(READ_ONLY_SUFFIX) if read_only else text), read_only


@dataclass(frozen=True, slots=True)
class Missing:
    """An option of the contract whose feature is not there yet. It is known, so that asking for it gets an answer and not a guess."""

    flag: str
    feature: str
    takes_value: bool = False


MISSING = (
    Missing("--mte", "memory tagging"),
    Missing("--nested", "nested virtualisation"),
    Missing("--aarch32", "32-bit guests"),
    Missing("--gdb", "the gdb stub", takes_value=True),
)


class RefuseMissing(argparse.Action):
    """Refuses an option whose feature is not there yet."""

    def __init__(self, option_strings: list[str], dest: str, feature: str = "", **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **kwargs)
        self.feature = feature

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None) -> None:
        raise BadInput(f"{option}: {self.feature} is not there yet; leave the option out")


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Options that shape the machine, whatever it boots."""
    group = parser.add_argument_group("machine")
    group.add_argument("-c", "--cpus", type=count, default=1, metavar="N", help="number of CPUs (1)")
    group.add_argument(CPU, default="", metavar="CPU", help="which features a CPU has: -NAME, +NAME, armv8.0 to armv8.9, max; a comma list")
    group.add_argument("-m", "--mem", type=size, default=512 * MiB, metavar="SIZE", help="memory, such as 512M or 2G (512M)")
    group.add_argument("-d", "--disk", type=disk, action="append", default=[], metavar="FILE[,ro]", help="raw disk image; may be repeated")
    group.add_argument("--console", choices=("serial", "virtio"), default="serial", help="what stdin and stdout are connected to (serial)")
    group.add_argument("--pci-testdev", action="store_true", help="put the function on the PCI bus that kvm-unit-tests look for")
    group.add_argument("--gic", choices=("2", "3"), default="3", help="interrupt controller version (3)")
    group.add_argument("--backend", choices=BACKENDS, default="auto", help="which KVM: the software machine, /dev/kvm, or the best (auto)")
    group.add_argument("--machine", choices=MACHINES, default="virt", help="a VM of a KVM, or the processors without ours (virt)")
    group.add_argument("--el2", action="store_true", help="with --machine bare: the processors have EL2 and start there")
    sysreg = "Python file with policies for implementation-defined system registers (docs/sysreg-exits.md); may be repeated"
    group.add_argument("--sysreg", type=Path, action="append", default=[], metavar="FILE.py", help=sysreg)
    group.add_argument("--timeout", type=seconds, metavar="SECONDS", help="stop after so long, with exit status 124")
    group.add_argument("--no-reboot", action="store_true", help="end with exit status 3 when the guest asks for a reset")
    add_snapshot_options(group)
    group.add_argument("--trace-ioctls", type=Path, metavar="FILE", help="write every KVM call as a line of text, in strace's way")
    group.add_argument("--record-ioctls", type=Path, metavar="FILE", help="write every KVM call as a line of JSON, for `trapline ioctls`")
    again = parser.add_argument_group("repeatable runs")
    again.add_argument("--deterministic", action="store_true", help="time from instructions, randomness from the seed, one host thread")
    again.add_argument("--seed", type=number, metavar="N", help="seed of the randomness (0)")
    again.add_argument("--record", type=Path, metavar="FILE", help="run in the host's time, and record what `trapline replay` repeats")
    add_stop_options(again)
    later = parser.add_argument_group("not there yet (refused)")
    for option in MISSING:
        later.add_argument(
            option.flag, action=RefuseMissing, feature=option.feature, nargs=None if option.takes_value else 0, help=option.feature
        )


def add_snapshot_options(group: argparse._ActionsContainer) -> None:
    """Options that say when a machine is saved, and how one asks it while it runs."""
    when = "save the machine to --snapshot's file and end it: N instructions (--deterministic), 5s, or a text that the console shows"
    group.add_argument("--snapshot", type=Path, metavar="FILE", help="where --snapshot-at saves the machine, for `trapline restore`")
    group.add_argument("--snapshot-at", metavar="WHEN", help=when)
    group.add_argument("--control", type=Path, metavar="SOCKET", help="where `trapline snapshot` and `migrate` reach the machine")


def snapshot_wish(options: argparse.Namespace, deterministic: bool) -> SnapshotWish | None:
    """What the options say about saving the machine; None if it is not to be."""
    if options.snapshot_at is None:
        if options.snapshot is not None:
            raise BadInput("--snapshot: say when, with --snapshot-at N, 5s or TEXT; or use --control and `trapline snapshot`")
        return None
    if getattr(options, "record", None) is not None:
        raise BadInput("--record with --snapshot-at: a recording begins at power-on; leave one of them out")
    if getattr(options, "machine", "virt") == "bare":
        raise BadInput("--machine bare with --snapshot-at: no KVM is there to be asked what the machine is")
    if options.snapshot is None:
        raise BadInput("--snapshot-at: say where, with --snapshot FILE")
    if deterministic:
        if not re.fullmatch(r"\d[\d_]*", options.snapshot_at):
            raise BadInput(f"--snapshot-at {options.snapshot_at}: of a deterministic machine, give a number of instructions")
        return SnapshotWish(options.snapshot, int(options.snapshot_at))
    if re.fullmatch(r"\d+", options.snapshot_at):
        number = options.snapshot_at
        raise BadInput(f"--snapshot-at {number}: only --deterministic machines count instructions; {number}s is seconds")
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)s", options.snapshot_at):
        return SnapshotWish(options.snapshot, seconds(match[1]))
    return SnapshotWish(options.snapshot, options.snapshot_at)


def add_restore_options(parser: argparse.ArgumentParser) -> None:
    """Options of a machine that goes on: what it is like is in the file."""
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="which KVM (auto)")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="stop after so long, with exit status 124")
    parser.add_argument("--no-verify", action="store_true", help="do not compare memory with its checksums first")
    parser.add_argument("--trace-ioctls", type=Path, metavar="FILE", help="write every KVM call as a line of text")
    add_snapshot_options(parser)
    add_stop_options(parser)


def refuse_stop(options: argparse.Namespace) -> None:
    """BadInput for options that only deterministic machines have."""
    for name in ("stop_at", "trace"):
        if getattr(options, name) is not None:
            raise BadInput(f"--{name.replace('_', '-')}: the saved machine was not deterministic, and does not count instructions")


def add_stop_options(group: argparse._ActionsContainer) -> None:
    """Options of runs that count instructions."""
    group.add_argument("--stop-at", type=number, metavar="N", help="stop after N instructions and show the CPUs")
    group.add_argument("--trace", type=Path, metavar="FILE", help="write every exit as a line of JSON")


def add_ioctl_commands(parser: argparse.ArgumentParser) -> None:
    """What `trapline ioctls` does."""
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True, parser_class=Parser)
    replay = actions.add_parser("replay", help="make the calls of a log again, and report the first that is answered otherwise")
    replay.add_argument("log", type=Path, metavar="FILE")
    replay.add_argument("--backend", choices=BACKENDS[1:], default="", help="which KVM (the one that was recorded)")
    replay.add_argument("--keep-going", action="store_true", help="report all differences, not only the first")
    no_memory = "do not compare guest memory: a guest that looks at the time writes it down"
    replay.add_argument("--no-memory", dest="memory", action="store_false", help=no_memory)
    replay.add_argument("--patience", type=seconds, default=30.0, metavar="SECONDS", help="limit for each KVM_RUN (30)")
    show = actions.add_parser("show", help="print a log as text")
    show.add_argument("log", type=Path, metavar="FILE")
    record = actions.add_parser("record", help="run a Python program on a KVM, and write a log of its calls")
    record.add_argument("program", type=Path, metavar="PROGRAM.py", help="has a function main(kvm)")
    record.add_argument("log", type=Path, metavar="FILE")
    record.add_argument("--backend", choices=BACKENDS[1:], default="software", help="which KVM (software)")
    record.add_argument("--deterministic", action="store_true", help="a software machine whose time is made of instructions")
    compare = actions.add_parser("compare", help="run a Python program on two KVMs side by side, and report the first difference")
    compare.add_argument("program", type=Path, metavar="PROGRAM.py", help="has a function main(kvm)")
    compare.add_argument("backends", nargs="*", metavar="BACKEND", help="two of software and kvm (software kvm)")
    compare.add_argument("--deterministic", action="store_true", help="software machines whose time is made of instructions")


def add_boot_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what to boot."""
    group = parser.add_argument_group("what to boot")
    group.add_argument("-k", "--kernel", type=Path, metavar="FILE", help="arm64 Image (plain, gzip or zboot), ELF or flat binary")
    group.add_argument("-i", "--initrd", type=Path, metavar="FILE", help="initial ramdisk")
    group.add_argument("-p", "--params", "--append", default="", metavar="CMDLINE", help="kernel command line")
    group.add_argument("--bios", "--firmware", type=Path, metavar="FILE", dest="bios", help="firmware image for the flash at 0")


def config_from(options: argparse.Namespace, **boot: Any) -> Config:
    """The configuration that the machine options describe; `boot` gives kernel, initrd, params and firmware."""
    if options.trace_ioctls is not None and (options.machine == "bare" or options.deterministic or options.record is not None):
        raise BadInput("--trace-ioctls is for machines of a KVM in the host's time: leave out --machine bare, --deterministic and --record")
    if options.record_ioctls is not None and options.machine == "bare":
        raise BadInput("--record-ioctls: a bare machine makes no KVM calls; leave --machine out")
    config = Config(
        cpus=options.cpus,
        memory=options.mem,
        disks=options.disk,
        virtio_console=options.console == "virtio",
        pci_testdev=options.pci_testdev,
        reboot=not options.no_reboot,
        timeout=options.timeout,
        machine=options.machine,
        el2=options.el2,
        gic=int(options.gic),
        deterministic=deterministic_from(options),
        cpu=options.cpu,
        sysreg=options.sysreg,
        ioctls=options.record_ioctls,
        **boot,
    )
    config.check()
    return config


def deterministic_from(options: argparse.Namespace) -> Deterministic | None:
    """What the options say about a deterministic run; None if it is not to be one."""
    if options.deterministic and options.record is not None:
        raise BadInput("--record is for runs that are not --deterministic: those repeat by themselves")
    if options.deterministic or options.record is not None:
        name = "--deterministic" if options.deterministic else "--record"
        if options.backend == "kvm":
            raise BadInput(f"{name}: only the software backend can do that; leave --backend out")
        return Deterministic(options.seed, options.stop_at, options.trace, options.record)
    for name in ("seed", "stop_at", "trace"):
        if getattr(options, name) is not None:
            raise BadInput(f"--{name.replace('_', '-')} needs --deterministic or --record")
    return None


def quote_command(words: Iterable[str]) -> str:
    """A shell command from the words after `--`: one word is a script, several are a command and its arguments."""
    listed = list(words)
    return listed[0] if len(listed) == 1 else shlex.join(listed)
