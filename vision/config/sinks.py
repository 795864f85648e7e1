"""The `sinks:` section: brokers and servers that receive the messages of the program."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from vision.config.fields import VERIFY, ConfigSection, Conflict, Hour, Identifier, Identifiers, check_tls, free_of
from vision.config.rules import duration_s
from vision.config.wording import UNPRINTABLE, InvalidValue, one_of

Protocol: TypeAlias = Literal["mqtt", "kafka", "redis", "nats", "webhook"]
MessageKind: TypeAlias = Literal["events", "objects", "counts", "status", "detections"]

_SCHEMES: Final[Mapping[str, tuple[Protocol, bool, int]]] = {
    "mqtt": ("mqtt", False, 1883),
    "mqtts": ("mqtt", True, 8883),
    "kafka": ("kafka", False, 9092),
    "kafkas": ("kafka", True, 9093),
    "redis": ("redis", False, 6379),
    "rediss": ("redis", True, 6379),
    "nats": ("nats", False, 4222),
    "natss": ("nats", True, 4222),
    "http": ("webhook", False, 80),
    "https": ("webhook", True, 443),
}
"""The protocol of each scheme, whether it uses TLS, and the default port."""

_FORMS: Final = "an address such as mqtt://HOST:PORT, with mqtt, kafka, redis, nats, or http, or with TLS"
_PREFIX_FORMS: Final = "names of letters, digits, '-' and '_', separated by /, such as vision/station-7"
_TLS_FORMS: Final = "verify, or the path of a .pem or .crt file"
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class SinkAddress:
    """The parts of a sink's address: protocol, TLS, hosts, and path."""

    protocol: Protocol
    tls: bool
    hosts: tuple[tuple[str, int], ...]  # pairs of host and port; only Kafka can have several
    path: str  # path and query of a webhook, or the number of a Redis database

    @property
    def servers(self) -> str:
        """The hosts and ports as text, separated by commas."""
        return ",".join(f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.hosts)


def parse_sink_address(text: str) -> SinkAddress:
    """Parse the address of a sink. Raise `InvalidValue` if it is invalid."""
    scheme, mark, rest = text.partition("://")
    known = _SCHEMES.get(scheme.lower())
    if known is None or not mark or UNPRINTABLE.search(text) or " " in text:
        raise InvalidValue("sink-address", _FORMS, f"the schemes are {one_of(list(_SCHEMES))}")
    protocol, tls, default_port = known
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    if "@" in authority:
        raise InvalidValue("sink-account", "an address without an account", "write `user` and `password` as keys")
    hosts = tuple(_host(part, default_port) for part in authority.split(","))
    if len(hosts) > 1 and protocol != "kafka":
        raise InvalidValue("sink-hosts", "one host", "only kafka:// has several")
    if protocol == "redis":
        path = path.removeprefix("/") or "0"
        if not re.fullmatch("[0-9]{1,4}", path):
            raise InvalidValue("sink-path", "redis://HOST:PORT/NUMBER, with the number of a database")
    elif protocol != "webhook" and path.strip("/"):
        raise InvalidValue("sink-path", f"{scheme}://HOST:PORT without a path")
    return SinkAddress(protocol, tls, hosts, path)


