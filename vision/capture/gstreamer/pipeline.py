"""GStreamer pipelines as data: the elements and their properties on each machine.

A Jetson's elements exist on a Jetson only, and their properties come and go between JetPack releases
(``enable-max-performance`` left ``nvv4l2decoder`` in JetPack 7). The choice is therefore made here, without
GStreamer, from a `Registry` of what is installed, so that every machine's choice can be tested on any other.

User input (a URL, a device) becomes the value of a property, never a part of a pipeline's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, Protocol, TypeAlias
from urllib.parse import unquote

from vision.config import CameraConfig
from vision.config.source_address import Csi, Rtsp, SourceAddress, Usb
from vision.types import PixelFormat

Kind: TypeAlias = Literal["rtsp", "csi", "usb"]
Codec: TypeAlias = Literal["H264", "H265", "JPEG"]

LATENCY_MS = 200
"""How long the jitter buffer waits for a missing packet. Packets in order do not wait: the appsink does not sync."""

USB_DEFAULT = (640, 480)
"""Asked of a USB camera that no size is configured for; GStreamer alone takes the largest, at a few frames/s."""

NAMES: Mapping[PixelFormat, str] = {"bgr": "BGR", "bgrx": "BGRx", "nv12": "NV12", "i420": "I420"}

PACKAGES: Mapping[str, str] = {
    "appsink": "gstreamer1.0-plugins-base",
    "videoconvert": "gstreamer1.0-plugins-base",
    "rtspsrc": "gstreamer1.0-plugins-good",
    "rtph264depay": "gstreamer1.0-plugins-good",
    "rtph265depay": "gstreamer1.0-plugins-good",
    "rtpjpegdepay": "gstreamer1.0-plugins-good",
    "jpegdec": "gstreamer1.0-plugins-good",
    "v4l2src": "gstreamer1.0-plugins-good",
    "h264parse": "gstreamer1.0-plugins-bad",
    "h265parse": "gstreamer1.0-plugins-bad",
    "jpegparse": "gstreamer1.0-plugins-bad",
    "avdec_h264": "gstreamer1.0-libav",
    "avdec_h265": "gstreamer1.0-libav",
    "nvarguscamerasrc": "nvidia-l4t-gstreamer",
    "nvvidconv": "nvidia-l4t-gstreamer",
    "nvv4l2decoder": "nvidia-l4t-gstreamer",
    "nvjpegdec": "nvidia-l4t-gstreamer",
}
"""Debian's and JetPack's package of every element that is used."""


@dataclass(frozen=True, slots=True)
class Caps:
    """A property value that is a GstCaps, in GStreamer's notation. Made of numbers and constants only."""

    text: str


@dataclass(frozen=True, slots=True)
class Nick:
    """A property value that is one of an enumeration or of flags, by its name."""

    text: str


Value: TypeAlias = str | int | bool | Caps | Nick


@dataclass(frozen=True, slots=True)
class Element:
    """One element to make, and the properties to set."""

    factory: str
    properties: Mapping[str, Value] = field(default_factory=dict)


class Registry(Protocol):
    """What this machine's GStreamer can make."""

    def has(self, factory: str) -> bool:
        """Return True if the plugin of this element is installed and loads."""

    def has_property(self, factory: str, name: str) -> bool:
        """Return True if the element exists and has this property."""


def kind_of(address: SourceAddress) -> Kind | None:
    """Return the kind of a source that GStreamer opens here, None for other sources."""
    match address:
        case Rtsp():
            return "rtsp"
        case Csi():
            return "csi"
        case Usb():
            return "usb"
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Address:
    """An RTSP URL with its secrets taken out."""

    location: str
    user: str
    password: str = field(repr=False)


def split_url(url: str) -> Address:
    """Take user and password out of an URL: they go to rtspsrc apart, so that no error text can repeat them.

    The last ``@`` before the path ends them, so a password may hold ``@`` and ``:``; ``%40`` and the like are decoded.
    """
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    userinfo, _, host = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    return Address(f"{scheme}://{host}{slash}{path}", unquote(user), unquote(password))


def known(registry: Registry, factory: str, **properties: Value) -> Element:
    """Return an element with those of `properties` that this machine's version supports."""
    named = {name.replace("_", "-"): value for name, value in properties.items()}
    return Element(factory, {name: value for name, value in named.items() if registry.has_property(factory, name)})


def rtsp_source(camera: CameraConfig, registry: Registry) -> Element:
    """``rtspsrc`` for this camera.

    ``drop-on-latency`` stays off: after a stall of the network or of this machine it would throw packets away in a
    stream that lost none, and spoil every frame until the next key frame. `vision.capture.packet_info.KeyFrameGate`
    bounds
    the backlog, at key frames.
    """
    source = camera.address
    assert isinstance(source, Rtsp)
    address = split_url(source.url)
    optional = known(
        registry,
        "rtspsrc",
        latency=LATENCY_MS,
        drop_on_latency=False,
        do_retransmission=False,
        timeout=round(max(camera.open_timeout_s, camera.read_timeout_s) * 1e6),  # without any UDP packet
        tcp_timeout=round(camera.open_timeout_s * 1e6),
    )
    account: dict[str, Value] = {"user-id": address.user, "user-pw": address.password} if address.user else {}
    return Element(
        "rtspsrc", {"location": address.location, "protocols": Nick(camera.transport), **optional.properties, **account}
    )


def decode_chain(codec: Codec, formats: Sequence[PixelFormat], registry: Registry) -> list[Element]:
    """From RTP packets of one codec to the appsink: depayloader, parser, decoder, conversion, appsink."""
    depayloader, parser = {
        "H264": ("rtph264depay", "h264parse"),
        "H265": ("rtph265depay", "h265parse"),
        "JPEG": ("rtpjpegdepay", "jpegparse"),
    }[codec]
    return [Element(depayloader), Element(parser), *decoder(codec, registry), *to_host(formats, codec, registry)]


