"""Warns about models that other users can replace."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from vision.config.load import SPEC_NAME
from vision.state.private_files import Untrusted, require_private_file, require_private_folder

log = logging.getLogger(__name__)


@cache
def warn_if_replaceable(folder: Path, file: Path) -> None:
    """Log a warning, once per model, if other users can replace a model folder, its model.yaml, or its `file`.

    Log nothing if these cannot be examined, for example because the file is missing. The detector reports such errors.
    """
    try:
        require_private_folder(folder, content="models")
        for path in (folder / SPEC_NAME, file):
            if path.exists():  # a model can be an ONNX file alone
                require_private_file(path)
    except Untrusted as error:
        log.warning("other users can replace the model: %s; %s", error.args[0], error.hint)
    except OSError:  # the detector reports a file that is missing
        pass
