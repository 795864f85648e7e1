"""Refuses models that other users can replace."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vision.config.load import SPEC_NAME
from vision.errors import ModelError
from vision.state.private_files import Untrusted, require_private_file, require_private_folder


@cache
def require_trusted_model(folder: Path, file: Path) -> None:
    """Check that other users cannot replace a model folder, its model.yaml, or its `file`.

    Accept what cannot be examined, for example because the file is missing. The detector reports such errors.

    Raises:
        ModelError: other users can replace one of them.
    """
    try:
        require_private_folder(folder, content="models", shared=True)
        for path in (folder / SPEC_NAME, file):
            if path.exists():  # a model can be an ONNX file alone
                require_private_file(path, shared=True)
    except Untrusted as error:
        raise ModelError(
            f"other users can replace the model: {error.args[0]}", hint=error.hint, code="model-untrusted"
        ) from error
    except OSError:  # the detector reports a file that is missing
        pass
