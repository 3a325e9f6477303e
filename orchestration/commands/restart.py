"""A driver whose own Ray has died is replaced by a process that goes on with the launch as the ledger has it."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

import fsg
from orchestration.commands.exit_status import FAILED, INTERRUPTED
from orchestration.commands.plan import ExperimentPlan, plan_of
from orchestration.commands.request import LaunchRequest, Refused
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.own_code import import_own_code
from orchestration.spec.experiment import recorded_spec_with_searches
from orchestration.util.clock import now_ms
from orchestration.util.directory import go_back
from orchestration.util.scratch import without_scratch
from orchestration.util.user_code import environment_as_given

_DEATHS = "FSG_RAY_DEATHS"  # in the environment: how often Ray has died so far
_RESTART = "FSG_RESTART"  # in the environment of the process that goes on: which launch, and how it was asked for
MAX_DEATHS = 5
PROGRAM = Path(__file__).parents[1] / "restarted.py"


def restart_process(what: str, request: LaunchRequest, ledger: Ledger, number: int) -> None:
    """Replace this process after the death of one of Ray's, as a call to Ray might now wait for ever.

    Running cells resume from their checkpoints. After `MAX_DEATHS` deaths the launch ends, since the cause may return.
    A launch that was asked to stop has stopped: the signal went to Ray's processes, too.
    """
    go_back()
    children = psutil.Process().children(recursive=True)
    for process in children:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(children, timeout=10)  # or the program that takes this one's place would inherit them
    deaths = int(os.environ.get(_DEATHS, "0")) + 1
    stopped = store.exists(ledger.stop_file(number))  # asked last: the signal may reach Ray's processes before this one
    again = deaths <= MAX_DEATHS and not stopped
    status = INTERRUPTED if stopped else FAILED
    with suppress(OSError):
        ledger.record_launch_end(number, {"finished": now_ms(), "exit_status": status, "reason": f"{what} died"})
    how = "restarting from the ledger" if again else f"{deaths} times. To resume: {request.command}"
    restored = "\x1b[?25h\r\n" if request.console.is_terminal else ""  # the live view hides the cursor
    if stopped:
        os.write(2, f"{restored}Interrupted. To resume: {request.command}\n".encode())
    else:
        os.write(2, f"{restored}Ray's {what} died: {how}\n".encode())
    if not again:
        os._exit(status)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            os.set_inheritable(int(name), int(name) <= 2)
    told = {_DEATHS: str(deaths), _RESTART: Restart(ledger.folder, number, request).to_text()}
    environment = without_scratch(environment_as_given()) | told
    os.execve(sys.executable, [sys.executable, str(PROGRAM), *sys.argv[1:]], environment)


@dataclass(frozen=True)
class Restart:
    """A launch that goes on: its number in the ledger of a folder, and how it was asked for."""

    folder: Path
    number: int
    request: LaunchRequest

    @classmethod
    def of_this_process(cls) -> "Restart":
        """What `restart_process` has left in the environment. Raises ValueError where that is nothing."""
        text = os.environ.pop(_RESTART, None)  # what is started from here need not know it
        if text is None:
            raise ValueError("there is no launch to go on with (expected fsg launch SPEC)")
        folder, number, request = json.loads(text)
        return cls(store.resolve_path(folder), number, LaunchRequest.from_dict(request))

    def to_text(self) -> str:
        return json.dumps([str(self.folder), self.number, self.request.to_dict()])

    def plan(self, ledger: Ledger) -> tuple[ExperimentPlan, dict[str, object]]:
        """The plan that the launch recorded, as far as it is done now, and its record: no file of the spec is read.

        Raises Refused where the record does not hold any more, SpecErrors where its searches cannot be read.
        """
        launch = next((one for one in ledger.launches() if one["number"] == self.number), None)
        if launch is None:
            raise Refused(f"{ledger.folder}: launches/{self.number:04d}.json is damaged (expected the launch's record)")
        if launch["numerics"] != fsg.NUMERICS:
            what = f"numerics {fsg.NUMERICS}, the launch began with {launch['numerics']}"
            raise Refused(f"the code was changed during the launch: it has {what} (expected the same)")
        import_own_code(ledger)
        lost = [name for name in launch["cells"] if ledger.find(name) is None]
        if lost:
            raise Refused(f"{ledger.folder}: trials/{lost[0]}/cell.json is damaged (expected the cell's record)")
        spec = recorded_spec_with_searches(launch)
        return plan_of(spec, ledger, [ledger.cell(name) for name in launch["cells"]]), launch
