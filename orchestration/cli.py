"""The command `fsg`: arguments and help. What a subcommand does is in `orchestration.commands`, a file each.

Every command imports its file when it is called: `fsg --help` waits for no library.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from orchestration.util import program

if __name__ == "__main__" or Path(sys.argv[0]).name in ("fsg", "launch.py", "restarted.py", "submitted.py"):
    program.begin(sys.argv[1:])  # before any library is imported

import typer

from orchestration.ledger import store
from orchestration.util.loopback import bypass_proxies
from orchestration.util.output import unfailing_output
from orchestration.util.verbose import log_to_stderr

app = typer.Typer(
    name="fsg",
    help="Binary neural networks trained by learned gradients: ablations that stand up to a reviewer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _anywhere(text: str) -> Path:
    try:
        return store.resolve_path(text)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _on_disk(text: str) -> Path:
    folder = _anywhere(text)
    if store.is_remote(folder):
        hint = f"expected a copy on a disk, as from: aws s3 cp --recursive {text} FOLDER"
        print(f"{text}: this command works on a folder ({hint})", file=sys.stderr)
        raise typer.Exit(2)
    return folder


def _log(verbose: bool) -> None:
    if verbose:
        log_to_stderr()


Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="The experiment: a YAML file.")]
Profile = Annotated[str | None, typer.Option("--profile", "-p", help="A profile of the spec.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Another value for a field.")]
Results = Annotated[
    Path,
    typer.Option(envvar="FSG_RESULTS", parser=_anywhere, metavar="PATH", help="Where: a folder, or s3://BUCKET/…."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_log, help="Say on the standard error what is done, step by step.")
]
NoPilot = Annotated[bool, typer.Option("--no-pilot", help="Plan without measuring how long a step takes.")]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow's; a SQLite file in RESULTS unless MLFLOW_TRACKING_URI says otherwise.")
]
_OF_AN_EXPERIMENT = "An experiment's folder of results"
Anywhere = Annotated[
    Path, typer.Argument(parser=_anywhere, metavar="RESULTS", help=f"{_OF_AN_EXPERIMENT}, or s3://BUCKET/….")
]
Folder = Annotated[Path, typer.Argument(parser=_on_disk, metavar="RESULTS", help=f"{_OF_AN_EXPERIMENT}.")]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster: on a node of it auto or HOST:PORT, from anywhere http://HOST:8265."),
]
JobServerAddress = Annotated[str, typer.Option("--address", envvar="FSG_ADDRESS", help="The cluster's job server.")]
Experiment = Annotated[str, typer.Argument(metavar="NAME", help="An experiment that was submitted.")]
JOB_SERVER = "http://127.0.0.1:8265"


@app.callback()
def _before_any_command() -> None:
    from orchestration.util import requirements  # start-up time

    if wrong := requirements.unsupported():
        print(wrong, file=sys.stderr)
        raise typer.Exit(2)


@app.command()
def launch(
    spec: Spec,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run and how long; run nothing.")] = False,
    no_pilot: NoPilot = False,
    profile: Profile = None,
    sets: Sets = None,
    results: Results = Path("results"),
    tracking_uri: TrackingUri = None,
    address: Address = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="Submit it to the cluster at http://HOST:8265, and return.")
    ] = False,
    study_storage: Annotated[
        str | None, typer.Option(help="Where a search's Optuna study is kept: a URL; a file in RESULTS unless given.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Train anew what changed, though finished cells no longer count then.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Run what is missing of an experiment, then print its table.

    At http://HOST:8265 it runs in the cluster, on this code and spec, and goes on whatever becomes of this machine.

    Exit status: 0 all cells done, 1 some failed, 2 bad usage or spec, 130 interrupted.
    """
    from orchestration.commands import launch as launching  # start-up time
    from orchestration.commands import plan as planning  # start-up time
    from orchestration.commands.request import LaunchRequest  # start-up time

    request = LaunchRequest(
        spec, profile, tuple(sets or ()), results, tracking_uri, address, submit, study_storage, yes
    )
    raise typer.Exit(planning.plan(request, not no_pilot) if plan else launching.launch(request))


@app.command(hidden=True)
def restarted() -> None:
    """Go on with a launch whose Ray has died: run by the process that takes the place of its driver."""
    from orchestration.commands import launch as launching  # start-up time

    raise typer.Exit(_one_line_errors(launching.go_on))


