"""The command `trapline`.

Exit status: 0 the guest powered itself off; 3 it asked for a reset under --no-reboot; 124 --timeout; 125 a bad command line or file;
126 the guest crashed its machine. A guest that prints `EXIT: STATUS=n` before it powers off ends with n >> 1.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trapline.errors import BadInput, GuestCrash, NotSupported, Timeout, TraplineError
from trapline.ui import options as opt

if TYPE_CHECKING:
    from trapline.backends.objects import System
    from trapline.bare.machine import BareSystem
    from trapline.vmm.machine import Config
    from trapline.vmm.runloop import Ending
    from trapline.vmm.session import Session

EXIT_RESET = 3
SWITCH_SECONDS = 0.0002
"""How long a vCPU that leaves the guest waits for Python while another thread computes in it: the default, 5 ms, is 500 exits."""
EXIT_INTERRUPTED = 128 + signal.SIGINT

GUEST_PARAMS = "console=ttyAMA0 panic=-1"
END_OF_FILE = b"\x04"

RUN_EPILOG = """
Keys: Ctrl-A x quits, Ctrl-A h lists the others (when stdin is a terminal).
Exit status: 0 power-off, 3 reset with --no-reboot, 124 timeout, 125 bad command line or file, 126 guest crash;
a guest that prints "EXIT: STATUS=n" before power-off ends with n >> 1.
"""


SYSREGS_EPILOG = """
Registers for which no --sysreg FILE.py has a policy keep what is written to them and start with zero. The list is a policy file:
edit it, and give it to `trapline run --sysreg`.
"""


IOCTLS_EPILOG = """
A log is what `trapline run --record-ioctls FILE` writes: a line of JSON for each KVM call. Exit status: 0 if all calls were answered
as before, or alike; 1 if one was not; the report says which.
"""


COLLECT_AFTER = 100_000
"""New containers before the collector looks for cycles among the young. At the usual 700 a start is interrupted a hundred times, and
nothing that an exit makes is in a cycle."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    gc.set_threshold(COLLECT_AFTER)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)
    try:
        options = make_parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except TraplineError as error:
        report = getattr(error, "report", "")
        print(f"trapline: {error}" + (f"\n{report}" if report else ""), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED


def program() -> NoReturn:
    """The command as a process. When it is done the process ends at once: to take apart what it holds takes a thirtieth of a boot."""
    status = main()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _exit_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # unwinds, so that the terminal is restored


def make_parser() -> opt.Parser:
    """The whole command line."""
    parser = opt.Parser(prog="trapline", description="A KVM you can import: run arm64 guests on a hypervisor written in Python.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=opt.Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str, epilog: str = "") -> opt.Parser:
        raw = argparse.RawDescriptionHelpFormatter
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, formatter_class=raw)
        made.set_defaults(command=command)
        return made

    run = add("run", run_command, "boot a guest", RUN_EPILOG)
    opt.add_boot_options(run)
    opt.add_machine_options(run)

    guest = add("guest", guest_command, "boot Debian's arm64 kernel to a busybox shell, or run a command in it", RUN_EPILOG)
    guest.add_argument("words", nargs="*", metavar="-- COMMAND", help="run this in the guest, then power off; its exit status is ours")
    guest.add_argument("--quiet", action="store_true", help="no kernel messages")
    guest.add_argument("--print-files", action="store_true", help="only prepare kernel and initramfs, and print their paths")
    opt.add_machine_options(guest)

    sysregs = add("sysregs", sysregs_command, "boot a guest and list the implementation-defined system registers it uses", SYSREGS_EPILOG)
    sysregs.add_argument("-o", "--output", type=Path, metavar="FILE.py", help="write the list here, as a policy file (stderr)")
    opt.add_boot_options(sysregs)
    opt.add_machine_options(sysregs)

    replay = add("replay", replay_command, "repeat a recorded run, exactly")
    replay.add_argument("recording", type=Path, metavar="FILE", help="what `run --record` wrote")
    replay.add_argument("--timeout", type=opt.seconds, metavar="SECONDS", help="stop after so long, with exit status 124")
    opt.add_stop_options(replay)

    restore = add("restore", restore_command, "go on with a machine that was saved", RUN_EPILOG)
    restore.add_argument("snapshot_file", type=Path, nargs="?", metavar="FILE", help="what `run --snapshot`, or `trapline snapshot`, wrote")
    restore.add_argument("--incoming", metavar="ADDRESS", help="wait at tcp:HOST:PORT or unix:PATH for a machine that `migrate` sends")
    opt.add_restore_options(restore)

    snapshot = add("snapshot", snapshot_command, "save a machine that runs with --control, and let it go on")
    snapshot.add_argument("control", type=Path, metavar="SOCKET", help="its --control")
    snapshot.add_argument("file", type=Path, metavar="FILE", help="where to, for `trapline restore`")
    snapshot.add_argument("--end", action="store_true", help="end the machine")

    migrate = add("migrate", migrate_command, "send a machine that runs with --control to a `restore --incoming`, while it runs")
    migrate.add_argument("control", type=Path, metavar="SOCKET", help="its --control")
    migrate.add_argument("address", metavar="ADDRESS", help="tcp:HOST:PORT or unix:PATH")
    migrate.add_argument("--downtime", type=opt.seconds, metavar="SECONDS", help="how long it may stand still at the end (0.3)")

    add("doctor", doctor_command, "say what this host offers and which backend would be used")

    kut = add("kut", kut_command, "run a folder of kvm-unit-tests' flat images and print a table")
    kut.add_argument("folder", metavar="DIR", help="where the .flat files are")
    kut.add_argument("tests", nargs="*", metavar="TEST", help="only these tests")
    kut.add_argument("--backend", choices=opt.BACKENDS, default="auto", help="which KVM (auto)")
    kut.add_argument("--machine", choices=opt.MACHINES, default="virt", help="as for run (virt)")
    kut.add_argument("--timeout", type=opt.seconds, metavar="SECONDS", help="limit for each test, instead of the table's own")

    ioctls = add("ioctls", ioctls_command, "replay and compare KVM calls", IOCTLS_EPILOG)
    opt.add_ioctl_commands(ioctls)

    abi = add("abi", abi_command, "print the manual page of a KVM call, structure or capability, or list the calls")
    abi.add_argument("names", nargs="*", metavar="NAME", help="such as KVM_IRQFD, kvm_irqfd, 0x4020ae76, KVM_CAP_IRQFD")

    check = add("check", check_command, "the concurrency checker (not there yet)")
    check.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def run_command(options: argparse.Namespace) -> int:
    """`trapline run`."""
    return run_guest(options, **boot_files(options))


def sysregs_command(options: argparse.Namespace) -> int:
    """`trapline sysregs`."""
    from trapline.vmm.sysregs import Survey

    survey = Survey(options.output)
    try:
        return run_guest(options, prepare=survey.watch, **boot_files(options))
    finally:
        survey.write()


def boot_files(options: argparse.Namespace) -> dict[str, Any]:
    """What to boot, by the names that `Config` has for it."""
    return {"kernel": options.kernel, "initrd": options.initrd, "params": options.params, "firmware": options.bios}


def guest_command(options: argparse.Namespace) -> int:
    """`trapline guest`: what `make run` does."""
    from trapline.vmm import guests

    files = guests.prepare()
    if options.print_files:
        print(files.kernel, files.initrd, sep="\n")
        return 0
    scripted = not options.words and not os.isatty(0)
    params = [GUEST_PARAMS]
    if options.console == "virtio":
        params.append("tty=/dev/hvc0")
    if options.quiet or options.words or scripted:
        params.append("quiet")
    if options.words:
        params.append(f"run=base64:{base64.b64encode(opt.quote_command(options.words).encode()).decode()}")
    if scripted:
        params.append("script")
    elif not options.words:
        columns, rows = os.get_terminal_size(0)
        if columns and rows:
            params.append(f"rows={rows} cols={columns}")
    end = END_OF_FILE if scripted else b""
    return run_guest(options, end_of_input=end, kernel=files.kernel, initrd=files.initrd, params=" ".join(params))


def run_guest(options: argparse.Namespace, end_of_input: bytes = b"", **boot: object) -> int:
    """Build the machine, run it, turn its end into an exit status."""
    from trapline.devices.virtio.block import Image
    from trapline.vmm.machine import Software
    from trapline.vmm.session import Session

    sys.setswitchinterval(SWITCH_SECONDS)
    config = opt.config_from(options, **boot)
    wish = opt.snapshot_wish(options, config.deterministic is not None)
    software = Software.read(config)
    software.plan(config.memory)  # refuses what does not fit before the engine is even loaded
    with ExitStack() as stack:
        session: Session
        if config.deterministic is None:
            disks = [stack.enter_context(closing(Image(path, read_only))) for path, read_only in config.disks]
            system = open_machine_room(stack, options, config)
            stack.callback(system.close)
            session = Session(system, config, software, disks, end_of_input=end_of_input, snapshot=wish)
        else:
            from trapline.vmm.repeat import repeatable_session

            session = repeatable_session(stack, config, software, end_of_input)
            session.snapshot = wish
        return run_session(session, options.control)


def run_session(session: Session, control: Path | None = None) -> int:
    """Run the machine, reachable at a socket if there is to be one, and turn its end into an exit status."""
    try:
        with ExitStack() as stack:
            if control is not None:
                from trapline.vmm.control import Control

                if session.config.deterministic is not None:
                    raise BadInput("--control: nothing may come between the turns of a deterministic machine; use --snapshot-at")
                stack.enter_context(Control(control, session))
            ending = session.run()
    except Timeout as timeout:
        raise Timeout(f"stopped after {session.config.timeout:g} seconds: {timeout}") from None
    return exit_status(session, ending)


def exit_status(session: Session, ending: Ending) -> int:
    """What an ending means as an exit status; GuestCrash for a crash."""
    from trapline.vmm.runloop import Outcome

    match ending.outcome:
        case Outcome.RESET:
            return EXIT_RESET
        case Outcome.CRASH:
            raise GuestCrash(ending.why, ending.report)
        case Outcome.POWER_OFF:
            return session.exit_status or 0
        case Outcome.QUIT | Outcome.STOPPED | Outcome.SAVED | Outcome.MIGRATED:
            return 0


def open_machine_room(stack: ExitStack, options: argparse.Namespace, config: Config) -> System | BareSystem:
    """What makes the machines: a KVM, or for bare ones nothing but processors."""
    if config.machine == "bare":
        from trapline.bare.machine import BareSystem, features_of

        return BareSystem(config.el2, features_of(config.cpu, config.el2))
    from trapline.backends.select import choose, open_system
    from trapline.vmm.trace import output_file

    if options.backend == "kvm" and (choice := choose()).name != "kvm":
        raise BadInput(f"--backend kvm: {choice.reason}")
    trace = output_file(stack, "--trace-ioctls", options.trace_ioctls)
    record = output_file(stack, "--record-ioctls", config.ioctls)
    write = None if trace is None else lambda line: trace.write(line + "\n")
    return open_system(options.backend, config.cpu, trace=write, record=record)


def replay_command(options: argparse.Namespace) -> int:
    """`trapline replay`."""
    from trapline.vmm.repeat import replayed_session

    with ExitStack() as stack:
        session = replayed_session(stack, options.recording, options.stop_at, options.trace, options.timeout)
        try:
            ending = session.run()
        except Timeout as timeout:
            raise Timeout(f"{options.recording}: {timeout}") from None
    return exit_status(session, ending)


def restore_command(options: argparse.Namespace) -> int:
    """`trapline restore`."""
    from trapline.backends.snapshot.format import Snapshot
    from trapline.vmm.session import Session
    from trapline.vmm.snapshot import SavedMachine

    sys.setswitchinterval(SWITCH_SECONDS)
    if (options.snapshot_file is None) == (options.incoming is None):
        raise BadInput("give the FILE of a snapshot, or --incoming ADDRESS")
    with ExitStack() as stack:
        session: Session
        if options.incoming is not None:
            from trapline.vmm.machine import Config
            from trapline.vmm.migration import receive, wait

            opt.refuse_stop(options)
            system = open_machine_room(stack, options, Config())
            stack.callback(system.close)
            arriving = receive(stack, wait(options.incoming))
            if arriving.machine["settings"]["cpu"]:
                system = open_machine_room(stack, options, arriving.config())
                stack.callback(system.close)
            session = Session(system, arriving.config(timeout=options.timeout), None, list(arriving.disks), saved=arriving)
            session.snapshot = opt.snapshot_wish(options, False)
            return run_session(session, options.control)
        snapshot = stack.enter_context(Snapshot(options.snapshot_file, verify=not options.no_verify))
        saved = SavedMachine(snapshot.document, snapshot)
        config = saved.config(timeout=options.timeout)
        wish = opt.snapshot_wish(options, saved.is_deterministic)
        if saved.is_deterministic:
            from trapline.vmm.repeat import restored_session

            session = restored_session(stack, config, saved, options.stop_at, options.trace)
        else:
            opt.refuse_stop(options)
            disks = [stack.enter_context(closing(disk)) for disk in saved.open_disks()]
            system = open_machine_room(stack, options, config)
            stack.callback(system.close)
            session = Session(system, config, None, disks, saved=saved)
        session.snapshot = wish
        return run_session(session, options.control)


def snapshot_command(options: argparse.Namespace) -> int:
    """`trapline snapshot`."""
    from trapline.vmm.control import ask

    print(ask(options.control, do="snapshot", path=str(options.file.absolute()), end=options.end))
    return 0


def migrate_command(options: argparse.Namespace) -> int:
    """`trapline migrate`."""
    from trapline.vmm.control import ask

    more = {} if options.downtime is None else {"downtime": options.downtime}
    print(ask(options.control, do="migrate", to=options.address, **more))
    return 0


def doctor_command(options: argparse.Namespace) -> int:
    """`trapline doctor`."""
    from trapline.ui.doctor import print_report

    return print_report()


def kut_command(options: argparse.Namespace) -> int:
    """`trapline kut`."""
    from trapline.ui.kut import run_folder

    return run_folder(options.folder, options.tests, options.backend, options.machine, options.timeout)


def ioctls_command(options: argparse.Namespace) -> int:
    """`trapline ioctls`."""
    from trapline.ui import ioctls

    words: Callable[[argparse.Namespace], int] = getattr(ioctls, options.action)
    return words(options)


def abi_command(options: argparse.Namespace) -> int:
    """`trapline abi`."""
    from trapline.ui.abi import print_pages

    return print_pages(options.names)


def check_command(options: argparse.Namespace) -> int:
    """`trapline check`."""
    raise NotSupported("check: the concurrency checker is not there yet")


if __name__ == "__main__":
    program()
