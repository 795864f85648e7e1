"""`PageSettings` contains the settings that the program passes to the process of the page."""

from __future__ import annotations

import msgspec

from vision.messaging.curve import KeyPair
from vision.outputs.page.live_scene import LiveSettings


class PageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the configuration that the page needs. It contains no address and no password of a camera.

    All paths are absolute.
    """

    address: str  # to which the process subscribes
    keys: tuple[str, str, str] | None = None  # public, secret, and server key for CURVE; None without encryption
    interval_s: float = 1.0  # time between two status messages
    token: str | None = None
    hosts: tuple[str, ...] = ()
    edit: bool = True
    class_names: tuple[str, ...] = ()  # published classes of the model
    config_file: str | None = None  # None if the configuration was built in Python
    state_dir: str | None = None
    recordings: str | None = None  # folder of the recordings
    snapshots: str | None = None  # folder of the snapshots
    archive: str | None = None  # folder of the archive
    live: LiveSettings = LiveSettings()

    @property
    def key_pair(self) -> KeyPair | None:
        """The keys with which the process subscribes, or None if messages are not encrypted."""
        return None if self.keys is None else KeyPair(*self.keys)