@app.command()
def plan(
    spec: Spec,
    no_pilot: NoPilot = False,
    profile: Profile = None,
    sets: Sets = None,
    results: Results = Path("results"),
    address: Address = None,
    verbose: Verbose = False,
) -> None:
    """Show the cells of an experiment, what is done already, and how long the rest will take."""
    from orchestration.commands import plan as planning  # start-up time
    from orchestration.commands.request import LaunchRequest  # start-up time

    request = LaunchRequest(spec, profile, tuple(sets or ()), results, address=address)
    raise typer.Exit(planning.plan(request, not no_pilot))


@app.command()
def report(folder: Anywhere, verbose: Verbose = False) -> None:
    """Write the report of an experiment from its ledger, and print its table."""
    from orchestration.commands.report import report  # start-up time

    raise typer.Exit(report(folder))


@app.command()
def ui(
    folder: Annotated[
        Path,
        typer.Argument(parser=_anywhere, metavar="RESULTS", help="An experiment's folder, or that of all of them."),
    ],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow's, where the launch was given one.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The first to try on this machine.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = True,
) -> None:
    """Show an experiment in MLflow: its runs by variant, and their curves. Ctrl-C ends it."""
    from orchestration.commands.ui import ui  # start-up time

    raise typer.Exit(ui(folder, tracking_uri, port, browser))


@app.command()
def status(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[RESULTS|NAME]", help="An experiment's folder, or one on a cluster; all of that."),
    ] = None,
    address: JobServerAddress = JOB_SERVER,
) -> None:
    """Show how far an experiment is: by its folder of results, or those that were submitted to a cluster."""
    folder = None if name is None else _place(name, here=address == JOB_SERVER)
    if folder is None:
        not_here = _not_here(name) if name and address == JOB_SERVER else ""
        raise typer.Exit(_on_cluster("status", address, name, not_here))
    from orchestration.commands.status import status  # start-up time

    raise typer.Exit(status(_anywhere(folder)))


@app.command()
def logs(name: Experiment, address: JobServerAddress = JOB_SERVER) -> None:
    """Print what an experiment on a cluster has printed."""
    raise typer.Exit(_on_cluster("logs", address, name))


@app.command()
def attach(name: Experiment, address: JobServerAddress = JOB_SERVER) -> None:
    """Follow an experiment on a cluster until it ends. Ctrl-C leaves it alone."""
    raise typer.Exit(_on_cluster("attach", address, name))


@app.command()
def stop(name: Experiment, address: JobServerAddress = JOB_SERVER) -> None:
    """Stop an experiment on a cluster, each training at a checkpoint."""
    raise typer.Exit(_on_cluster("stop", address, name))


@app.command()
def verify(
    folder: Folder,
    cells: Annotated[int, typer.Option(min=1, help="How many finished cells.")] = 3,
    seed: Annotated[int, typer.Option(help="Chooses the cells, and where they are killed.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Train finished cells again, kill each on the way, resume, and compare every byte of where they end.

    Exit status: 0 all the same, 1 some differ, 2 nothing to verify.
    """
    from orchestration.commands.verify import verify  # start-up time

    raise typer.Exit(_one_line_errors(lambda: verify(folder, cells, seed)))


@app.command()
def sync(
    folder: Anywhere,
    tracking_uri: TrackingUri = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Ask MLflow for every value and file, and send again what it lacks.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Bring MLflow level with an experiment's ledger, after it was down for a while, say."""
    from orchestration.commands.sync import sync  # start-up time

    raise typer.Exit(_one_line_errors(lambda: sync(folder, tracking_uri, verify)))


@app.command()
def accept(folder: Folder, verbose: Verbose = False) -> None:
    """Count finished cells of older numerics, where their first steps replay bit for bit.

    Exit status: 0 all were accepted, 1 some were refused, 2 bad usage.
    """
    from orchestration.commands.accept import accept  # start-up time

    raise typer.Exit(_one_line_errors(lambda: accept(folder)))


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(parser=_on_disk, metavar="A", help=f"{_OF_AN_EXPERIMENT}.")],
    after: Annotated[Path, typer.Argument(parser=_on_disk, metavar="B", help="Another one.")],
) -> None:
    """Show what two experiments differ in, field by field, and how the metric moved, with intervals."""
    from orchestration.commands.diff import diff  # start-up time

    raise typer.Exit(_one_line_errors(lambda: diff(before, after)))


@app.command()
def bundle(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; RESULTS.fsg.zip unless said.")
    ] = None,
) -> None:
    """Pack an experiment into one file: spec, lock file, ledger, checksums, report."""
    from orchestration.commands.bundle import bundle  # start-up time

    raise typer.Exit(_one_line_errors(lambda: bundle(folder, output)))


