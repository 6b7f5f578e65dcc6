"""What is wrong with a file, an output folder or a cluster."""


class DataError(ValueError):
    """A file that cannot be used; the message names it."""


class UnknownLabelError(DataError):
    """A label file with an id or a colour that is no class; the message says which, and where.

    Many of them say that the label format is wrong, rather than the files.
    """


class ClusterError(RuntimeError):
    """The machines that were to do the work cannot be reached, or do not see its files."""


class OutputError(Exception):
    """The folder for a shrunk data set cannot be used, or a file of it cannot be written."""
