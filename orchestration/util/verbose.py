"""`--verbose`: what the packages log, as lines on the standard error."""

import logging
import sys


class _CurrentStderr(logging.Handler):
    """Looks the stream up at each line: a live view puts another in its place, which writes above the display."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def log_to_stderr() -> None:
    """Show the INFO lines of `fsg` and `orchestration`, with their time."""
    handler = _CurrentStderr() if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(name)s: %(message)s", "%H:%M:%S"))
    for name in ("fsg", "orchestration"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
