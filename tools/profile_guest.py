"""Where the time goes while the guest runs something: samples of `perf` by handler, region, runtime function and library.

python tools/profile_guest.py ROW              a row of the suite (see trapline/ui/bench/rows.py)
python tools/profile_guest.py boot             the whole boot
python tools/profile_guest.py -- COMMAND...    a command of the guest's shell

The machine runs in this process, so that addresses can be looked up in the engine's own tables. Printed are the share of each thread,
of each kind of code, the hottest functions, and where in the guest the engine's own profiler met it.
"""

from __future__ import annotations

import argparse
import bisect
import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from trapline.arm64.features import Features
from trapline.backends.objects import System
from trapline.backends.software import Software as SoftwareBackend
from trapline.engine import Engine
from trapline.engine.jit import Jit
from trapline.engine.tier1.manager import Regions, Spot
from trapline.kvm.arm64.machine import Arm64
from trapline.paths import cache_root
from trapline.ui.bench.guest import PARAMS, build_binary, ramdisk
from trapline.ui.bench.machine import BEGIN, BENCH, PROGRAM_LIMIT, TRAPLINE, Start, command
from trapline.ui.bench.rows import BOOT, GUEST_ROWS, Row
from trapline.vmm import guests
from trapline.vmm.console import Output
from trapline.vmm.machine import Config, Software
from trapline.vmm.session import Session

FREQUENCY = 2000
LINE = re.compile(r"^(?P<comm>.*?)\s+(?P<tid>\d+)\s+(?P<time>[\d.]+):\s+(?P<ip>[0-9a-f]+)\s+(?P<sym>.*?)\s+\((?P<dso>.*)\)$")
SHAPE = re.compile(r"h(\d+)(.*)")
OPEN_END = 1 << 64
KALLSYMS_BYTES = 32 << 20
NO_KASLR = "console=ttyAMA0 panic=-1 quiet nokaslr"


@dataclass(frozen=True, slots=True)
class Function:
    """A compiled function by its place."""

    start: int
    end: int
    name: str


class Loaded:
    """Keeps every object that the engine links, to find the addresses of its functions afterwards."""

    def __init__(self) -> None:
        self._objects: list[tuple[Jit, bytes]] = []
        plain = Jit.load

        def load(jit: Jit, *files: bytes) -> None:
            plain(jit, *files)
            self._objects += [(jit, data) for data in files]

        Jit.load = load  # type: ignore[method-assign, assignment]

    def functions(self, handlers: Sequence[int]) -> list[Function]:
        """All functions of all objects, in order of address; `handlers` are the addresses of handlers by shape."""
        found = [function for jit, data in self._objects for function in functions_of(jit, data, handlers)]
        return sorted(found, key=lambda function: function.start)


def functions_of(jit: Jit, data: bytes, handlers: Sequence[int]) -> list[Function]:
    """The functions of an object. One whose address is known tells where its section was put."""
    file = ELFFile(io.BytesIO(data))
    table = next(section for section in file.iter_sections() if isinstance(section, SymbolTableSection))
    symbols = [symbol for symbol in table.iter_symbols() if symbol["st_info"]["type"] == "STT_FUNC"]
    bases: dict[int, int] = {}
    for symbol in symbols:
        if symbol["st_shndx"] not in bases:
            address = address_of(jit, symbol, handlers)
            if address:
                bases[symbol["st_shndx"]] = address - symbol["st_value"]
    functions = []
    for symbol in symbols:
        if symbol["st_shndx"] in bases:
            start = bases[symbol["st_shndx"]] + symbol["st_value"]
            functions.append(Function(start, start + symbol["st_size"], symbol.name))
    return functions


def address_of(jit: Jit, symbol: Any, handlers: Sequence[int]) -> int | None:
    """Where a symbol was put, if it is global or a handler."""
    if symbol["st_info"]["bind"] != "STB_GLOBAL":
        found = re.fullmatch(r"h(\d+)", symbol.name)
        return handlers[int(found[1])] if found else None
    try:
        return jit.address(symbol.name)
    except KeyError:
        return None


class GuestSamples:
    """Where the engine's own profiler met the guest."""

    def __init__(self) -> None:
        self.addresses: Counter[tuple[int, str]] = Counter()
        self.pages: dict[int, int] = {}
        self.wanted = False
        self.threads: dict[str, str] = {}
        plain = Regions._note

        def note(regions: Regions, cpu: Any, pc: int, records: int, in_region: bool) -> None:
            plain(regions, cpu, pc, records, in_region)
            if records:
                self.pages[records] = pc & -4096
            if self.wanted:
                spot = Spot(records, (pc & 4095) >> 2)
                self.addresses[pc, " *" if in_region else state_of(regions, spot)] += 1

        Regions._note = note  # type: ignore[method-assign, assignment]


