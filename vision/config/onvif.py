"""The `onvif:` section: results as ONVIF metadata over RTSP."""

from __future__ import annotations

from pydantic import Field

from vision.config.fields import ConfigSection, HttpAddress


class OnvifConfig(ConfigSection):
    """An RTSP server with the objects, events, and counts of each camera as ONVIF metadata, without video."""

    bind: HttpAddress = "127.0.0.1:8554"
    """Address and port; an address that other machines can reach needs `user` and `password`."""
    user: str | None = Field(
        default=None, min_length=1, pattern=r'^[^"\\\x00-\x1f\x7f]+$', title="a name without quotes"
    )
    """User that clients must have; none is required if absent."""
    password: str | None = Field(
        default=None, min_length=8, repr=False, title="${NAME}, an environment variable with at least 8 characters"
    )
    """Password of the user, from the environment: ${NAME}."""
