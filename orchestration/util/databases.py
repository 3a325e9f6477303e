"""SQLite files and their addresses, for whatever name a file may have."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote


def sqlite_address(file: Path) -> str:
    """The address of a SQLite file, as SQLAlchemy and MLflow take it: `sqlite:////FOLDER/mlflow.db`.

    A path that means something else in an address (`?`, `#`, `%20`, quotes) is SQLite's own `file:` address within it,
    where each such character is escaped. The driver is named there, as MLflow would make a folder of the other form.
    """
    path = os.path.abspath(file)
    if quote(os.fsencode(path), safe=" +/") == path:
        return f"sqlite:///{path}"
    from sqlalchemy.engine import URL  # start-up time

    inner = f"file:{quote(os.fsencode(path))}"
    return URL.create("sqlite+pysqlite", database=inner, query={"uri": "true"}).render_as_string()


def sqlite_file(address: str) -> Path | None:
    """The file of a SQLite address, absolute; None for any other address, and for a database in memory."""
    if not address.startswith("sqlite"):
        return None
    if plain := re.fullmatch(r"sqlite:///([\w /.+-]+)", address):
        return Path(os.path.abspath(plain[1]))
    from sqlalchemy.engine import make_url  # start-up time

    url = make_url(address)
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    name = str(url.database)
    if name.startswith("file:") and "uri" in url.query:
        name = os.fsdecode(unquote(name.removeprefix("file:").partition("?")[0], errors="surrogateescape"))
    return Path(os.path.abspath(name))
