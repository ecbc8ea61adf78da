"""Running arm64 code fast: the threaded interpreter, its TLBs and its runtime, compiled by LLVM from the declarations."""

from trapline.engine.cpu import Cpu, EngineExit
from trapline.engine.engine import Engine

__all__ = ["Cpu", "Engine", "EngineExit"]
