"""An experiment as one file: what is in it, and what is refused."""

import copy
import hashlib
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
from synthetic_experiment import cells_of, finish, launched, spec_of
from undrawn import leave_figures_empty

from orchestration.commands import bundle
from orchestration.commands.bundle import BundleError
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """The figures of the report stay empty."""
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_empty(patch)
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    spec = spec_of(seeds=(0,))
    cells = cells_of(spec)
    ledger = launched(tmp_path_factory.mktemp("bundle") / "ablation", spec, cells)
    attempt = ledger.claim(cells[0].id, {"device": "cpu"})
    attempt.checkpoint(b"a state to resume from", 10)
    attempt.weights("final.pt", b"weights")
    attempt.finish("done", digest="d" * 64)
    finish(ledger, cells[1])
    (ledger.folder / "lock").touch()
    return ledger


@pytest.fixture(scope="module")
def packed(experiment: Ledger) -> Path:
    return bundle.pack(experiment.folder)


def rewritten(packed: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A bundle with other contents; names may be what they like."""
    with zipfile.ZipFile(packed) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return target


def with_manifest(contents: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(contents["manifest.json"])
    change(manifest)
    contents["manifest.json"] = json.dumps(manifest).encode()


def test_a_bundle_holds_spec_lock_ledger_and_report_and_no_state_to_resume_from(packed: Path) -> None:
    names = zipfile.ZipFile(packed).namelist()
    assert {"manifest.json", "spec.yaml", "requirements.lock", "results/ablation/report.html"} <= set(names)
    assert any(name.endswith("/final.pt") for name in names)
    assert any(name.endswith(".jsonl") for name in names)
    assert not [
        name for name in names if name.endswith(("checkpoint-00000010.pt", "lock")) and "requirements" not in name
    ]


def test_the_same_contents_make_the_same_bytes(experiment: Ledger, packed: Path, tmp_path: Path) -> None:
    assert bundle.pack(experiment.folder, tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_a_bundle_is_never_written_over(experiment: Ledger, packed: Path) -> None:
    before = packed.read_bytes()
    with pytest.raises(BundleError, match="is there already"):
        bundle.pack(experiment.folder, packed)
    assert packed.read_bytes() == before


def test_what_comes_out_is_the_ledger_that_went_in(experiment: Ledger, packed: Path, tmp_path: Path) -> None:
    bundle.unpack(bundle.check(packed), tmp_path / "out")
    ledger = Ledger(tmp_path / "out" / "results" / "ablation")
    assert [ledger.outcome(cell.id) for cell in ledger.cells()] == [
        experiment.outcome(cell.id) for cell in experiment.cells()
    ]
    assert all(ledger.rows(cell.id) == experiment.rows(cell.id) for cell in experiment.cells())
    assert build(ledger).verdict == build(experiment).verdict
    assert (tmp_path / "out" / "spec.yaml").read_text() == experiment.launches()[-1]["spec_text"]


def test_opening_says_what_is_in_it_and_how_to_run_it_again(packed: Path) -> None:
    lines = bundle.describe(bundle.check(packed), Path("out"), Path("out/again"))
    text = "\n".join(lines)
    assert "2 done" in text
    assert "fsg launch out/spec.yaml --results out/again" in text


def test_a_folder_that_is_there_is_not_unpacked_into(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is there already"):
        bundle.unpack(bundle.check(packed), tmp_path)


def _turn_a_bit(contents: dict[str, bytes]) -> None:
    data = bytearray(contents["spec.yaml"])
    data[0] ^= 1
    contents["spec.yaml"] = bytes(data)


def _escape(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(contents: dict[str, bytes]) -> None:
        contents[name] = b"x"
        seal = {"size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
        with_manifest(contents, lambda manifest: manifest["files"].update({name: seal}))

    return change


TAMPERED: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "a bit": (_turn_a_bit, "spec.yaml: is not what the manifest says"),
    "a longer file": (lambda c: c.update({"spec.yaml": c["spec.yaml"] + b" "}), "spec.yaml: is longer than"),
    "a shorter file": (lambda c: c.update({"spec.yaml": c["spec.yaml"][:-1]}), "spec.yaml: is .* bytes"),
    "a bomb": (lambda c: c.update({"spec.yaml": bytes(5_000_000)}), "spec.yaml: is longer than"),
    "a missing file": (lambda c: c.pop("spec.yaml"), "spec.yaml: is missing"),
    "another file": (lambda c: c.update({"more.py": b"x"}), "more.py: is not in the manifest"),
    "up and out": (_escape("../evil"), "is not allowed as a name in a bundle"),
    "out on the way": (_escape("results/../../evil"), "is not allowed as a name in a bundle"),
    "an absolute name": (_escape("/tmp/evil"), "is not allowed as a name in a bundle"),
    "a drive": (_escape("C:evil"), "is not allowed as a name in a bundle"),
    "backslashes": (_escape("results\\evil"), "is not allowed as a name in a bundle"),
    "a folder": (_escape("results/evil/"), "is not (allowed|a plain file)"),
    "an experiment elsewhere": (
        lambda c: with_manifest(c, lambda m: m.update(experiment="../evil")),
        "is not allowed as a name in a bundle",
    ),
    "another format": (lambda c: with_manifest(c, lambda m: m.update(format=9)), "has a format"),
    "half a manifest": (lambda c: with_manifest(c, lambda m: m.pop("files")), "manifest.json: is incomplete"),
    "more than a disk": (
        lambda c: with_manifest(c, lambda m: m["files"]["spec.yaml"].update(size=2**60)),
        "would unfold to more than",
    ),
    "no manifest": (lambda c: c.pop("manifest.json"), "has no manifest.json"),
    "a manifest that is no JSON": (lambda c: c.update({"manifest.json": b"{"}), "Expecting"),
}


@pytest.mark.parametrize(("change", "message"), TAMPERED.values(), ids=TAMPERED.keys())
def test_a_bundle_that_is_not_what_it_says_is_refused_and_nothing_is_written(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], Any], message: str
) -> None:
    path = rewritten(packed, tmp_path / "tampered.zip", change)
    with pytest.raises(BundleError, match=message):
        bundle.check(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_byte_that_was_flipped_anywhere_is_refused_or_changes_nothing(packed: Path, tmp_path: Path) -> None:
    """A zip archive has bytes that say nothing, such as dates."""
    whole, expected = packed.read_bytes(), bundle.check(packed).manifest
    path, refused = tmp_path / "flipped.zip", 0
    places = np.random.default_rng(0).integers(0, len(whole), 60)
    for place in [*places.tolist(), *range(len(whole) - 120, len(whole), 2)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            found = bundle.check(path).manifest
        except BundleError:
            refused += 1
        else:
            assert found == expected
    assert refused > 80


def test_a_link_in_a_bundle_is_refused(packed: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("results/link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    path = tmp_path / "link.zip"
    path.write_bytes(packed.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BundleError, match="results/link: is not a plain file"):
        bundle.check(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a bundle at all"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.zip: "):
        bundle.check(tmp_path / "x.zip")


def test_a_bundle_that_changes_after_the_check_is_refused(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(packed.read_bytes())
    opened = bundle.check(path)
    rewritten(packed, path, _turn_a_bit)
    with pytest.raises(BundleError, match="changed since"):
        bundle.unpack(opened, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def compressed_by(method: int, name: str, data: bytes) -> Callable[[zipfile.ZipFile, dict[str, bytes]], None]:
    """A bundle of which one file is compressed otherwise."""

    def put(archive: zipfile.ZipFile, contents: dict[str, bytes]) -> None:
        for one, content in contents.items():
            if one != name:
                archive.writestr(one, content)
        archive.writestr(name, data or contents[name], method)

    return put


BOMBS = {
    "bzip2": (compressed_by(zipfile.ZIP_BZIP2, "spec.yaml", b""), "spec.yaml: is compressed by method 12"),
    "LZMA": (compressed_by(zipfile.ZIP_LZMA, "spec.yaml", b""), "spec.yaml: is compressed by method 14"),
    "a manifest in bzip2": (
        compressed_by(zipfile.ZIP_BZIP2, "manifest.json", b"[" + b" " * 2**26),
        "manifest.json: is compressed by method 12",
    ),
    "a manifest of nothing": (
        compressed_by(zipfile.ZIP_DEFLATED, "manifest.json", b"[" + b"{}," * 2**21),
        "manifest.json: is too large",
    ),
}


@pytest.mark.parametrize(("put", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_what_would_unfold_to_much_is_refused_before_it_unfolds(
    packed: Path, tmp_path: Path, put: Callable[[zipfile.ZipFile, dict[str, bytes]], None], message: str
) -> None:
    with zipfile.ZipFile(packed) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        put(archive, contents)
    del contents
    tracemalloc.start()
    with pytest.raises(BundleError, match=message):
        bundle.check(tmp_path / "bomb.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_files_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Many names for the same compressed megabyte: a small file would fill a disk."""
    names, megabyte = [f"results/x/{n:03d}" for n in range(50)], bytes(2**20)
    seal = {"size": len(megabyte), "sha256": hashlib.sha256(megabyte).hexdigest()}
    manifest = {"format": 1, "experiment": "x", "question": "", "verdict": "", "profile": None, "sets": []}
    manifest |= {"cells": {}, "versions": {}, "files": dict.fromkeys(names, seal)}
    path = tmp_path / "shared.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr(names[0], megabyte)
        for name in names[1:]:
            shared = copy.copy(archive.getinfo(names[0]))
            shared.filename = shared.orig_filename = name
            archive.filelist.append(shared)
    assert path.stat().st_size < 20_000
    with pytest.raises(BundleError, match="lies over another entry"):
        bundle.check(path)


@pytest.mark.parametrize("names", [("results/x", "results/x/rows"), ("results/x/rows", "results/x")])
def test_a_file_that_is_a_folder_too_is_refused(packed: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    path = rewritten(packed, tmp_path / "b.zip", lambda c: [_escape(name)(c) for name in names])
    with pytest.raises(BundleError, match="results/x: is a file, and the folder of results/x/rows"):
        bundle.check(path)


@pytest.mark.parametrize(
    "change", [_turn_a_bit, lambda c: c.pop("spec.yaml"), lambda c: c.update({"spec.yaml": c["spec.yaml"] + b" "})]
)
def test_nothing_is_left_of_what_could_not_be_unpacked(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], Any]
) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(packed.read_bytes())
    opened = bundle.check(path)
    rewritten(packed, path, change)
    with pytest.raises(BundleError, match=r"b\.zip: spec\.yaml"):
        bundle.unpack(opened, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_neither_half_a_folder_nor_half_a_bundle(
    experiment: Ledger, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, written = bundle.check(packed), bundle._passed_to

    def interrupted(stream: IO[bytes], chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield from written(stream, chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "_passed_to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle.unpack(opened, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        bundle.pack(experiment.folder, tmp_path / "again.zip")
    assert not list(tmp_path.iterdir())


def test_what_no_disk_has_room_for_is_refused_before_a_byte_is_written(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = bundle.check(packed)
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda _: SimpleNamespace(free=opened.size - 1))
    with pytest.raises(BundleError, match=r"needs .* MB \(expected at most"):
        bundle.unpack(opened, tmp_path / "out")
    assert not list(tmp_path.iterdir())
