"""Run the command line: `python -m vision`."""

from vision.cli.main import entry

entry()
