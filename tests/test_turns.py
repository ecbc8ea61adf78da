"""Turns: virtual time, tasks that alternate, and exact stops of the counting engine."""

from __future__ import annotations

import pytest

from tests.engine_machine import Bench, hvc_number
from trapline.arm64.regs import CNTHCTL_EL2, CNTV_CTL_EL0, CNTV_CVAL_EL0, ELR_EL2
from trapline.engine import Engine
from trapline.turns import QUANTUM, Deadlock, Turns


def test_tasks_alternate_and_the_clock_jumps_when_all_sleep() -> None:
    turns, story = Turns(), []
    queue = turns.wait_queue("q")

    def sleeper() -> None:
        queue.prepare()
        story.append(("sleeps", turns.now))
        assert not queue.wait(5000)
        story.append(("timed out", turns.now))
        queue.prepare()
        assert queue.wait()
        story.append(("woken", turns.now))

    def worker() -> None:
        for _ in range(3):
            turns.spend(turns.budget())
            story.append(("worked", turns.now))
            turns.pass_on()
        turns.clock.sleep_until(400_000)
        queue.wake()

    turns.run([sleeper, worker])
    assert story == [
        ("sleeps", 0), ("worked", QUANTUM), ("timed out", QUANTUM), ("worked", 2 * QUANTUM), ("worked", 3 * QUANTUM), ("woken", 400_000),
    ]  # fmt: skip
    assert (turns.retired, turns.skipped) == (3 * QUANTUM, 400_000 - 3 * QUANTUM)


def test_alarms_end_turns_early_and_can_be_cancelled() -> None:
    turns, rang = Turns(), []
    turns.call_at(300, lambda: rang.append(turns.now))
    turns.call_at(200, lambda: rang.append("never"))()
    assert turns.budget() == 300
    turns.spend(300)
    assert turns.budget() == 0
    turns.pass_on()
    assert rang == [300] and turns.budget() == QUANTUM


def test_sleeping_for_ever_is_an_error_and_ends_every_task() -> None:
    turns, ended = Turns(), []

    def sleep() -> None:
        try:
            turns.wait_queue("q").wait()
        finally:
            ended.append(1)

    with pytest.raises(Deadlock):
        turns.run([sleep, sleep])
    assert ended == [1, 1]


def test_randomness_follows_from_seed_and_purpose() -> None:
    assert Turns(1).entropy("a")(8) == Turns(1).entropy("a")(8)
    assert len({Turns(seed).entropy(purpose)(8) for seed in (1, 2) for purpose in ("a", "b")}) == 4
    assert Turns(1).random.bits(64) == Turns(1).random.bits(64) != Turns(2).random.bits(64)


def deterministic_bench() -> tuple[Bench, Turns]:
    turns = Turns()
    return Bench(engine=Engine(turns=turns)), turns


def test_the_engine_stops_before_exactly_the_instruction_asked_for() -> None:
    bench, turns = deterministic_bench()
    code = bench.load("again: add x0, x0, #1\nldr x1, [x2]\nstp x1, x0, [x2]\ncbz x3, again\nnop\nhvc #7")
    data = bench.memory.page()
    bench.tables.map(data, data)
    cpu = bench.cpu(code, x0=0, x2=data, x3=0)
    for stop in (1, 2, 3, 4, 5, 1000, 1001, 77_777, QUANTUM + 3, 3 * QUANTUM + 2):
        turns.stop_at = stop
        while turns.retired < stop:
            assert cpu.enter().kind == "irq"
        assert (turns.retired, cpu.state.icount) == (stop, stop)
        assert cpu[ELR_EL2] == code + 4 * (stop % 4)
        assert cpu.state.x[0] == (stop + 3) // 4
    turns.stop_at = None
    cpu.state.x[3] = 1
    while cpu.enter().kind == "irq":
        pass
    assert hvc_number(cpu) == 7


