"""Addresses with a secret: none is kept or shown, and each is refused where none may be."""

import json
from pathlib import Path

import pytest
import tiny_experiment

from orchestration.cli import main
from orchestration.commands.launch import launch
from orchestration.commands.request import LaunchRequest
from orchestration.ledger.ledger import Ledger
from orchestration.spec.experiment import SpecErrors, load_spec
from orchestration.util.passwords import has_password, hide_passwords, without_password

S = "hunter2"
OF_THE_WEB = [
    f"http://me:{S}@h", f"https://me:{S}@h:5000/", f"HTTP://me:{S}@h", f"http://me:{S}@[::1]:5000", f"http://:{S}@h",
    f"http://me:a/{S}@h", f"http://me:{S}/@h", f"http://me:a?{S}@h", f"http://me:a?b={S}@h", f"http://me:a#{S}@h",
    f"http://me:{S}@b@h", f"http://me:a@{S}@h", f"http://me:a/b@{S}/c@h:1/x", f"http://me:a b {S}@h", f"http://me:{S}%40@h",
    f"http://me:%2F{S}@h", f"http://me:a:{S}@h", f"http://me@x.org:{S}@h", f"http://{S}@h", f"https://{S}:@h/x",
    f"https://ghp_0123456789abcdef{S}:x-oauth-basic@h", f"https://oauth2:{S}@h/x.git", f"http://h/?token={S}",
    f"http://h/a?x=1&access_token={S}", f"http://h?api_key={S}&y=2", f"http://h/?sig={S}", f"http://h/#access_token={S}",
    f"http://h/#/runs?id_token={S}", f"http://h/?mail=a@b&Password={S}", f"http://h/?client-secret={S}",
    f"http://h/?passwd={S}&more",
]  # fmt: skip
OF_DATABASES = [
    f"postgresql://me:{S}@h/db", f"postgresql+psycopg2://me:{S}@h:5432/db?sslmode=require", f"postgresql://:{S}@h/db",
    f"postgresql://me:a/{S}@h/db", f"postgresql://me:{S}/b@h/db", f"postgresql://me:a@{S}@h/db", f"postgresql://me:{S}@b@h/db",
    f"postgresql://me:a b{S}@h/db", f"postgresql://me:a?{S}@h/db", f"postgresql://me:a?b={S}@h/db",
    f"postgresql://me:a#{S}@h/db", f"postgresql://me:a@b/{S}@h/db", f"postgresql://me:{S}%2F@h/db",
    f"postgresql://me:{S}@[::1]:5432/db", f"postgresql://me:{S}@h1:1,h2:2/db", f"postgresql://h/db?password={S}",
    f"postgresql:///db?host=h&user=me&password={S}", f"postgresql://me@h/db?sslmode=x&sslpassword={S}",
    f"postgresql://h/db?password=a@{S}", f"postgresql://h/db?PASSWORD={S}&user=a@b", f"postgresql://h/db?pass%77ord={S}",
    f"mysql+pymysql://me:{S}@h/db?charset=utf8", f"mysql://h/db?user=me&passwd={S}", f"mysql://h/db?ssl_key_password={S}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BX%7D%3BUID%3Dsa%3BPWD%3D{S}", f"redis://:{S}@h/0",
    f"mssql+pyodbc:///?odbc_connect=DRIVER={{X}};UID=sa;PWD={S};a=b", f"mssql+pyodbc://sa:{S}@dsn",
    f"mssql+pyodbc://h/db?driver=x&Pwd={S}", f"mongodb+srv://me:{S}@h/db", f"snowflake://me:{S}@a/b?token={S}",
]  # fmt: skip
WITHOUT = [
    "postgresql://me@h/db", "postgresql+psycopg2://fsg@127.0.0.1:5432/mlflow", "postgresql://h/db?passfile=/x&sslmode=prefer",
    "postgresql://h/db?user=a@b", "postgresql://h/db?sslkey=/a.key&sslcert=/b", "http://127.0.0.1:5000", "http://h/?mail=a@b",
    "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=comparison",
    "sqlite:////a:b@c/d.db", "sqlite:///it's a?b#c%20.db", "file:///a@b", "databricks://profile", "mlruns", "", "auto",
    "10.0.0.1:6379",
]  # fmt: skip


