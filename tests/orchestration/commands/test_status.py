"""How far an experiment is, read from its ledger by somebody else than its launch."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_experiment import RECORD, Row, cells_of, diverge, fail, finish, launched, spec_of

from orchestration import cli
from orchestration.commands.interim import Interim
from orchestration.commands.status import standing, status, tally_of
from orchestration.ledger.ledger import Ledger
from orchestration.scheduler.environment import Unusable
from orchestration.spec.cells import Cell, total_steps

SPEC = spec_of(("fsg", "ste"), (0, 1, 2))
CELLS = cells_of(SPEC)


def cell(variant: str, seed: int) -> Cell:
    return next(one for one in CELLS if (one.variant, one.seed) == (variant, seed))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Seed 0 is done, a training of seed 1 runs."""
    ledger = launched(tmp_path / "ablation", SPEC, CELLS, command="fsg launch configs/ablation.yaml")
    finish(ledger, cell("fsg", 0), 0.80)
    finish(ledger, cell("ste", 0), 0.75)
    attempt = ledger.claim(cell("fsg", 1).id, RECORD)
    attempt.record([Row(5, {"train/loss": 2.0}), Row(10, {"train/loss": 1.25, "validation/accuracy": 0.5})])
    attempt.checkpoint(b"state", 10)
    return ledger


def test_what_is_done_runs_and_waits_is_told_from_the_ledger(ledger: Ledger) -> None:
    tally = tally_of(ledger, ledger.last_launch())
    assert (tally.total, tally.states["done"], len(tally.running), tally.waiting) == (6, 2, 1, 3)
    (run,) = tally.running.values()
    assert (run.cell.label, run.step, run.of_steps) == ("fsg · seed 1", 10, total_steps(cell("fsg", 1)))
    assert run.metrics == {"train/loss": 1.25, "validation/accuracy": 0.5}
    assert tally.waits() == {"a launch": 3}
    with ledger.lock():
        assert tally_of(ledger, ledger.last_launch()).waits() == {"a free place": 3}
    assert tally.interim == "interim, no verdict: fsg − ste +5.00 points over 1 of 3 seeds (test accuracy)"


def test_time_left_follows_from_what_the_trainings_took(ledger: Ledger) -> None:
    with ledger.lock():
        tally = tally_of(ledger, ledger.last_launch())
    assert tally.running
    steps = total_steps(cell("ste", 1))
    tally.running.clear()
    tally.max_running = 1
    left = (2 * steps - 10 + 2 * steps) * 75.0 / steps  # each of seed 0 took 75 s; 10 steps of fsg · seed 1 are done
    assert tally.left() == pytest.approx(left)
    assert tally.spread() == (pytest.approx(left), pytest.approx(left))


