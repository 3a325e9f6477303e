import io
from collections.abc import Callable

import pytest
from rich.console import Console

from fsg.train_config import TrainConfig
from orchestration.commands.progress import LiveView, PlainLines, view_for
from orchestration.commands.tally import Tally
from orchestration.ledger.outcome import Outcome, State
from orchestration.ledger.status import CellStatus
from orchestration.spec.cells import Cell
from orchestration.util.duration import duration


def standing(variant: str, state: State = "waiting", steps: int = 100, step: int = 0) -> CellStatus:
    return CellStatus(Cell(variant, "train", variant, {}, 0, TrainConfig()), Outcome(state, step=step), steps)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def console(width: int = 80, height: int = 24, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=terminal, color_system=None)


def shown(view: LiveView) -> list[str]:
    view.console.print(view.draw())
    assert isinstance(view.console.file, io.StringIO)
    return view.console.file.getvalue().splitlines()


def lines(view: PlainLines) -> list[str]:
    assert isinstance(view.console.file, io.StringIO)
    return view.console.file.getvalue().splitlines()


# how long it will take


def test_time_left_is_not_known_before_anything_is_trained(clock: Clock) -> None:
    tally = Tally([standing("a"), standing("b")], 1, clock)
    assert tally.left() is None
    tally.started(tally.standings["a"].cell)
    assert tally.left() is None


def test_time_left_follows_from_the_pace_of_what_runs(clock: Clock) -> None:
    tally = Tally([standing("a"), standing("b")], 1, clock)
    cell = tally.standings["a"].cell
    tally.started(cell)
    clock.now = 10.0
    tally.progressed(cell, 20, 100, {})
    assert tally.left() == pytest.approx((80 + 100) * 0.5)


def test_time_left_is_shared_by_what_runs_at_a_time_but_a_cell_is_not_divided(clock: Clock) -> None:
    tally = Tally([standing("a"), standing("b"), standing("c")], 3, clock)
    cell = tally.standings["a"].cell
    tally.started(cell)
    clock.now = 10.0
    tally.progressed(cell, 50, 100, {})
    assert tally.left() == pytest.approx(20.0), "b and c take 20 s each, however many places there are"


def test_steps_that_an_earlier_launch_made_do_not_count_as_pace(clock: Clock) -> None:
    tally = Tally([standing("a", "interrupted", step=50)], 1, clock)
    cell = tally.standings["a"].cell
    tally.started(cell)
    clock.now = 10.0
    tally.progressed(cell, 60, 100, {})
    assert tally.left() == pytest.approx(40.0)


def test_nothing_is_left_at_the_end(clock: Clock) -> None:
    tally = Tally([standing("a"), standing("b", "done"), standing("c", "diverged")], 1, clock)
    cell = tally.standings["a"].cell
    tally.started(cell)
    clock.now = 10.0
    tally.progressed(cell, 100, 100, {})
    tally.ended(cell, "done", "", "")
    assert tally.left() == 0
    assert (tally.states["done"], tally.states["diverged"], tally.waiting, len(tally.over)) == (2, 1, 0, 3)


def test_the_spread_is_from_the_fastest_training_to_the_slowest(clock: Clock) -> None:
    tally = Tally([standing(name) for name in "abcd"], 1, clock)
    for name, seconds in (("a", 10.0), ("b", 40.0)):
        tally.started(tally.standings[name].cell)
        clock.now += seconds
        tally.progressed(tally.standings[name].cell, 100, 100, {})
        tally.ended(tally.standings[name].cell, "done", "", "")
    assert tally.left() == pytest.approx(2 * 25.0)
    assert tally.spread() == (pytest.approx(2 * 10.0), pytest.approx(2 * 40.0))
    live = LiveView(tally, "name", console(100))
    assert "50 s gone, about 50 s left (20 s to 1 min 20 s)" in shown(live)