def state_of(regions: Regions, spot: Spot) -> str:
    """What tier 1 has to say about an instruction that the interpreter runs."""
    if spot in regions._hopeless:
        return " (hopeless)"
    if spot in regions.installed:
        return " (has a region)"
    if spot in regions._ordered:
        return " (being compiled)"
    return " (waiting)" if spot in regions._findings._hot else ""


class Watcher(Output):
    """The console: passes it on, and notes when the program begins for the last time and ends."""

    def __init__(self, samples: GuestSamples, repeat: int) -> None:
        super().__init__(sys.stderr.fileno())
        self._samples = samples
        self._left = repeat
        self._text = b""
        self.begin: float | None = None
        self.end: float | None = None

    def write(self, data: bytes) -> None:
        """Console output."""
        super().write(data)
        if b"\n" in data:
            self._samples.threads |= {str(thread.native_id): thread.name for thread in threading.enumerate()}
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if BEGIN.search(line):
            self._left -= 1
            if not self._left:
                self.start()
        elif BENCH.search(line) and not self._left:
            self.stop()

    def start(self) -> None:
        """What is looked at begins."""
        self.begin, self._samples.wanted = time.monotonic(), True

    def stop(self) -> None:
        """It ends."""
        self.end, self._samples.wanted = time.monotonic(), False


def guest_row(words: list[str]) -> Row:
    """The row that the command line asks for."""
    if len(words) == 1:
        for row in GUEST_ROWS:
            if row.name == words[0]:
                return row
    return Row("command", "", "", None, f"trapbench run command /dev/null {' '.join(words)}")


def run_guest(words: list[str], cpus: int, repeat: int, engine: Engine, features: Features, watcher: Watcher) -> None:
    """Boot, run the row so often (the last time counts), power off."""
    files = guests.prepare()
    if words == [BOOT]:
        config = Config(kernel=files.kernel, initrd=files.initrd, params=NO_KASLR + ' run="report"', cpus=cpus)
        watcher.start()
        boot(config, engine, features, watcher)
        watcher.stop()
        return
    row = guest_row(words)
    with tempfile.NamedTemporaryFile(prefix="trapline-profile-") as disk:
        more = ramdisk([row], [row.command] * repeat)
        disk.write(files.initrd.read_bytes() + more)
        disk.flush()
        config = Config(kernel=files.kernel, initrd=Path(disk.name), params=PARAMS + " nokaslr", cpus=cpus, timeout=PROGRAM_LIMIT)
        boot(config, engine, features, watcher)


def boot(config: Config, engine: Engine, features: Features, watcher: Watcher) -> None:
    """One life of a machine in this process."""
    with System(SoftwareBackend(Arm64(engine, features))) as system:
        Session(system, config, Software.read(config), [], watcher).run()


def shape_names(engine: Engine) -> Any:
    """A function from a symbol of the engine's to words."""
    space = engine.code.compiler.space

    def name(symbol: str) -> str:
        found = SHAPE.fullmatch(symbol)
        if not found:
            return symbol
        shape = space.resolve(int(found[1]))
        return f"{shape.insn.name if shape else 'undefined'} [{symbol}]"

    return name


ENGINE_KINDS = ("handlers", "regions", "runtime")


def kind(name: str) -> str:
    """The kind of a compiled function."""
    if SHAPE.fullmatch(name):
        return "handlers"
    return "regions" if name.startswith(("region_", "loop")) else "runtime"


