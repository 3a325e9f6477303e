import shutil
from pathlib import Path

import pytest
from synthetic_experiment import launched, spec_of

from orchestration.tracking.sync import Tracker


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's, whose making takes seconds, to copy from."""
    spec = spec_of(name="none")
    folder = tmp_path_factory.mktemp("migrated")
    Tracker(launched(folder / "none", spec, []), spec).runs.client()
    return folder / "mlflow.db"


@pytest.fixture
def with_a_database(tmp_path: Path, migrated: Path) -> None:
    """Results in the test's folder have one already."""
    shutil.copy(migrated, tmp_path / "mlflow.db")
