"""Why a ledger cannot be held, written to or reached."""


class LockedError(Exception):
    """Another launch holds the lock of the experiment."""


class Unwritable(OSError):
    """The ledger cannot be written to: the disk is full, say, or read-only. Nothing that was written is harmed."""


class Unreachable(Unwritable):
    """The object store does not answer, or refuses. What cannot be read then is neither absent nor damaged."""
