"""The compiler's process beside guests: it must not take the processors that they need."""

from __future__ import annotations

import os
import subprocess
import sys

from trapline.engine.tier1 import server

STEPS = f"""
from pathlib import Path
from {server.__name__} import AFTERWARDS, NICENESS, step_back
import os, threading
go = threading.Event()
other = threading.Thread(target=go.wait)
other.start()
for niceness in NICENESS, AFTERWARDS:
    step_back(niceness)
    autogroup = Path("/proc/self/autogroup")
    print(os.getpriority(os.PRIO_PROCESS, other.native_id), autogroup.read_text().split()[-1] if autogroup.exists() else niceness)
go.set()
"""


def test_it_steps_back_with_all_its_threads_and_as_a_session() -> None:
    """Schedulers with autogroups ask for the session's niceness first, and there is nobody else in this one."""
    words = subprocess.run([sys.executable, "-c", STEPS], start_new_session=True, check=True, capture_output=True, text=True).stdout.split()
    threads, sessions = [int(word) for word in words[::2]], [int(word) for word in words[1::2]]
    assert threads == [max(niceness, os.nice(0)) for niceness in (server.NICENESS, server.AFTERWARDS)]
    assert sessions[0] == server.NICENESS
    assert sessions[1] == server.AFTERWARDS or os.geteuid() != 0  # others may say it ten times a second only
