"""How long an exchange waits."""

from server.transport import Patience


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def patience(clock: Clock, enough: int = 3) -> Patience:
    return Patience(60.0, frozenset(range(4)), enough, straggler_factor=5.0, straggler_seconds=5.0, clock=clock)


def test_nobody_waits_beyond_the_deadline() -> None:
    clock = Clock()
    waiting = patience(clock)
    clock.now += 59.9
    assert not waiting.is_over()
    clock.now += 0.1
    assert waiting.is_over()


def test_once_enough_have_answered_quickly_the_rest_get_the_least_grace() -> None:
    clock = Clock()
    waiting = patience(clock)
    clock.now += 0.5
    for node in range(3):
        waiting.answered(node)
    clock.now += 4.9
    assert not waiting.is_over()
    clock.now += 0.1
    assert waiting.is_over()


def test_slow_work_earns_a_slow_hospital_a_multiple_of_it() -> None:
    clock = Clock()
    waiting = patience(clock)
    clock.now += 4.0
    for node in range(3):
        waiting.answered(node)
    clock.now += 15.9
    assert not waiting.is_over()
    clock.now += 0.1
    assert waiting.is_over()


def test_fewer_than_enough_answers_keep_the_deadline() -> None:
    clock = Clock()
    waiting = patience(clock)
    waiting.answered(0)
    waiting.answered(1)
    clock.now += 30.0
    assert not waiting.is_over()


def test_the_seconds_left_shrink_with_the_clock_and_the_answers() -> None:
    clock = Clock()
    waiting = patience(clock)
    before = waiting.seconds_left()
    clock.now += 4.0
    assert waiting.seconds_left() == before - 4.0
    for node in range(3):
        waiting.answered(node)
    assert waiting.seconds_left() < before - 4.0
    clock.now += before
    assert waiting.seconds_left() == 0.0


def test_one_nodes_repeated_answers_count_once() -> None:
    clock = Clock()
    waiting = patience(clock)
    for _ in range(4):
        waiting.answered(0)
    clock.now += 30.0
    assert not waiting.is_over()


def test_nobody_waits_for_a_node_that_is_gone() -> None:
    clock = Clock()
    waiting = patience(clock, enough=4)
    for node in range(3):
        waiting.answered(node)
    clock.now += 4.0
    assert not waiting.is_over()
    waiting.gone(3)
    clock.now += 0.5
    assert waiting.is_over()


def test_a_node_that_is_gone_is_no_answer() -> None:
    clock = Clock()
    waiting = patience(clock, enough=2)
    waiting.answered(0)
    waiting.gone(1)
    clock.now += 30.0
    assert not waiting.is_over()


def test_a_node_that_is_not_essential_holds_the_round_up_for_a_moment_only() -> None:
    clock = Clock()
    waiting = patience(clock, enough=4)
    waiting.answered(99)
    clock.now += 0.2
    for node in range(4):
        waiting.answered(node)
    assert not waiting.is_over()
    clock.now += 0.5
    assert waiting.is_over()
