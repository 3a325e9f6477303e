"""Finished cells under a change: what asks, what is refused, and what `fsg accept` keeps."""

import io
import itertools
import shutil
import sys
from pathlib import Path

import pytest
import tiny_experiment
from rich.console import Console
from tiny_experiment import tamper

import fsg
from fsg.finite import Diverged
from orchestration.commands import accept as module
from orchestration.commands.accept import accept
from orchestration.commands.launch import launch
from orchestration.commands.plan import ExperimentPlan
from orchestration.commands.request import LaunchRequest
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.status import cell_statuses
from orchestration.report.data import build
from orchestration.runtime.system_metrics import SystemMetrics
from orchestration.spec.cells import Cell, cell_id


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_experiment.finished(tmp_path_factory.getbasetemp()), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "STEPS", 4)
    return tmp_path


@pytest.fixture
def raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsg, "NUMERICS", fsg.NUMERICS + 1)


def planned() -> list[Cell]:
    return tiny_experiment.planned(Path("tiny.yaml"))


def states(ledger: Ledger) -> list[str]:
    return [one.outcome.state for one in cell_statuses(planned(), ledger)]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each launch that was begun has to train; nothing of it is."""
    left: list[list[str]] = []

    def run(request: LaunchRequest, plan: ExperimentPlan, number: int) -> int:
        assert plan.complete == (plan.pending == [])
        left.append([cell.label for cell in plan.pending])
        return 0

    monkeypatch.setattr("orchestration.commands.launch.run", run)
    return left


# fsg accept


def test_cells_whose_first_steps_replay_count_under_new_numerics_and_a_launch_trains_none_of_them(
    folder: Path, raised: None, entered: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(Path("results/tiny"))
    before, old = contents(ledger.folder), build(ledger).lines
    assert states(ledger) == ["waiting"] * 3
    assert launch(LaunchRequest(Path("tiny.yaml"))) == 2
    told = capsys.readouterr().err
    assert "3 finished cells" in told
    assert f"fsg.NUMERICS was {fsg.NUMERICS - 1} and is {fsg.NUMERICS}; `fsg accept results/tiny` keeps those" in told
    assert accept(ledger.folder) == 0
    assert capsys.readouterr().out.count("accepted ") == 3
    assert states(ledger) == ["done"] * 3
    assert {path: path.read_bytes() for path in before} == before, "nothing is rewritten or deleted"
    assert accept(ledger.folder) == 0
    assert "nothing to accept" in capsys.readouterr().out
    record = next(ledger.folder.glob("trials/*/accepted.json"))
    assert '"numerics"' in record.read_text()
    assert launch(LaunchRequest(Path("tiny.yaml"), console=quiet())) == 0
    assert entered == [[]]
    assert [len(ledger.attempts(cell.id)) for cell in planned()] == [1, 1, 1]
    now = build(ledger)
    assert [line.values for line in now.lines] == [line.values for line in old]
    assert not any("orphans" in warning for warning in now.warnings)


def test_cell_whose_first_steps_differ_is_refused_and_says_where(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = fsg.Training.advance

    def other(training: fsg.Training) -> list[fsg.trainer.Row]:
        rows = advance(training)
        wrong = training.step == 4 and training.config.estimator.name == "fsg"
        return [
            row._replace(values={k: v * (1 + 2**-52) for k, v in row.values.items()}) if wrong else row for row in rows
        ]

    monkeypatch.setattr(fsg.Training, "advance", other)
    ledger = Ledger(Path("results/tiny"))
    assert accept(ledger.folder) == 1
    out = capsys.readouterr().out
    assert out.count("accepted ") == 2
    assert "refused  fsg · seed 0: " in out
    assert "train/loss at step 4: " in out
    assert sorted(states(ledger)) == ["done", "done", "waiting"]


def test_epochs_that_end_among_the_first_steps_are_compared_too(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is recorded there: flips and saturation, the test, and the weights at the end."""
    monkeypatch.setattr(module, "STEPS", 50)
    ledger = Ledger(Path("results/tiny"))
    assert accept(ledger.folder) == 0
    assert "accepted fsg · seed 0: its first 10 steps are the same under NUMERICS" in capsys.readouterr().out
    assert states(ledger) == ["done"] * 3