@pytest.mark.parametrize("address", OF_THE_WEB + OF_DATABASES)
def test_a_secret_is_seen_and_hidden(address: str) -> None:
    assert has_password(address)
    shown = without_password(address)
    assert S not in shown
    assert "***" in shown
    assert without_password(shown) == shown, "what is shown does not change once more"
    told = hide_passwords(f"cannot connect to {address} ({address!r})", address)
    assert S not in told
    assert told.startswith("cannot connect to ")


@pytest.mark.parametrize("address", WITHOUT)
def test_an_address_without_a_secret_is_left_alone(address: str) -> None:
    assert not has_password(address)
    assert without_password(address) == address
    assert hide_passwords(f"to {address}", address, None) == f"to {address}"


def test_a_secret_is_hidden_in_what_a_library_says_of_it() -> None:
    address = f"postgresql://me:{S}%2Fx@h/db"
    told = f'FATAL: "{S}/x" is wrong; "{S}%2Fx" {S}/x'
    assert hide_passwords(told, address) == 'FATAL: "***" is wrong; "***" ***'


def test_user_and_place_are_still_told() -> None:
    assert without_password("http://ada:x/y@h:5000/p?q=1#f") == "http://ada:***@h:5000/p?q=1#f"
    assert without_password("postgresql://ada:x@y@h/db?a=b&password=z") == "postgresql://ada:***@h/db?a=b&password=***"
    assert without_password("https://token-of-mine@h/x") == "https://***@h/x"


@pytest.mark.parametrize("address", [*OF_THE_WEB[5:20:6], *OF_DATABASES[4:25:10]])
def test_no_secret_is_recorded_or_printed_by_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = tiny_experiment.written(tmp_path)
    monkeypatch.setattr("orchestration.commands.launch.run", lambda *arguments: 0)
    request = LaunchRequest(spec, tracking_uri=address, address="10.0.0.1:1", study_storage=address)
    assert launch(request) == 0
    assert S not in request.command
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if S.encode() in path.read_bytes()] == []
    (record,) = Ledger(Path("results/tiny")).launches()
    assert record["tracking_uri"] == without_password(address)
    with pytest.raises(SystemExit) as ended:
        main(["sync", "results/tiny"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "is not kept (expected --tracking-uri with it)" in said.err
    assert S not in said.out + said.err


SEARCH = "search: {space: {optimizer.lr: [0.1, 0.2]}, trials: 2, seeds: [9], best: 1, storage: STORAGE}\n"


@pytest.mark.parametrize("address", OF_DATABASES)
def test_a_secret_in_a_spec_is_refused_and_not_quoted(tmp_path: Path, address: str) -> None:
    spec = "name: tiny\ntrain: {epochs: 1}\nseeds: [0]\n"
    (tmp_path / "a.yaml").write_text(spec + SEARCH.replace("STORAGE", json.dumps(address)))
    (tmp_path / "b.yaml").write_text(spec + SEARCH.replace(", storage: STORAGE", ""))
    for name, sets in (("a", []), ("b", [f"search.storage={json.dumps(address)}"])):
        with pytest.raises(SpecErrors) as refused:
            load_spec(tmp_path / f"{name}.yaml", sets=sets)
        assert "search.storage: has a password, and the spec is kept" in str(refused.value)
        assert S not in str(refused.value)


@pytest.mark.parametrize("address", OF_THE_WEB)
def test_a_secret_is_not_submitted_and_no_command_shows_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = tiny_experiment.written(tmp_path).name
    for option, value in (("--tracking-uri", address), ("--study-storage", address)):
        with pytest.raises(SystemExit) as ended:
            main(["launch", name, "--submit", "--address", "http://127.0.0.1:1", option, value])
        assert ended.value.code == 2
        assert f"{option}: has a password" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["status", "--address", address.replace("@h", "@127.0.0.1:9", 1)])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert S not in said.out + said.err
