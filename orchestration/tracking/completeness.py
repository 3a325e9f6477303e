"""What MLflow itself says that it has of a ledger, whatever its marks and our notes say.

A mark (`runs`) says how far a run was sent. Rows or files that were taken from MLflow later leave it as it is, so that
here every value and every file is asked for.
"""

import math
from collections import defaultdict
from typing import Any

from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import Cell
from orchestration.tracking.cell_run import DIAGNOSTICS
from orchestration.tracking.names import mlflow_name

_SPEC = ("as_written.yaml", "resolved.json", "resolved.yaml")


def lacking_of_cell(client: Any, run: str, ledger: Ledger, cell: Cell, step: int) -> str:
    """What a cell's run lacks of what was sent up to a step, in words; empty where it has all."""
    wanted: dict[str, set[tuple[int, int, float]]] = defaultdict(set)
    for row in ledger.rows(cell.id):
        for name, value in row.values.items():
            if row.step <= step and math.isfinite(value):
                wanted[mlflow_name(name)].add((row.step, row.time_ms, value))
    lost = 0
    for name, rows in wanted.items():
        lost += len(rows - {(one.step, one.timestamp, one.value) for one in client.get_metric_history(run, name)})
    state = ledger.outcome(cell.id).state
    paths = {ledger.best_weights(cell.id), ledger.final_weights(cell.id)} - {None} if state == "done" else set()
    files = {f"checkpoints/{path.name}" for path in paths if path is not None}
    files |= {DIAGNOSTICS} if state in ("done", "diverged") and ledger.diagnostics(cell.id) else set()
    said = [f"{lost} metric values"] if lost else []
    return ", ".join([*said, *sorted(files - _files(client, run, "", "checkpoints"))])


def lacking_of_experiment(client: Any, run: str) -> str:
    """The same of the run above those of the cells."""
    return ", ".join(sorted({f"spec/{name}" for name in _SPEC} - _files(client, run, "spec")))


def _files(client: Any, run: str, *folders: str) -> set[str]:
    return {str(file.path) for folder in folders for file in client.list_artifacts(run, folder or None)}
