"""The studies of an experiment as one source of work for the queue."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from orchestration.ledger.ledger import Ledger
from orchestration.search.dispatch import SearchContext
from orchestration.search.optuna import storage
from orchestration.search.study import Study
from orchestration.spec.cells import Cell, WorkItem
from orchestration.spec.experiment import ExperimentSpec


class SearchManager:
    """The studies of an experiment as one source of work: the study with the fewest trials so far is next.

    `max_running` is how many cells may run at the same time; `pruned` is called with the cells of a stopped trial.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        ledger: Ledger,
        *,
        storage: str | None = None,
        max_running: int = 1,
        pruned: Callable[[Sequence[Cell]], None] = lambda cells: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._url = storage or spec.study_storage
        self._shared = shared = SearchContext(ledger, set(), {}, pruned, say)
        self.studies = [Study(one, spec.folder_name, shared, self._url, max_running > 1) for one in spec.studies]

    def more(self) -> Sequence[WorkItem]:
        """Work for a free worker; none: wait, or nothing is left. Raises SearchError where the storage is lost."""
        with storage.storage_errors(self._url):
            for study in sorted(self.studies, key=lambda study: study.begun):
                legs = study.more()
                if legs:
                    return legs
        return []

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell from here is no longer trained. Raises SearchError where the storage is lost."""
        self._shared.out.discard(cell.id)  # once, before any study hands it out again
        with storage.storage_errors(self._url):
            for study in self.studies:
                study.ended(cell, state, reason)

    @property
    def finished(self) -> bool:
        return all(study.finished for study in self.studies)

    @property
    def unsettled(self) -> list[str]:
        """The studies that have not come to their end, and to a choice where one is to be made."""
        return [study.spec.name for study in self.studies if not study.settled]


class ErrorCapturingSource:
    """A source that raises nothing: Tune would take an exception for the death of a worker.

    `broken` is the first exception; after it, no more work comes, and running cells end.
    """

    def __init__(self, searches: SearchManager) -> None:
        self.searches = searches
        self.broken: Exception | None = None

    def more(self) -> Sequence[WorkItem]:
        """Work for a free place; none: wait, or nothing is left."""
        with self._keeping_what_breaks():
            return self.searches.more() if self.broken is None else []
        return []

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell from here is no longer trained."""
        with self._keeping_what_breaks():
            if self.broken is None:
                self.searches.ended(cell, state, reason)

    @property
    def finished(self) -> bool:
        return self.broken is not None or self.searches.finished

    @contextmanager
    def _keeping_what_breaks(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.broken = self.broken or error