def decoder(codec: Codec, registry: Registry) -> list[Element]:
    """Return the decoder: NVIDIA's if its converter is installed too, else the CPU's.

    Damaged frames must pass: they are marked and counted later, not lost here.
    """
    if codec == "JPEG":
        return [Element("nvjpegdec")] if on_jetson(registry, "nvjpegdec") else [Element("jpegdec")]
    if on_jetson(registry, "nvv4l2decoder"):
        return [known(registry, "nvv4l2decoder", enable_max_performance=True)]
    return [known(registry, f"avdec_{codec.lower()}", max_threads=1, output_corrupt=True)]


def on_jetson(registry: Registry, decoder_factory: str) -> bool:
    """NVIDIA's decoders leave frames in memory that only ``nvvidconv`` reads."""
    return registry.has(decoder_factory) and registry.has("nvvidconv")


def to_host(formats: Sequence[PixelFormat], codec: Codec | None, registry: Registry) -> list[Element]:
    """From a decoder's or CSI camera's output to the appsink.

    ``videoconvert`` passes a frame through untouched where its format is among `formats`, whatever their order, so
    what the decoder gives is taken without conversion if it can be.
    """
    made_by_nvidia = codec is None or on_jetson(registry, "nvjpegdec" if codec == "JPEG" else "nvv4l2decoder")
    wanted = host_caps(formats)
    if not made_by_nvidia:
        return [Element("videoconvert"), appsink(wanted)]
    direct = [pixel_format for pixel_format in formats if pixel_format != "bgr"]  # nvvidconv has no 24-bit BGR
    between = host_caps(direct or ["bgrx"])
    return [
        Element("nvvidconv"),
        Element("capsfilter", {"caps": between}),
        *([] if direct else [Element("videoconvert")]),
        appsink(wanted if not direct else between),
    ]


def appsink(caps: Caps) -> Element:
    """Return the sink: it keeps the newest two frames, available as soon as they are decoded."""
    return Element(
        "appsink", {"caps": caps, "max-buffers": 2, "drop": True, "sync": False, "enable-last-sample": False}
    )


def host_caps(formats: Sequence[PixelFormat]) -> Caps:
    """Raw video in host memory in one of `formats`; planar ones with even sides only, as `vision.types` has them."""
    even = ",width=[2,16384,2],height=[2,16384,2]"
    return Caps(
        ";".join(f"video/x-raw,format={NAMES[name]}{even if name in ('nv12', 'i420') else ''}" for name in formats)
    )


def csi_chain(camera: CameraConfig, formats: Sequence[PixelFormat], registry: Registry) -> list[Element]:
    """Return the elements for a camera on a Jetson's CSI port, through libargus."""
    address = camera.address
    assert isinstance(address, Csi)
    sensor = address.sensor
    asked = "video/x-raw(memory:NVMM),format=NV12" + size_and_rate(camera.width, camera.height, camera.fps)
    return [
        Element("nvarguscamerasrc", {"sensor-id": sensor}),
        Element("capsfilter", {"caps": Caps(asked)}),
        *to_host(formats, None, registry),
    ]


def usb_request(camera: CameraConfig, media_type: Literal["video/x-raw", "image/jpeg"]) -> Caps:
    """Return the mode to request from a USB camera."""
    width, height = (camera.width, camera.height) if camera.width or camera.height else USB_DEFAULT
    return Caps(media_type + size_and_rate(width, height, camera.fps))


def usb_chain(
    camera: CameraConfig, formats: Sequence[PixelFormat], registry: Registry, *, offers_raw: bool
) -> list[Element]:
    """Return the elements for a V4L2 camera. `offers_raw`: it supports the requested mode without JPEG."""
    source = Element("v4l2src", {"device": camera.source})
    if offers_raw:
        request = Element("capsfilter", {"caps": usb_request(camera, "video/x-raw")})
        return [source, request, Element("videoconvert"), appsink(host_caps(formats))]
    request = Element("capsfilter", {"caps": usb_request(camera, "image/jpeg")})
    return [source, request, *decoder("JPEG", registry), *to_host(formats, "JPEG", registry)]


def size_and_rate(width_px: int | None, height_px: int | None, fps: float | None) -> str:
    """Return the part of caps that requests a size and a rate, each if given."""
    text = f",width={width_px}" if width_px else ""
    text += f",height={height_px}" if height_px else ""
    if fps:
        rate = Fraction(fps).limit_denominator(1001)
        text += f",framerate={rate.numerator}/{rate.denominator}"
    return text


def needed(kind: Kind, registry: Registry) -> list[str]:
    """Elements without which no camera of this kind can be opened. H.265 and JPEG are asked for when they come."""
    formats: list[PixelFormat] = ["bgr"]
    if kind == "rtsp":
        return ["rtspsrc", *(element.factory for element in decode_chain("H264", formats, registry))]
    if kind == "csi":
        return ["nvarguscamerasrc", *(element.factory for element in to_host(formats, None, registry))]
    return ["v4l2src", "videoconvert", "appsink"]


def missing(factories: Sequence[str], registry: Registry) -> str | None:
    """Return what to install so that all of `factories` can be made, or None if they can."""
    absent = [name for name in factories if name != "capsfilter" and not registry.has(name)]
    if not absent:
        return None
    packages = sorted({PACKAGES[name] for name in absent})
    return f"GStreamer has no {', '.join(absent)}: install {' '.join(packages)}"
