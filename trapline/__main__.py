"""`python -m trapline`: the command line."""

from trapline.ui.cli import main

raise SystemExit(main())
