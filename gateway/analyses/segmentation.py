"""Protocol `segmentation`."""


class Segmentation:
    """The slide half of `segmentation`."""