@app.command(name="open")
def open_bundle(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that fsg bundle made.")],
    into: Annotated[Path | None, typer.Option(help="Unpack it into this new folder.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Run again what it describes, and compare.")] = False,
) -> None:
    """Check every byte of a bundle, offline, and say what is in it and how to run it again.

    Exit status: as that of a launch with --run; otherwise 0, or 2 for a bundle that is not what it says.
    """
    from orchestration.commands.open import open_bundle  # start-up time

    raise typer.Exit(_one_line_errors(lambda: open_bundle(path, into, run)))


@app.command()
def reproduce(
    folder: Folder,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A cell's id, its beginning, or its label.")],
    verbose: Verbose = False,
) -> None:
    """Train one cell anew, and say whether it agrees: bit for bit, or by its metrics.

    Exit status: 0 it agrees, 1 it does not, 2 there is no such cell.
    """
    from orchestration.commands.reproduce import reproduce  # start-up time

    raise typer.Exit(_one_line_errors(lambda: reproduce(folder, cell)))


@app.command()
def export(
    folder: Anywhere,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A cell's id, its beginning, or its label.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="A name in .onnx, .npz or .safetensors.")],
    fold: Annotated[bool, typer.Option("--fold", help="Fold batch norms into the layers before them.")] = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained network with its weights packed eight to a byte, and verify the file.

    Exit status: 0 it predicts as the ledger's network, 1 it does not and is not kept, 2 it cannot be written.
    """
    from orchestration.commands.export import export  # start-up time

    raise typer.Exit(_one_line_errors(lambda: export(folder, cell, to, fold)))


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the experiment is called.")],
    kind: Annotated[
        str, typer.Option(help="ablation; methods: tuned alike; search; estimator: one of your own.")
    ] = "ablation",
) -> None:
    """Write NAME.yaml, a commented spec to start from, into this folder."""
    from orchestration.commands.new import new  # start-up time

    raise typer.Exit(_one_line_errors(lambda: new(name, kind, Path())))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec."""
    from orchestration.commands.schema import schema  # start-up time

    raise typer.Exit(schema())


def _one_line_errors(work: Callable[[], int]) -> int:
    """The work's exit status; what is wrong with what was asked for is one line, and exit status 2."""
    try:
        return work()
    except (OSError, ValueError) as error:
        print(str(error).strip().splitlines()[0], file=sys.stderr)
        return 2


def _place(name: str, here: bool) -> str | None:
    """The folder that a name is, is written as, or has among the results of this machine, if these are looked at."""
    if os.sep in name or Path(name).is_dir():
        return name
    beside = os.path.join(os.environ.get("FSG_RESULTS", "results"), name)
    return beside if here and os.path.isdir(beside) else None


def _not_here(name: str) -> str:
    """What stands before the complaint of a cluster that does not know the name: the nearest one on this machine."""
    from orchestration.util.nearest import meant  # start-up time

    results = Path(os.environ.get("FSG_RESULTS", "results"))
    found = sorted(path.parent.name for path in results.glob("*/launches"))
    nearest = [*meant(name, found), *found]
    here = f"did you mean {results / nearest[0]}?" if nearest else "there is none"
    return f"{name}: no experiment of that name in {results} ({here}), nor on a cluster: "


def _on_cluster(verb: str, address: str, name: str | None, otherwise: str = "") -> int:
    from orchestration.scheduler.environment import Unusable, is_job_server, prepare  # start-up time
    from orchestration.util.passwords import without_password  # start-up time

    try:
        if not is_job_server(address):
            raise Unusable(f"--address: {without_password(address)}: is not a job server's (expected http://HOST:8265)")
        prepare(address)
        from orchestration.commands import jobs  # start-up time

        return int(getattr(jobs, verb)(address, name))
    except Unusable as error:
        print(f"{otherwise}{error}", file=sys.stderr)
        return 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    bypass_proxies(os.environ)
    try:
        with unfailing_output():
            app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="fsg")
    except SystemExit as end:
        program.leave(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    main()
