"""The outbox against real MLflow stores: SQLite always, a server on loopback under the mark `slow`."""

import json
import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_experiment import Row, cells_of, diverge, fail, finish, launched, rows_of, spec_of, trained

from fsg.checkpoint import from_bytes
from fsg.data import Arrays
from fsg.imported import Imported, source_sha256
from fsg.layers import quantize
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import Cell
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.resolver import Point
from orchestration.tracking import sync as module
from orchestration.tracking.program import Exporter
from orchestration.tracking.server import free_port, serving
from orchestration.tracking.sync import SyncReport, Tracker, background
from orchestration.util.nested import flatten

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
NOTHING = SyncReport(0, 0, 0)
EXPORTER = Exporter()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results with a space"
    folder.mkdir()
    return folder


@pytest.fixture
def sqlite(results: Path, migrated: Path) -> str:
    (results / "mlflow.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{results / 'mlflow.db'}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_ARTIFACTS_DESTINATION", str(folder / "artifacts"))
            address = running.enter_context(serving(f"sqlite:///{folder}/mlflow.db", free_port(45100)))
        yield address


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def in_mlflow(tracker: Tracker) -> dict[str, Any]:
    """The runs of a tracker's experiment by name, read with a client of the test's own; each name is there once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name(tracker._spec.folder_name)
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def history(tracker: Tracker, run: Any) -> list[tuple[str, int, int, float]]:
    """Every metric row of a run: name, step, time, value."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracker.uri)
    rows = [row for name in run.data.metrics for row in client.get_metric_history(run.info.run_id, name)]
    return sorted((row.key, row.step, row.timestamp, row.value) for row in rows)


def in_ledger(ledger: Ledger, cell_id: str) -> list[tuple[str, int, int, float]]:
    rows = ledger.rows(cell_id)
    return sorted((name, row.step, row.time_ms, value) for row in rows for name, value in row.values.items())


def artifacts(tracker: Tracker, run: Any, folder: str) -> list[str]:
    from mlflow.tracking import MlflowClient

    return sorted(Path(file.path).name for file in MlflowClient(tracker.uri).list_artifacts(run.info.run_id, folder))


