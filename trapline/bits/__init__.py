"""Bit-vector expressions: what instruction bodies are made of, and their evaluators."""

from trapline.bits.expr import Bits, Imm, Vec, call, cat, const, convert, lasting, likely, real, select

__all__ = ["Bits", "Imm", "Vec", "call", "cat", "const", "convert", "lasting", "likely", "real", "select"]
