"""What all tests share: their machines leave no compiler behind."""

import os

os.environ.setdefault("TRAPLINE_LINGER", "0")
