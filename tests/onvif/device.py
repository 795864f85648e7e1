"""ONVIF device for tests: web services over HTTP, and responses to WS-Discovery."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal
from xml.etree.ElementTree import Element, fromstring
from xml.sax.saxutils import escape

GROUP: Final = "239.255.255.250"
DISCOVERY_PORT: Final = 3702
SOAP: Final = "http://www.w3.org/2003/05/soap-envelope"
_WSSE: Final = "{http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd}"
_CREATED: Final = "{http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd}Created"
_NAMES: Final = (
    f'xmlns:s="{SOAP}" xmlns:tds="http://www.onvif.org/ver10/device/wsdl" '
    'xmlns:trt="http://www.onvif.org/ver10/media/wsdl" xmlns:tr2="http://www.onvif.org/ver20/media/wsdl" '
    'xmlns:tt="http://www.onvif.org/ver10/schema" xmlns:ter="http://www.onvif.org/ver10/error"'
)
_ALLOWED_AGE: Final = timedelta(seconds=30)  # of a timestamp

Stream = tuple[str, str, int, int, int, str]
"""Token, codec, width, height, frame rate, and token of the video source."""

STREAMS: Final[tuple[Stream, ...]] = (
    ("main", "H264", 1920, 1080, 25, "sensor"),
    ("sub", "H264", 640, 360, 15, "sensor"),
    ("tiny", "H264", 320, 180, 10, "sensor"),
)


@dataclass
class OnvifDevice:
    """State of one device. Tests change the state before they start the device with `serving`."""

    user: str = "viewer"
    password: str = "gate-secret-1"
    auth: Literal["token", "http-digest", "none"] = "token"
    clock_offset: timedelta = timedelta()
    streams: Sequence[Stream] = STREAMS
    has_media_2: bool = True
    has_services: bool = True
    """False means that the device has GetCapabilities only."""
    service_host: str | None = None
    """Host of the media services in the device's answers; None means the host of the device."""
    stream_address: str = "rtsp://{host}:554/{token}"
    requests: list[str] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    """All received data, in which tests search for passwords."""
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}/onvif/device_service"

    def answer(self, request: Element) -> tuple[int, str]:
        """Return the HTTP status and the response to a SOAP request."""
        operation = request.find(f"{{{SOAP}}}Body/*")
        assert operation is not None
        namespace, name = operation.tag[1:].split("}")
        self.requests.append(name)
        if self.auth == "token" and name != "GetSystemDateAndTime" and not self._has_token(request):
            return 400, fault("ter:NotAuthorized", "Sender not authorized")
        token = next((each.text or "" for each in operation.iter(f"{{{namespace}}}ProfileToken")), "")
        content = self._content(name, namespace, token)
        if content is None:
            return 500, fault("ter:ActionNotSupported", f"{name} is not supported")
        return 200, envelope(content)

    def _has_token(self, request: Element) -> bool:
        token = request.find(f"{{{SOAP}}}Header/{_WSSE}Security/{_WSSE}UsernameToken")
        if token is None:
            return False
        nonce = base64.b64decode(token.findtext(f"{_WSSE}Nonce", ""))
        created = token.findtext(_CREATED, "")
        expected = base64.b64encode(hashlib.sha1(nonce + created.encode() + self.password.encode()).digest()).decode()
        when = datetime.fromisoformat(created.replace("Z", "+00:00"))
        return (
            token.findtext(f"{_WSSE}Username") == self.user
            and token.findtext(f"{_WSSE}Password") == expected
            and abs(when - self.now()) < _ALLOWED_AGE
        )

    def now(self) -> datetime:
        """Return the current time of the device's clock."""
        return datetime.now(timezone.utc) + self.clock_offset

    def _content(self, name: str, namespace: str, token: str) -> str | None:
        is_media_2 = "ver20" in namespace
        content: dict[str, Callable[[], str | None]] = {
            "GetSystemDateAndTime": self._time,
            "GetDeviceInformation": self._information,
            "GetServices": self._services,
            "GetCapabilities": self._capabilities,
            "GetProfiles": self._profiles_2 if is_media_2 else self._profiles,
            "GetStreamUri": lambda: self._stream_uri(token, is_media_2=is_media_2),
        }
        return content[name]() if name in content else None

    def _information(self) -> str:
        return (
            "<tds:GetDeviceInformationResponse><tds:Manufacturer>Vista</tds:Manufacturer><tds:Model>V-8</tds:Model>"
            "<tds:FirmwareVersion>1.2.3</tds:FirmwareVersion><tds:SerialNumber>0042</tds:SerialNumber>"
            "<tds:HardwareId>a</tds:HardwareId></tds:GetDeviceInformationResponse>"
        )

    def _capabilities(self) -> str:
        media = f"<tt:Media><tt:XAddr>{self._service('media')}</tt:XAddr><tt:StreamingCapabilities/></tt:Media>"
        content = f"<tds:Capabilities>{media}</tds:Capabilities>"
        return f"<tds:GetCapabilitiesResponse>{content}</tds:GetCapabilitiesResponse>"

    def _stream_uri(self, token: str, *, is_media_2: bool) -> str:
        uri = escape(self.stream_address.format(host=self.host, token=token))
        if is_media_2:
            return f"<tr2:GetStreamUriResponse><tr2:Uri>{uri}</tr2:Uri></tr2:GetStreamUriResponse>"
        return (
            f"<trt:GetStreamUriResponse><trt:MediaUri><tt:Uri>{uri}</tt:Uri>"
            "<tt:InvalidAfterConnect>false</tt:InvalidAfterConnect>"
            "<tt:InvalidAfterReboot>false</tt:InvalidAfterReboot><tt:Timeout>PT0S</tt:Timeout>"
            "</trt:MediaUri></trt:GetStreamUriResponse>"
        )

    def _service(self, name: str) -> str:
        return f"http://{self.service_host or self.host}:{self.port}/onvif/{name}"

    def _time(self) -> str:
        now = self.now()
        return (
            "<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:DateTimeType>NTP</tt:DateTimeType>"
            "<tt:DaylightSavings>false</tt:DaylightSavings><tt:UTCDateTime>"
            f"<tt:Time><tt:Hour>{now.hour}</tt:Hour><tt:Minute>{now.minute}</tt:Minute><tt:Second>{now.second}</tt:Second>"
            f"</tt:Time><tt:Date><tt:Year>{now.year}</tt:Year><tt:Month>{now.month}</tt:Month><tt:Day>{now.day}</tt:Day>"
            "</tt:Date></tt:UTCDateTime></tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>"
        )

    def _services(self) -> str | None:
        if not self.has_services:
            return None
        offered = [("ver10/device/wsdl", "device_service"), ("ver10/media/wsdl", "media")]
        offered += [("ver20/media/wsdl", "media2")] if self.has_media_2 else []
        services = "".join(
            f"<tds:Service><tds:Namespace>http://www.onvif.org/{path}</tds:Namespace>"
            f"<tds:XAddr>{self._service(name)}</tds:XAddr>"
            "<tds:Version><tt:Major>2</tt:Major><tt:Minor>0</tt:Minor></tds:Version></tds:Service>"
            for path, name in offered
        )
        return f"<tds:GetServicesResponse>{services}</tds:GetServicesResponse>"

    def _profiles(self) -> str:
        profiles = "".join(
            f'<trt:Profiles token="{token}" fixed="true"><tt:Name>{token} stream</tt:Name>'
            f'<tt:VideoSourceConfiguration token="source"><tt:Name>s</tt:Name><tt:UseCount>1</tt:UseCount>'
            f'<tt:SourceToken>{source}</tt:SourceToken><tt:Bounds x="0" y="0" width="1920" height="1080"/>'
            "</tt:VideoSourceConfiguration>"
            f'<tt:VideoEncoderConfiguration token="{token}"><tt:Name>e</tt:Name><tt:UseCount>1</tt:UseCount>'
            f"<tt:Encoding>{codec}</tt:Encoding>"
            f"<tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height></tt:Resolution>"
            f"<tt:Quality>5</tt:Quality><tt:RateControl><tt:FrameRateLimit>{fps}</tt:FrameRateLimit>"
            "<tt:EncodingInterval>1</tt:EncodingInterval><tt:BitrateLimit>4096</tt:BitrateLimit></tt:RateControl>"
            "<tt:Multicast><tt:Address><tt:Type>IPv4</tt:Type><tt:IPv4Address>0.0.0.0</tt:IPv4Address></tt:Address>"
            "<tt:Port>0</tt:Port><tt:TTL>1</tt:TTL><tt:AutoStart>false</tt:AutoStart></tt:Multicast>"
            "<tt:SessionTimeout>PT60S</tt:SessionTimeout></tt:VideoEncoderConfiguration></trt:Profiles>"
            for token, codec, width, height, fps, source in self.streams
        )
        return f"<trt:GetProfilesResponse>{profiles}</trt:GetProfilesResponse>"

    def _profiles_2(self) -> str | None:
        if not self.has_media_2:
            return None
        profiles = "".join(
            f'<tr2:Profiles token="{token}" fixed="true"><tr2:Name>{token} stream</tr2:Name><tr2:Configurations>'
            f'<tr2:VideoSource token="source"><tt:Name>s</tt:Name><tt:UseCount>1</tt:UseCount>'
            f'<tt:SourceToken>{source}</tt:SourceToken><tt:Bounds x="0" y="0" width="1920" height="1080"/>'
            "</tr2:VideoSource>"
            f'<tr2:VideoEncoder token="{token}"><tt:Name>e</tt:Name><tt:UseCount>1</tt:UseCount>'
            f"<tt:Encoding>{codec}</tt:Encoding>"
            f"<tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height></tt:Resolution>"
            f'<tt:RateControl ConstantBitRate="false"><tt:FrameRateLimit>{fps}</tt:FrameRateLimit>'
            "<tt:BitrateLimit>4096</tt:BitrateLimit></tt:RateControl><tt:Quality>5</tt:Quality>"
            "</tr2:VideoEncoder></tr2:Configurations></tr2:Profiles>"
            for token, codec, width, height, fps, source in self.streams
        )
        return f"<tr2:GetProfilesResponse>{profiles}</tr2:GetProfilesResponse>"

    @contextmanager
    def serving(self) -> Iterator[OnvifDevice]:
        """Respond to requests over HTTP on a free port, until the end of the `with` block."""
        with serving_http(_handler(self), self.host) as port:
            self.port = port
            yield self


