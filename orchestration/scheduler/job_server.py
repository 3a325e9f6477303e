"""Ray's job server: an experiment is submitted to it, and watched and stopped from anywhere.

What is submitted is the code, the spec and the user's own modules as they are then: a package that Ray keeps under
the hash of its content. The driver runs in the cluster, so whoever handed it over may leave. The ledger lies where
FSG_RESULTS says there, on a file system that all of the cluster's nodes share.

Call `environment.prepare` before this module is imported: Ray reads its environment then.
"""

import asyncio
import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import requests
from ray.job_submission import JobDetails, JobSubmissionClient

from orchestration.scheduler.environment import Unusable
from orchestration.util import provenance, requirements, submission
from orchestration.util.error_text import first_line
from orchestration.util.nearest import meant
from orchestration.util.passwords import hide_passwords, without_password
from orchestration.util.user_code import SHIPPED, python_files

Job = JobDetails
FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_TIMEOUT = 60
BEGIN_TIMEOUT = 120
_PACKAGES = ("fsg", "orchestration")
_EXPERIMENT = "fsg.experiment"


@dataclass(frozen=True)
class Submission:
    """What is submitted: a package, and the command that runs in it."""

    experiment: str
    package: Path
    command: Sequence[str]
    environment: Mapping[str, str]


class JobServer:
    """Ray's job server at `http://HOST:PORT`; its token is where Ray looks for it, unless given.

    Raises Unusable where it cannot be spoken to.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address.rstrip("/")
        self.shown = without_password(self.address)
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.ERROR)
        with self._refusing():
            token = token or _token()
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            self._refuse_other_versions(headers)
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(self, handover: Submission) -> Job:
        """Hand over. Raises Unusable."""
        with self._refusing():
            job = self._client.submit_job(
                entrypoint=shlex.join(["exec", "python", "-m", "orchestration.submitted", *handover.command]),
                submission_id=f"fsg-{handover.experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
                runtime_env={
                    "working_dir": str(handover.package),
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT), **handover.environment},
                },
                metadata={_EXPERIMENT: handover.experiment, "fsg.package": package_sha256(handover.package)},
            )
            return self._client.get_job_info(job)

    def experiments(self) -> dict[str, Job]:
        """The job of each submitted experiment, newest first: the one that runs, or the last."""
        with self._refusing():
            jobs = [job for job in self._client.list_jobs() if _EXPERIMENT in (job.metadata or {})]
        found: dict[str, Job] = {}
        for job in sorted(jobs, key=lambda job: (job.status.value in FINISHED, -(job.start_time or 0))):
            found.setdefault(experiment_of(job), job)
        return dict(sorted(found.items(), key=lambda item: -(item[1].start_time or 0)))

    def job(self, experiment: str) -> Job:
        """The job of an experiment. Raises Unusable where there is none."""
        found = self.experiments()
        if experiment not in found:
            names = ", ".join(found) or "none yet"
            near = "".join(f"; did you mean {one}?" for one in meant(experiment, found))
            raise Unusable(f"{experiment}: was not submitted to {self.shown} (expected one of: {names}{near})")
        return found[experiment]

    def refreshed(self, job: Job) -> Job:
        """The job with its current state."""
        with self._refusing():
            return self._client.get_job_info(str(job.submission_id))

    def log(self, job: Job) -> str:
        """What the job has printed."""
        with self._refusing():
            return _of_driver(self._client.get_job_logs(str(job.submission_id)))

    def follow(self, job: Job, say: Callable[[str], None]) -> Job:
        """Pass on what the job prints until it ends; returns its state then."""

        async def tail() -> None:
            async for chunk in self._client.tail_job_logs(str(job.submission_id)):
                say(_of_driver(chunk))

        while True:
            with self._refusing():
                asyncio.run(tail())
            job = self.refreshed(job)
            if job.status.value in FINISHED:
                return job
            time.sleep(1)

    def wait_until_begun(self, job: Job) -> Job:
        """Wait until a job has read its spec and says what it will run, or has ended."""
        end = time.monotonic() + BEGIN_TIMEOUT
        while time.monotonic() < end:
            job = self.refreshed(job)
            if job.status.value in FINISHED or re.search(r"^\d+ cells", self.log(job), flags=re.MULTILINE):
                break
            time.sleep(0.5)
        return job

    def stop(self, job: Job) -> Job:
        """Stop a job, each training at a checkpoint, and wait for it."""
        with self._refusing():
            self._client.stop_job(str(job.submission_id))
        end = time.monotonic() + STOP_TIMEOUT + 10
        while (job := self.refreshed(job)).status.value not in FINISHED and time.monotonic() < end:
            time.sleep(0.5)
        return job

    def _refuse_other_versions(self, headers: dict[str, str]) -> None:
        answer = requests.get(f"{self.address}/api/version", headers=headers, timeout=20)
        if answer.status_code in (401, 403):
            what = "the token is wrong" if headers else "a token is required, and none is set"
            raise Unusable(
                f"{self.shown}: {what} (expected the cluster's, RAY_AUTH_TOKEN in its .env file, "
                "in RAY_AUTH_TOKEN or ~/.ray/auth_token)"
            )
        theirs = answer.json()["ray_version"] if answer.ok else None
        if theirs is None:
            raise Unusable(f"{self.shown}: is not a Ray job server (expected http://HOST:8265)")
        if theirs == ray.__version__:
            return
        both = f"{self.shown}: the cluster has Ray {theirs}, here is {ray.__version__}"
        if not requirements.supports("ray", theirs):
            raise Unusable(f"{both} (expected {requirements.supported()['ray'].specifier}: build its image anew)")
        print(f"warning: {both}; the experiment runs on the cluster's", file=sys.stderr)

    def _told(self, error: Exception) -> str:
        return hide_passwords(first_line(error), self.address)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (requests.ConnectionError, requests.Timeout, ConnectionError):
            raise Unusable(f"{self.shown}: nothing answers there (expected a cluster: make cluster-up)") from None
        except (requests.RequestException, ValueError, KeyError) as error:
            raise Unusable(f"{self.shown}: is not a Ray job server ({self._told(error)})") from error
        except RuntimeError as error:
            raise Unusable(f"{self.shown}: {self._told(error)}") from error


def experiment_of(job: Job) -> str:
    """The name of a job's experiment."""
    return str((job.metadata or {}).get(_EXPERIMENT, ""))


def pack(target: Path, spec: Path, own: Path | None, record: dict[str, Any]) -> Path:
    """Make the folder to submit: this code, the spec, the Python files of the user's folder, and a record."""
    target.mkdir(parents=True)
    (target / SHIPPED).mkdir()
    if own is not None:
        python_files(own, target / SHIPPED)
    for name in _PACKAGES:
        source = Path(__file__).resolve().parents[2] / name
        shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shutil.copyfile(spec, target / SHIPPED / spec.name)
    versions = {"python": platform.python_version(), **provenance.code()}
    (target / submission.FILE).write_text(json.dumps(versions | record, indent=1))
    return target


def package_sha256(folder: Path) -> str:
    """Of the names and contents of its files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder)} {content}\n".encode())
    return total.hexdigest()


def _token() -> str | None:
    """Where Ray looks for it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _of_driver(text: str) -> str:
    """What the driver printed, without Ray's lines before it and without the folder where Ray keeps the package."""
    text = re.sub(r"^(.* -- Runtime env is setting up|Running entrypoint for job ).*\n", "", text, flags=re.MULTILINE)
    return re.sub(rf"/\S*/_ray_pkg_\w+/({SHIPPED}/)?", "", text)
