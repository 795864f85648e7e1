"""The `page:` section: a web page with live views, events, and counts."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, Field

from vision.config.fields import ConfigSection, HttpAddress
from vision.config.wording import InvalidValue

_HOST: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*", re.IGNORECASE)


def _check_host(name: str) -> str:
    if not _HOST.fullmatch(name):
        raise InvalidValue("host", "the name of a host, such as cameras.example.com", "without a scheme and a port")
    return name


HostName: TypeAlias = Annotated[str, AfterValidator(_check_host), Field(title="the name of a host")]


class PageConfig(ConfigSection):
    """A web page with live views, events, and counts."""

    bind: HttpAddress = "127.0.0.1:8080"
    """Address and port; an address that other machines can reach needs `token`."""
    token: str | None = Field(
        default=None, min_length=16, repr=False, title="${NAME}, an environment variable with at least 16 characters"
    )
    """Token with which a person logs in, from the environment: ${NAME}; not needed if absent."""
    hosts: tuple[HostName, ...] = Field(default=(), max_length=100)
    """Names in the address of the page, such as that of a reverse proxy; the name of this machine, localhost, and IP
    addresses are always valid."""
    edit: bool = True
    """Permit changes of lines, zones, and masks on the page."""
