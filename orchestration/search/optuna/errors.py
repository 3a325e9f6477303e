"""Why a search cannot start or cannot go on."""


class SearchError(Exception):
    """What keeps a search from starting or from going on, in one line."""
