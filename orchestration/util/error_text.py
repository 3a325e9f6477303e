"""What an exception says, on one line."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException) -> str:
    """The whole text of an exception, its line breaks as spaces."""
    return " ".join(str(error).split())
