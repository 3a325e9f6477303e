"""Addresses without their secrets, as they may be recorded and printed.

Users and passwords are often written without the escapes that they need (`pa/ss`, `p@ss`, `p?w=d`): all before the
last @ is taken for these, unless what stands before the query is whole to SQLAlchemy's parser, or to urllib's.
"""

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlsplit

HIDDEN = "***"
_WRITTEN: tuple[Callable[[str], str], ...] = (
    str, unquote, unquote_plus, quote, quote_plus, lambda one: quote(one, safe=""), lambda one: repr(one)[1:-1],
)  # fmt: skip
_NO_NAME = set("/?#=&")  # in a user's name that is none: somewhere in it the password begins
_PIECE = 4  # characters of a part of a secret, as of an address that a library has cut at a wrong place
_TOKEN_LENGTH = 20  # of a user's name in a web address that is one
_SECRET = ("pass", "pwd", "secret", "token", "credential", "signature", "apikey", "accesskey", "privatekey", "jwt")
_ALONE = ("auth", "authorization", "sig", "key", "pw", "code")
_NO_SECRET = ("passfile",)


class _Parts(NamedTuple):
    """An address: what is before its user, the user and the password, what follows, its query, and a fragment."""

    scheme: str
    user: str | None
    password: str | None
    place: str
    query: str
    fragment: str


def without_password(address: str) -> str:
    """An address with `***` for its secrets: `postgresql://user:***@host/mlflow`, `…?password=***`; or as it is."""
    parts = _parts(address)
    if parts is None or not _secrets(parts):
        return address
    user = "" if parts.user is None else HIDDEN if _is_token(parts) else parts.user
    who = f"{user}:{HIDDEN}@" if parts.password is not None else f"{user}@" if parts.user is not None else ""
    query = f"?{_hidden(parts.query)}" if parts.query else ""
    fragment = f"#{_hidden_fragment(parts.fragment)}" if parts.fragment else ""
    return f"{parts.scheme}://{who}{parts.place}{query}{fragment}"


def has_password(address: str) -> bool:
    """Whether an address has a secret in it."""
    parts = _parts(address)
    return parts is not None and bool(_secrets(parts))


def hide_passwords(text: str, *addresses: str | None) -> str:
    """A text in which no secret of some addresses is left, as they are written or meant."""
    for address in filter(None, addresses):
        parts = _parts(address)
        if parts is None:
            continue
        text = text.replace(address, without_password(address))
        secrets = _secrets(parts)
        pieces = [piece for one in secrets for piece in re.split("[/?#@:]", one) if len(piece) >= _PIECE]
        written = {way(one) for one in [*secrets, *pieces] for way in _WRITTEN}
        for one in sorted(filter(None, written), key=len, reverse=True):
            text = text.replace(one, HIDDEN)
    return text


def _parts(address: str) -> _Parts | None:
    """None for what is no address of a host: a path, a SQLite file."""
    scheme, found, rest = address.partition("://")
    if not found or scheme.lower().startswith(("sqlite", "file")):
        return None
    before, sign, fragment = rest.partition("#")
    if not _of_the_web(scheme) or "@" in fragment or not sign:
        before, fragment = rest, ""
    end = _end_of_user(scheme, before)
    user, colon, password = before[:end].partition(":") if end >= 0 else ("", "", "")
    place, _, query = before[end + 1 :].partition("?")
    return _Parts(scheme, user if end >= 0 else None, password if colon else None, place, query, fragment)


def _end_of_user(scheme: str, rest: str) -> int:
    """Where the @ is that ends user and password; -1 where there are none. One in a query's value is not that."""
    last, question = rest.rfind("@"), rest.find("?")
    if 0 <= question < last and "=" in rest[question:last] and _is_whole(scheme, rest[:question]):
        return rest.rfind("@", 0, question)
    return last


def _is_whole(scheme: str, rest: str) -> bool:
    """Whether an address without its query is one to urllib, or to SQLAlchemy, its port a number."""
    from sqlalchemy.engine import make_url  # start-up time
    from sqlalchemy.exc import ArgumentError  # start-up time

    address = f"{scheme}://{rest}"
    try:
        return (urlsplit(address) if _of_the_web(scheme) else make_url(address)).port != 0
    except (ArgumentError, ValueError):
        return False


def _of_the_web(scheme: str) -> bool:
    return scheme.lower() in ("http", "https")


def _is_token(parts: _Parts) -> bool:
    """Whether the user's name is a secret itself, as in `https://TOKEN@host` and `https://TOKEN:x-oauth-basic@host`."""
    if not parts.user or not _of_the_web(parts.scheme):
        return not _NO_NAME.isdisjoint(parts.user or "")
    return not parts.password or len(parts.user) >= _TOKEN_LENGTH


def _secrets(parts: _Parts) -> list[str]:
    found = [parts.user] if parts.user and _is_token(parts) else []
    found += [parts.password] if parts.password else []
    pairs = [*_pairs(parts.query), *_pairs(parts.fragment.partition("?")[2] or parts.fragment)]
    return found + [value for name, value in pairs if value and _is_secret(name, value)]


def _pairs(query: str) -> list[tuple[str, str]]:
    """As they are written."""
    return [
        (unquote_plus(name), value) for one in query.split("&") for name, sign, value in [one.partition("=")] if sign
    ]


def _is_secret(name: str, value: str) -> bool:
    plain = name.lower().replace("_", "").replace("-", "").strip()
    if plain in _NO_SECRET:
        return False
    if plain in _ALONE or any(word in plain for word in _SECRET):
        return True
    inner = unquote_plus(value).replace(";", "&")
    return "=" in inner and any(_is_secret(one, "") and bool(what) for one, what in parse_qsl(inner))


def _hidden(query: str) -> str:
    shown: list[str] = []
    hiding = False
    for name, sign, value in (one.partition("=") for one in query.split("&")):
        hiding = _is_secret(unquote_plus(name), value) if sign else hiding  # what has no name belongs to what is before
        if sign or not hiding:
            shown.append(f"{name}={HIDDEN}" if hiding and value else name + sign + value)
    return "&".join(shown)


def _hidden_fragment(fragment: str) -> str:
    path, sign, query = fragment.partition("?")
    return f"{path}?{_hidden(query)}" if sign else _hidden(fragment)