def _host(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port or default_port
    except ValueError as error:
        raise InvalidValue("sink-port", "HOST:PORT with a port from 1 to 65535") from error
    host = text[: len(text) - len(str(parts.port)) - 1] if parts.port is not None else text.removesuffix(":")
    if not _HOST.fullmatch(host):
        raise InvalidValue("sink-host", "the name or the IP address of a host")
    return host.strip("[]"), port


def _check_address(text: str) -> str:
    parse_sink_address(text)
    return text


def _check_prefix(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix):
        raise InvalidValue("sink-prefix", _PREFIX_FORMS)
    return prefix


def _check_policy(policy: str) -> str:
    if policy == "accept-any":
        raise InvalidValue("tls", _TLS_FORMS, "certificates of sinks are always checked")
    return check_tls(policy)


def _check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if not kinds or len(set(kinds)) < len(kinds):
        raise InvalidValue("names", "a list of at least 1 kind, without repeated kinds")
    return kinds


def _check_age(text: str) -> str:
    duration_s(text)
    return text


_ONLY: Final[Mapping[str, tuple[tuple[Protocol, ...], str]]] = {
    "secret": (("webhook",), "http:// and https:// addresses"),
    "home_assistant": (("mqtt",), "mqtt:// and mqtts:// addresses"),
    "prefix": (("mqtt", "kafka", "redis", "nats"), "brokers, not on webhooks"),
    "user": (("mqtt", "kafka", "redis", "nats"), "brokers, not on webhooks"),
    "password": (("mqtt", "kafka", "redis", "nats"), "brokers, not on webhooks"),
}
"""For each key that not all protocols have, the protocols that have it, and the text that names their addresses."""


def sink_conflicts(sink: Mapping[str, object]) -> Iterator[Conflict]:
    """Yield the conflicts between the values of one sink."""
    try:
        target = parse_sink_address(str(sink.get("address")))
    except InvalidValue:
        return
    for key, (protocols, text) in _ONLY.items():
        if sink.get(key) not in (None, False) and target.protocol not in protocols:
            yield Conflict((key,), "no-effect", f"has no effect on this address, only on {text}")
    if sink.get("tls") not in (None, VERIFY) and not target.tls:
        yield Conflict(("tls",), "no-effect", "has no effect without TLS; expected a scheme such as mqtts")
    if sink.get("user") is not None and sink.get("password") is None:
        yield Conflict(("user",), "given-alone", "expected password too")
    needs_user = target.protocol != "redis"  # which has passwords without users
    if sink.get("password") is not None and sink.get("user") is None and needs_user:
        yield Conflict(("password",), "given-alone", "expected user too")


class SinkConfig(ConfigSection):
    """A broker or server that receives messages."""

    name: Identifier
    """Name of the sink in the status, in logs, and in the name of its spool."""
    address: Annotated[str, AfterValidator(_check_address)] = Field(title=_FORMS)
    """Address; the scheme chooses the protocol: mqtt, kafka, redis, nats, or http for a webhook; with TLS: mqtts,
    kafkas, rediss, natss, or https."""
    user: str | None = Field(default=None, min_length=1)
    """User name, as plain text."""
    password: str | None = Field(
        default=None, min_length=1, repr=False, title="${NAME}, an environment variable that holds the password"
    )
    """Password, from the environment: ${NAME}."""
    secret: str | None = Field(
        default=None, min_length=16, repr=False, title="${NAME}, an environment variable with at least 16 characters"
    )
    """Key of the signature of a webhook's requests, from the environment: ${NAME}; not signed if absent."""
    tls: Annotated[str, AfterValidator(_check_policy)] = Field(default=VERIFY, title=_TLS_FORMS)
    """Certificates to trust; verify: those of the system's authorities; or a PEM file, relative to this file."""
    messages: Annotated[tuple[MessageKind, ...], AfterValidator(_check_kinds)] = (
        "events",
        "objects",
        "counts",
        "status",
    )
    """Kinds of messages to send."""
    cameras: Identifiers | None = None
    """Ids of the cameras whose messages are sent; all cameras if absent."""
    interval_s: Hour = 10.0
    """Minimum time in seconds between two messages of one topic of counts, status, or detections."""
    prefix: Annotated[str, AfterValidator(_check_prefix)] | None = Field(default=None, title=_PREFIX_FORMS)
    """First part of the names of topics, streams, and subjects; vision/NODE if absent."""
    home_assistant: bool = False
    """Announce cameras, lines, and zones to Home Assistant; only for mqtt."""
    spool_mb: int = Field(default=100, ge=1, le=100_000)
    """Maximum size in megabytes of the messages that wait on disk while the sink cannot be reached."""
    spool_age: Annotated[str, AfterValidator(_check_age)] = Field(
        default="7d", title="a duration such as 500ms, 10s, 5m, 2h or 1d"
    )
    """Maximum age of the messages that wait on disk; the time during which the program does not run does not count."""

    _consistent = free_of(sink_conflicts)

    @property
    def target(self) -> SinkAddress:
        """The parts of the sink's address."""
        return parse_sink_address(self.address)

    @property
    def spool_age_s(self) -> float:
        """The value of `spool_age` in seconds."""
        return duration_s(self.spool_age)


Sinks: TypeAlias = Annotated[tuple[SinkConfig, ...], Field(max_length=16)]


def sinks_conflicts(config: Mapping[str, object]) -> Iterator[Conflict]:
    """Yield the conflicts within each sink, and the conflicts of sinks with other sections of a camera.yaml."""
    sinks = config.get("sinks")
    cameras = config.get("cameras")
    ids = {str(each.get("id")) for each in cameras if isinstance(each, Mapping)} if isinstance(cameras, tuple) else None
    for index, sink in enumerate(sinks if isinstance(sinks, tuple) else ()):
        if not isinstance(sink, Mapping):
            continue
        loc = ("sinks", index)
        yield from (conflict.below(*loc) for conflict in sink_conflicts(sink))
        chosen = sink.get("cameras")
        for number, name in enumerate(chosen if isinstance(chosen, tuple) and ids is not None else ()):
            if isinstance(name, str) and name not in (ids or ()):
                yield Conflict((*loc, "cameras", number), "unknown-camera", "no camera has this id")
        kinds = sink.get("messages")
        if isinstance(kinds, tuple) and "objects" in kinds and config.get("objects") is None:
            text = "expected the section `objects` too, which publishes these messages"
            yield Conflict((*loc, "messages", kinds.index("objects")), "needs-objects", text)
    if sinks and config.get("state_dir") is None:
        yield Conflict(("sinks",), "needs-state-dir", "expected state_dir too, the folder in which messages wait")