def test_the_counter_is_the_instruction_count_and_a_timer_stops_at_its_tick() -> None:
    bench, turns = deterministic_bench()
    code = bench.load("mrs x0, s3_3_c14_c0_2\n" + "nop\n" * 31 + "mrs x1, s3_3_c14_c0_2\nhvc #1")
    cpu = bench.cpu(code)
    cpu[CNTHCTL_EL2] = 3
    turns.advance_to(1600)
    assert cpu.enter().kind == "sync" and hvc_number(cpu) == 1
    assert (cpu.state.x[0], cpu.state.x[1]) == (100, 102)
    spin = bench.load("here: b here")
    bench.start(cpu, spin)
    cpu[CNTV_CTL_EL0], cpu[CNTV_CVAL_EL0] = 1, 500
    assert cpu.timer_lines() == 0
    assert cpu.next_timer_deadline() == 8000
    assert cpu.enter().kind == "irq"
    assert turns.now == 8000 and cpu.timer_lines() == 1
    assert cpu.enter().kind == "irq" and turns.now == 8000 + QUANTUM - (8000 - 1600), "a timer that was reported stops nothing"


def test_yield_and_wfe_end_the_turn_only_if_somebody_waits_for_it() -> None:
    bench, turns = deterministic_bench()
    first = bench.cpu(bench.load("yield\nsevl\nwfe\nwfe\nhvc #1"))
    second = bench.cpu(bench.load("nop\nyield\nhvc #2"))
    entries: list[int] = []

    def run(number: int) -> None:
        cpu = (first, second)[number]
        while cpu.enter().kind != "sync":
            entries.append(number)

    turns.run([lambda: run(0), lambda: run(1)])
    assert entries == [0, 1, 0, 0, 1, 0], "each leaves the guest when it gives way, and comes back to a new turn"


@pytest.mark.parametrize("restarts", [False, True])
def test_an_abort_that_the_guest_does_not_know_of_leaves_no_event_behind(restarts: bool) -> None:
    """The hypervisor's ERET sets the event register, but where the instruction runs again WFE has to wait as it would have."""
    bench, turns = deterministic_bench()
    first, second = bench.cpu(bench.load("wfe\nhvc #1")), bench.cpu(bench.load("nop\nhvc #2"))
    kinds: list[str] = []

    def wait() -> None:
        first.state.restarts, first.state.turns = restarts, 1
        kinds.append(first.enter().kind)

    turns.run([wait, second.enter])
    assert kinds == ["irq" if restarts else "sync"], "its turn ends, or it goes on"


@pytest.mark.parametrize("restarts", [False, True])
def test_whether_others_wait_is_asked_when_the_guest_could_tell(restarts: bool) -> None:
    """An abort in between, which only a restored machine takes, does not ask anew: meanwhile somebody's deadline may have come."""
    bench, turns = deterministic_bench()
    first = bench.cpu(bench.load("yield\nhvc #1"))
    kinds: list[str] = []

    def give_way() -> None:
        first.state.restarts, first.state.turns = restarts, 0
        kinds.append(first.enter().kind)

    turns.run([give_way, lambda: None])
    assert kinds == ["sync" if restarts else "irq"]


def test_the_end_of_a_turn_answers_a_kick() -> None:
    """The hypervisor gets the processor back without the kick, and looks for what is wanted: no second exit follows."""
    bench, turns = deterministic_bench()
    first = bench.cpu(bench.load("again: add x0, x0, #1\nb again"), x0=0)
    kinds: list[str] = []
    turns.trace = lambda cpu, kind: kinds.append(kind)

    def spin() -> None:
        for _ in range(3):
            assert first.enter().kind == "irq"

    turns.run([spin, first.kick])
    assert (kinds, turns.retired) == (["irq", "irq"], 2 * QUANTUM)


def test_what_is_done_before_a_round_precedes_every_turn_and_a_stopped_machine_does_nothing() -> None:
    turns, story = Turns(), []
    turns.on_round = lambda: story.append("round")

    def work(name: str) -> None:
        for _ in range(2):
            turns.spend(turns.budget())
            story.append(name)
            turns.pass_on()

    turns.stop_at = 4 * QUANTUM
    turns.run([lambda: work("a"), lambda: work("b")])
    assert story == ["round", "a", "b", "round", "a", "b"]


def test_a_task_that_waits_again_after_a_save_is_asleep_in_what_was_saved() -> None:
    """One that was woken for nothing, and had not had its turn yet."""
    turns = Turns()
    queue = turns.wait_queue("q")

    def sleeper() -> None:
        queue.prepare()
        queue.wait()
        assert turns.waits_again() == turns.freezing

    def worker() -> None:
        turns.spend(QUANTUM)
        queue.wake()
        turns.pass_on()

    turns.freeze_at = QUANTUM
    turns.run([sleeper, worker])
    assert turns.save()["asleep"] == [0]
