"""The version of both packages, in its one place."""

__version__ = "0.1.0"
