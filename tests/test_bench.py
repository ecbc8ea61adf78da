"""The benchmark suite's own parts: rows, statistics, tables, the reading of results. And once, for real, a tiny program in the guest."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from trapline.errors import BadInput
from trapline.ui.bench import machine as machine_module
from trapline.ui.bench.__main__ import merged, rounded
from trapline.ui.bench.costs import work_lines
from trapline.ui.bench.guest import COMPILER, build_binary, ramdisk, script, source_files
from trapline.ui.bench.machine import PEERS, TRAPLINE, Failed, Machine, Sample, Side, Start, boot, command
from trapline.ui.bench.plot import draw
from trapline.ui.bench.report import comparison, judged_ratio, main_table, mark, page, scaling
from trapline.ui.bench.rows import GUEST_ROWS, OTHER_ROWS, SMP, Row, groups, names, program, scaled, select
from trapline.ui.bench.statistics import metric, ratio, summarise
from trapline.ui.bench.suite import Figures, Suite, peers_for, with_programs
from trapline.vmm import guests

PLAIN = Start(Path("kernel"), Path("initrd"), "words")


def figures_with(row: str, ours: list[float], peers: dict[str, list[float]], check: str = "1") -> Figures:
    figures = Figures(len(ours), list(peers), host="a machine")
    for side, values in {TRAPLINE.name: ours, **peers}.items():
        for value in values:
            figures.add(row, side, Sample(value, value / 2, 1000, "round", check, 100.0, 50.0))
    return figures


# -- rows ----------------------------------------------------------------------------------------------------------------
def test_rows_are_selected_by_name_and_by_group() -> None:
    assert select([]) == names()
    assert select(["boot", "sieve", "boot"]) == ["boot", "sieve"]
    assert select(["double"]) == ["nbody", "matmul", "lu"]
    assert not set(groups()) & set(names())
    with pytest.raises(BadInput, match="no row 'sive'"):
        select(["sive"])


def test_rows_are_scaled_where_they_have_a_scale() -> None:
    assert scaled(program("lu", "", "", None, 100), 0.3).command == "trapbench lu 30"
    assert scaled(program("sieve", "", "", None, 1), 0.3).command == "trapbench sieve 1"
    disk = GUEST_ROWS[-1]
    assert scaled(disk, 0.3) == disk


def test_every_row_is_a_program_of_the_binary() -> None:
    text = "".join(path.read_text() for path in source_files())
    known = set(re.findall(r'\{"([a-z0-9-]+)", "[a-zA-Z]+", \w+\}', text))
    for row in GUEST_ROWS:
        words = row.command.split()
        assert words[0] == "trapbench"
        assert words[1] == row.name or words[1] == "run" and words[2] == row.name
        if words[1] != "run":
            assert row.name in known, f"{row.name} is not in the tables of the binary"


def test_targets_are_those_that_were_promised() -> None:
    promised = {row.name: row.target for row in GUEST_ROWS}
    assert promised["int-mix"] == promised["simd-int"] == 0.5
    assert promised["nbody"] == promised["lu"] == 0.15
    assert promised["sieve"] == promised["chase"] == promised["chase-pages"] == 0.3
    assert promised["triad-1m"] == promised["getppid"] == promised["fault"] == 0.4
    assert promised["sha256"] == promised["perl"] == 0.6
    assert OTHER_ROWS["boot"][1] == 1.0


# -- statistics ----------------------------------------------------------------------------------------------------------
def test_summary() -> None:
    summary = summarise([3.0, 1.0, 2.0])
    assert (summary.median, summary.least, summary.spread) == (2.0, 1.0, 1.0)
    assert summarise([5.0]).spread == 0


def test_the_ratio_is_to_the_fastest_peer() -> None:
    assert ratio(1.0, [2.0, 4.0]) == 0.5
    assert ratio(1.0, []) is None


@pytest.mark.parametrize(
    ("value", "text"), [(2.1e-6, "2.1 u"), (17.5e6, "17.5 M"), (0.5, "500 m"), (1, "1 "), (1234, "1.23 k"), (999, "999 "), (0, "0 ")]
)
def test_metric_prefixes(value: float, text: str) -> None:
    assert metric(value) == text


# -- tables --------------------------------------------------------------------------------------------------------------
def test_a_row_of_the_table() -> None:
    row = program("int-mix", "the mix", "integer", 0.5, 1)
    figures = figures_with("int-mix", [0.1, 0.2, 0.3], {"TCG cortex-a57": [0.5, 0.6, 0.7], "TCG max": [0.4, 0.4, 0.4]})
    cells = comparison(figures, row)
    assert cells == ["the mix", "5 kround/s", "1.67 kround/s", "2.5 kround/s", "0.50", "0.25", "0.50", "0.50", "pass", "100 %"]


def test_on_a_busy_host_the_mark_goes_by_cpu_time() -> None:
    row = Row("x", "X", "g", 0.4, "", "time")
    figures = Figures(1, ["TCG max"])
    figures.add("x", TRAPLINE.name, Sample(9.0, 0.3))
    figures.add("x", "TCG max", Sample(1.0, 1.0))
    assert "**short**" in comparison(figures, row) and judged_ratio(figures, "x") == 9
    figures.load = 5.0
    assert "pass" in comparison(figures, row) and judged_ratio(figures, "x") == 0.3
    assert "5.0" in page(figures) and "CPU time" in page(figures)


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = figures_with("int-mix", [1.0], {"TCG max": [2.0]})
    assert draw(figures, tmp_path / "a.svg") == "a.svg"
    draw(figures, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert draw(Figures(1, []), tmp_path / "c.svg") == ""


def test_a_row_that_is_too_slow_or_differs_says_so() -> None:
    row = Row("x", "X", "g", 0.4, "", "time")
    figures = figures_with("x", [1.0], {"TCG max": [1.0]})
    figures.add("x", "TCG max", Sample(1.0, 0.5, 1000, "round", "other"))
    cells = comparison(figures, row)
    assert cells[1] == "1 ms" and "**short**" in cells and "differ" in cells[-1]


def test_a_row_that_failed_is_in_the_table() -> None:
    figures = Figures(1, ["TCG max"])
    figures.add("sieve", "TCG max", Sample(1.0, 1.0))
    assert "failed" in main_table(figures)
    assert "**short**" in main_table(figures)


def test_throughput_of_two_processors() -> None:
    figures = Figures(1, ["TCG max"])
    for side, two in ((TRAPLINE.name, 0.5), ("TCG max", 1.0)):
        figures.add(f"{SMP}-1", side, Sample(1.0, 1.0, 100))
        figures.add(f"{SMP}-2", side, Sample(2 * two, 1.0, 200))
    (cells,) = scaling(figures)
    assert cells[1:3] == ["2.00 x", "1.00 x"] and "pass" in cells


def test_marks() -> None:
    assert mark(0.5, 0.5) == "pass" and mark(0.51, 0.5) == "**short**"
    assert mark(1.8, 1.8, at_least=True) == "pass" and mark(1.7, 1.8, at_least=True) == "**short**"
    assert mark(None, 0.5) == mark(0.5, None) == ""


def test_the_page_and_the_json_have_all_there_is() -> None:
    figures = figures_with("boot", [1.0], {"TCG max": [2.0]})
    figures.costs["mmio"] = [{"microseconds": 9.5}]
    figures.fail("something: stuck")
    text = page(figures, "## Where the time goes\n")
    for words in ("a machine", "boot to power-off", "9.5", "failed: something", "Where the time goes", "100 MiB", "50 MiB in its"):
        assert words in text
    assert Figures.from_json(json.loads(json.dumps(figures.to_json()))) == figures


def test_rows_measured_again_replace_the_old() -> None:
    old = figures_with("sieve", [1.0], {"TCG max": [2.0]})
    old.load, old.costs["mmio"] = 3.0, [{"microseconds": 9.0}]
    old.failures += ["lu: stuck", "smp-2: died"]
    new = figures_with("lu", [5.0], {"TCG max": [2.0]})
    both = merged(old, new)
    assert set(both.samples) == {"sieve", "lu"} and both.costs == old.costs and both.load == 3.0
    assert both.failures == ["smp-2: died"]
    assert rounded({"a": [1.23456789, 1, "x"]}) == {"a": [1.23457, 1, "x"]}


# -- sides ---------------------------------------------------------------------------------------------------------------
def test_command_lines_name_the_same_machine() -> None:
    start = Start(Path("kernel"), Path("initrd"), "words", cpus=2, memory=1024, disk=Path("disk"))
    ours, peer = command(TRAPLINE, start), command(PEERS[1], start)
    assert ours[ours.index("--mem") + 1] == "1024M" and peer[peer.index("-m") + 1] == "1024"
    assert ours[ours.index("--cpus") + 1] == peer[peer.index("-smp") + 1] == "2"
    assert peer[peer.index("-cpu") + 1] == "max,pauth-impdef=on"
    assert "disk,ro" in ours and any("file=disk" in word for word in peer)


def test_peers_by_name() -> None:
    assert peers_for("none", lambda: True) == [] == peers_for("all", lambda: False)
    assert peers_for("all", lambda: True) == list(PEERS)
    assert peers_for("max", lambda: True) == [PEERS[1]]


FAKE = """
import sys
print("noise\\nBOOT-OK 1.0\\r\\nREADY\\r", flush=True)
for line in sys.stdin:
    name = line.split()[1]
    if name == "die":
        sys.exit(3)
    print(f"BEGIN {name}\\r\\nBENCH {name} unit=round work=12 ns=2500000000 check=beef\\r\\nDONE 0\\r", flush=True)
