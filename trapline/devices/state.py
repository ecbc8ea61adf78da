"""The state of devices as plain values: named attributes that can be written as JSON and put back.

A class says which of its attributes are state::

    class Queue(Stateful):
        kept = ("size", "ready", "next_used")

and `state` and `load` follow. A device's registers are state without being named. An attribute may be a number, a truth value, a text,
bytes of any kind, a queue of bytes, another `Stateful`, or a list or dictionary of those, which the new device has in the same number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar


class Stateful:
    """Something whose state can be saved and loaded."""

    __slots__ = ()
    kept: ClassVar[tuple[str, ...]] = ()
    """Attributes that are state."""

    def kept_names(self) -> Iterable[str]:
        """All of them."""
        return self.kept

    def state(self) -> dict[str, Any]:
        """What this is at this moment, as plain values that print alike whenever they are alike."""
        return {name: _plain(getattr(self, name)) for name in self.kept_names()}

    def load(self, state: dict[str, Any]) -> None:
        """Be what `state` says: one that an object made like this one gave. KeyError if it lacks something."""
        for name in self.kept_names():
            setattr(self, name, _like(getattr(self, name), state[name]))


def _plain(value: Any) -> Any:
    if isinstance(value, Stateful):
        return value.state()
    if isinstance(value, (bytes, bytearray, deque)):
        return bytes(value).hex()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return [_plain(each) for _, each in sorted(value.items())]
    return value if isinstance(value, (bool, str)) else int(value)


def _like(current: Any, saved: Any) -> Any:
    """The saved value, as the kind of thing that is there now."""
    if isinstance(current, Stateful):
        current.load(saved)
        return current
    if isinstance(current, (bytes, bytearray, deque)):
        return type(current)(bytes.fromhex(saved))
    if isinstance(current, list):
        return [_like(each, value) for each, value in zip(current, saved, strict=True)]
    if isinstance(current, dict):
        return {key: _like(current[key], value) for key, value in zip(sorted(current), saved, strict=True)}
    return saved
