"""Experiments with `fsg`: planned, trained on a cluster or here, tracked, searched and reported. See docs/design.md.

    results = orchestration.run("configs/ablation_hgs.yaml")
    pandas.DataFrame(results.cells())

docs/notebook.md has more. What is imported from here is loaded when it is first used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestration.api import open_results, plan, run
    from orchestration.commands.request import Refused
    from orchestration.ledger.results import Results
    from orchestration.spec.experiment import SpecErrors, load_spec

__all__ = ["Refused", "Results", "SpecErrors", "load_spec", "open_results", "plan", "run"]

logging.getLogger(__name__).addHandler(logging.NullHandler())

if not TYPE_CHECKING:  # a type checker would take every name for one of this module's

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        return getattr(import_module("orchestration.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
