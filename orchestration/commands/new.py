"""`fsg new`: a commented spec to start from."""

import re
import shlex
import sys
from importlib import resources
from pathlib import Path

from orchestration.commands.exit_status import BAD_INPUT, DONE

KINDS = ("ablation", "methods", "search", "estimator")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a spec's, without dots


def new(name: str, kind: str, folder: Path) -> int:
    """Write NAME.yaml, and for an estimator its file, where neither is there yet. Returns the exit status."""
    if kind not in KINDS:
        print(f"--kind: {kind!r} is not one (expected {', '.join(KINDS)})", file=sys.stderr)
        return BAD_INPUT
    if not _NAME.fullmatch(name):
        print(f"{name!r}: expected 1 to 64 letters, digits, _ and -, such as my_ablation", file=sys.stderr)
        return BAD_INPUT
    module = re.sub(r"\W", "_", name)
    if module[0].isdigit():
        module = f"_{module}"
    names = {"NAME": name, "MODULE": module}
    files = {folder / f"{name}.yaml": re.sub("NAME|MODULE", lambda found: names[found[0]], _template(f"{kind}.yaml"))}
    if kind == "estimator":
        files[folder / f"{module}_estimator.py"] = _template("estimator.template")
    for path in files:
        if path.exists():
            print(f"{path}: is there already (expected a name that is new)", file=sys.stderr)
            return BAD_INPUT
    for path, text in files.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        print(f"written  {path}")
    spec = shlex.quote(str(folder / f"{name}.yaml"))
    print(f"next     fsg plan {spec}      fsg launch {spec} --profile quick      fsg launch {spec}")
    return DONE


def _template(name: str) -> str:
    return (resources.files("orchestration.commands") / "new_specs" / name).read_text(encoding="utf-8")
