"""The command line: what it refuses, what it says, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trapline.errors import BadInput
from trapline.ui import cli, kut, options


def trapline(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trapline.ui.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False)


@pytest.fixture
def flat(tmp_path: Path) -> str:
    path = tmp_path / "flat.bin"
    path.write_bytes(b"\0\0\0\x14" * 16)
    return str(path)


BAD = {
    "no command": ([], "arguments are required"),
    "unknown command": (["fly"], "invalid choice"),
    "unknown flag": (["run", "--bogus"], "unrecognized arguments: --bogus"),
    "nothing to boot": (["run"], "give --kernel FILE or --bios FILE"),
    "missing kernel": (["run", "--kernel", "/nowhere/Image"], "No such file"),
    "kernel is a directory": (["run", "--kernel", "/"], "is a directory"),
    "zero CPUs": (["run", "--kernel", "FLAT", "--cpus", "0"], "not a positive number"),
    "too many CPUs": (["run", "--kernel", "FLAT", "--cpus", "1000"], "choose 1 to"),
    "bad size": (["run", "--kernel", "FLAT", "--mem", "lots"], "is not a size"),
    "no memory": (["run", "--kernel", "FLAT", "--mem", "0"], "choose 1M"),
    "bad timeout": (["run", "--kernel", "FLAT", "--timeout", "-1"], "not a positive number of seconds"),
    "missing disk": (["run", "--kernel", "FLAT", "--disk", "/nowhere/disk"], "No such file"),
    "disk is a directory": (["run", "--kernel", "FLAT", "--disk", "/"], "is a directory"),
    "missing initrd": (["run", "--kernel", "FLAT", "--initrd", "/nowhere/initrd"], "No such file"),
    "initrd larger than memory": (["run", "--kernel", "FLAT", "--initrd", "BIG", "--mem", "4M"], "do not fit"),
    "unknown backend": (["run", "--kernel", "FLAT", "--backend", "magic"], "invalid choice: 'magic'"),
    "kut without images": (["kut", "/nowhere"], "no .flat images"),
    "mte": (["run", "--kernel", "FLAT", "--mte"], "--mte: memory tagging is not there yet"),
    "nested": (["run", "--kernel", "FLAT", "--nested"], "--nested: .* not there yet"),
    "aarch32": (["run", "--kernel", "FLAT", "--aarch32"], "--aarch32: .* not there yet"),
    "gic 2": (["run", "--kernel", "FLAT", "--gic", "2", "--cpus", "9"], "--cpus 9: a GICv2 serves at most 8"),
    "gic 2, bare": (["run", "--kernel", "FLAT", "--gic", "2", "--machine", "bare"], "--gic 2: a bare machine has a GICv3"),
    "gdb": (["run", "--kernel", "FLAT", "--gdb", "1234"], "--gdb: .* not there yet"),
    "trace": (["run", "--kernel", "FLAT", "--trace", "t"], "--trace needs --deterministic or --record"),
    "deterministic": (["run", "--kernel", "FLAT", "--deterministic", "--backend", "kvm"], "--deterministic: only the software"),
    "check": (["check", "anything"], "not there yet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_125(case: str, flat: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(8 << 20))
    words, complaint = BAD[case]
    status = cli.main([{"FLAT": flat, "BIG": str(big)}.get(word, word) for word in words])
    out, err = capfd.readouterr()
    assert status == 125
    assert out == ""
    assert err.startswith("trapline: ") and err.count("\n") == 1
    with pytest.raises(BadInput, match=complaint):
        raise BadInput(err)


def test_truncated_kernel(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "Image.gz"
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3" + bytes(3))
    assert cli.main(["run", "--kernel", str(path)]) == 125
    assert "truncated or damaged" in capfd.readouterr().err


def test_process_exits_with_the_status() -> None:
    done = trapline("run", "--kernel", "/nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["guest", "--help"], ["kut", "--help"], ["doctor", "--help"]])
def test_help(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0
    assert "usage: trapline" in capfd.readouterr().out


def test_doctor_says_what_would_be_used() -> None:
    done = trapline("doctor")
    for word in ("host:", "python", "llvmlite", "/dev/kvm", "backend", "opens", "cache"):
        assert word in done.stdout
    assert (done.returncode == 0) == ("ready: a guest can run here" in done.stdout)


def test_command_line_does_not_load_the_engine() -> None:
    program = "import sys, trapline.ui.cli as c; c.main(['run', '--kernel', '/nowhere']); sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize(("text", "bytes_"), [("64M", 64 << 20), ("2G", 2 << 30), ("64", 64 << 20), ("4096K", 4 << 20), ("1gib", 1 << 30)])
def test_sizes(text: str, bytes_: int) -> None:
    assert options.size(text) == bytes_


def test_disks_and_commands() -> None:
    assert options.disk("a,ro") == (Path("a"), True)
    assert options.disk("a,b") == (Path("a,b"), False)
    assert options.quote_command(["a | b"]) == "a | b"
    assert options.quote_command(["echo", "a b"]) == "echo 'a b'"


@pytest.mark.parametrize(
    ("status", "output", "verdict", "checks", "note"),
    [
        (0, "PASS: a: b\nPASS: c\nEXIT: STATUS=1\n", "PASS", "2 pass", ""),
        (1, "PASS: a\nFAIL: b\n", "FAIL", "1 pass 1 fail", "FAIL: b"),
        (kut.SKIPPED, "SKIP: no device\n", "SKIP", "1 skip", "SKIP: no device"),
        (124, "", "TIMEOUT", "", "trapline: stopped"),
        (126, "half a l", "CRASH", "", "trapline: stopped"),
    ],
)
def test_kut_verdicts(status: int, output: str, verdict: str, checks: str, note: str) -> None:
    result = kut.judge(status, output, "trapline: stopped" if status > 100 else "", 1.0)
    assert (result.verdict, result.checks, result.note) == (verdict, checks, note)
