"""`fsg bundle RESULTS` and `fsg open BUNDLE`: an experiment as one file that can be checked and run again.

A bundle is a ZIP archive, the same bytes for the same contents:

    manifest.json           what it is of, how to run it again, and SHA-256 and size of every other file
    spec.yaml               the spec as it was written, with the files of the user's own components beside it
    requirements.lock       the versions of everything it was installed with, or those recorded where there is no lock
    results/<experiment>/   the ledger and the report

Left out are states to resume from of trainings that are over, locks, notes of what MLflow has and temporary files;
nothing else. Opening trusts nothing: every name, size and digest is checked before anything is written, and nothing is
ever executed unless asked. Entries are stored or deflated, and do not overlap: so a small file cannot unfold to much.
What is packed or unpacked is there whole or not at all.
"""

import hashlib
import json
import os
import shlex
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from fsg.import_closure import is_installed
from fsg.imported import files
from fsg.train_config import TrainConfig
from orchestration.commands.exit_status import DONE
from orchestration.ledger.digest import NOTE
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build
from orchestration.report.write import write
from orchestration.runtime.own_code import edits, import_own_code
from orchestration.spec.cells import imported
from orchestration.spec.fields import train_from_dict
from orchestration.util import provenance
from orchestration.util.output import escaped

FORMAT = 1
MANIFEST = "manifest.json"
MAX_BYTES = 50 * 2**30
MAX_FILES = 1_000_000
_MANIFEST_BYTES = 256 * 2**20
_MANIFEST_RATIO = 100
_HEADER_BYTES = 30
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK = 2**20
_LONGEST = 1000  # characters of a text that is shown


class BundleError(ValueError):
    """Why a bundle is not what it says, in one line."""


class Opened(NamedTuple):
    """A bundle whose every byte was checked."""

    path: Path
    manifest: dict[str, Any]

    @property
    def experiment(self) -> str:
        return str(self.manifest["experiment"])

    @property
    def size(self) -> int:
        """Bytes of its files, unfolded."""
        return sum(seal["size"] for seal in self.manifest["files"].values())

    def spec(self, folder: Path) -> Path:
        return folder / "spec.yaml"

    def words(self, folder: Path, results: Path) -> list[str]:
        """What to run to do it all again, once it lies in a folder."""
        words = ["fsg", "launch", str(self.spec(folder))]
        words += ["--profile", self.manifest["profile"]] if self.manifest["profile"] else []
        words += [word for one in self.manifest["sets"] for word in ("--set", one)]
        return [*words, "--results", str(results)]


def bundle(folder: Path, target: Path | None = None) -> int:
    """Pack an experiment and print the file's name. Returns the exit status. Raises BundleError, ValueError."""
    print(pack(folder, target))
    return DONE


