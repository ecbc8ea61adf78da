"""The engine's side of the compiler's process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from trapline.engine.engine import Code

LIFETIME = 1000
"""Answers after which another process takes over: LLVM's pass managers leave 85 KiB behind with every region."""


Page = tuple[bytes | None, tuple[int, ...]]
"""A page's instructions, zeros for those that never ran, and the indices of those that were branched to."""


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for: where the pages come from, and who gets the answer."""

    page: Callable[[int], Page]
    deliver: Callable[[Any], None]


class RegionCompiler:
    """The compiler's process, started when it is first needed; shared by the engines of one configuration."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._connection: Connection | None = None
        self._sending = threading.Lock()
        self._orders: dict[int, Order] = {}
        self._number = self._answers = 0
        self._failed = False

    def order(self, heat: int, index: int, exact: bool, order: Order) -> int | None:
        """Ask for the region of an instruction; a number to speak of it by, or None if there is no compiler at the moment.

        `exact`: it is to be entered at this instruction, not at the head of the loop around it.
        """
        return self._ask(order, "wish", heat, index, exact)

    def order_stencils(self, shapes: list[int], deliver: Callable[[Any], None]) -> bool:
        """Ask for the templates of some shapes; False if there is no compiler at the moment."""
        return self._ask(Order(_no_page, deliver), "stencils", shapes) is not None

    def _ask(self, order: Order, kind: str, *rest: object) -> int | None:
        with self._sending:
            if self._failed:
                return None
            if self._answers >= LIFETIME:
                if self._orders:
                    return None  # first it finishes what it has
                self._send("stop", 0)
                self._connection, self._answers = None, 0
            if self._connection is None:
                self._connection = self._start()
            self._number += 1
            self._orders[self._number] = order
            self._send(kind, self._number, *rest)
            return self._number

    def hotter(self, number: int, heat: int) -> None:
        """An ordered region matters more by now."""
        with self._sending:
            self._send("hotter", number, heat)

    def forget(self, number: int) -> None:
        """An ordered region is not wanted any more; it may come nevertheless."""
        with self._sending:
            self._orders.pop(number, None)
            self._send("forget", number)

    def _send(self, *message: object) -> None:
        try:
            if self._connection is not None:
                self._connection.send(message)
        except OSError:
            self._failed = True  # the interpreter does without it

    def _start(self) -> Connection:
        # Only here: a process that finds all its regions in the cache does without it.
        import socket
        import subprocess
        from multiprocessing.connection import Connection

        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "trapline.engine.tier1.server", str(theirs.fileno()), str(self._code.cache.path)]
            path = os.pathsep.join(p or os.getcwd() for p in sys.path)
            subprocess.Popen(  # it ends by itself when the socket closes
                command,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        connection = Connection(ours.detach())
        connection.send(self._code.features)
        threading.Thread(target=self._receive, args=(connection,), name="trapline-regions", daemon=True).start()
        return connection

    def _receive(self, connection: Connection) -> None:
        """Answer the process's questions and hand out what it made."""
        try:
            while True:
                kind, number, value = connection.recv()
                if kind == "page":
                    order = self._orders.get(number)
                    text, met = order.page(value) if order is not None else _no_page(value)
                    with self._sending:
                        self._send("text", text, met)
                else:
                    order = self._orders.pop(number, None)
                    if order is not None:
                        order.deliver(value)
                    self._answers += 1
        except (EOFError, OSError):
            if connection is self._connection:
                self._failed = True


def _no_page(distance: int) -> Page:
    return None, ()
