"""Tier 1: hot regions of guest code, compiled by LLVM in a process of their own while the interpreter goes on."""
