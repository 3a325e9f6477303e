"""What a network can be built for."""


def refuse_unfit(network: str, shape: tuple[int, int, int], classes: int, smallest: int = 1) -> None:
    """Raises ValueError for images without a channel or smaller than `smallest`, and for less than two classes."""
    channels, height, width = shape
    if channels < 1 or min(height, width) < smallest:
        size = f"{channels}x{height}x{width}"
        raise ValueError(f"{network}: images of {size}, expected at least 1x{smallest}x{smallest}")
    if classes < 2:
        raise ValueError(f"{network}: classes is {classes}, expected ≥ 2")
