"""The compiler's process: regions are made here, so that neither LLVM nor Python's lock stands in the guest's way.

It talks over one socket. A wish is `("wish", number, heat, index, exact)`: the region around the instruction `index` of a page, entered
there (`exact`) or at the head of its loop. While it
looks for the region's extent it asks for pages, `("page", number, distance)`, and is answered with `("text", bytes or None, indices)`,
the latter of the instructions that were branched to. What is worth compiling waits its turn, the hottest first, and comes back as
`("built", number, Built or None)`. `("hotter", number, heat)` changes the order, `("forget", number)` takes a wish back.
`("stencils", number, shapes)` comes first, and is answered with `("built", number, templates)`. When the socket closes, or
`("stop", 0)` comes, what still waits is compiled for later runs.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trapline.arm64.features import Features
from trapline.engine.cache import ObjectCache
from trapline.engine.haste import linger
from trapline.engine.stencil.arena import store
from trapline.engine.tier1.builder import RegionBuilder
from trapline.engine.tier1.built import Built
from trapline.engine.tier1.regions import Region
from trapline.engine.tier1.store import RegionStore

NICENESS, AFTERWARDS = 10, 19
"""Compiling yields to the guest where there are not enough processors for both, and to everything when the guest is gone."""
IMPROVING = 3
"""How much longer than on regions it works on good code for what was made in haste: every start gains from that."""


@dataclass(slots=True)
class Wish:
    """A region that waits to be compiled."""

    heat: int
    region: Region


class Server:
    """Two threads: one answers the socket, the other compiles."""

    def __init__(self, connection: Connection, builder: RegionBuilder, cache: ObjectCache) -> None:
        self._connection, self._builder, self._cache, self._store = connection, builder, cache, RegionStore(cache)
        self._wishes: dict[int, Wish] = {}
        self._stencils: list[tuple[int, list[int]]] = []
        self._meanwhile: deque[tuple[Any, ...]] = deque()
        """Messages that came while an answer was awaited."""
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._deadline: float | None = None

    def run(self) -> None:
        """Serve until the other end is gone, and finish."""
        worker = threading.Thread(target=self._compile)
        worker.start()
        try:
            while True:
                kind, number, *rest = self._meanwhile.popleft() if self._meanwhile else self._connection.recv()
                if kind == "stop":
                    break
                if kind == "wish":
                    self._consider(number, *rest)
                    continue
                with self._changed:
                    if kind == "stencils":
                        self._stencils.append((number, rest[0]))
                        self._changed.notify()
                    elif kind == "forget":
                        self._wishes.pop(number, None)
                    elif number in self._wishes:
                        self._wishes[number].heat = rest[0]
        except (EOFError, ConnectionError):
            pass
        step_back(AFTERWARDS)
        with self._changed:
            self._deadline = time.monotonic() + linger()
            self._changed.notify()
        worker.join()
        self._builder.improve(time.monotonic() + IMPROVING * linger())

    def _send(self, *message: object) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except ConnectionError:
            return  # nobody waits any more

    def _consider(self, number: int, heat: int, index: int, exact: bool) -> None:
        """Find the region's extent now, while the guest's pages are at hand."""

        @functools.cache
        def page(distance: int) -> tuple[bytes | None, tuple[int, ...]]:
            self._send("page", number, distance)
            while True:
                message = self._connection.recv()
                if message[0] == "text":
                    return message[1], message[2]
                self._meanwhile.append(message)

        region = self._builder.explore(index, lambda distance: page(distance)[0], lambda distance: page(distance)[1], exact)
        if region is None:
            self._send("built", number, None)
            return
        with self._changed:
            self._wishes[number] = Wish(heat, region)
            self._changed.notify()

    def _compile(self) -> None:
        while True:
            with self._changed:
                while not self._wishes and not self._stencils and self._deadline is None:
                    self._changed.wait()
                stencils, self._stencils = self._stencils, []
                if not stencils and self._deadline is not None and (not self._wishes or time.monotonic() > self._deadline):
                    return
                number = max(self._wishes, key=lambda n: self._wishes[n].heat, default=0)
                wish = None if stencils else self._wishes.pop(number)
            for asked, shapes in stencils:
                book = self._builder.stencils(shapes)
                store(self._cache, shapes, book)
                self._send("built", asked, book)
            if wish is not None:
                self._send("built", number, self._build(wish.region))

    def _build(self, region: Region) -> Built | None:
        """Compile and store a region; None if it turns out that it cannot be: the interpreter goes on with it then."""
        try:
            built = self._builder.build(region)
        except Exception:  # whatever it is, the other regions are still wanted
            traceback.print_exc()
            return None
        self._store.add(built)
        return built


def step_back(niceness: int, autogroup: Path = Path("/proc/self/autogroup")) -> None:
    """Have this process, the leader of its session, yield to others; where sessions share processors fairly (sched(7), "The autogroup
    feature"), what counts is the session's niceness."""
    os.setpriority(os.PRIO_PGRP, 0, max(niceness, os.nice(0)))  # all its threads
    with suppress(OSError):
        autogroup.write_text(str(niceness))


def main() -> None:
    """Arguments: file descriptor of the socket, directory of the object cache; the features come first over the socket."""
    step_back(NICENESS)
    sys.setswitchinterval(0.0005)
    connection = Connection(int(sys.argv[1]))
    path = Path(sys.argv[2])
    features: Features = connection.recv()
    cache = ObjectCache(path.name, path.parent)
    Server(connection, RegionBuilder(features, cache), cache).run()


if __name__ == "__main__":
    main()
