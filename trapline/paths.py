"""Where files are kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The directory for compiled code and downloads: `$XDG_CACHE_HOME/trapline`, or `~/.cache/trapline`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trapline"
