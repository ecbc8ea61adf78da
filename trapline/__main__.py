"""`python -m trapline`: the command line."""

from trapline.ui.cli import program

program()
