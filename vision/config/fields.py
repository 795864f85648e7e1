"""The base class of every mapping in camera.yaml and model.yaml, and the types of values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from vision.config.source_address import SOURCE_FORMS, is_ip_address, is_port, parse_source
from vision.config.wording import UNPRINTABLE, InvalidValue, Loc, did_you_mean, dotted

IDENTIFIER: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
IDENTIFIER_TITLE: Final = "a name of at most 64 letters, digits, '-' and '_' that starts with a letter or digit"
INCONSISTENT: Final = "inconsistent"
"""Type of the error for values that conflict with each other (`vision.config.checks`)."""

_BIND_FORMS: Final = "tcp://ADDRESS:PORT or ipc:///PATH"
_HTTP_FORMS: Final = "ADDRESS:PORT"
_MODEL_FORMS: Final = "the name of a model, or the path of a folder that contains model.yaml or of an ONNX file"
_CLASSIFIER_FORMS: Final = "the name of a model, or the path of a folder that contains model.yaml"
_FOLDER_FORMS: Final = "the path of a folder"
_TLS_FORMS: Final = "verify, accept-any, or the path of a .pem or .crt file"

VERIFY: Final = "verify"
ACCEPT_ANY: Final = "accept-any"
_PEM_SUFFIXES: Final = (".pem", ".crt", ".cer")

_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_IPC_PATH_BYTES: Final = 107  # sun_path in unix(7) of Linux, without the final NUL


class ConfigSection(BaseModel):
    """Base class of a mapping in a file. Instances are immutable and have no unknown keys.

    Validation accesses no file, device, or host. Errors never show a value, because the value can be a secret. Defaults
    that are sections are made with `model_construct`, because a constructor would build a validator at the import.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
        defer_build=True,  # worker processes validate nothing, so they never build the validators
    )


class Conflict(NamedTuple):
    """A conflict between values that are valid separately: its location, error code, and message."""

    loc: Loc
    code: str
    message: str

    def below(self, *base: int | str) -> Conflict:
        """Return the conflict with the keys and indices `base` before its location, to make the location complete."""
        return self._replace(loc=(*base, *self.loc))


def free_of(conflicts: Callable[[Mapping[str, object]], Iterable[Conflict]]) -> Any:
    """Return a pydantic validator that raises an error of the type `INCONSISTENT` if a section has conflicts."""

    def check(section: ConfigSection) -> ConfigSection:
        texts = [f"{dotted(loc)}: {text}" for loc, _, text in conflicts(section.model_dump(exclude_unset=True))]
        if texts:
            raise PydanticCustomError(INCONSISTENT, "{text}", {"text": "; ".join(texts)})
        return section

    return model_validator(mode="after")(check)


def parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Return a pydantic validator that accepts a text if `parse` raises no error."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


# --- validators, which return their argument or raise `InvalidValue` -------------------------------------------------


def unique_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or not all(names) or len(set(names)) < len(names):
        raise InvalidValue("names", "a list of at least 1 name, without empty or repeated names")
    return names


def check_bind(bind: str) -> str:
    """Return `bind` if it is an address that ZeroMQ can bind to; otherwise, raise `InvalidValue`."""
    if bind.startswith("ipc://"):
        return _check_ipc(bind)
    if not bind.startswith("tcp://"):
        raise InvalidValue("bind-form", _BIND_FORMS, "such as tcp://127.0.0.1:5555")
    host, colon, port = bind[len("tcp://") :].rpartition(":")
    if not colon or not (port in ("*", "0") or is_port(port)):
        raise InvalidValue("port", "tcp://ADDRESS:PORT with a port from 1 to 65535, or * for any free port")
    if host != "*" and not is_ip_address(host) and (host == "localhost" or not _INTERFACE.fullmatch(host)):
        advice = "did you mean '127.0.0.1'?" if host == "localhost" else ""
        raise InvalidValue("host", "an address of this machine, an interface such as eth0, or * for all", advice)
    return bind


def check_http_bind(bind: str) -> str:
    """Return `bind` if it is ``ADDRESS:PORT``; otherwise, raise `InvalidValue`."""
    if "://" in bind:
        raise InvalidValue("bind-form", _HTTP_FORMS, "without a scheme")
    check_bind(f"tcp://{bind}")
    return bind