def report(samples: list[dict[str, str]], loaded: Loaded, engine: Engine, guest: GuestSamples, watcher: Watcher, top: int) -> None:
    """Print the tables."""
    functions = loaded.functions(list(engine.code.shapes.handlers))
    starts = [function.start for function in functions]
    guests_functions = guest_symbols()
    threads: Counter[str] = Counter()
    located: list[tuple[str, str, str]] = []
    for sample in samples:
        if not (watcher.begin or 0) <= float(sample["time"]) <= (watcher.end or OPEN_END):
            continue
        address = int(sample["ip"], 16)
        threads[sample["tid"]] += 1
        place = bisect.bisect_right(starts, address) - 1
        if place >= 0 and address < functions[place].end:
            located.append((sample["tid"], kind(functions[place].name), functions[place].name))
        else:
            library = Path(sample["dso"]).name
            located.append((sample["tid"], library, f"{sample['sym'].split('+')[0]} ({library})"))
    vcpus = {tid for tid, where, _ in located if where in ENGINE_KINDS}
    table("threads", Counter({guest.threads.get(tid, f"{tid}, another process"): count for tid, count in threads.items()}), top)
    others = [(tid, symbol) for tid, _, symbol in located if tid not in vcpus and tid in guest.threads]
    table("other threads: functions", Counter(f"{guest.threads[tid]}: {symbol}" for tid, symbol in others), top // 2)
    table("vCPUs: kinds of code", Counter(where for tid, where, _ in located if tid in vcpus), top)
    naming = shape_names(engine)
    names = region_names(engine, guest, guests_functions)
    table("vCPUs: functions", Counter(names.get(symbol) or naming(symbol) for tid, _, symbol in located if tid in vcpus), top)
    spots: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for (pc, state), count in guest.addresses.items():
        name = guest_name(pc, guests_functions)
        spots[name + state] += count
        places[name.split("+")[0].split(" ")[-1] + state] += count
    if engine.regions is not None:
        kept = (engine.regions.installed, engine.regions._ordered, engine.regions._findings._hot, engine.regions._hopeless)
        print("\ntier 1: {} regions, {} being compiled, {} waiting, {} hopeless".format(*(len(each) for each in kept)))
    table("guest functions, by the engine's profiler (* in a region)", places, top)
    table("guest addresses", spots, top)


def table(title: str, counts: Counter[str], top: int) -> None:
    """Print shares."""
    total = sum(counts.values())
    print(f"\n{title} ({total} samples)")
    for name, count in counts.most_common(top):
        print(f"  {100 * count / total:5.1f} %  {name}")


def region_names(engine: Engine, guest: GuestSamples, symbols: list[Function]) -> dict[str, str]:
    """Regions by symbol: where in the guest they begin."""
    names = {}
    if engine.regions is not None:
        for spot, linked in engine.regions.installed.items():
            if spot.records in guest.pages:
                pc = guest.pages[spot.records] + 4 * spot.index
                names[f"region_{linked.built.tag}"] = f"region {guest_name(pc, symbols)} of {len(linked.built.words)} instructions"
    return names


def guest_symbols() -> list[Function]:
    """Functions of the suite's own binary and of the guest's kernel."""
    with build_binary().open("rb") as file:
        table = next(s for s in ELFFile(file).iter_sections() if isinstance(s, SymbolTableSection))
        found = [
            Function(symbol["st_value"], symbol["st_value"] + symbol["st_size"], symbol.name)
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        ]
    return sorted([*found, *kernel_symbols()], key=lambda function: function.start)


def kernel_symbols() -> list[Function]:
    """Functions of the kernel as it tells them itself, on a disk; asked once for each kernel."""
    files = guests.prepare()
    listing = cache_root() / "bench" / f"kallsyms-{files.kernel.stat().st_size}-{int(files.kernel.stat().st_mtime)}"
    if not listing.exists():
        with tempfile.NamedTemporaryFile(prefix="trapline-kallsyms-") as disk:
            disk.truncate(KALLSYMS_BYTES)
            start = Start(files.kernel, files.initrd, NO_KASLR + ' run="cat /proc/kallsyms >/dev/vda"')
            subprocess.run([*command(TRAPLINE, start), "--disk", disk.name], check=True, stdin=subprocess.DEVNULL, capture_output=True)
            listing.write_bytes(Path(disk.name).read_bytes().rstrip(b"\0"))
    lines = [line.split() for line in listing.read_text(errors="replace").splitlines()]
    places = sorted((int(words[0], 16), words[2]) for words in lines if len(words) == 3 and words[1] in "tTwW")
    ends = [start for start, _ in places[1:]] + [OPEN_END]
    return [Function(start, end, name) for (start, name), end in zip(places, ends, strict=True) if start >> 63]


def guest_name(pc: int, symbols: list[Function]) -> str:
    """An address of the guest's, with its function if that is known."""
    place = bisect.bisect_right(symbols, pc, key=lambda symbol: symbol.start) - 1
    if place >= 0 and pc < symbols[place].end:
        return f"{pc:#x} {symbols[place].name}+{pc - symbols[place].start:#x}"
    return f"{pc & (1 << 64) - 1:#x}"


def main() -> int:
    """Record, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="ROW|COMMAND")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2, help="how often to run; the last time is looked at (2)")
    parser.add_argument("--top", type=int, default=25, help="lines of each table (25)")
    options = parser.parse_args()
    loaded, guest = Loaded(), GuestSamples()
    features = Features()
    engine = Engine(features)
    watcher = Watcher(guest, options.repeat)
    with tempfile.TemporaryDirectory(prefix="trapline-perf-") as folder:
        data = Path(folder) / "perf.data"
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-k", "mono", "-o", str(data), "-p", str(os.getpid())]
        recorder = subprocess.Popen(record)
        time.sleep(0.3)
        run_guest(options.words, options.cpus, options.repeat, engine, features, watcher)
        recorder.terminate()
        recorder.wait()
        listing = subprocess.run(
            ["perf", "script", "--ns", "-F", "comm,tid,time,ip,sym,dso", "-i", str(data)], capture_output=True, text=True, check=False
        )
    samples = [found.groupdict() for found in map(LINE.match, listing.stdout.splitlines()) if found]
    report(samples, loaded, engine, guest, watcher, options.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