def test_finished_experiment_arrives_whole(results: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient
    from ruamel.yaml import YAML

    spec = spec_of(seeds=(0, 1), name="whole")
    ledger = trained(results / "whole", spec)
    tracker = Tracker(ledger, spec, uri)
    report = tracker.sync()
    runs = in_mlflow(tracker)
    cells = cells_of(spec)
    assert set(runs) == {"whole", *(cell.label for cell in cells)}
    assert report == SyncReport(5, sum(len(in_ledger(ledger, cell.id)) for cell in cells), 3 + 2 * 4)
    for cell in cells:
        run = runs[cell.label]
        assert history(tracker, run) == in_ledger(ledger, cell.id)
        assert run.info.status == "FINISHED"
        outcome = ledger.outcome(cell.id)
        assert (run.info.start_time, run.info.end_time) == (outcome.started_ms, outcome.finished_ms)
        assert run.data.tags["mlflow.parentRunId"] == runs["whole"].info.run_id
        tags = {"variant": cell.variant, "seed": str(cell.seed), "grid": "{}", "kind": "train", "contaminated": "false"}
        tags |= {
            "fsg.cell_id": cell.id,
            "spec_sha256": spec.sha256(),
            "data_fingerprint": cell.train.data.fingerprint(),
        }
        tags |= {"git_commit": "0123456789abcdef0123456789abcdef01234567", "outcome": "done"}
        assert tags.items() <= run.data.tags.items()
        assert {"epochs": "4", "estimator.name": cell.train.estimator.name}.items() <= run.data.params.items()
        assert run.inputs.dataset_inputs[0].dataset.name == "fashion_mnist_subset"
        assert artifacts(tracker, run, "checkpoints") == ["best-00000040.pt", "final.pt"]
    assert runs["whole"].info.status == "FINISHED"
    assert artifacts(tracker, runs["whole"], "spec") == ["as_written.yaml", "resolved.json", "resolved.yaml"]
    folder = Path(MlflowClient(uri).download_artifacts(runs["whole"].info.run_id, "spec"))
    assert json.loads((folder / "resolved.json").read_text()) == spec.resolved()
    assert YAML(typ="safe").load(folder / "resolved.yaml") == spec.resolved()
    assert (folder / "as_written.yaml").read_text() == spec.text


def test_second_sync_sends_nothing_and_what_was_sent_but_not_marked_is_sent_again_without_harm(
    results: Path, uri: str
) -> None:
    spec = spec_of(seeds=(0,), name="twice")
    ledger = trained(results / "twice", spec)
    tracker = Tracker(ledger, spec, uri)
    tracker.sync()
    before = {name: run.to_dictionary() for name, run in in_mlflow(tracker).items()}
    assert tracker.sync() == NOTHING
    assert Tracker(ledger, spec, uri).sync() == NOTHING, "from a new driver"
    assert {name: run.to_dictionary() for name, run in in_mlflow(tracker).items()} == before
    cell = cells_of(spec)[1]
    tracker.runs.client().delete_tag(before[cell.label]["info"]["run_id"], "fsg.synced")
    again = Tracker(ledger, spec, uri).sync()
    assert again.metrics == len(in_ledger(ledger, cell.id))
    assert history(tracker, in_mlflow(tracker)[cell.label]) == in_ledger(ledger, cell.id)


def test_rows_arrive_once_while_a_cell_is_trained_by_several_attempts_and_drivers(results: Path, uri: str) -> None:
    spec = spec_of(("fsg",), (0,), name="resumed")
    (cell,) = cells_of(spec)
    ledger, rows = launched(results / "resumed", spec, [cell]), rows_of(cell)
    first = ledger.claim(cell.id, {"device": "cpu"})
    first.record(rows[:3])
    first.checkpoint(b"state", rows[2].step)
    first.record(rows[3:6])  # covered by nothing yet
    tracker = Tracker(ledger, spec, uri)
    tracker.sync()
    assert history(tracker, in_mlflow(tracker)[cell.label]) == in_ledger(ledger, cell.id)
    assert in_mlflow(tracker)[cell.label].info.status == "RUNNING"
    first.finish("interrupted", "stopped")
    Tracker(ledger, spec, uri).sync()
    assert in_mlflow(tracker)[cell.label].info.status == "KILLED"
    assert len(in_ledger(ledger, cell.id)) == sum(len(row.values) for row in rows[:6])
    second = ledger.claim(cell.id, {"device": "cpu"})
    second.record(rows[3:9])  # from the checkpoint on: some of them again, at another time
    second.checkpoint(b"state", rows[8].step)
    Tracker(ledger, spec, uri).sync()
    assert in_mlflow(tracker)[cell.label].info.status == "RUNNING"
    second.record(rows[9:])
    second.weights("final.pt", b"weights")
    second.finish("done")
    tracker.sync()
    run = in_mlflow(tracker)[cell.label]
    assert run.info.status == "FINISHED"
    assert history(tracker, run) == in_ledger(ledger, cell.id)
    once = [(name, step) for name, step, _, _ in history(tracker, run)]
    assert sorted(once) == sorted((name, row.step) for row in rows for name in row.values)


def test_run_that_a_slow_server_made_after_all_is_put_away(results: Path, uri: str) -> None:
    """What was asked for was given up and asked for anew; then there are two, and the empty one may sort first."""
    from mlflow.entities import ViewType
    from mlflow.tracking import MlflowClient

    spec = spec_of(seeds=(0,), name="late")
    ledger = trained(results / "late", spec)
    tracker = Tracker(ledger, spec, uri)
    tracker.sync()
    runs, client = in_mlflow(tracker), MlflowClient(uri)
    for run in runs.values():
        for _ in range(4):
            tags = {"fsg.cell_id": run.data.tags["fsg.cell_id"]}
            client.create_run(run.info.experiment_id, 1, tags, run_name=run.info.run_name)
    assert Tracker(ledger, spec, uri).sync() == NOTHING
    assert {name: run.info.run_id for name, run in in_mlflow(tracker).items()} == {
        name: run.info.run_id for name, run in runs.items()
    }
    deleted = client.search_runs([run.info.experiment_id], run_view_type=ViewType.DELETED_ONLY, max_results=5000)
    assert len(deleted) == 4 * len(runs)
    for cell in cells_of(spec):
        assert history(tracker, in_mlflow(tracker)[cell.label]) == in_ledger(ledger, cell.id)


def test_states_are_told(results: Path, sqlite: str) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1, 2))
    cells = cells_of(spec, contaminated=True)
    ledger = launched(results / "ablation", spec, cells)
    finish(ledger, cells[0])
    diverge(ledger, cells[1])
    fail(ledger, cells[2])
    ledger.claim(cells[3].id, {"device": "cpu"}).finish("interrupted", "stopped")
    ledger.claim(cells[4].id, {"device": "cpu"})
    tracker = Tracker(ledger, spec, sqlite)
    tracker.sync()
    runs = in_mlflow(tracker)
    told = [(runs[cell.label].info.status, runs[cell.label].data.tags["outcome"]) for cell in cells[:5]]
    expected = [("FINISHED", "done"), ("FAILED", "diverged"), ("FAILED", "failed"), ("KILLED", "interrupted")]
    assert told == [*expected, ("RUNNING", "running")]
    assert runs[cells[2].label].data.tags["reason"] == "RuntimeError: no | such thing <b>"
    assert runs[cells[0].label].data.tags["contaminated"] == "true"
    assert cells[5].label not in runs
    assert runs["ablation"].info.status == "RUNNING"


