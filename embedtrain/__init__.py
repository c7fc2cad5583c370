"""Train embedding models by contrast."""

__version__ = "0.1.0"
