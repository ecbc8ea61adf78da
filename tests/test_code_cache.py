"""The disk cache of compiled code: what is added is found again, damage costs only time, and there is a bound."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trapline.engine.cache import OBJECTS, ObjectCache
from trapline.engine.log import HEADER, Log
from trapline.engine.tier1.built import Built
from trapline.engine.tier1.install import Texts
from trapline.engine.tier1.store import RegionStore

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
HOUR = 3600


def read(path: Path) -> list[tuple[bytes, bytes | None]]:
    return [(entry.head, entry.body) for entry in Log(path).new()]


def test_a_log_returns_what_was_added_once(tmp_path: Path) -> None:
    path = tmp_path / "there" / "log"
    writer, reader = Log(path), Log(path)
    assert reader.new() == []
    writer.add(b"one", b"1")
    writer.add(b"two", b"")
    assert [entry.head for entry in reader.new()] == [b"one", b"two"]
    assert reader.new() == []
    Log(path).add(b"three", b"333")
    assert [(entry.head, entry.body) for entry in reader.new()] == [(b"three", b"333")]
    assert [entry.head for entry in writer.new()] == [b"one", b"two", b"three"]


def test_a_log_that_ends_in_the_middle_of_an_entry_goes_on_before_it(tmp_path: Path) -> None:
    """Whatever a writer that was killed has left: the entries before it are there, and the next one takes its place."""
    rng = random.Random(SEED)
    for _ in range(30):
        path = tmp_path / "log"
        path.unlink(missing_ok=True)
        log = Log(path)
        log.add(b"first", b"a" * rng.randrange(1, 100))
        whole = path.stat().st_size
        log.add(b"second", rng.randbytes(rng.randrange(1, 300)))
        cut = rng.randrange(whole, path.stat().st_size)
        os.truncate(path, cut)
        assert [head for head, _ in read(path)] == [b"first"], f"seed {SEED}, cut at {cut}"
        Log(path).add(b"third", b"t")
        assert read(path)[1:] == [(b"third", b"t")], f"seed {SEED}, cut at {cut}"


def test_a_log_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(path)
    for name in (b"a", b"b"):
        log.add(name, b"x" * 10)
    assert len(log.new()) == 2
    path.write_bytes(b"")
    Log(path).add(b"c", b"y" * 100)
    assert [entry.head for entry in log.new()] == [b"c"]
    log.add(b"d", b"")
    assert [head for head, _ in read(path)] == [b"c", b"d"]


def test_a_damaged_body_is_not_returned(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Log(path).add(b"head", b"machine code")
    data = bytearray(path.read_bytes())
    data[HEADER.size + 6] ^= 1
    path.write_bytes(data)
    assert read(path) == [(b"head", None)]


ADDER = """
import sys
from pathlib import Path
from trapline.engine.log import Log
for k in range(200):
    Log(Path(sys.argv[1])).add(f"{sys.argv[2]}-{k}".encode(), sys.argv[2].encode() * k)
