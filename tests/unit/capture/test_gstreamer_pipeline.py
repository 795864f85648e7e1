"""Tests of the GStreamer pipelines for several machines with different registered elements."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from vision.capture.gstreamer import pipeline
from vision.capture.gstreamer.pipeline import Element, Serialized, Value
from vision.config import CameraConfig
from vision.config.source_address import parse_source
from vision.types import PixelFormat

RTSP_PROPERTIES = {"location", "protocols", "latency", "drop-on-latency", "do-retransmission", "timeout", "tcp-timeout"}


@dataclass
class Machine:
    """Registry of elements and their properties, for one machine."""

    factories: dict[str, set[str]] = field(default_factory=dict)

    def __call__(self, factory: str) -> set[str] | None:
        return self.factories.get(factory)

    def without(self, *names: str) -> Machine:
        return Machine({name: properties for name, properties in self.factories.items() if name not in names})


LAPTOP = Machine(
    {
        **{name: set() for name in pipeline.PACKAGES if not name.startswith("nv")},
        "rtspsrc": RTSP_PROPERTIES,
        "avdec_h264": {"max-threads", "output-corrupt"},
        "avdec_h265": {"max-threads", "output-corrupt"},
    }
)
JETPACK_7 = Machine(
    {**LAPTOP.factories, **{name: set() for name in ("nvv4l2decoder", "nvvidconv", "nvjpegdec", "nvarguscamerasrc")}}
)
JETPACK_6 = Machine({**JETPACK_7.factories, "nvv4l2decoder": {"enable-max-performance", "disable-dpb"}})
DEEPSTREAM_ON_X86 = JETPACK_7.without("nvvidconv", "nvarguscamerasrc", "nvjpegdec")


def camera(source: str = "rtsp://10.0.0.4/s", **settings: object) -> CameraConfig:
    return CameraConfig.model_validate({"id": "gate", "source": source, **settings})


def names(chain: list[Element]) -> list[str]:
    return [element.factory for element in chain]


def caps(chain: list[Element]) -> list[str]:
    values = [element.properties.get("caps") for element in chain]
    return [value.text for value in values if isinstance(value, Serialized)]


EVEN = "width=[2,16384,2],height=[2,16384,2]"


@pytest.mark.parametrize(
    ("machine", "codec", "expected"),
    [
        (LAPTOP, "H264", "rtph264depay h264parse avdec_h264 videoconvert appsink"),
        (LAPTOP, "H265", "rtph265depay h265parse avdec_h265 videoconvert appsink"),
        (LAPTOP, "JPEG", "rtpjpegdepay jpegparse jpegdec videoconvert appsink"),
        (JETPACK_6, "H264", "rtph264depay h264parse nvv4l2decoder nvvidconv capsfilter appsink"),
        (JETPACK_7, "H265", "rtph265depay h265parse nvv4l2decoder nvvidconv capsfilter appsink"),
        (JETPACK_7, "JPEG", "rtpjpegdepay jpegparse nvjpegdec nvvidconv capsfilter appsink"),
        (JETPACK_7.without("nvjpegdec"), "JPEG", "rtpjpegdepay jpegparse jpegdec videoconvert appsink"),
        (DEEPSTREAM_ON_X86, "H264", "rtph264depay h264parse avdec_h264 videoconvert appsink"),
    ],
)
def test_decode_chain_uses_the_elements_of_the_machine(machine: Machine, codec: pipeline.Codec, expected: str) -> None:
    assert " ".join(names(pipeline.decode_chain(codec, ("nv12", "bgr"), machine))) == expected


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (JETPACK_6, {"enable-max-performance": True}),
        (JETPACK_7, {}),
        (LAPTOP, {"max-threads": 1, "output-corrupt": True}),
        (Machine({**LAPTOP.factories, "avdec_h264": {"max-threads"}}), {"max-threads": 1}),
    ],
)
def test_unsupported_properties_are_left_out(machine: Machine, expected: dict[str, Value]) -> None:
    (decoder,) = pipeline.decoder("H264", machine)
    assert dict(decoder.properties) == expected


def test_decoder_outputs_frames_at_once_if_none_is_reordered() -> None:
    with_property = Machine({**JETPACK_7.factories, "nvv4l2decoder": {"disable-dpb"}})
    (decoder,) = pipeline.decoder("H264", with_property, in_order=True)
    assert dict(decoder.properties) == {"disable-dpb": True}
    for machine, in_order in ((with_property, False), (JETPACK_7, True)):
        (decoder,) = pipeline.decoder("H264", machine, in_order=in_order)
        assert dict(decoder.properties) == {}


@pytest.mark.parametrize(
    ("codec", "fields", "expected"),
    [
        ("JPEG", {}, True),
        ("H264", {}, False),
        ("H264", {"sprop-parameter-sets": "Z0LAHtkB4I/rARAAAAMAEAAAAwPA8WLkgA==,aMuMsg=="}, True),  # baseline profile
        ("H264", {"sprop-parameter-sets": "!,aMuMsg=="}, False),
        ("H264", {"sprop-parameter-sets": ",,"}, False),
        ("H265", {"sprop-parameter-sets": "Z0LAHtkB4I/rARAAAAMAEAAAAwPA8WLkgA=="}, False),
    ],
)
def test_order_is_read_from_the_caps(codec: pipeline.Codec, fields: dict[str, str], expected: bool) -> None:
    assert pipeline.known_order(codec, fields.get) == expected


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        (("nv12", "bgr"), [f"video/x-raw,format=NV12,{EVEN}"] * 2),
        (("bgr", "i420", "bgrx"), [f"video/x-raw,format=I420,{EVEN};video/x-raw,format=BGRx"] * 2),
        (("bgr",), ["video/x-raw,format=BGRx", "video/x-raw,format=BGR"]),
    ],
)
def test_jetson_converts_on_its_own_hardware(formats: tuple[PixelFormat, ...], expected: list[str]) -> None:
    chain = pipeline.decode_chain("H264", formats, JETPACK_7)
    assert caps(chain) == expected
    assert ("videoconvert" in names(chain)) == (formats == ("bgr",))


def test_planar_frames_have_even_sides() -> None:
    assert pipeline.host_caps(("i420", "bgr")) == Serialized(f"video/x-raw,format=I420,{EVEN};video/x-raw,format=BGR")


def test_sink_reports_each_frame_at_once() -> None:
    sink = pipeline.decode_chain("H264", ("bgr",), LAPTOP)[-1]
    settings = {name: value for name, value in sink.properties.items() if name != "caps"}
    assert settings == {"emit-signals": True, "sync": False, "enable-last-sample": False}


@pytest.mark.parametrize(
    ("source", "location", "user", "password"),
    [
        ("rtsp://10.0.0.4/s", "rtsp://10.0.0.4/s", "", ""),
        ("rtsp://10.0.0.4", "rtsp://10.0.0.4", "", ""),
        ("rtsp://ann:pw@10.0.0.4:554/s?a=1", "rtsp://10.0.0.4:554/s?a=1", "ann", "pw"),
        ("rtsps://ann@[fe80::1]/s", "rtsps://[fe80::1]/s", "ann", ""),
        ("rtsp://a%40b:p%3Aw%2F@h/s", "rtsp://h/s", "a@b", "p:w/"),
    ],
)
def test_account_is_split_from_the_url(source: str, location: str, user: str, password: str) -> None:
    config = camera().model_copy(update={"source": source})
    properties = pipeline.rtsp_source(config, LAPTOP).properties
    assert properties["location"] == location
    assert (properties.get("user-id", ""), properties.get("user-pw", "")) == (user, password)


def test_rtsp_source_has_transport_timeouts_and_account() -> None:
    source = pipeline.rtsp_source(camera("rtsp://ann:pw@h/s", transport="udp", open_timeout_s=3), LAPTOP)
    assert source == Element(
        "rtspsrc",
        {
            "location": "rtsp://h/s",
            "protocols": Serialized("udp"),
            "latency": pipeline.LATENCY_MS,
            "drop-on-latency": False,
            "do-retransmission": False,
            "timeout": 5_000_000,
            "tcp-timeout": 3_000_000,
            "user-id": "ann",
            "user-pw": "pw",
        },
    )
    bare = pipeline.rtsp_source(camera(), Machine({"rtspsrc": {"location", "protocols"}}))
    assert set(bare.properties) == {"location", "protocols"}


INJECTED = "rtsp://h/a!filesink!location=/tmp/owned;video/x-raw,name=y"


def test_configured_address_becomes_a_property_unchanged() -> None:
    hostile = camera().model_copy(update={"source": INJECTED})
    assert pipeline.rtsp_source(hostile, LAPTOP).properties["location"] == INJECTED
    device = '/dev/video0 ! filesink location="/tmp/owned"'
    hostile = hostile.model_copy(update={"source": device})
    (first, *others) = pipeline.usb_chain(hostile, ("bgr",), LAPTOP, offers_raw=True)
    assert first == Element("v4l2src", {"device": device})
    assert "owned" not in repr(others)


def test_csi_chain_requests_the_configured_mode_in_nvmm_memory() -> None:
    chain = pipeline.csi_chain(camera("csi:1", width=1920, height=1080, fps=29.97), ("nv12", "bgr"), JETPACK_7)
    assert names(chain) == ["nvarguscamerasrc", "capsfilter", "nvvidconv", "capsfilter", "appsink"]
    assert chain[0].properties == {"sensor-id": 1}
    assert caps(chain)[0] == "video/x-raw(memory:NVMM),format=NV12,width=1920,height=1080,framerate=2997/100"
    assert caps(pipeline.csi_chain(camera("csi:0"), ("nv12",), JETPACK_7))[0] == "video/x-raw(memory:NVMM),format=NV12"


@pytest.mark.parametrize(
    ("machine", "raw", "expected"),
    [
        (LAPTOP, True, "v4l2src capsfilter videoconvert appsink"),
        (LAPTOP, False, "v4l2src capsfilter jpegdec videoconvert appsink"),
        (JETPACK_7, True, "v4l2src capsfilter videoconvert appsink"),
        (JETPACK_7, False, "v4l2src capsfilter nvjpegdec nvvidconv capsfilter appsink"),
    ],
)
def test_usb_chain_decodes_with_the_elements_of_the_machine(machine: Machine, raw: bool, expected: str) -> None:
    chain = pipeline.usb_chain(camera("/dev/video0"), ("i420", "bgr"), machine, offers_raw=raw)
    assert " ".join(names(chain)) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ",width=640,height=480"),
        ({"width": 1280, "height": 720, "fps": 30}, ",width=1280,height=720,framerate=30/1"),
        ({"fps": 7.5}, ",width=640,height=480,framerate=15/2"),
    ],
)
def test_usb_request_fills_in_unset_size_and_rate(settings: dict[str, object], expected: str) -> None:
    assert pipeline.usb_request(camera("/dev/video0", **settings), "image/jpeg") == Serialized("image/jpeg" + expected)


@pytest.mark.parametrize("source", ["http://h/s", "videos/walk.mp4", "synthetic:"])
def test_other_sources_are_not_available(source: str) -> None:
    assert pipeline.unavailable(parse_source(source), JETPACK_7)


@pytest.mark.parametrize(
    ("machine", "source", "packages"),
    [
        (LAPTOP, "rtsp://h/s", []),
        (JETPACK_6, "csi:0", []),
        (LAPTOP, "/dev/video12", []),
        (LAPTOP, "/dev/v4l/by-id/usb-Logitech-index0", []),
        (LAPTOP.without("avdec_h264"), "RTSPS://h/s", ["gstreamer1.0-libav"]),
        (JETPACK_6.without("avdec_h264"), "rtsp://h/s", []),
        (
            LAPTOP.without("h264parse", "rtspsrc"),
            "rtsp://h/s",
            ["gstreamer1.0-plugins-bad", "gstreamer1.0-plugins-good"],
        ),
        (LAPTOP, "csi:0", ["nvidia-l4t-gstreamer"]),
        (LAPTOP.without("v4l2src"), "/dev/video0", ["gstreamer1.0-plugins-good"]),
    ],
)
def test_missing_elements_are_reported_with_their_packages(machine: Machine, source: str, packages: list[str]) -> None:
    reason = pipeline.unavailable(parse_source(source), machine)
    assert (reason or "").partition(": install ")[2].split() == packages


def test_every_element_has_a_package() -> None:
    chains = [
        pipeline.decode_chain(codec, ("bgr",), machine)
        for codec in ("H264", "H265", "JPEG")
        for machine in (LAPTOP, JETPACK_7)
    ]
    chains += [pipeline.csi_chain(camera("csi:0"), ("bgr",), JETPACK_7)]
    chains += [pipeline.usb_chain(camera("/dev/video0"), ("bgr",), LAPTOP, offers_raw=False)]
    used = {element.factory for chain in chains for element in chain} | {"rtspsrc"}
    assert used - {"capsfilter"} <= set(pipeline.PACKAGES)
