"""Comparing instructions: the walker against compiled code, and compiled code against other emulators."""