"""


def test_processes_add_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    adders = [subprocess.Popen([sys.executable, "-c", ADDER, str(path), name]) for name in "abc"]
    assert [adder.wait() for adder in adders] == [0, 0, 0]
    found = dict(read(path))
    assert found == {f"{name}-{k}".encode(): name.encode() * k for name in "abc" for k in range(200)}


def test_objects_are_found_by_other_processes(tmp_path: Path) -> None:
    early, late = ObjectCache("key", tmp_path), ObjectCache("key", tmp_path)
    early.put("a.o", b"code")
    assert late.get("a.o") == b"code"
    assert late.get("b.o") is None
    assert ObjectCache("other", tmp_path).get("a.o") is None


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ObjectCache("key", tmp_path / "file")
    cache.put("a.o", b"code")
    assert cache.get("a.o") is None


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    caches = {}
    for age, key in enumerate(("new", "middle", "old")):
        caches[key] = ObjectCache(key, tmp_path)
        caches[key].put("a.o", key.encode() * 30_000)
        os.utime(tmp_path / key, (1e9 - age * HOUR,) * 2)
    assert caches["old"].get("a.o") == b"old" * 30_000
    ObjectCache("middle", tmp_path)  # used again
    ObjectCache("fourth", tmp_path, limit=400_000).put("a.o", b"x" * 90_000)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["fourth", "middle", "new"]
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 400_000
    assert caches["old"].get("a.o") == b"old" * 30_000, "who has it mapped keeps it"
    caches["old"].put("b.o", b"code")
    assert ObjectCache("old", tmp_path).get("b.o") == b"code"


def test_one_configuration_may_be_larger_than_the_bound(tmp_path: Path) -> None:
    cache = ObjectCache("key", tmp_path, limit=1000)
    cache.put("a.o", b"x" * 5000)
    assert ObjectCache("key", tmp_path).get("a.o") == b"x" * 5000
    assert (tmp_path / "key" / OBJECTS).exists()


def built(tag: str, entry: int, words: dict[int, int]) -> Built:
    return Built(tag, (entry,), (0,), tuple((0, index, word) for index, word in words.items()), ("native",), True, tag.encode())


def test_regions_are_stored_once(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    region = built("a", 5, {5: 0xAAAA, 6: 0xBBBB, 7: 0xCCCC})
    RegionStore(ObjectCache("key", tmp_path)).add(region)
    store = RegionStore(ObjectCache("key", tmp_path))
    store.add(region)
    store.add(built("b", 1, {1: 0xAAAA, 0: 0x1111}))
    found = RegionStore(ObjectCache("key", tmp_path)).all()
    assert list(found) == ["a", "b"]
    assert found["a"].read() == region
    assert (found["a"].entry, found["a"].word, found["b"].entry, found["b"].word) == (5, 0xAAAA, 1, 0xAAAA)


class Page:
    """A page of code and its predecoded records, as far as stored regions look at them."""

    def __init__(self, words: dict[int, int]) -> None:
        import ctypes

        from trapline.engine.state import PAGE_BYTES, PAGE_HEADER

        self.text = (ctypes.c_uint32 * 1024)()
        self.page = (ctypes.c_uint64 * (PAGE_BYTES // 8))()
        self.page[0] = ctypes.addressof(self.text)
        self.records = ctypes.addressof(self.page) + PAGE_HEADER
        for index, word in words.items():
            self.text[index] = word

    def forget(self) -> None:
        self.page[1] += 1


def test_regions_are_found_by_the_code_they_were_made_from(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    from trapline.engine.tier1.stored import StoredRegions

    store = RegionStore(ObjectCache("key", tmp_path))
    here, there = built("here", 5, {5: 0xAAAA, 6: 0xBBBB, 9: 0xCCCC}), built("there", 6, {6: 0xAAAA, 7: 0xBBBB})
    for region in (here, there):
        store.add(region)
    stored, texts = StoredRegions(store.all().values()), Texts()
    page = Page({5: 0xAAAA, 6: 0xBBBB, 9: 0xCCCC})
    assert stored.has_news(page.records)
    waiting = stored.waiting(page.records, texts)
    assert waiting == [here] and stored.has_news(page.records)
    waiting.clear()
    assert not stored.has_news(page.records)
    assert stored.waiting(page.records, texts) == [], "it has been put into service"
    page.forget()
    assert stored.has_news(page.records)
    assert stored.waiting(page.records, texts) == [here], "what was decoded was forgotten, and the region with it"
    page.text[9] = 0xDDDD
    page.forget()
    assert stored.waiting(page.records, texts) == []
    page.text[6], page.text[7] = 0xAAAA, 0xBBBB
    page.forget()
    assert stored.waiting(page.records, texts) == [there]


HASTY = """
import time
from tests.engine_machine import Bench, hvc_number
from trapline.engine.haste import DECODER
from trapline.engine.shapes import QUICK
from trapline.engine.tier1.builder import RegionBuilder
bench = Bench()
cpu = bench.cpu(bench.load("mov x0, #5\\nloop: add x1, x1, x0\\nsubs x0, x0, #1\\nb.ne loop\\nhvc #7"), x1=0)
cpu.enter()
assert (cpu.state.x[1], hvc_number(cpu)) == (15, 7)
code = bench.engine.code
print(code.shapes.compiled, sum(name.endswith(QUICK) for name in code.cache.names()))
RegionBuilder(code.features, code.cache).improve(time.monotonic() + 60)
bench.engine.close()
"""


def test_what_was_made_in_haste_is_made_again_for_the_next_start(tmp_path: Path) -> None:
    """The first process compiles in haste and everything works; improving makes the same shapes; the next one compiles nothing."""
    pytest.importorskip("llvmlite")
    from trapline.engine.haste import DECODER, SHAPES, shapes_of
    from trapline.engine.shapes import QUICK

    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TRAPLINE_LINGER": "20"}
    environment.pop("TRAPLINE_TIER1", None)
    command = [sys.executable, "-c", HASTY]
    first, second = (subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.split() for _ in range(2))
    assert int(first[0]) > 0 and int(first[1]) > 1, "shapes and the decoder"
    assert second == ["0", first[1]]
    (directory,) = (tmp_path / "trapline" / "code").iterdir()
    cache = ObjectCache(directory.name, directory.parent)
    quick, good = (set[int]().union(*shapes_of(cache, suffix)) for suffix in (SHAPES + QUICK, SHAPES))
    assert quick and quick <= good and DECODER in cache.names()


class FakeCompiler:
    """Compiles shapes to their numbers."""

    def module(self, numbers: list[int]) -> tuple[str, dict[str, object]]:
        return " ".join(map(str, numbers)), {}

    def compile(self, text: str) -> bytes:
        return text.encode()


def test_many_small_batches_become_few(tmp_path: Path) -> None:
    from trapline.engine.haste import FEW, GROUP, SHAPES, improve, shapes_of
    from trapline.engine.shapes import Batch, needed

    cache, compiler = ObjectCache("key", tmp_path), FakeCompiler()
    for number in range(2, 3 * FEW):
        numbers = sorted({number, number + 1})
        cache.put(Batch(numbers, [], b"").tag + SHAPES, Batch(numbers, [], b"small").pack())
    improve(cache, compiler, compiler, time.monotonic() - 1)  # type: ignore[arg-type]
    assert len(shapes_of(cache, SHAPES)) == 3 * FEW - 2, "there was no time"
    improve(cache, compiler, compiler, time.monotonic() + 60)  # type: ignore[arg-type]
    shapes = shapes_of(cache, SHAPES)
    improve(cache, compiler, compiler, time.monotonic() + 60)  # type: ignore[arg-type]
    assert shapes_of(cache, SHAPES) == shapes, "once is enough"
    stored = [Batch.unpack(data) for name in cache.names() if (data := cache.get(name)) is not None]
    chosen = list(needed(sorted(stored, key=lambda batch: -len(batch.numbers))))
    assert len(chosen) == 1 and len(chosen[0].numbers) <= GROUP
    assert chosen[0].numbers == list(range(2, 3 * FEW + 1)) and chosen[0].code == " ".join(map(str, chosen[0].numbers)).encode()
