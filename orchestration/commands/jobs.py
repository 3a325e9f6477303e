"""Experiments on a cluster: submitted to its job server, then `fsg status`, `logs`, `attach` and `stop` from anywhere.

Call `environment.prepare` before this module is imported: Ray reads its environment then.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.commands.exit_status import DONE, FAILED
from orchestration.scheduler.environment import Unusable
from orchestration.scheduler.job_server import FINISHED, Job, JobServer, Submission, experiment_of, pack
from orchestration.util.duration import duration
from orchestration.util.scratch import scratch

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class SubmitRequest:
    """What is submitted: a spec with the user's `own` folder, and the words of the command in the cluster."""

    experiment: str
    spec: Path
    own: Path | None
    words: Sequence[str]
    environment: Mapping[str, str]
    record: Mapping[str, Any]


def submit(address: str, wanted: SubmitRequest, stay: bool) -> int:
    """Submit an experiment and, if `stay`, follow it. Returns the exit status. Raises Unusable."""
    server = JobServer(address)
    with scratch("fsg-") as folder:
        package = pack(folder / "package", wanted.spec, wanted.own, dict(wanted.record))
        job = server.submit(
            Submission(wanted.experiment, package, wanted.words, {"COLUMNS": "110", **wanted.environment})
        )
    if stay:
        return _follow(server, job)
    job = server.wait_until_begun(job)
    _say(server.log(job))
    if _over(job) and (job.driver_exit_code or job.status.value != "SUCCEEDED"):
        return _ended(job)
    print(f"{wanted.experiment} runs at {server.shown} as {job.submission_id}; this machine may disconnect.")
    at = "" if address == DEFAULT_ADDRESS else f" --address {server.shown}"
    for verb, what in (("status", "how far it is"), ("attach", "follow it"), ("stop", "stop it at a checkpoint")):
        print(f"  {f'fsg {verb} {wanted.experiment}{at}':<48} {what}")
    return DONE


def status(address: str, experiment: str | None) -> int:
    """Print how experiments stand: one, or all that were submitted."""
    server = JobServer(address)
    found = server.experiments() if experiment is None else {experiment: server.job(experiment)}
    if not found:
        print(f"nothing was submitted to {server.shown} yet")
    for name, job in found.items():
        print(f"{name}: {_standing(job)}")
        lines = server.log(job).strip().splitlines()
        for line in lines[-1 if experiment is None else -8 :]:
            print(f"  {line}")
    return DONE


def logs(address: str, experiment: str) -> int:
    """Print what the driver has printed."""
    server = JobServer(address)
    _say(server.log(server.job(experiment)))
    return DONE


def attach(address: str, experiment: str) -> int:
    """Print what the driver prints until it ends; returns its exit status. Ctrl-C leaves it alone."""
    server = JobServer(address)
    return _follow(server, server.job(experiment))


def stop(address: str, experiment: str) -> int:
    """Stop the driver, each training at a checkpoint."""
    server = JobServer(address)
    job = server.job(experiment)
    if _over(job):
        print(f"{experiment}: {_standing(job)}: there is nothing to stop")
        return DONE
    job = server.stop(job)
    if not _over(job):
        raise Unusable(f"{experiment}: is still stopping; look again with fsg status {experiment}")
    print(f"{experiment}: stopped; launch it again to resume from its checkpoints")
    return DONE


def _follow(server: JobServer, job: Job) -> int:
    try:
        job = server.follow(job, _say)
    except KeyboardInterrupt:
        name = experiment_of(job)
        print(f"\n{name} keeps running at {server.shown}: fsg attach {name}, or fsg stop {name}", file=sys.stderr)
        return DONE
    return _ended(job)


def _ended(job: Job) -> int:
    if job.driver_exit_code is None and job.status.value == "FAILED":
        print(f"{experiment_of(job)}: {_standing(job)}", file=sys.stderr)
    return FAILED if job.driver_exit_code is None else int(job.driver_exit_code)


def _standing(job: Job) -> str:
    words = {"SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped", "PENDING": "waits to begin"}
    word = words.get(job.status.value, "runs")
    began, ended = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000
    took = f" for {duration(time.time() - began)}" if word == "runs" else ""
    took = f" after {duration(ended - began)}" if ended and began else took
    why = job.message.strip().splitlines() if job.message and word == "failed" else []
    return word + took + (f" ({why[0]})" if why and job.driver_exit_code is None else "")


def _over(job: Job) -> bool:
    return job.status.value in FINISHED


def _say(text: str) -> None:
    if text:
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