def test_how_long_a_training_took_to_start_is_no_part_of_its_pace(clock: Clock) -> None:
    tally = Tally([standing("a")], 1, clock)
    cell = tally.standings["a"].cell
    tally.started(cell)
    for now, step in ((30.0, 10), (35.0, 20), (40.0, 30)):
        clock.now = now
        tally.progressed(cell, step, 100, {})
    clock.now = 41.0
    assert tally.running["a"].pace == pytest.approx(0.5)
    assert tally.left() == pytest.approx(70 * 0.5)


def test_interrupted_cell_is_not_over(clock: Clock) -> None:
    tally = Tally([standing("a")], 1, clock)
    tally.started(tally.standings["a"].cell)
    tally.ended(tally.standings["a"].cell, "interrupted", "", "")
    assert (len(tally.over), tally.waiting) == (0, 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.31, "0.3 s"),
        (42, "42 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# what is shown


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (40, 10)])
def test_live_view_fits_the_terminal(clock: Clock, width: int, height: int) -> None:
    many = [standing(f"a-variant-with-a-rather-long-name-{number}") for number in range(64)]
    live = LiveView(Tally(many, 64, clock), "an_experiment", console(width, height))
    for one in many[:50]:
        live.started(one.cell)
        live.progressed(one.cell, 7, 100, {"train/loss": 1.25, "validation/accuracy": 0.5})
    for one in many[50:54]:
        live.started(one.cell)
        live.ended(one.cell, "failed", "ValueError: " + "a long story " * 20, "")
    drawn = shown(live)
    assert len(drawn) <= height
    assert max(map(len, drawn)) <= width


def test_live_view_tells_counts_metrics_and_failures(clock: Clock) -> None:
    live = LiveView(Tally([standing("a"), standing("b"), standing("c", "done")], 1, clock), "name", console(100))
    live.started(live.tally.standings["a"].cell)
    live.progressed(live.tally.standings["a"].cell, 7, 100, {"train/loss": 1.2345, "validation/accuracy": 0.678})
    live.started(live.tally.standings["b"].cell)
    live.ended(live.tally.standings["b"].cell, "failed", "ValueError: no", "")
    text = "\n".join(shown(live))
    for part in ("1/3 done", "1 running", "0 waiting", "1 failed", "a · seed 0", "7/100", "1.234", "67.8 %"):
        assert part in text
    assert "ValueError: no" in text


@pytest.mark.parametrize("width", [60, 80, 140])
def test_live_view_answers_what_is_asked_while_waiting(clock: Clock, width: int) -> None:
    live = LiveView(Tally([standing("a"), standing("b"), standing("c")], 1, clock), "name", console(width))
    live.tally.compare = lambda: "interim, no verdict: a − b +1.00 points"
    live.waits = lambda: {"a free place": 1}
    live.started(live.tally.standings["b"].cell)
    live.ended(live.tally.standings["b"].cell, "done", "", "")
    live.started(live.tally.standings["a"].cell)
    clock.now = 5.0
    live.progressed(live.tally.standings["a"].cell, 20, 100, {"train/loss": 1.2345})
    live.retried(live.tally.standings["c"].cell, "its worker died")
    live.console.file = io.StringIO()
    drawn = shown(live)
    for part in ("1/3 done", "0.25", "waiting: 1 for a free place", "interim, no verdict: a − b +1.00 points"):
        assert any(part in line for line in drawn), part
    assert "warning  c · seed 0 is retried: its worker died" in [line.rstrip() for line in drawn]
    assert "about " in drawn[2]
    assert max(map(len, drawn)) <= width


def test_what_is_left_out_where_there_is_no_room_comes_last(clock: Clock) -> None:
    live = LiveView(Tally([standing("a")], 1, clock), "name", console(80, 10))
    live.tally.interim, live.waits = "interim, no verdict: +1", lambda: {"a free place": 1}
    live.started(live.tally.standings["a"].cell)
    for number in range(4):
        live.message(f"warning {number}")
    live.console.file = io.StringIO()
    drawn = shown(live)
    assert len(drawn) <= 10
    assert any("a · seed 0" in line for line in drawn)
    assert any("waiting: 1 for a free place" in line for line in drawn)
    assert not any("warning 3" in line for line in drawn)


