"""What all tests share: their machines leave no compiler behind, and go when their module is done; slow ones are asked for."""

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests unless they are asked for, by --slow or by -m; pytest's summary counts them as deselected."""
    if config.getoption("--slow") or config.getoption("-m"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