def envelope(content: str) -> str:
    """Return a SOAP envelope around `content` that declares the ONVIF namespaces."""
    return f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope {_NAMES}><s:Body>{content}</s:Body></s:Envelope>'


def fault(code: str, reason: str) -> str:
    """Return a SOAP fault whose cause is the sender."""
    return envelope(
        f"<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>{code}</s:Value></s:Subcode></s:Code>"
        f'<s:Reason><s:Text xml:lang="en">{reason}</s:Text></s:Reason></s:Fault>'
    )


def _handler(device: OnvifDevice) -> type[BaseHTTPRequestHandler]:
    nonce = secrets.token_hex(8)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            device.raw.append(bytes(self.headers) + data)
            if device.auth == "http-digest" and not self._is_authorized() and b"GetSystemDateAndTime" not in data:
                self._send(401, "", f'Digest realm="onvif", nonce="{nonce}", qop="auth", algorithm=MD5')
                return
            self._send(*device.answer(fromstring(data)))

        def _is_authorized(self) -> bool:
            given = dict(re.findall(r'(\w+)="?([^",]*)', self.headers.get("authorization", "")))

            def md5(text: str) -> str:
                return hashlib.md5(text.encode()).hexdigest()

            first, second = md5(f"{device.user}:onvif:{device.password}"), md5(f"POST:{self.path}")
            middle = f"{nonce}:{given.get('nc')}:{given.get('cnonce')}:auth"
            return given.get("response") == md5(f"{first}:{middle}:{second}")

        def _send(self, status: int, text: str, challenge: str = "") -> None:
            self.send_response(status)
            if challenge:
                self.send_header("www-authenticate", challenge)
            self.send_header("content-type", "application/soap+xml; charset=utf-8")
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Ignore the error, because the client has closed the connection."""


@contextmanager
def serving_http(handler: type[BaseHTTPRequestHandler], host: str = "127.0.0.1") -> Iterator[int]:
    """Serve HTTP in a thread until the end of the `with` block. Yield the port."""
    with _Server((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering_probes(answers: Callable[[str], Sequence[bytes]], host: str = "127.0.0.1") -> Iterator[None]:
    """Respond to probes until the end of the `with` block. `answers` returns datagrams for a probe's MessageID."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    receiver.bind((GROUP, DISCOVERY_PORT))
    group = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    receiver.settimeout(0.05)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((host, 0))
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            try:
                data, client = receiver.recvfrom(65536)
            except TimeoutError:
                continue
            number = re.search(rb"MessageID>([^<]+)<", data)
            for answer in answers(number[1].decode()) if number else ():
                sender.sendto(answer, client)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        receiver.close()
        sender.close()


def probe_matches(number: str, *matches: tuple[str, str]) -> bytes:
    """Return the response to the probe `number`. Each match contains the addresses and the scopes of a device."""
    listed = "".join(
        "<d:ProbeMatch><a:EndpointReference><a:Address>urn:uuid:00000000-0000-0000-0000-000000000001</a:Address>"
        f"</a:EndpointReference><d:Types>dn:NetworkVideoTransmitter</d:Types><d:Scopes>{scopes}</d:Scopes>"
        f"<d:XAddrs>{addresses}</d:XAddrs><d:MetadataVersion>1</d:MetadataVersion></d:ProbeMatch>"
        for addresses, scopes in matches
    )
    return (
        f'<?xml version="1.0"?><s:Envelope xmlns:s="{SOAP}" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"'
        ' xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" xmlns:dn="http://www.onvif.org/ver10/network/wsdl">'
        f"<s:Header><a:RelatesTo>{number}</a:RelatesTo></s:Header>"
        f"<s:Body><d:ProbeMatches>{listed}</d:ProbeMatches></s:Body></s:Envelope>"
    ).encode()
