"""Where MLflow has the artifacts of our experiments, and what is done once the results lie somewhere else.

MLflow keeps the place of every run's artifacts as an absolute address. Where the results were moved, copied or mounted
elsewhere, the addresses in the database beside them are written anew, before anything is read or sent: what belongs to
the old place stays untouched there. MLflow has no call for it, so that the columns are found by what they hold.
"""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from orchestration.util.databases import sqlite_address

FOLDER = "mlartifacts"


def settle(client: Any, address: str, here: Path, name: str | None) -> None:
    """Make a database's addresses of artifacts those of `here`; of one experiment by its name, or of all.

    All are settled in the database beside the results. Raises ValueError where the artifacts of the one are those of
    results that still exist: they share a database with a copy of themselves.
    """
    for old in sorted({place for title, place in _places(client) if name in (None, title)} - {here.as_uri()}):
        folder = Path(url2pathname(urlsplit(old).path))
        if name is not None and folder.is_dir():
            what = f"MLflow has the artifacts of {name} in {folder}, beside other results"
            raise ValueError(f"{what} (expected a database of its own for a copy: --tracking-uri)")
        write_anew(address, old, here.as_uri())


def copied(file: Path, folder: Path) -> str:
    """The address of a copy, in a folder, of a SQLite file that cannot be written to."""
    for one in (file, *(file.with_name(file.name + end) for end in ("-wal", "-journal"))):
        if one.exists():
            shutil.copyfile(one, folder / one.name)
    return sqlite_address(folder / file.name)


def write_anew(address: str, old: str, new: str) -> None:
    """Write every address in a database that is `old`, or below it, as one of `new`."""
    from sqlalchemy import MetaData, String, create_engine, func, or_, update  # start-up time

    engine = create_engine(address)
    try:
        known = MetaData()
        known.reflect(engine)
        with engine.begin() as connection:
            for table in known.tables.values():
                for column in table.columns:
                    if isinstance(column.type, String):
                        is_old = or_(column == old, func.substr(column, 1, len(old) + 1) == f"{old}/")
                        moved = new + func.substr(column, len(old) + 1)
                        connection.execute(update(table).where(is_old).values({column: moved}))
    finally:
        engine.dispose()


def _places(client: Any) -> set[tuple[str, str]]:
    """The name of each experiment whose artifacts are in a folder of ours, and the address of that."""
    from mlflow.entities import ViewType  # start-up time

    found, token = set(), None
    while True:
        page = client.search_experiments(view_type=ViewType.ALL, page_token=token)
        places = ((one.name, one.artifact_location or "") for one in page)
        found |= {(name, place) for name, place in places if place.startswith("file:") and place.endswith(f"/{FOLDER}")}
        token = page.token
        if not token:
            return found
