"""Compiled regions on the states that Linux really brings: paranoid mode while Debian's kernel boots."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from trapline.errors import BadInput
from trapline.vmm import guests

pytestmark = [pytest.mark.needs_guest, pytest.mark.timeout(900)]

SCRIPT = """
import gc, json, sys
from trapline.engine.tier1.paranoid import ParanoidCpu
from trapline.ui.cli import main
status = main(sys.argv[1:])
(report,) = [o.report for o in gc.get_objects() if isinstance(o, ParanoidCpu)]
print(json.dumps({"status": status, "followed": report.followed, "mismatches": report.mismatches}), file=sys.stderr)
"""


def test_the_walker_agrees_while_linux_boots() -> None:
    try:
        guests.prepare()
    except BadInput as error:
        pytest.skip(f"no Debian guest here: {error}")
    environment = os.environ | {"TRAPLINE_TIER1": "paranoid"}
    command = [sys.executable, "-c", SCRIPT, "guest", "--timeout", "300", "--", "sha256sum /bin/busybox; ls -lR /sys > /dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stderr.splitlines()[-1])
    assert report["status"] == 0
    assert not report["mismatches"], "\n".join(report["mismatches"])
    assert report["followed"] > 10
