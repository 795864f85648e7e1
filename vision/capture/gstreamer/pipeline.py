"""GStreamer pipelines as data: the elements that each machine uses, and their properties.

A Jetson's elements exist only on a Jetson, and their properties differ between JetPack releases (JetPack 7 removed
``enable-max-performance`` from ``nvv4l2decoder``). Therefore, this module chooses elements from a `Registry` of the
installed elements, without calling GStreamer. The choice for each machine can then be tested on any machine.

User input (a URL, a device) becomes the value of a property, never a part of a pipeline's text.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from vision.capture.reordering import keeps_order
from vision.config import CameraConfig
from vision.config.fields import ACCEPT_ANY, VERIFY
from vision.config.source_address import Csi, Rtsp, SourceAddress, Usb
from vision.types import PixelFormat

Codec: TypeAlias = Literal["H264", "H265", "JPEG"]

LATENCY_MS = 200
"""Time for which the jitter buffer waits for a missing packet. Packets in order do not wait."""

SINK_FRAMES = 2
"""Maximum number of decoded frames that wait for the camera's thread. A further frame replaces the oldest of them."""

CONVERTER_FRAMES = SINK_FRAMES + 4
"""Number of frames in the memory of ``nvvidconv``. `SINK_FRAMES` of them wait, and this program uses up to two. With
the default of four frames, the converter would wait until a frame is returned."""

USB_DEFAULT = (640, 480)
"""Frame size of a USB camera if none is configured. GStreamer would choose the largest, at a few frames/s."""

NAMES: Mapping[PixelFormat, str] = {"bgr": "BGR", "bgrx": "BGRx", "nv12": "NV12", "i420": "I420"}

_ELEMENTS: Mapping[str, tuple[str, ...]] = {
    "gstreamer1.0-plugins-base": ("appsink", "videoconvert"),
    "gstreamer1.0-plugins-good": ("rtspsrc", "rtph264depay", "rtph265depay", "rtpjpegdepay", "jpegdec", "v4l2src"),
    "gstreamer1.0-plugins-bad": ("h264parse", "h265parse", "jpegparse"),
    "gstreamer1.0-libav": ("avdec_h264", "avdec_h265"),
    "nvidia-l4t-gstreamer": ("nvarguscamerasrc", "nvvidconv", "nvv4l2decoder", "nvjpegdec"),
}
PACKAGES: Mapping[str, str] = {element: package for package, elements in _ELEMENTS.items() for element in elements}
"""The Debian or JetPack package that contains each element."""


@dataclass(frozen=True, slots=True)
class Serialized:
    """A property value in GStreamer's notation: caps or names of enumeration values. It must not contain user input."""

    text: str


@dataclass(frozen=True, slots=True)
class TrustedCertificates:
    """A property value: the certificates in a PEM file."""

    path: str


