"""What all tests share: their machines leave no compiler behind, and go when their module is done."""

import gc
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("TRAPLINE_LINGER", "0")


@pytest.fixture(autouse=True, scope="module")
def machines_end_with_their_module() -> Iterator[None]:
    """Machines and their processors refer to each other; only the collector ends them."""
    yield
    gc.collect()
