"""`Assets` contains the files that a browser loads.

The address of each file except the HTML files contains a hash of all files, so browsers can cache the file.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Final

from starlette.responses import HTMLResponse, PlainTextResponse, Response

_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HTML: Final = ".html"
_ASSETS: Final = "{{assets}}"  # in an HTML file: the address of the other files
_HEAD: Final = "{{head}}"  # in an HTML file: the content of head.html
_KEEP: Final = {"cache-control": "public, max-age=31536000, immutable"}


class Assets:
    """The files below `vision/outputs/page/static/`, kept in memory. `version` is a hash of their contents."""

    def __init__(self) -> None:
        folder = Path(str(resources.files("vision.outputs.page"))) / "static"
        served = {*_TYPES, _HTML}
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix in served]
        self._files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        digest = hashlib.sha256()
        for name, content in self._files.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        self.version = digest.hexdigest()[:16]

    def page(self, name: str) -> Response:
        """Return an HTML file as a response. The links in the file contain `version`."""
        text = self._files[name].decode().replace(_HEAD, self._files["head.html"].decode())
        return HTMLResponse(text.replace(_ASSETS, f"/static/{self.version}"))

    def file(self, version: str, name: str) -> Response:
        """Return a file as a response. If the file does not exist or `version` is outdated, the status is 404."""
        content, media_type = self._files.get(name), _TYPES.get(Path(name).suffix)
        if version != self.version or content is None or media_type is None:
            return PlainTextResponse("not found\n", 404)
        return Response(content, media_type=media_type, headers=_KEEP)
