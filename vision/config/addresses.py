"""Validators of the publisher's addresses, and of the names and paths of files. They read nothing but the text."""

from __future__ import annotations

import re
from typing import Final

from vision.config.source_address import is_ip_address, is_port
from vision.config.wording import InvalidValue

BIND_FORMS: Final = "tcp://ADDRESS:PORT or ipc:///PATH"
MODEL_FORMS: Final = "the name of a model, or the path of a folder that contains model.yaml"
PIPELINE_FORMS: Final = "the name of a pipeline, such as detect, or the path of a Python file (.py)"
FOLDER_FORMS: Final = "the path of a folder"
FILE_FORMS: Final = "the name of an .onnx file in the folder of model.yaml"

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f]")
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_IPC_PATH_BYTES: Final = 107  # sun_path of Linux's unix(7), less its closing NUL


def check_bind(bind: str) -> str:
    """Return `bind` if it is a ZeroMQ address to bind to.

    Raises:
        InvalidValue: not tcp://ADDRESS:PORT or ipc:///PATH.
    """
    if bind.startswith("ipc://"):
        _check_ipc(bind[len("ipc://") :])
        return bind
    if not bind.startswith("tcp://"):
        raise InvalidValue(BIND_FORMS, advice="such as tcp://127.0.0.1:5555")
    host, colon, port = bind[len("tcp://") :].rpartition(":")
    if not colon or not (port in ("*", "0") or is_port(port)):
        raise InvalidValue("tcp://ADDRESS:PORT with a port from 1 to 65535, or * for any that is free")
    if host == "localhost":
        raise InvalidValue(
            "an address of this machine, an interface such as eth0, or *", advice="did you mean '127.0.0.1'?"
        )
    if host != "*" and not is_ip_address(host) and not _INTERFACE.fullmatch(host):
        raise InvalidValue("an address of this machine, an interface such as eth0, or * for all of them")
    return bind


def _check_ipc(path: str) -> None:
    if not path.startswith(("/", "@")) or len(path) < 2 or _UNPRINTABLE.search(path):
        raise InvalidValue("ipc:// and a whole path, such as ipc:///run/vision/node.sock")
    if len(path.encode()) > _IPC_PATH_BYTES:
        raise InvalidValue(f"ipc:// and a path of at most {_IPC_PATH_BYTES} bytes")


def check_model_name(name: str) -> str:
    """Return `name` if it is the name of a model or the path of a folder.

    Raises:
        InvalidValue: empty, unprintable, or an address.
    """
    if not name or _UNPRINTABLE.search(name) or "://" in name or name.startswith("~"):
        raise InvalidValue(MODEL_FORMS)
    return name


def check_pipeline(name: str) -> str:
    """Return `name` if it is the name of a pipeline or the path of a Python file.

    Raises:
        InvalidValue: neither of them.
    """
    is_path = name.endswith(".py") and not _UNPRINTABLE.search(name) and not name.startswith("~")
    if not is_path and not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise InvalidValue(PIPELINE_FORMS)
    return name


def check_folder(name: str) -> str:
    """Return `name` if it is the path of a folder to write to.

    Raises:
        InvalidValue: empty, unprintable, an address, or with the shell's ``~``.
    """
    if not name or _UNPRINTABLE.search(name) or "://" in name:
        raise InvalidValue(FOLDER_FORMS)
    if name.startswith("~"):
        raise InvalidValue("the whole path", advice="'~' works in a shell only")
    return name


def check_file_name(name: str) -> str:
    """Return `name` if it is the name of an ONNX file in the folder of model.yaml.

    Raises:
        InvalidValue: it stands elsewhere, or is no ONNX file by its name.
    """
    if "/" in name or "\\" in name or _UNPRINTABLE.search(name) or not name.endswith(".onnx") or name == ".onnx":
        raise InvalidValue(FILE_FORMS)
    return name
