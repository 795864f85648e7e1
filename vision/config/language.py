"""The section `language:` of camera.yaml, and the types that it shares with `verify:` and `describe:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from vision.config.fields import ConfigSection
from vision.config.source_address import is_port
from vision.config.wording import UNPRINTABLE, InvalidValue, one_of

_URL_FORMS: Final = "the base URL of the server, such as http://127.0.0.1:8000/v1"
_KEYS_OF_REQUESTS: Final = ("messages", "model", "n", "stream")


def check_server_url(url: str) -> str:
    """Return `url` if it is an HTTP URL without an account, a query, or a fragment; else, raise `InvalidValue`."""
    if UNPRINTABLE.search(url) or " " in url:
        raise InvalidValue("server-url", _URL_FORMS)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidValue("server-url", _URL_FORMS) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or (port is not None and not is_port(str(port))):
        raise InvalidValue("server-url", _URL_FORMS)
    if parts.username is not None or parts.password is not None:
        raise InvalidValue("server-account", "a URL without an account", "write the key as `api_key: ${NAME}`")
    if parts.query or parts.fragment:
        raise InvalidValue("server-url", f"{_URL_FORMS}, without a query")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InvalidValue("server-url", _URL_FORMS, "without /chat/completions")
    return url


def check_extra_body(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `body` if it has no keys that the program sets itself; else, raise `InvalidValue`."""
    if any(key in body for key in _KEYS_OF_REQUESTS):
        raise InvalidValue("extra-body", f"keys other than {one_of(_KEYS_OF_REQUESTS)}")
    return body


ServerUrl = Annotated[str, AfterValidator(check_server_url), Field(title=_URL_FORMS)]


class LanguageServer(ConfigSection):
    """A server of a language model, with the API of OpenAI's chat completions."""

    url: ServerUrl = Field(examples=["http://127.0.0.1:8000/v1"])
    """Base URL of the API, usually with /v1 at the end."""
    model: str | None = Field(default=None, min_length=1)
    """Name of the model; the first model of the server if absent."""
    api_key: str | None = Field(
        default=None, min_length=1, repr=False, title="${NAME}, an environment variable that holds the key"
    )
    """Key of the server, from the environment: ${NAME}; not sent if absent."""
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Maximum time in seconds for one answer, including the connection."""
    parallel: int = Field(default=1, ge=1, le=64)
    """Maximum number of requests at the same time."""
    max_image_px: int = Field(default=768, ge=64, le=8192)
    """Maximum length in pixels of the longer side of an image; larger images are scaled down."""
    extra_body: Annotated[Mapping[str, Any], AfterValidator(check_extra_body)] = Field(default_factory=dict)
    """Additional keys of each request, such as options of the server; null removes a key that the program sends."""