Value: TypeAlias = str | int | bool | Serialized | TrustedCertificates


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a pipeline to create, and the properties to set."""

    factory: str
    properties: Mapping[str, Value] = field(default_factory=dict)


Registry: TypeAlias = Callable[[str], AbstractSet[str] | None]
"""A function that returns the property names of an element; None if the element is not installed."""


def supported(registry: Registry, factory: str, **properties: Value) -> Element:
    """Return an element with those of `properties` that the installed version of the element supports.

    Underscores in the names of properties become hyphens.
    """
    named = {name.replace("_", "-"): value for name, value in properties.items()}
    existing = registry(factory) or ()
    return Element(factory, {name: value for name, value in named.items() if name in existing})


def rtsp_source(camera: CameraConfig, registry: Registry) -> Element:
    """Return ``rtspsrc`` for this camera. User and password are properties, so that no error text can repeat them.

    ``drop-on-latency`` stays off. After a stall of the network or of this machine, this option would drop packets of a
    complete stream, which would damage every frame until the next key frame. Instead,
    `vision.capture.packet_info.KeyFrameGate` limits the backlog by skipping to a key frame.
    """
    address = camera.address
    assert isinstance(address, Rtsp)
    account, at, _ = urlsplit(address.url).netloc.rpartition("@")
    user, _, password = account.partition(":")
    properties: dict[str, Value] = {
        "location": address.url.replace(account + at, "", 1),
        "protocols": Serialized(camera.transport),
    }
    if user:
        properties |= {"user-id": unquote(user), "user-pw": unquote(password)}
    if camera.tls == ACCEPT_ANY:
        properties["tls-validation-flags"] = 0
    elif camera.tls != VERIFY:
        properties["tls-database"] = TrustedCertificates(camera.tls)
    optional = supported(
        registry,
        "rtspsrc",
        latency=LATENCY_MS,
        drop_on_latency=False,
        do_retransmission=False,
        timeout=round(max(camera.open_timeout_s, camera.read_timeout_s) * 1e6),  # µs without a UDP packet
        tcp_timeout=round(camera.open_timeout_s * 1e6),
    )
    return Element("rtspsrc", {**properties, **optional.properties})


def decode_chain(
    codec: Codec, formats: Sequence[PixelFormat], registry: Registry, *, in_order: bool = False
) -> list[Element]:
    """Return the elements from RTP packets to the appsink: depayloader, parser, decoder, conversion, appsink.

    `formats` are the pixel formats that the detector accepts. `in_order` is True if the stream is known to contain no
    reordered frames.
    """
    depayloader, parser = {
        "H264": ("rtph264depay", "h264parse"),
        "H265": ("rtph265depay", "h265parse"),
        "JPEG": ("rtpjpegdepay", "jpegparse"),
    }[codec]
    decoding = decoder(codec, registry, in_order=in_order)
    return [Element(depayloader), Element(parser), *decoding, *to_host(formats, codec, registry)]


def decoder(codec: Codec, registry: Registry, *, in_order: bool = False) -> list[Element]:
    """Return the decoder: NVIDIA's decoder if it and its converter are installed, otherwise a CPU decoder.

    The decoder must output damaged frames, so that the program can mark and count these frames. NVIDIA's decoder holds
    back several frames to put them in order, unless `in_order` is True.
    """
    if codec == "JPEG":
        return [Element("nvjpegdec")] if on_jetson(registry, "nvjpegdec") else [Element("jpegdec")]
    if on_jetson(registry, "nvv4l2decoder"):
        immediate: dict[str, Value] = {"disable_dpb": True} if in_order else {}
        return [supported(registry, "nvv4l2decoder", enable_max_performance=True, **immediate)]
    return [supported(registry, f"avdec_{codec.lower()}", max_threads=1, output_corrupt=True)]


def known_order(codec: Codec, field: Callable[[str], str | None]) -> bool:
    """Return True if the caps of RTP packets show that the stream contains no reordered frames.

    `field` returns the value of a field of the caps, or None if the field is absent.
    """
    if codec == "JPEG":
        return True
    sets = (field("sprop-parameter-sets" if codec == "H264" else "sprop-sps") or "").split(",")
    try:
        units = [base64.b64decode(each, validate=True) for each in sets]
    except ValueError:  # the camera sends something else; the decoder waits for reordered frames
        return False
    return any(keeps_order(codec, unit) for unit in units)


def on_jetson(registry: Registry, decoder_factory: str) -> bool:
    """Return True if a Jetson's decoder and ``nvvidconv``, the only converter for its frames, are installed."""
    return registry(decoder_factory) is not None and registry("nvvidconv") is not None


def to_host(formats: Sequence[PixelFormat], codec: Codec | None, registry: Registry) -> list[Element]:
    """Return the elements after a decoder, up to the appsink. `codec` is None for a CSI camera, which has no decoder.

    ``videoconvert`` passes a frame on unchanged if the frame's format is one of `formats`, whatever their order.
    """
    from_nvidia = codec is None or on_jetson(registry, "nvjpegdec" if codec == "JPEG" else "nvv4l2decoder")
    if not from_nvidia:
        return [Element("videoconvert"), appsink(host_caps(formats))]
    direct = [pixel_format for pixel_format in formats if pixel_format != "bgr"]  # nvvidconv has no 24-bit BGR
    between = host_caps(direct or ["bgrx"])
    return [
        supported(registry, "nvvidconv", output_buffers=CONVERTER_FRAMES),
        Element("capsfilter", {"caps": between}),
        *([appsink(between)] if direct else [Element("videoconvert"), appsink(host_caps(formats))]),
    ]


