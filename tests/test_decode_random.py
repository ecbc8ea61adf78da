"""Random words are what binutils and Capstone say they are; the run of ten million is `python -m tests.decode --count 10000000`."""

from __future__ import annotations

import os

import pytest

from tests.decode import compare, missing
from tests.decode_reasons import REASONS, explain, outdated

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
WORDS = 200_000


def test_random_words() -> None:
    reason = missing()
    if reason:
        pytest.skip(f"RANDOM WORDS NOT COMPARED: {reason}")
    report = compare(WORDS, SEED)
    print(report.text())
    assert report.allocated > WORDS // 4
    assert not report.unexplained, report.text()


def test_no_reason_is_outdated() -> None:
    assert outdated() == []


def test_reasons_are_narrow() -> None:
    """Instructions whose disagreements are explained for some words are not excused for others."""
    assert len({r.text for r in REASONS}) > 20
    assert explain("objdump refuses", "load_acquire", 0x88DFFC00) is None  # LDAR W0, [X0]: all unused bits are ones
    assert explain("capstone refuses", "load_store_pair_pre_index", 0xA9C10440) is None  # LDP X0, X1, [X2, #16]!
    assert explain("capstone refuses", "load_store_pair_pre_index", 0xA9C10042)  # LDP X2, X0, [X2, #16]!
    assert explain("capstone mnemonic", "sbcs ngc", 0) is None and explain("capstone mnemonic", "sbcs ngcs", 0)