def test_parent_of_an_interrupted_launch_is_killed_and_of_one_that_goes_on_runs_again(
    results: Path, sqlite: str
) -> None:
    spec = spec_of(("fsg", "ste"), (0,))
    cells = cells_of(spec)
    ledger = launched(results / "ablation", spec, cells)
    finish(ledger, cells[0])
    tracker = Tracker(ledger, spec, sqlite)
    tracker.sync()
    assert in_mlflow(tracker)["ablation"].info.status == "RUNNING"
    ledger.record_launch_end(1, {"finished": 1_790_000_100_000, "exit_status": 130})
    tracker.sync()
    assert in_mlflow(tracker)["ablation"].info.status == "KILLED"
    finish(ledger, cells[1])
    tracker.sync()
    assert in_mlflow(tracker)["ablation"].info.status == "FINISHED"


def test_values_that_are_not_finite_are_flagged_and_not_sent_and_more_rows_than_a_batch_takes_arrive(
    results: Path, sqlite: str
) -> None:
    spec = spec_of(("ste",), (0, 1))
    one, long = cells_of(spec)
    ledger = launched(results / "ablation", spec, [one, long])
    attempt = ledger.claim(one.id, {"device": "cpu"})
    attempt.record(
        [Row(1, {"train/loss": 2.0, "norm": float("inf")}), Row(2, {"train/loss": float("nan"), "norm": 1.0})]
    )
    attempt.finish("diverged", "the loss is nan")
    attempt = ledger.claim(long.id, {"device": "cpu"})
    attempt.record([Row(step, {"train/loss": 1.0 / step, "lr": 0.1}) for step in range(1, 1201)])
    attempt.weights("final.pt", b"weights")
    attempt.finish("done")
    tracker = Tracker(ledger, spec, sqlite)
    assert tracker.sync().metrics == 2 + 2400
    runs = in_mlflow(tracker)
    assert [(name, step, value) for name, step, _, value in history(tracker, runs[one.label])] == [
        ("norm", 2, 1.0),
        ("train/loss", 1, 2.0),
    ]
    assert runs[one.label].data.tags["not_finite"] == "norm, train/loss"
    assert history(tracker, runs[long.label]) == in_ledger(ledger, long.id)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, train_images=pixels[:40], train_labels=labels[:40], test_images=pixels[40:], test_labels=labels[40:])
    return path


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To trace a network takes seconds: all trackers share what was traced."""
    monkeypatch.setattr("orchestration.tracking.cell_run.Exporter", lambda: EXPORTER)


def really_trained(folder: Path, images: Path, model: Any = None) -> tuple[Ledger, ExperimentSpec, Cell]:
    """A small network, trained as a worker does it."""
    data = Arrays(file=str(images), validation=4, crop_padding=0)
    train = TrainConfig(data=data, model=model or ResNet.Config(depth=8, width=4), epochs=2, batch_size=8)
    spec = replace(spec_of(("ste",), (0,)), points=(Point(variant="ste", grid={}, train=train),))
    (cell,) = cells_of(spec)
    ledger = launched(folder, spec, [cell])
    training = CellTraining(ledger, cell)
    training.run_for(3600)
    assert training.ended == "done", training.reason
    return ledger, spec, cell


def test_final_network_is_a_model_that_predicts_what_the_ledgers_weights_do(
    results: Path, uri: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    ledger, spec, cell = really_trained(results / "ablation", images)
    tracker = Tracker(ledger, replace(spec, name="model"), uri)
    tracker.sync()
    run = in_mlflow(tracker)[cell.label]
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model(run.data.tags["model"])
    finally:
        mlflow.set_tracking_uri(before)
    dataset = cell.train.data.load()
    network = quantize(cell.train.model.build(dataset.shape, dataset.classes), cell.train.quantizer).eval()
    weights = ledger.final_weights(cell.id)
    assert weights is not None
    network.load_state_dict(from_bytes(weights.read_bytes()))
    with torch.no_grad():
        expected = torch.cat([network(images) for images, _ in dataset.evaluation("test")]).numpy()
    predicted = model.predict(dataset.test_images.numpy())
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-5)
    assert [str(spec.type) for spec in model.metadata.signature.inputs] == ["uint8"]
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3, 8, 8)
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 3)
    assert model.metadata.run_id == run.info.run_id
    with pytest.raises(mlflow.MlflowException):
        model.predict(dataset.test_images.float().numpy())


def test_model_whose_sync_was_cut_off_is_made_once(results: Path, sqlite: str, images: Path) -> None:
    from mlflow.tracking import MlflowClient

    ledger, spec, cell = really_trained(results / "ablation", images)
    tracker = Tracker(ledger, spec, sqlite)
    client = tracker.runs.client()
    finalize = client.finalize_logged_model

    def failing(*arguments: Any) -> None:
        raise OSError("the power went")

    client.finalize_logged_model = failing
    with pytest.raises(OSError, match="the power went"):
        tracker.sync()
    client.finalize_logged_model = finalize
    tracker.sync()
    Tracker(ledger, spec, sqlite).sync()
    run = in_mlflow(tracker)[cell.label]
    (model,) = MlflowClient(sqlite).search_logged_models([run.info.experiment_id])
    assert (model.status, model.source_run_id) == ("READY", run.info.run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert {metric.key: metric.value for metric in model.metrics}["test/accuracy"] == run.data.metrics["test/accuracy"]
    assert history(tracker, run) == in_ledger(ledger, cell.id)


def test_model_has_the_last_metrics_though_the_run_had_them_before_and_diagnostics_are_one_table(
    results: Path, sqlite: str, images: Path
) -> None:
    from mlflow.tracking import MlflowClient

    ledger, spec, cell = really_trained(results / "ablation", images)
    tracker = Tracker(ledger, spec, sqlite)
    outcome = ledger.outcome
    ledger.outcome = lambda cell_id: replace(outcome(cell_id), state="running")  # type: ignore[method-assign]
    tracker.sync()
    assert history(tracker, in_mlflow(tracker)[cell.label]) == in_ledger(ledger, cell.id)
    ledger.outcome = outcome  # type: ignore[method-assign]
    tracker.sync()
    run = in_mlflow(tracker)[cell.label]
    (model,) = MlflowClient(sqlite).search_logged_models([run.info.experiment_id])
    assert {metric.key: metric.value for metric in model.metrics}["test/accuracy"] == run.data.metrics["test/accuracy"]
    assert history(tracker, run) == in_ledger(ledger, cell.id)
    held = json.loads(Path(MlflowClient(sqlite).download_artifacts(run.info.run_id, "diagnostics.json")).read_text())
    tables = ledger.diagnostics(cell.id)
    lines = [dict(zip(held["columns"], row, strict=True)) for row in held["data"]]
    assert [(row["epoch"], row["layer"]) for row in lines] == [
        (t["epoch"], name) for t in tables for name in t["layer"]
    ]
    assert held["columns"][:4] == ["epoch", "layer", "weights", "flip_rate"]
    assert [row["flip_rate"] for row in lines] == pytest.approx([v for t in tables for v in t["flip_rate"]], rel=1e-5)
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "diagnostics.json", "type": "table"}]


def test_network_that_torch_cannot_trace_is_tracked_without_a_model(results: Path, sqlite: str, images: Path) -> None:
    own = Imported(path="untraceable:Untraceable", source_sha256=source_sha256("untraceable:Untraceable"))
    ledger, spec, cell = really_trained(results / "ablation", images, own)
    tracker = Tracker(ledger, spec, sqlite)
    tracker.sync()
    run = in_mlflow(tracker)[cell.label]
    assert run.info.status == "FINISHED"
    assert run.data.tags["model"].startswith("not exported: ")
    assert "final.pt" in artifacts(tracker, run, "checkpoints")


def test_experiment_opens_on_its_comparison_and_what_to_type_names_it_and_deleted_in_mlflow_it_comes_back(
    results: Path, sqlite: str
) -> None:
    from mlflow.tracking import MlflowClient

    spec = spec_of(("fsg", "ste"), (0,))
    ledger = trained(results / "ablation", spec)
    tracker = Tracker(ledger, spec)
    tracker.sync()
    tags = MlflowClient(sqlite).get_experiment_by_name("ablation").tags
    state = json.loads(json.loads(tags["mlflow.sharedViewState.comparison"])["state"])
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]
    assert state["groupsExpanded"] == {"tag.variant.fsg": True, "tag.variant.ste": True}
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    typed, _, address = tracker.ui().partition("   ")
    assert shlex.split(typed)[1:] == ["ui", str(results / "ablation")]
    assert address.startswith(f"(http://127.0.0.1:5000/#/experiments/{tracker.runs.experiment_id}/runs?")
    elsewhere = Tracker(Ledger(results / "ablation"), spec, f"sqlite:///{results / 'other.db'}").ui()
    assert f"--tracking-uri 'sqlite:///{results / 'other.db'}'" in elsewhere
    before = set(in_mlflow(tracker))
    tracker.runs.client().delete_experiment(tracker.runs.experiment_id)
    Tracker(ledger, spec, sqlite).sync()
    assert set(in_mlflow(tracker)) == before


def test_view_that_mlflow_refuses_as_too_long_keeps_nothing_else_from_it(
    results: Path, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowException

    spec = spec_of(("fsg", "ste"), (0,))
    ledger = trained(results / "ablation", spec)
    monkeypatch.setattr("orchestration.tracking.saved_view.saved_view", lambda spec, created: "x" * 100_000)
    tracker = Tracker(ledger, spec)
    assert tracker.sync().runs == len(ledger.cells()) + 1
    assert tracker.sync() == NOTHING

    def down(*arguments: Any) -> None:
        raise MlflowException("the disk is full")

    tracker.runs.client().set_experiment_tag = down
    with pytest.raises(MlflowException, match="the disk is full"):
        tracker.runs.offer_view("tag", "view")


def test_report_becomes_an_artifact_of_the_parent(results: Path, uri: str) -> None:
    spec = spec_of(seeds=(0,), name="reported")
    ledger = trained(results / "reported", spec)
    (ledger.folder / "report.md").write_text("# report")
    (ledger.folder / "report.html").write_text("<p>report")
    (ledger.folder / "figures").mkdir()
    (ledger.folder / "figures" / "convergence.svg").write_text("<svg/>")
    tracker = Tracker(ledger, spec, uri)
    tracker.log_report(ledger.folder)
    parent = in_mlflow(tracker)["reported"]
    assert artifacts(tracker, parent, "report") == ["figures", "report.html", "report.md"]
    assert artifacts(tracker, parent, "report/figures") == ["convergence.svg"]


def test_background_sends_while_the_run_goes_on_and_once_more_at_its_end(results: Path, sqlite: str) -> None:
    spec = spec_of(("fsg", "ste"), (0,))
    cells = cells_of(spec)
    ledger = launched(results / "ablation", spec, cells)
    tracker = Tracker(ledger, spec, sqlite)
    sent = threading.Event()
    sync = tracker.sync

    def signalling() -> SyncReport:
        report = sync()
        if report.metrics:
            sent.set()
        return report

    tracker.sync = signalling  # type: ignore[method-assign]
    with background(tracker, every=0.05, warn=pytest.fail):
        finish(ledger, cells[0])
        assert sent.wait(60)
        finish(ledger, cells[1])
    assert {cells[0].label, cells[1].label} <= in_mlflow(tracker).keys()
    assert in_mlflow(tracker)["ablation"].info.status == "FINISHED"


def test_a_sync_that_takes_long_is_not_begun_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, now, durations = list[float](), 0.0, iter([0.5, 3.0, 0.1, 0.0])

    class Stop:
        def wait(self, seconds: float) -> bool:
            waited.append(seconds)
            return len(waited) == 4

    class Slow:
        def sync(self) -> SyncReport:
            nonlocal now
            now += next(durations)
            return SyncReport(0, 0, 0)

        level = sync

    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    module._keep_syncing(Slow(), 5.0, Stop(), pytest.fail)  # type: ignore[arg-type]
    assert waited == [5.0, 5.0, 12.0, 5.0]


def test_failing_mlflow_is_warned_of_once_and_tried_again(results: Path, sqlite: str) -> None:
    spec = spec_of(("ste",), (0,))
    ledger = trained(results / "ablation", spec)
    tracker = Tracker(ledger, spec, sqlite)
    tried, sync, lines = threading.Event(), tracker.sync, list[str]()
    failures = iter([OSError("database is locked\nand more"), OSError("still")])

    def failing_twice() -> SyncReport:
        for failure in failures:
            raise failure
        report = sync()
        tried.set()
        return report

    tracker.sync = failing_twice  # type: ignore[method-assign]
    with background(tracker, every=0.01, warn=lines.append):
        assert tried.wait(60)
    assert len(lines) == 1
    assert "database is locked" in lines[0]
    assert "\n" not in lines[0]
    assert "ste · seed 0" in in_mlflow(tracker)


def test_unreachable_server_never_fails_the_run(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spec = spec_of(("ste",), (0,))
    ledger = trained(results / "ablation", spec)
    with background(Tracker(ledger, spec, "http://127.0.0.1:9"), every=60):
        pass
    assert capsys.readouterr().err.count("MLflow (http://127.0.0.1:9) cannot be written to") == 1


def test_nested_settings_are_parameters_by_dotted_path() -> None:
    settings = {"a": {"b": 1, "c": {"name": "x", "on": True}}, "d": None, "e": {}, "f": [1, 2]}
    assert flatten(settings) == {"a.b": "1", "a.c.name": "x", "a.c.on": "true", "d": "null", "e": "{}", "f": "[1, 2]"}


@pytest.mark.parametrize(
    "uri", ["postgresql+psycopg2://me:s3cr:e@t@127.0.0.1:9/mlflow?password=s3cr", "http://me:s3cr:e@t@127.0.0.1:9"]
)
def test_password_of_the_uri_is_shown_nowhere(results: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spec, lines = spec_of(seeds=(0,)), list[str]()
    tracker = Tracker(trained(results / "ablation", spec), spec, uri)

    def failing() -> SyncReport:
        raise OSError(f"no way to {uri}")

    tracker.sync = failing  # type: ignore[method-assign]
    with background(tracker, every=60, warn=lines.append):
        pass
    said = " ".join([*lines, tracker.ui()])
    assert "me:***@127.0.0.1:9" in said
    assert "s3cr" not in said
    assert "e@t" not in said
