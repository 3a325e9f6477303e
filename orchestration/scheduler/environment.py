"""The environment variables that Ray reads, many of them when it is imported: set them before."""

import os
import secrets
from pathlib import Path

from packaging.version import Version

from orchestration.util import requirements

_FIRST_WITH_TOKENS = Version("2.52")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "SPT_NOENV": "1",  # a process that gets another title keeps its environment, by which it is known
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}
BEGIN_TIMEOUT = 300
_PATIENT = {  # with processes of our own, on a machine that is busy
    "RAY_gcs_server_port_wait_time_s": "60",  # Ray waits as long for a head that has died, and nothing else runs then
    "RAY_agent_register_timeout_ms": str(1000 * BEGIN_TIMEOUT),
    "RAY_worker_register_timeout_seconds": str(BEGIN_TIMEOUT),
}


class Unusable(Exception):
    """Why a cluster cannot be used, and what to do, in one line."""


def is_job_server(address: str | None) -> bool:
    """Whether an address is a job server's (`http://…`), and not that of a cluster that this machine is a node of."""
    return address is not None and address.startswith(("http://", "https://"))


def lacks_token() -> str | None:
    """What to say where Ray ignores the token that `prepare` gives it."""
    version = requirements.installed("ray")
    if version is None or Version(version) >= _FIRST_WITH_TOKENS:
        return None
    return f"warning: Ray {version} knows no token: other users of this machine can reach it (expected ray>=2.52)"


def prepare(address: str | None) -> None:
    """Set the environment for a Ray of this process, or for the one at an address. Variables that are set stay.

    A Ray of this process listens on loopback, with a token that only its processes know. The token of a cluster is
    where Ray looks for it.
    """
    for name, value in (_QUIET | (_PATIENT if address is None else {})).items():
        os.environ.setdefault(name, value)
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # no cluster: this node is 127.0.0.1 and listens there
    if "RAY_AUTH_MODE" in os.environ:
        return
    places = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif any(name in os.environ for name in places) or (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = "token"
    else:
        os.environ["RAY_AUTH_MODE"] = "disabled"
