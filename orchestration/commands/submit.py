"""`fsg launch --address http://HOST:8265`: the experiment is submitted to a cluster's job server, and runs there."""

from collections.abc import Sequence
from pathlib import Path

from orchestration.commands.request import LaunchRequest, Refused
from orchestration.ledger import store
from orchestration.scheduler.environment import prepare
from orchestration.spec.cells import own_code
from orchestration.spec.experiment import load_spec
from orchestration.util.passwords import has_password


def submit(request: LaunchRequest, words: Sequence[str]) -> int:
    """Submit a command, its verb first. Returns the exit status. Raises Refused, SpecErrors, Unusable."""
    assert request.address is not None
    if store.is_remote(request.results):
        hint = "expected --address auto, on a node of the cluster, or a folder that all nodes share"
        raise Refused(f"--results {request.results}: not with a job server ({hint})")
    spec = load_spec(request.source, request.profile, request.sets)
    prepare(request.address)
    from orchestration.commands import jobs  # start-up time, and Ray reads its environment when it is imported

    words = [words[0], spec.source.name, *words[1:], "--address", "auto", *request.options]
    words += ["--yes"] if request.yes and words[0] == "launch" else []
    environment = {} if request.results == Path("results") else {"FSG_RESULTS": str(request.results)}
    if request.tracking_uri:
        _refuse_password("--tracking-uri", request.tracking_uri, "it in the environment of the cluster's nodes")
        environment["MLFLOW_TRACKING_URI"] = request.tracking_uri
    if request.study_storage:
        _refuse_password("--study-storage", request.study_storage, "a .pgpass on the cluster's nodes")
        words += ["--study-storage", request.study_storage]
    record = {"command": request.command, "spec_source": str(spec.source)}
    wanted = jobs.SubmitRequest(spec.folder_name, spec.source, own_code(spec), words, environment, record)
    return jobs.submit(request.address, wanted, stay=not request.submit)


def _refuse_password(option: str, uri: str, expected: str) -> None:
    if has_password(uri):
        raise Refused(f"{option}: has a password, which a job would show (expected {expected})")
