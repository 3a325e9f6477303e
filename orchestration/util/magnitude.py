"""Counts and sizes as people read them."""

_PREFIXES = ("", "k", "M", "G", "T", "P")


def magnitude(count: float, unit: str = "", step: int = 1000) -> str:
    """`81.6 M`, of 81626368: three digits and a prefix."""
    power = 0
    while abs(count) >= 999.5 and power < len(_PREFIXES) - 1:
        count, power = count / step, power + 1
    number = f"{count:.3g}" if power else f"{count:.0f}"
    return f"{number}\u00a0{_PREFIXES[power]}{unit}".rstrip("\u00a0")