"""


@pytest.fixture
def fake_side(monkeypatch: pytest.MonkeyPatch) -> Side:
    """A side whose process is a few lines of Python."""
    monkeypatch.setattr(machine_module, "command", lambda side, start: [sys.executable, "-c", FAKE])
    return Side("fake")


def test_a_machine_runs_lines_and_reads_results(fake_side: Side) -> None:
    machine = Machine(fake_side, PLAIN)
    machine.wait_for(machine_module.READY, 30)
    sample = machine.run("trapbench sieve 1")
    assert (sample.seconds, sample.work, sample.unit, sample.check) == (2.5, 12, "round", "beef")
    ended = machine.finish()
    assert ended.seconds > 0 and ended.resident > 1


def test_the_memory_of_a_side_is_not_that_of_the_suite(fake_side: Side) -> None:
    mine = b"x" * (200 << 20)  # a process's peak would begin with its parent's
    machine = Machine(fake_side, PLAIN)
    machine.wait_for(machine_module.READY, 30)
    assert 1 < machine.finish().resident < len(mine) / 2**20 / 2


def test_what_is_one_off_is_told_apart() -> None:
    lines = work_lines([(1_000_000, 0.0025), (10_000_000, 0.0115), (100_000_000, 0.1015)])  # 1.5 ms, and 1 ns each
    assert [round(line["of these one-off"], 6) for line in lines] == [1.5, 1.5, 1.5]
    assert [round(line["million/s"]) for line in lines] == [400, 870, 985]


def test_a_machine_that_dies_or_never_comes_up_fails(fake_side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(fake_side, PLAIN)
    with pytest.raises(Failed, match="console ended"):
        machine.run("trapbench die 1")
    machine.kill()
    monkeypatch.setattr(machine_module, "command", lambda side, start: [sys.executable, "-c", "print('no')"])
    with pytest.raises(Failed, match="fake"):
        boot(fake_side, PLAIN)


def test_the_script_prepares_once() -> None:
    rows = [row for row in GUEST_ROWS if row.group == "commands"]
    assert script(rows).count("trapbench text") == 2
    assert script([], ["trapbench sieve 1"]).index("exit") < script([], ["trapbench sieve 1"]).index("while")


# -- for real ------------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
def test_the_binary_is_built_once(tmp_path: Path) -> None:
    binary = build_binary(tmp_path)
    stamp = binary.stat().st_mtime_ns
    assert build_binary(tmp_path) == binary and binary.stat().st_mtime_ns == stamp


@pytest.mark.needs_guest
@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
def test_a_tiny_program_in_the_guest(tmp_path: Path) -> None:
    if not guests.is_ready():
        pytest.skip("the guest has not been fetched")
    files = guests.prepare()
    rows = (program("sieve", "", "", None, 1), program("lu", "", "", None, 1), program("pipe", "", "", None, 1))
    suite = Suite(["sieve", "lu", "pipe"], 1, [], rows)
    figures = suite.measure()
    assert not figures.failures
    assert figures.samples["sieve"][TRAPLINE.name][0].check == "10726f", "1,077,871 primes below 16 Mi"
    assert figures.samples["pipe"][TRAPLINE.name][0].work == 100
    start = with_programs(Start(files.kernel, files.initrd, ""), tmp_path / "more.cpio", ramdisk([], ["trapbench spin 1"]))
    assert boot(TRAPLINE, start).seconds > 0
