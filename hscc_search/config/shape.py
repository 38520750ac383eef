"""The shape of one image as a network takes it."""

# Channels, height and width.
Shape = tuple[int, ...]


def shape_of(image: int | Shape) -> Shape:
    """The shape of one image: as it is given, or (3, side, side) of a square RGB image whose side is given."""
    return (3, image, image) if isinstance(image, int) else image
