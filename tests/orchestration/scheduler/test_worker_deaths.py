import pytest

from orchestration.scheduler import environment

environment.prepare(None)

from ray.exceptions import ActorDiedError, OutOfMemoryError

from orchestration.scheduler.deaths import (
    Death,
    death_of,
    failure_reason,
    is_oom_bystander,
    is_out_of_memory,
    last_line,
)

LOW_ON_MEMORY = """2 worker(s) were killed due to the node running low on memory. Memory on the node was 3.10GB used
Considered workers: [
Selected to kill: (Actor(76d2): job ID=01, task name=A.__init__, pid=9081, actual memory used=0.45GB, worker ID=2fa8)
Selected to kill: (Actor(5027): job ID=01, task name=A.__init__, pid=9082, actual memory used=2.68GB, worker ID=39b8)
(Actor(1111): job ID=01, task name=A.__init__, pid=9083, actual memory used=0.10GB, worker ID=4444)
]
Top 10 memory users: PID	MEM(GB)	COMMAND
9082	2.68	ray::Worker.go_on
Refer to the documentation on how to address the out of memory issue.
"""


def test_of_workers_killed_together_for_want_of_memory_the_largest_is_to_blame() -> None:
    assert is_oom_bystander(LOW_ON_MEMORY, 9081)
    assert not is_oom_bystander(LOW_ON_MEMORY, 9082)
    assert not is_oom_bystander(LOW_ON_MEMORY, 9083), "not killed"
    alone = "\n".join(line for line in LOW_ON_MEMORY.splitlines() if "pid=9082" not in line)
    assert not is_oom_bystander(alone, 9081)
    assert not is_oom_bystander("", 9081)


@pytest.mark.parametrize("error", [OutOfMemoryError(LOW_ON_MEMORY), RuntimeError(LOW_ON_MEMORY)])
def test_want_of_memory_is_seen_by_its_class_or_by_its_text(error: Exception) -> None:
    why = "the worker was killed: the machine ran low on memory"
    assert death_of(error, 9082) == Death(why, blamed=True, out_of_memory=True)
    assert death_of(error, 9081) == Death(why, blamed=False, out_of_memory=True)


def test_releases_whose_text_is_another_blame_the_worker_that_was_killed() -> None:
    assert death_of(OutOfMemoryError("Task was killed"), 9081).blamed


def test_worker_whose_node_was_taken_away_is_not_to_blame() -> None:
    assert death_of(ActorDiedError(), 1) == Death("the worker's process died", blamed=True)

    class TakenAway(RuntimeError):
        preempted = True

    assert death_of(TakenAway("gone"), 1) == Death("the worker's process died", blamed=False)


def test_why_a_worker_died_is_said_in_a_line() -> None:
    told = (
        "The actor died unexpectedly before finishing this task.\n\tpid: 2\nThe actor is dead because its worker "
        "process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits with code 143. And"
    )
    assert failure_reason(told) == "the worker's process died: Worker exits with code 143"


def test_what_was_raised_on_a_worker_is_the_last_line() -> None:
    told = "\x1b[36mray::_Inner.__init__()\x1b[39m (pid=1, ip=127.0.0.1)\n  File 'a.py', line 9\nKeyError: 'abc'\n\n"
    assert last_line(RuntimeError(told)) == "KeyError: 'abc'"
    assert last_line(RuntimeError()) == "RuntimeError"


def test_want_of_memory_is_seen_behind_what_it_led_to() -> None:
    ended = RuntimeError("Tune ended")
    assert not is_out_of_memory(ended)
    assert not is_out_of_memory(None)
    ended.__cause__ = OutOfMemoryError("killed")
    assert is_out_of_memory(ended)