def pack(folder: Path, target: Path | None = None) -> Path:
    """Bundle an experiment's folder, its report made anew; returns the file, `<folder>.fsg.zip` unless said.

    Raises ValueError where nothing was launched, BundleError where the file is there already or cannot be.
    """
    ledger = Ledger(folder)
    target = target or folder.with_name(f"{folder.resolve().name}.fsg.zip")
    if target.exists():
        raise BundleError(f"{target}: is there already (expected a new file, as in --output NAME.fsg.zip)")
    if not target.parent.is_dir():
        raise BundleError(f"{target}: there is no folder {target.parent}")
    report = build(ledger)
    write(report)
    launch = ledger.launches()[-1]
    sources = dict(sorted(_contents(ledger, launch)))
    texts = _own_files(ledger, launch)
    texts |= {"spec.yaml": launch["spec_text"].encode(), "requirements.lock": _lock(launch)}
    states = [trial.state for trial in report.trials]
    manifest = {
        "format": FORMAT,
        "experiment": folder.resolve().name,
        "question": report.question,
        "verdict": report.verdict.text,
        "profile": launch.get("profile"),
        "sets": launch.get("sets", []),
        "cells": {state: states.count(state) for state in sorted(set(states))},
        "git_commit": launch["git_commit"],
        "versions": launch["versions"],
        "hardware": launch["hardware"],
        "files": {
            **{name: _seal([data]) for name, data in texts.items()},
            **{name: _seal(_chunks_of(path)) for name, path in sources.items()},
        },
    }
    with _whole(target) as draft, zipfile.ZipFile(draft, "x", allowZip64=True) as archive:
        _put(archive, MANIFEST, [json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"])
        for name, seal in sorted(manifest["files"].items()):
            if _put(archive, name, [texts[name]] if name in texts else _chunks_of(sources[name])) != seal:
                raise BundleError(f"{sources[name]}: changed while it was packed (expected an experiment at rest)")
    return target


def _put(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes]) -> dict[str, Any]:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    with archive.open(entry, "w", force_zip64=True) as stream:
        return _seal(_passed_to(stream, chunks))


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A name beside the target for what becomes it at the end, or is removed."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield draft
        if os.path.lexists(target):
            raise BundleError(f"{target}: is there already (expected a new name)")
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        raise


def _contents(ledger: Ledger, launch: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    root = ledger.folder
    over = {cell.id for cell in ledger.cells() if ledger.outcome(cell.id).state in ("done", "diverged")}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        resumable = path.name.startswith("checkpoint-") and path.suffix == ".pt"
        if not path.is_file() or path.is_symlink() or path.name.startswith(".") or inside.as_posix() in ("lock", NOTE):
            continue
        if resumable and inside.parts[0] == "trials" and inside.parts[1] in over:
            continue
        yield f"results/{root.resolve().name}/{inside.as_posix()}", path


def _lock(launch: Mapping[str, Any]) -> bytes:
    lock = Path(provenance.__file__).resolve().parents[2] / "requirements.lock"
    if lock.is_file():
        return lock.read_bytes()
    found = {name: version for name, version in launch["versions"].items() if name != "python"}
    return "".join(f"{name}=={version}\n" for name, version in found.items()).encode()


def _own_files(ledger: Ledger, launch: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that the user's own components consist of. Raises BundleError where they are not as they were."""
    trains: list[TrainConfig] = [train_from_dict(point["train"]) for point in launch["spec"]["points"]]
    import_own_code(ledger)
    if changed := list(dict.fromkeys(line for train in trains for line in edits(train))):
        raise BundleError(f"{ledger.folder}: {'; '.join(changed)} (expected the files as they were)")
    own = [one for train in trains for one in imported(train)]
    found = {name: path for one in own for name, path in files(one.path, one.settings).items()}
    return {name: path.read_bytes() for name, path in found.items() if not is_installed(path)}


# Opening


def check(path: Path) -> Opened:
    """Read a bundle through, and hold it against its own manifest. Raises BundleError; writes nothing."""
    with _opened(path) as archive:
        entries = _entries(archive, path.stat().st_size)
        manifest = _manifest(archive, entries)
        _refuse_other_files(entries, manifest["files"])
        for name, seal in manifest["files"].items():
            found = _seal(_chunks(archive, entries[name], seal))
            if found["sha256"] != seal["sha256"]:
                raise BundleError(f"{name}: is not what the manifest says (SHA-256 {found['sha256']})")
    return Opened(path, manifest)


def unpack(opened: Opened, folder: Path) -> None:
    """Write a checked bundle into a new folder, each file checked once more as it is written. Raises BundleError."""
    if os.path.lexists(folder):
        raise BundleError(f"{folder}: is there already (expected a new folder)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    size, free = opened.size, shutil.disk_usage(folder.parent).free
    if size > free:
        raise BundleError(
            f"{opened.path}: needs {size / 1e6:.1f} MB (expected at most {free / 1e6:.1f} MB, what is free)"
        )
    with _opened(opened.path) as archive, _whole(folder) as draft:
        entries = _entries(archive, opened.path.stat().st_size)
        for name, seal in opened.manifest["files"].items():
            target = draft / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                if name not in entries or _seal(_passed_to(file, _chunks(archive, entries[name], seal))) != seal:
                    raise BundleError(f"{name}: changed since it was checked")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A bundle as an archive; whatever goes wrong with it is a BundleError of one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BundleError as refused:
        raise BundleError(f"{path}: {refused}") from None
    except OSError as error:
        where = f"{path}: {error.filename}" if error.filename not in (None, str(path), path) else str(path)
        raise BundleError(f"{where}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise BundleError(f"{path}: is damaged, or not a bundle: {error}") from error


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of an archive of so many bytes, by name, none of which is more than it seems."""
    found: dict[str, zipfile.ZipInfo] = {}
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise BundleError(f"{len(infos)} files (expected at most {MAX_FILES})")
    for info in infos:
        _refuse_name(info.orig_filename if "\0" in info.orig_filename else info.filename)
        if info.filename in found:
            raise BundleError(f"{info.filename}: is there twice")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            raise BundleError(f"{info.filename}: is not a plain file")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(
                f"{info.filename}: is compressed by method {info.compress_type} (expected 0 or 8, deflate)"
            )
        found[info.filename] = info
    _refuse_overlaps(infos, size)
    for name in found:
        if above := next((str(one) for one in PurePosixPath(name).parents if str(one) in found), None):
            raise BundleError(f"{above}: is a file, and the folder of {name}")
    return found


def _refuse_overlaps(infos: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Bytes that several entries share unfold once an entry."""
    end = size
    for info in sorted(infos, key=lambda info: -info.header_offset):
        if info.header_offset < 0 or info.header_offset + _HEADER_BYTES + info.compress_size > end:
            raise BundleError(f"{info.filename}: lies over another entry (expected each byte in one)")
        end = info.header_offset


def _refuse_name(name: str) -> None:
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and ":" not in name
    if not plain or path.is_absolute() or path.as_posix() != name or not {".", ".."}.isdisjoint(path.parts):
        raise BundleError(f"{name!r}: is not allowed as a name in a bundle")


def _manifest(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
    if MANIFEST not in entries:
        raise BundleError(f"has no {MANIFEST}: is not a bundle")
    entry = entries[MANIFEST]
    if entry.file_size > min(_MANIFEST_BYTES, _MANIFEST_RATIO * entry.compress_size):
        raise BundleError(f"{MANIFEST}: is too large")
    with archive.open(entry) as stream:
        manifest = json.loads(stream.read(entry.file_size))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{MANIFEST}: has a format that this version does not read (expected {FORMAT})")
    if not _is_whole(manifest):
        raise BundleError(f"{MANIFEST}: is incomplete")
    _refuse_name(manifest["experiment"])
    if sum(seal["size"] for seal in manifest["files"].values()) > MAX_BYTES:
        raise BundleError(f"would unfold to more than {MAX_BYTES >> 30} GB")
    return manifest


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    files, sets, cells = manifest.get("files"), manifest.get("sets"), manifest.get("cells")
    return (
        all(isinstance(manifest.get(key), str) for key in ("experiment", "question", "verdict"))
        and isinstance(manifest.get("profile"), str | None)
        and isinstance(sets, list)
        and all(isinstance(one, str) for one in sets)
        and isinstance(cells, dict)
        and isinstance(manifest.get("versions"), dict)
        and isinstance(files, dict)
        and all(isinstance(seal, dict) and isinstance(seal.get("size"), int) for seal in files.values())
        and all(seal["size"] >= 0 and isinstance(seal.get("sha256"), str) for seal in files.values())
    )


def _refuse_other_files(entries: Mapping[str, zipfile.ZipInfo], files: Mapping[str, Any]) -> None:
    for name in entries:
        if name != MANIFEST and name not in files:
            raise BundleError(f"{name}: is not in the manifest")
    for name in files:
        if name not in entries or name == MANIFEST:
            raise BundleError(f"{name}: is missing")


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, seal: Mapping[str, Any]) -> Iterator[bytes]:
    """What a file unfolds to, never more than its manifest says."""
    size = 0
    with archive.open(info) as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > seal["size"]:
                raise BundleError(f"{info.filename}: is longer than the manifest says")
            yield chunk
    if size != seal["size"]:
        raise BundleError(f"{info.filename}: is {size} bytes (expected {seal['size']})")


def _chunks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _passed_to(stream: IO[bytes], chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        stream.write(chunk)
        yield chunk


def _seal(chunks: Iterable[bytes]) -> dict[str, Any]:
    """Size and SHA-256 of bytes that are never in memory all at once."""
    size, digest = 0, hashlib.sha256()
    for chunk in chunks:
        size += len(chunk)
        digest.update(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def describe(opened: Opened, folder: Path, results: Path) -> list[str]:
    """What a bundle holds, and how to run it again, once it lies in a folder."""
    manifest = opened.manifest
    experiment, question, verdict = (_shown(manifest[key]) for key in ("experiment", "question", "verdict"))
    cells = ", ".join(f"{count} {state}" for state, count in manifest["cells"].items())
    lines = [
        f"{opened.path}: {len(manifest['files'])} files, {opened.size / 1e6:.1f} MB, every one as the manifest says",
        f"experiment  {experiment}: {question}",
        f"cells       {cells}",
        f"verdict     {verdict}",
        f"code        commit {manifest.get('git_commit') or 'none'}, "
        + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        f"run again   {shlex.join(opened.words(folder, results))}",
    ]
    return [escaped(line).replace("\n", "\\n") for line in lines]


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
