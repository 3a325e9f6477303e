from fsg.train_config import TrainConfig
from orchestration.scheduler.resources import TrialResources, max_concurrency
from orchestration.spec.cells import Cell


def cell(name: str, threads: int = 1) -> Cell:
    return Cell(name, "train", name, {}, 0, TrainConfig(threads=threads))


def test_what_fits_is_said_of_the_largest_cells() -> None:
    have = {"CPU": 16.0, "GPU": 2.0}
    cells = [cell("a", 16), *(cell(name) for name in "bcdefghijklmnopqrstuv")]
    assert max_concurrency(cells, TrialResources(), have) == 1
    assert max_concurrency(cells[1:], TrialResources(), have) == 16
    assert max_concurrency(cells[1:4], TrialResources(), have) == 3
    assert max_concurrency(cells[1:], TrialResources(max_concurrent=4), have) == 4
    assert max_concurrency(cells[1:], TrialResources(gpus=0.5), have) == 4
    assert max_concurrency([cell("x", 32)], TrialResources(), have) == 1, "what no node has is refused elsewhere"


def test_cell_takes_its_threads_unless_the_spec_says_otherwise() -> None:
    assert TrialResources().of(cell("a", 2)) == (("CPU", 2),)
    assert TrialResources(cpus=3).of(cell("a")) == (("CPU", 3),)
    assert TrialResources(gpus=0.25).of(cell("a")) == (("CPU", 1), ("GPU", 0.25))
    assert (TrialResources().device, TrialResources(gpus=0.25).device) == ("cpu", "cuda")