def appsink(caps: Serialized) -> Element:
    """Return the ``appsink`` element, through which the program receives decoded frames with the caps `caps`.

    The element reports each frame with the signal ``new-sample`` as soon as the frame is decoded.
    """
    return Element("appsink", {"caps": caps, "emit-signals": True, "sync": False, "enable-last-sample": False})


def host_caps(formats: Sequence[PixelFormat]) -> Serialized:
    """Return the caps of raw video in host memory in one of `formats`. nv12 and i420 require even sides."""
    even = ",width=[2,16384,2],height=[2,16384,2]"
    return Serialized(
        ";".join(f"video/x-raw,format={NAMES[name]}{even if name in ('nv12', 'i420') else ''}" for name in formats)
    )


def csi_chain(camera: CameraConfig, formats: Sequence[PixelFormat], registry: Registry) -> list[Element]:
    """Return the elements for a camera on a Jetson's CSI port, through libargus."""
    address = camera.address
    assert isinstance(address, Csi)
    request = "video/x-raw(memory:NVMM),format=NV12" + size_and_rate(camera.width, camera.height, camera.fps)
    return [
        Element("nvarguscamerasrc", {"sensor-id": address.sensor}),
        Element("capsfilter", {"caps": Serialized(request)}),
        *to_host(formats, None, registry),
    ]


def usb_request(camera: CameraConfig, media_type: Literal["video/x-raw", "image/jpeg"]) -> Serialized:
    """Return the caps that request a media type, a frame size (`USB_DEFAULT` if none is configured), and a rate."""
    width, height = (camera.width, camera.height) if camera.width or camera.height else USB_DEFAULT
    return Serialized(media_type + size_and_rate(width, height, camera.fps))


def usb_chain(
    camera: CameraConfig, formats: Sequence[PixelFormat], registry: Registry, *, offers_raw: bool
) -> list[Element]:
    """Return the elements for a V4L2 camera. If `offers_raw` is True, request raw frames. Otherwise, request JPEGs."""
    request = usb_request(camera, "video/x-raw" if offers_raw else "image/jpeg")
    source = [Element("v4l2src", {"device": camera.source}), Element("capsfilter", {"caps": request})]
    if offers_raw:
        return [*source, Element("videoconvert"), appsink(host_caps(formats))]
    return [*source, *decoder("JPEG", registry), *to_host(formats, "JPEG", registry)]


def size_and_rate(width_px: int | None, height_px: int | None, fps: float | None) -> str:
    """Return the part of caps that requests the configured size and rate, or an empty string if none is configured."""
    text = f",width={width_px}" if width_px else ""
    text += f",height={height_px}" if height_px else ""
    if fps:
        rate = Fraction(fps).limit_denominator(1001)
        text += f",framerate={rate.numerator}/{rate.denominator}"
    return text


def unavailable(address: SourceAddress, registry: Registry) -> str | None:
    """Return a text with the reason why this machine cannot open the source, and the packages to install.

    Return None if the machine can open the source. The elements for H.265 and JPEG are not checked, because only
    cameras that send these codecs require them.
    """
    match address:
        case Rtsp():
            required = ["rtspsrc", *(element.factory for element in decode_chain("H264", ["bgr"], registry))]
        case Csi():
            required = ["nvarguscamerasrc", *(element.factory for element in to_host(["bgr"], None, registry))]
        case Usb():
            required = ["v4l2src", "videoconvert", "appsink"]
        case _:
            return "GStreamer opens rtsp://, rtsps://, csi:N, and /dev/videoN only"
    return missing(required, registry)


def missing(factories: Sequence[str], registry: Registry) -> str | None:
    """Return a text that names the missing elements of `factories`, and their packages, or None if none is missing."""
    absent = [name for name in factories if name != "capsfilter" and registry(name) is None]
    if not absent:
        return None
    packages = sorted({PACKAGES[name] for name in absent})
    return f"GStreamer has no {', '.join(absent)}: install {' '.join(packages)}"