def test_what_the_machine_did_is_not_compared(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never is the same twice."""
    looks = itertools.count(1.0)
    monkeypatch.setattr(SystemMetrics, "due", lambda self: {"system/cpu_percent": next(looks)})
    assert accept(Path("results/tiny")) == 0, capsys.readouterr().out
    assert next(looks) > 3 * 4
    assert states(Ledger(Path("results/tiny"))) == ["done"] * 3


def test_other_weights_at_the_end_are_refused(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 50)
    monkeypatch.setattr(module, "digest_of", lambda path: str(path))
    assert accept(Path("results/tiny")) == 1
    assert capsys.readouterr().out.count("it ends with other weights") == 1, "and two whose pretraining that is"


def test_finished_cells_that_have_lost_a_file_are_refused(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(Path("results/tiny"))
    one = next(cell for cell in ledger.cells() if cell.variant == "ste")
    path = ledger.folder / "trials" / one.id / "0001" / "final.pt"
    content = path.read_bytes()
    for lost in (None, content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        path.unlink()
        if lost is not None:
            path.write_bytes(lost)
        assert accept(ledger.folder) == 1
        assert "refused  ste · seed 0: the file of the final weights is " in capsys.readouterr().out
        path.write_bytes(content)


def test_training_that_diverges_elsewhere_than_it_did_is_refused(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though every row that it has before is the same; where it diverges as it did, it is accepted."""
    ledger = Ledger(Path("results/tiny"))
    one = next(cell for cell in ledger.cells() if cell.variant == "ste")
    path = ledger.folder / "trials" / one.id / "0001" / "end.json"
    advance = fsg.Training.advance

    def diverges(training: fsg.Training) -> list[fsg.trainer.Row]:
        if training.step == 3 and training.config.estimator.name == "ste":
            raise Diverged("the loss is nan at step 4")
        return advance(training)

    monkeypatch.setattr(fsg.Training, "advance", diverges)
    tamper(path, state="diverged", reason="the loss is nan at step 9")
    accept(ledger.folder)
    assert "refused  ste · seed 0: here it ends as diverged: the loss is nan at step 4" in capsys.readouterr().out
    tamper(path, state="diverged", reason="the loss is nan at step 4")
    accept(ledger.folder)
    assert "accepted ste · seed 0: its first 3 steps" in capsys.readouterr().out


def test_cells_whose_pretraining_is_not_accepted_are_refused(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(Path("results/tiny"))
    (before,) = {cell.depends_on for cell in ledger.cells()} - {None}
    for path in (ledger.folder / "trials" / str(before) / "0001").glob("rows-*"):
        path.write_bytes(b"{}\n")
    assert accept(ledger.folder) == 1
    out = capsys.readouterr().out
    assert "refused  pretrain · seed 0: a file of recorded rows is damaged" in out
    assert out.count("its pretraining was not accepted") == 2
    assert states(ledger) == ["waiting"] * 3


def test_cells_of_other_settings_are_none_of_its_business(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(Path("results/tiny"))
    assert accept(ledger.folder) == 0
    assert "nothing to accept" in capsys.readouterr().out
    tiny_experiment.images(folder / "tiny.npz")  # the same ones
    assert accept(ledger.folder) == 0


def test_cell_from_before_a_setting_existed_is_accepted(
    folder: Path, raised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record lacks the setting, and its id was made without it."""
    ledger = Ledger(Path("results/tiny"))
    one = next(cell for cell in ledger.cells() if cell.kind == "pretrain")
    recorded = ledger.settings_as_recorded(one.id)
    del recorded["recalibrate_batchnorm"]
    identity = one.train.identity()
    del identity["recalibrate_batchnorm"]
    from orchestration.spec import cells

    old = cells._id(identity, one.seed, one.train.data.fingerprint(), "", fsg.NUMERICS - 1, one.train.test)
    shutil.move(ledger.folder / "trials" / one.id, ledger.folder / "trials" / old)
    tamper(ledger.folder / "trials" / old / "cell.json", id=old, train=recorded)
    tamper(ledger.folder / "trials" / old / "0001" / "attempt.json", cell=old)
    assert accept(ledger.folder) == 0
    assert "accepted pretrain · seed 0" in capsys.readouterr().out
    assert ledger.origin(cell_id(one.train, one.seed)) == old


def test_accept_without_a_launch_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accept(tmp_path / "none") == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: no launch is recorded there\n"


def test_accept_waits_for_no_launch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(Path("results/tiny")).lock():
        assert accept(Path("results/tiny")) == 2
    assert "is locked by process" in capsys.readouterr().err


# a launch that would orphan finished cells


def quiet(text: io.StringIO | None = None, terminal: bool = False) -> Console:
    return Console(file=text or io.StringIO(), force_terminal=terminal, width=200, color_system=None)


def test_change_that_orphans_finished_cells_is_refused_unless_it_is_agreed_to_and_then_it_is_not_asked_again(
    folder: Path, entered: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, sets = contents(folder / "results"), ("train.optimizer.lr=0.01",)
    assert launch(LaunchRequest(Path("tiny.yaml"), sets=sets)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("results/tiny: 2 finished cells (")
    assert lines[0].endswith(" of training) would no longer count; they are kept:")
    assert lines[1] == "  fsg · seed 0, ste · seed 0: train.optimizer.lr: 0.001 before, 0.01 now"
    assert lines[2] == "nothing was started (expected --yes, or an experiment of another name)"
    assert contents(folder / "results") == before
    assert launch(LaunchRequest(Path("tiny.yaml"), sets=sets, yes=True, console=quiet())) == 0
    assert launch(LaunchRequest(Path("tiny.yaml"), sets=sets, console=quiet())) == 0
    assert entered == [["fsg · seed 0", "ste · seed 0"]] * 2


def test_on_a_terminal_it_asks(folder: Path, entered: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer, status in (("n\n", 2), ("", 2), ("y\n", 0)):
        shown = io.StringIO()
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        asked = LaunchRequest(Path("tiny.yaml"), sets=("train.optimizer.lr=0.01",), console=quiet(shown, terminal=True))
        assert launch(asked) == status
        assert "2 finished cells" in shown.getvalue()
        assert "Train the new ones? [y/N]" in shown.getvalue()
        assert len(Ledger(Path("results/tiny")).launches()) == 1 + (status == 0)


def test_extension_asks_nothing_and_runs_the_new_cells_alone(folder: Path, entered: list[list[str]]) -> None:
    for more in ("seeds=[0, 1]", "variants.more={estimator.history_length: 3, estimator.name: fsg}", "grid={}"):
        assert launch(LaunchRequest(Path("tiny.yaml"), sets=(more,), console=quiet())) == 0
    assert entered == [["pretrain · seed 1", "fsg · seed 1", "ste · seed 1"], ["more · seed 0"], []]
