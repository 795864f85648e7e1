"""`require_trusted_model`, which refuses a model that other users can replace."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from vision.config.load import SPEC_NAME
from vision.errors import ModelError
from vision.state.private_files import Untrusted, require_private_file, require_private_folder

_WITHOUT_PERMISSIONS: Final = (
    "If the file system stores no permissions, such as vfat or a drive of Windows, copy the model to a different one, "
    "or mount it with umask=022"
)


@cache
def require_trusted_model(folder: Path, file: Path) -> None:
    """Check that other users cannot replace a model folder, its model.yaml, or its `file`.

    Accept files that cannot be examined, for example because they are missing. The detector reports such errors.

    Raises:
        ModelError: other users can replace the folder, model.yaml, or `file`.
    """
    try:
        require_private_folder(folder, content="models", shared=True)
        for path in (folder / SPEC_NAME, file):
            if path.exists():  # a model can be an ONNX file alone
                require_private_file(path, shared=True)
    except Untrusted as error:
        hint = f"{error.hint}. {_WITHOUT_PERMISSIONS}"
        raise ModelError(
            f"other users can replace the model: {error.args[0]}", hint=hint, code="model-untrusted"
        ) from error
    except OSError:  # the detector reports a file that is missing
        pass
