"""The one place that holds the version; imports nothing, so that packaging can read it without torch."""

__version__ = "0.2.0"