def test_plain_lines_tell_the_difference_when_it_is_another(clock: Clock) -> None:
    plain = PlainLines(Tally([standing(name) for name in "abc"], 1, clock), "name", console(terminal=False))
    for name, told in {"a": "interim, no verdict: +1", "b": "interim, no verdict: +1", "c": ""}.items():
        plain.tally.compare = lambda told=told: told
        plain.started(plain.tally.standings[name].cell)
        plain.ended(plain.tally.standings[name].cell, "done", "", "")
    assert sum("interim, no verdict" in line for line in lines(plain)) == 1
    assert all(line.split(maxsplit=1)[1:] for line in lines(plain) if line)


def test_markup_in_names_is_shown_as_it_is(clock: Clock) -> None:
    live = LiveView(Tally([standing("[red]a[/]")], 1, clock), "name", console(100))
    live.started(live.tally.standings["[red]a[/]"].cell)
    assert any("[red]a[/] · seed 0" in line for line in shown(live))


def test_plain_lines_are_one_a_cell_and_one_a_minute(clock: Clock) -> None:
    plain = PlainLines(Tally([standing("a"), standing("b")], 1, clock), "name", console(terminal=False))
    cell = plain.tally.standings["a"].cell
    plain.started(cell)
    for second in range(1, 151):
        clock.now = float(second)
        plain.progressed(cell, second, 200, {"train/loss": 1.0, "test/accuracy": 0.5})
    plain.ended(cell, "done", "", "")
    heartbeats, last = lines(plain)[:-1], lines(plain)[-1]
    assert len(heartbeats) == 2
    assert "running: a · seed 0 at step 60/200" in heartbeats[0]
    assert "done        a · seed 0  (loss 1.000, test acc. 50.0 %, 2 min 30 s)  1/2 cells, about " in last


def test_view_suits_where_it_is_shown() -> None:
    assert isinstance(view_for([], "name", 1, console(terminal=True)), LiveView)
    assert isinstance(view_for([], "name", 1, console(terminal=False)), PlainLines)


@pytest.mark.parametrize("make", [LiveView, PlainLines])
def test_views_tell_why_a_cell_goes_again(clock: Clock, make: Callable[..., LiveView | PlainLines]) -> None:
    one = make(Tally([standing("a")], 1, clock), "name", console(200))
    one.started(one.tally.standings["a"].cell)
    one.retried(one.tally.standings["a"].cell, "the worker's process died")
    assert isinstance(one.console.file, io.StringIO)
    assert "a · seed 0 is retried: the worker's process died" in one.console.file.getvalue()
    assert one.tally.waiting == 1


def test_progress_ends_at_all_of_all_where_a_search_comes_to_fewer_cells(clock: Clock) -> None:
    expected = [CellStatus(Cell("", "trial", "search", {}, 0, TrainConfig()), Outcome("waiting"), 100) for _ in "abc"]
    view = PlainLines(Tally(expected, 1, clock), "probe", console(terminal=False))
    found = Cell("0123456789abcdef", "trial", "search", {}, 0, TrainConfig())
    view.started(found)
    view.ended(found, "done", "", "")
    assert "1/3 cells" in lines(view)[-1]
    view.concluded()
    assert lines(view)[-1].endswith("probe: 1/1 cells")
    view.concluded()
    assert len(lines(view)) == 2


def test_cell_that_ends_without_having_started_is_one_of_all(clock: Clock) -> None:
    view = PlainLines(Tally([standing("a")], 1, clock), "probe", console(terminal=False))
    view.ended(Cell("b", "trial", "search", {}, 0, TrainConfig()), "failed", "its pretraining failed", "")
    assert lines(view)[-1].endswith("1/2 cells")
