"""What is wrong with a file."""


class DataError(ValueError):
    """A file that cannot be used; the message names it."""


class UnknownLabelError(DataError):
    """A label file with an id or a colour that is no class; the message says which, and where.

    Many of them say that the label format is wrong, rather than the files.
    """


class ClusterError(RuntimeError):
    """The machines that were to do the work cannot be reached, or do not see its files."""