def _check_ipc(bind: str) -> str:
    path = bind[len("ipc://") :]
    if not path.startswith(("/", "@")) or len(path) < 2 or UNPRINTABLE.search(path):
        raise InvalidValue("ipc-path", "ipc:// and a whole path, such as ipc:///run/vision/node.sock")
    if len(path.encode()) > _IPC_PATH_BYTES:
        raise InvalidValue("ipc-path-length", f"ipc:// and a path of at most {_IPC_PATH_BYTES} bytes")
    return bind


def check_model_name(name: str) -> str:
    if not name or UNPRINTABLE.search(name) or "://" in name or name.startswith("~"):
        raise InvalidValue("model-name", _MODEL_FORMS)
    return name


def check_folder(name: str) -> str:
    if not name or UNPRINTABLE.search(name) or "://" in name:
        raise InvalidValue("folder", _FOLDER_FORMS)
    if name.startswith("~"):
        raise InvalidValue("home", "the whole path", "'~' works only in a shell")
    return name


def check_tls(policy: str) -> str:
    if not policy or UNPRINTABLE.search(policy) or "://" in policy:
        raise InvalidValue("tls", _TLS_FORMS)
    if policy not in (VERIFY, ACCEPT_ANY) and "/" not in policy and not policy.endswith(_PEM_SUFFIXES):
        raise InvalidValue("tls", _TLS_FORMS, did_you_mean(policy, (VERIFY, ACCEPT_ANY)))
    if policy.startswith("~"):
        raise InvalidValue("home", "the whole path", "'~' works in a shell only")
    return policy


# --- types ------------------------------------------------------------------------------------------------------------

Identifier = Annotated[str, Field(pattern=IDENTIFIER.pattern, title=IDENTIFIER_TITLE)]
"""Name, for example of a camera, line, or zone, that can be a part of topics and file names."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0)]
FramesPerSecond = Annotated[float, Field(gt=0, le=1000)]
Minute = Annotated[float, Field(gt=0, le=60)]
Hour = Annotated[float, Field(gt=0, le=3600)]
Day = Annotated[float, Field(gt=0, le=86_400)]
"""`Minute`, `Hour`, and `Day` are numbers of seconds above 0 and up to a minute, an hour, or a day."""

Threads = Annotated[int, Field(ge=1, le=256)]
Processes = Annotated[int, Field(ge=1, le=64)]
BatchSize = Annotated[int, Field(ge=1, le=256)]
Pixels = Annotated[int, Field(ge=16, le=16384)]
ClassNames: TypeAlias = Annotated[tuple[str, ...], AfterValidator(unique_names)]
Identifiers: TypeAlias = Annotated[tuple[Identifier, ...], AfterValidator(unique_names)]
Source = Annotated[str, parsed_by(parse_source), Field(title=SOURCE_FORMS)]
BindAddress = Annotated[str, AfterValidator(check_bind), Field(title=_BIND_FORMS)]
HttpAddress = Annotated[str, AfterValidator(check_http_bind), Field(title=_HTTP_FORMS)]
ModelName = Annotated[str, AfterValidator(check_model_name), Field(title=_MODEL_FORMS)]
ClassifierName = Annotated[str, AfterValidator(check_model_name), Field(title=_CLASSIFIER_FORMS)]
PipelineName = Annotated[
    str,
    Field(
        pattern=r"^(?:[a-z][a-z0-9_]{0,63}|[^~\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*\.py)$",
        title="the name of a pipeline, such as detect, or the path of a Python file (.py)",
    ),
]
TlsPolicy = Annotated[str, AfterValidator(check_tls), Field(title=_TLS_FORMS)]
FilePath = Annotated[
    str,
    Field(pattern=r"^[^~\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*\.json$", title="the path of a JSON file (.json)"),
]
FolderPath = Annotated[str, AfterValidator(check_folder), Field(title=_FOLDER_FORMS)]
LibraryName = Annotated[
    str,
    Field(
        pattern=r"^[^/\\\x00-\x1f\x7f-\x9f]+\.so(\.[0-9.]+)?$",
        title="the name of a .so file in the folder of model.yaml",
    ),
]
FileName = Annotated[
    str,
    Field(pattern=r"^[^/\\\x00-\x1f\x7f-\x9f]+\.onnx$", title="the name of an .onnx file in the folder of model.yaml"),
]
