"""The compiler's process: regions are made here, so that neither LLVM nor Python's lock stands in the guest's way.

It talks over one socket. A request is `("build", index, shape)`; while it is at work it asks for pages, `("page", distance)`,
and is answered with 4096 bytes or None; it ends with `("built", Built or None)`. It lives until the socket closes.
"""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from trapline.arm64.features import Features
from trapline.engine.jit import ObjectCache
from trapline.engine.tier1.builder import RegionBuilder
from trapline.engine.tier1.store import RegionStore

NICENESS = 5
"""Compiling yields to the guest where there are not enough processors for both."""


def serve(connection: Connection, builder: RegionBuilder, store: RegionStore) -> None:
    """Answer requests until the other end is gone."""

    def page(distance: int) -> bytes | None:
        connection.send(("page", distance))
        answer: bytes | None = connection.recv()
        return answer

    while True:
        try:
            _, index, shape = connection.recv()
            built = builder.build(index, shape, page)
            if built is not None:
                store.add(built)
            connection.send(("built", built))
        except (EOFError, ConnectionError):
            return


def main() -> None:
    """Arguments: file descriptor of the socket, directory of the object cache; the features come first over the socket."""
    os.nice(NICENESS)
    connection = Connection(int(sys.argv[1]))
    path = Path(sys.argv[2])
    features: Features = connection.recv()
    cache = ObjectCache(path.name, path.parent)
    serve(connection, RegionBuilder(features, cache), RegionStore(cache))


if __name__ == "__main__":
    main()
