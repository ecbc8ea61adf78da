"""Stencils: the interpreter's handlers with holes in place of operands, laid one behind the other for the code that runs."""
