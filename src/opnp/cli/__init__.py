"""The command line: arguments in, exit code out."""

from opnp.cli.app import app, main

__all__ = ["app", "main"]
