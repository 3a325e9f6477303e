"""A folder that MLflow takes for a model: a program of torch's, its signature, and what it needs to be loaded.

It is what MLflow's own torch flavour writes as `pt2`, so that `mlflow.pyfunc.load_model` and `mlflow models serve` take
it, and refuse a pickle in it; written here, since that flavour would trace every network anew, for seconds each.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch

from orchestration.tracking.program import Program


def write(folder: Path, program: Program, run: str, model_id: str) -> None:
    """Fill an empty folder; `run` and `model_id` are what MLflow knows the model and its origin by."""
    import mlflow  # start-up time
    from mlflow import pyfunc  # start-up time
    from mlflow.models import Model, ModelSignature  # start-up time
    from mlflow.types import Schema, TensorSpec  # start-up time

    images = TensorSpec(np.dtype(np.uint8), (-1, *program.shape))
    logits = TensorSpec(np.dtype(np.float32), (-1, program.classes))
    model = Model(run_id=run, signature=ModelSignature(Schema([images]), Schema([logits])), model_id=model_id)
    torch_version = str(torch.__version__)
    model.add_flavor("pytorch", model_data="data", pytorch_version=torch_version, code=None)
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.pytorch",
        data="data",
        python_env="python_env.yaml",
        model_config={"device": "cpu"},  # a program's tensors stay where it was written
    )
    (folder / "data").mkdir()
    (folder / "data" / "model.pt2").write_bytes(program.content)
    needs = [f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", f"torch=={torch_version.split('+')[0]}"]
    (folder / "requirements.txt").write_text("\n".join(needs) + "\n")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(environment))
    model.save(str(folder / "MLmodel"))
