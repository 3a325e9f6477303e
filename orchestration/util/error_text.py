"""What an exception says, on one line."""

import re


def first_line(error: BaseException) -> str:
    """The first line of an exception's text; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def first_sentences(error: BaseException, count: int = 3) -> str:
    """The first sentences of an exception's text on one line: torch goes on with advice and a trace."""
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z])", one_line(error))
    return " ".join(sentences[:count])


def one_line(error: BaseException) -> str:
    """The whole text of an exception, its line breaks as spaces."""
    return " ".join(str(error).split())
