"""Expected texts about pipelines."""

from vision.errors import ConfigError
from vision.pipelines import load_pipeline


def _error(name: str) -> str:
    try:
        load_pipeline(name)
    except ConfigError as error:
        return str(error)
    return ""


ROWS = [
    (
        "an unknown pipeline",
        lambda: _error("cout"),
        "pipeline: expected one of count, detect, track or a file that ends in .py, got 'cout'",
    ),
    ("a pipeline file that is missing", lambda: _error("mine.py"), "pipeline: no such file: mine.py"),
]
