"""What a user asks for on the command line, and how a command that refuses or breaks off ends: in one line."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestration.commands.exit_status import BAD_INPUT, FAILED, INTERRUPTED
from orchestration.ledger import store
from orchestration.ledger.stores.errors import LockedError
from orchestration.scheduler.environment import Unusable
from orchestration.spec.experiment import SpecErrors
from orchestration.spec.fields import OtherVersion
from orchestration.util import submission, terminal
from orchestration.util.passwords import without_password


class Refused(Exception):
    """Why a launch does not start, a line each."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class LaunchRequest:
    """A spec and the options of `fsg launch` and `fsg plan`; `against`: results that its own are compared with."""

    source: Path
    profile: str | None = None
    sets: Sequence[str] = ()
    results: Path = Path("results")
    tracking_uri: str | None = None
    address: str | None = None
    submit: bool = False
    study_storage: str | None = None
    yes: bool = False
    against: Path | None = None
    console: Console = field(default_factory=terminal.console)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, but for the console; with passwords, if there are any."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "console"}
        return {name: str(value) if name in _PATHS and value is not None else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "LaunchRequest":
        """The inverse of `to_dict`."""
        found = {name: plain[name] and store.resolve_path(plain[name]) for name in _PATHS}
        return cls(**plain | found | {"sets": tuple(plain["sets"])})

    @property
    def command(self) -> str:
        """The command that asks for the same, without passwords: it is printed, and kept in records."""
        if submission.record():
            return str(submission.record()["command"])
        words = ["fsg", "launch", str(self.source), *self.options]
        words += ["--results", str(self.results)] if self.results != Path("results") else []
        words += ["--tracking-uri", without_password(self.tracking_uri)] if self.tracking_uri else []
        words += ["--address", without_password(self.address)] if self.address else []
        words += ["--study-storage", without_password(self.study_storage)] if self.study_storage else []
        return shlex.join(words)

    @property
    def options(self) -> list[str]:
        """The words that choose a profile and change fields."""
        profile = ["--profile", self.profile] if self.profile else []
        return [*profile, *(word for one in self.sets for word in ("--set", one))]

    @property
    def mlflow(self) -> str | None:
        """MLflow's tracking URI, where one was given."""
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def describe_break(self, error: OSError) -> str:
        """What a launch says that cannot write any more."""
        what = f"{error.strerror} ({error.filename})" if error.filename else error.strerror or str(error)
        return f"The launch stopped: {what}; the results in {self.results} are intact."


def run_guarded(request: LaunchRequest, work: Callable[[], int]) -> int:
    """Do the work of a command and return its exit status; every error that a user can cause is one line."""
    try:
        return work()
    except (SpecErrors, Refused) as refused:
        for line in refused.lines:
            print(line, file=sys.stderr)
        return BAD_INPUT
    except (LockedError, Unusable, OtherVersion) as refused:
        print(refused, file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"{request.describe_break(error)} To resume: {request.command}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"Interrupted. To resume: {request.command}", file=sys.stderr)
        return INTERRUPTED


_PATHS = ("source", "results", "against")


@contextmanager
def refusing_write_errors(folder: Path) -> Iterator[None]:
    """Within, a results folder that cannot be written to is refused."""
    try:
        yield
    except OSError as error:
        raise Refused(f"{folder}: cannot be written to ({error.strerror or error})") from error