def test_a_pace_is_that_of_the_attempt_that_runs(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on at step 10, and its next ten steps took five seconds."""
    attempts = ledger.attempts
    again = ledger.claim(cell("fsg", 1).id, RECORD)
    again.record([Row(20, {"train/loss": 1.0})])
    again.checkpoint(b"state", 20)
    ended = ledger.rows(cell("fsg", 1).id)[-1].time_ms
    monkeypatch.setattr(
        ledger, "attempts", lambda cell_id: [one | {"started_at": ended - 5000} for one in attempts(cell_id)]
    )
    tally = tally_of(ledger, ledger.last_launch())
    (run,) = tally.running.values()
    assert (run.first_step, run.step) == (10, 20)
    assert run.pace == pytest.approx(0.5)
    assert tally.warnings[-1] == "fsg · seed 1 was begun again, after attempt 1 was cut off"


@pytest.mark.parametrize("reason", ["paused at step 10", "stopped"])
def test_a_training_that_was_paused_or_stopped_is_no_warning(ledger: Ledger, reason: str) -> None:
    attempt = ledger.claim(cell("ste", 1).id, RECORD)
    attempt.finish("interrupted", reason, step=10)
    ledger.claim(cell("ste", 1).id, RECORD)
    assert not tally_of(ledger, ledger.last_launch()).warnings


def test_a_cell_waits_for_its_pretraining(tmp_path: Path) -> None:
    before = replace(CELLS[0], kind="pretrain", variant="pretrain")
    after = replace(CELLS[1], depends_on=before.id)
    ledger = launched(tmp_path / "ablation", SPEC, [before, after])
    with ledger.lock():
        assert tally_of(ledger, ledger.last_launch()).waits() == {"a free place": 1, before.label: 1}
        finish(ledger, before)
        assert tally_of(ledger, ledger.last_launch()).waits() == {"a free place": 1}
        assert tally_of(ledger, ledger.last_launch()).left() is not None
    assert tally_of(ledger, ledger.last_launch()).left() is None, "nothing goes on"


def test_failures_and_divergences_are_told(ledger: Ledger) -> None:
    fail(ledger, cell("fsg", 2))
    diverge(ledger, cell("ste", 2))
    tally = tally_of(ledger, ledger.last_launch())
    assert (tally.states["failed"], tally.states["diverged"], tally.waiting) == (1, 1, 1)
    assert [(one.label, reason) for one, reason, _ in tally.failed] == [
        ("fsg · seed 2", "RuntimeError: no | such thing <b>")
    ]
    assert list(tally.warnings) == ["ste · seed 2: the loss is nan at step 40"]


def test_whether_a_launch_runs_has_ended_or_was_cut_off_is_told(ledger: Ledger) -> None:
    with ledger.lock():
        assert standing(ledger, ledger.last_launch()).startswith("launch 1 runs")
    assert standing(ledger, ledger.last_launch()) == (
        "launch 1 was cut off; to resume: fsg launch configs/ablation.yaml"
    )
    ended = {"finished": 1_790_000_000_000, "exit_status": 130, "reason": "stopped by SIGINT"}
    ledger.record_launch_end(1, ended)
    assert standing(ledger, ledger.last_launch()).endswith("with exit status 130 (stopped by SIGINT)")


def test_a_look_leaves_no_trace_and_holds_nobody_up(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in ledger.folder.rglob("*")}
    with ledger.lock():
        assert status(ledger.folder) == 0
    said = capsys.readouterr().out
    for part in ("ablation", "2/6 done", "1 running", "3 waiting", "fsg · seed 1", "1.250", "50.0 %", "launch 1 runs"):
        assert part in said
    after = {path: path.stat().st_mtime_ns for path in ledger.folder.rglob("*") if path.name != "lock"}
    assert after == {path: time for path, time in before.items() if path.name != "lock"}


def test_one_command_for_a_folder_and_for_a_cluster(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(cli, "_on_cluster", lambda verb, address, name, not_here: asked.append(name) or 0)
    monkeypatch.chdir(ledger.folder.parent)
    Path("results").mkdir()
    shutil.copytree("ablation", "results/mine")
    for words, code, cluster in (
        (["ablation"], 0, []),
        ([str(ledger.folder)], 0, []),
        (["mine"], 0, []),
        (["mine", "--address", "http://127.0.0.1:9"], 0, ["mine"]),
        (["a/folder"], 2, []),
        ([str(ledger.folder.parent)], 2, []),
        (["submitted"], 0, ["submitted"]),
        ([], 0, [None]),
    ):
        asked.clear()
        with pytest.raises(SystemExit) as ended:
            cli.app(args=["status", *words], prog_name="fsg")
        assert (ended.value.code, asked) == (code, cluster), words
        told = capsys.readouterr()
        assert len(told.err.splitlines()) == (1 if code else 0)


@pytest.mark.parametrize(
    ("name", "near"),
    [("abaltion", "did you mean results/ablation?"), ("zzz", "did you mean results/ablation?")],
)
def test_a_name_that_is_nowhere_is_one_line_with_the_nearest(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, near: str
) -> None:
    monkeypatch.chdir(ledger.folder.parent)
    shutil.copytree("ablation", "results/ablation")
    monkeypatch.setattr("orchestration.scheduler.environment.prepare", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.app(args=["status", name], prog_name="fsg")
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err == f"{name}: no experiment of that name in results ({near}), nor on a cluster: nothing answers\n"


def refuse(address: str) -> None:
    raise Unusable("nothing answers")


# The difference so far


def test_the_difference_so_far_is_over_the_seeds_that_both_have(ledger: Ledger) -> None:
    so_far = Interim(ledger, CELLS, "ste", "fsg", "test/accuracy")
    assert "+5.00 points over 1 of 3 seeds" in so_far.text()
    finish(ledger, cell("fsg", 2), 0.70)
    assert "+5.00 points over 1 of 3 seeds" in so_far.text()
    finish(ledger, cell("ste", 2), 0.79)
    assert "−2.00 points over 2 of 3 seeds" in so_far.text()
    for word in ("interim", "no verdict"):
        assert word in so_far.text()
    assert "[" not in so_far.text()


def test_nothing_is_interim_once_all_are_over(ledger: Ledger) -> None:
    for one in CELLS:
        if ledger.outcome(one.id).state != "done":
            finish(ledger, one, 0.8)
    assert tally_of(ledger, ledger.last_launch()).interim == ""


def test_a_divergence_counts_in_the_difference_so_far(ledger: Ledger) -> None:
    diverge(ledger, cell("fsg", 2))
    finish(ledger, cell("ste", 2), 0.79)
    assert "−37.00 points over 2 of 3 seeds" in Interim(ledger, CELLS, "ste", "fsg", "test/accuracy").text()


def test_each_point_of_a_grid_has_its_own_difference(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1), {"optimizer.lr": [0.1, 0.2, 0.3]})
    cells = cells_of(spec)
    ledger = launched(tmp_path / "ablation", spec, cells)
    assert Interim(ledger, cells, "ste", "fsg", "test/accuracy").text() == ""
    for one in cells:
        if one.seed == 0:
            finish(ledger, one, 0.8 if one.variant == "ste" else 0.8 + one.grid["optimizer.lr"] / 10)
    assert Interim(ledger, cells, "ste", "fsg", "test/accuracy").text() == (
        "interim, no verdict: fsg · lr=0.1 − ste +1.00 points over 1 of 2 seeds; "
        "fsg · lr=0.2 − ste +2.00 points over 1 of 2 seeds and 1 more (test accuracy)"
    )
