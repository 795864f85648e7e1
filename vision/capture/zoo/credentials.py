"""HTTP authentication as cameras implement it: Basic, and Digest with and without `qop`."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Final

from vision.capture.zoo.persona import PASSWORD, USER, Auth

_FIELD: Final = re.compile(r'\b(username|nonce|uri|response|qop|nc|cnonce)="?([^",]*)')
_REALM: Final = "camera zoo"
_QUOTED_REALM: Final = r"the \"zoo\", east"
_NONCE_REQUESTS: Final = 2  # number of requests for which a nonce of `digest-stale` is valid


class Gate:
    """Check of the user and password that an HTTP or RTSP client sends. It also requests them from the client.

    All connections of a camera share one gate.
    """

    def __init__(self, auth: Auth | None) -> None:
        self._auth = auth
        self._nonce = secrets.token_hex(16)
        self._accepted = 0  # number of accepted requests with this nonce
        self._realm = _QUOTED_REALM if auth == "digest-quotes" else _REALM

    def challenges(self, method: str, headers: Mapping[str, str]) -> list[str]:
        """Return the values of the `WWW-Authenticate` headers for the response, or [] if the request is allowed.

        `method` is the method of the request. The names of `headers` must be in lower case.
        """
        if self._auth is None:
            return []
        given = headers.get("authorization", "")
        if self._is_valid(method, given):
            self._accepted += 1
            if self._auth != "digest-stale" or self._accepted <= _NONCE_REQUESTS:
                return []
            self._nonce, self._accepted = secrets.token_hex(16), 0
            return [f"{self._digest()}, stale=true"]
        if self._auth == "basic":
            return [f'Basic realm="{_REALM}"']
        if self._auth == "both":
            return [self._digest(), f'Basic realm="{_REALM}"']
        return [self._digest()]

    def _digest(self) -> str:
        text = f'Digest realm="{self._realm}", nonce="{self._nonce}"'
        if self._auth == "digest-sha256":
            return f"{text}, algorithm=SHA-256"
        return text if self._auth in ("digest-plain", "digest-quotes") else f'{text}, algorithm=MD5, qop="auth"'

    def _is_valid(self, method: str, given: str) -> bool:
        kind, _, rest = given.partition(" ")
        if kind.lower() == "basic":
            expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            return self._auth in ("basic", "both") and rest.strip() == expected
        if kind.lower() != "digest" or self._auth == "basic":
            return False
        fields = dict(_FIELD.findall(rest))
        return fields.get("nonce") == self._nonce and fields.get("response") in self._response(method, fields)

    def _response(self, method: str, fields: Mapping[str, str]) -> set[str]:
        """Return the valid Digest responses: with and without escapes in a quoted realm, because clients differ."""

        def digest(text: str) -> str:
            return hashlib.new("sha256" if self._auth == "digest-sha256" else "md5", text.encode()).hexdigest()

        if fields.get("username") != USER:
            return set()
        request = digest(f"{method}:{fields.get('uri')}")
        middle = [fields.get("nc", ""), fields.get("cnonce", ""), fields["qop"]] if "qop" in fields else []
        return {
            digest(":".join((digest(f"{USER}:{one}:{PASSWORD}"), self._nonce, *middle, request)))
            for one in (self._realm, self._realm.replace('\\"', '"'))
        }
