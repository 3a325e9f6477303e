"""The exit statuses of the commands."""

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
