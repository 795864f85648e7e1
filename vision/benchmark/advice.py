"""What limits a site, and what to change: shares of each resource, and the sentences that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from vision.benchmark.demand import Demand
from vision.benchmark.model import DetectorCost, HostCost, stretch

Resource: TypeAlias = Literal["decode", "copy", "detector", "results thread"]

_FULL: Final = 0.95  # from here on frames wait for each other, and some are dropped
_MUCH: Final = 0.2
_MANY_OBJECTS: Final = 30


@dataclass(frozen=True, slots=True)
class Load:
    """One resource. `share`: what is asked of it over what it can do."""

    resource: Resource
    share: float
    detail: str


def loads(demands: Sequence[Demand], detector: DetectorCost, host: HostCost) -> tuple[Load, ...]:
    """Every resource, the fullest first."""
    wanted = [accepted_fps(each) for each in demands]
    found = [_decode(demands, host), _detector(demands, detector, host)]
    if host.copy_gb_per_s is not None:
        gb_per_s = sum(rate * each.nbytes for rate, each in zip(wanted, demands, strict=True)) / 1e9
        detail = f"{gb_per_s:.2f} of {host.copy_gb_per_s:.1f} GB/s"
        found.append(Load("copy", gb_per_s / host.copy_gb_per_s, detail))
    found.append(_results(demands, host))
    return tuple(sorted(found, key=lambda load: -load.share))


def accepted_fps(demand: Demand) -> float:
    """Frames of a camera that may be inferred."""
    return demand.fps if demand.max_fps is None else min(demand.fps, demand.max_fps)


def decode_cores(demands: Sequence[Demand], host: HostCost) -> float:
    """Cores that the cameras' threads and their libraries keep busy."""
    return sum(each.fps * (each.cpu_ms + host.camera_ms) for each in demands) / 1e3


def detector_rate_per_s(demands: Sequence[Demand], detector: DetectorCost, host: HostCost) -> float:
    """Frames a second that the detector can do beside everything else, in the batches that this site fills."""
    others = decode_cores(demands, host)
    best = detector.best_rate_per_s(min(detector.max_batch, len(demands)))
    return best / stretch(detector.cores, host.cores, others)


def _decode(demands: Sequence[Demand], host: HostCost) -> Load:
    cores = decode_cores(demands, host)
    busiest = max(demands, key=lambda each: each.fps * (each.grab_ms + each.retrieve_ms))
    thread = busiest.fps * (busiest.grab_ms + busiest.retrieve_ms) / 1e3
    if thread > cores / host.cores:
        return Load("decode", thread, f"the thread of camera {busiest.camera_id} is busy for {thread:.0%} of the time")
    return Load("decode", cores / host.cores, f"{cores:.2f} of {host.cores:.2f} cores")


def _detector(demands: Sequence[Demand], detector: DetectorCost, host: HostCost) -> Load:
    wanted = sum(map(accepted_fps, demands))
    rate = detector_rate_per_s(demands, detector, host)
    return Load("detector", wanted / rate, f"{wanted:.1f} of {rate:.1f} frames/s")


def _results(demands: Sequence[Demand], host: HostCost) -> Load:
    accepted = sum(map(accepted_fps, demands))
    grabbed = sum(each.fps for each in demands)
    busy = (accepted * (host.results_ms + host.loop_ms) + grabbed * host.camera_ms) / 1e3
    results = accepted * host.results_ms / 1e3
    return Load("results thread", busy, f"Python is busy for {busy:.1%} of the time, {results:.1%} of it with results")


@dataclass(frozen=True, slots=True)
class Site:
    """What advice depends on besides the loads."""

    gpu: bool
    precision: str
    encoding: str
    objects_per_frame: float
    model_input: tuple[int, int]  # width, height


def limit(found: Sequence[Load]) -> str:
    """One sentence: what limits."""
    first = found[0]
    if first.share >= 1:
        return f"The {first.resource} limits: it is asked for {first.share:.2f} times what it can do ({first.detail})."
    if first.share >= _FULL:
        return f"The {first.resource} is the limit, just reached ({first.detail})."
    return f"Nothing limits. The {first.resource} comes nearest, at {first.share:.0%} ({first.detail})."


def advice(
    found: Sequence[Load], demands: Sequence[Demand], detector: DetectorCost, host: HostCost, site: Site
) -> tuple[str, ...]:
    """What to change, the best first; or what there is room for."""
    first = found[0]
    if first.share < _FULL:
        more = int(len(demands) * (_FULL / first.share - 1)) if first.share > 0 else 0
        return (f"There is room for about {more} more cameras like these.",) if more else ()
    if first.resource == "detector":
        return _about_detector(demands, detector, host, site)
    if first.resource == "decode":
        return _about_decoding(demands, site)
    if first.resource == "copy":
        bgr = [each.camera_id for each in demands if each.pixel_format in ("bgr", "bgrx")]
        some = (f"NV12 or I420 is half the bytes of BGR: let GStreamer read {', '.join(bgr[:4])} (`reader`).",)
        return (*(some if bgr else ()), "Lower `max_fps`, or take the cameras' smaller streams.")
    return _about_results(site)


def _about_detector(demands: Sequence[Demand], detector: DetectorCost, host: HostCost, site: Site) -> tuple[str, ...]:
    rate = detector_rate_per_s(demands, detector, host)
    said = [
        (
            f"`max_fps: {fair_fps(demands, _FULL * rate):.3g}` for every camera that gives more: what is dropped is "
            "then every so many frames and no longer chance, and p99 is that of a machine with room."
        )
    ]
    busy = decode_cores(demands, host) / host.cores
    if not site.gpu and busy > _MUCH:
        said.append(
            f"Decoding takes {busy:.0%} of the CPU that detection needs: lower the rate or size in the cameras "
            "themselves, since `max_fps` does not save decoding."
        )
    if site.gpu and site.precision in ("fp32", "tf32"):
        said.append("`precision: fp16` may be much faster: `vision bench MODEL --precision fp16,fp32`.")
    if site.gpu and detector.max_batch < len(demands):
        said.append(f"`max_batch: {len(demands)}` lets one batch hold a frame of every camera.")
    said.append("A model with a smaller input or fewer layers." if site.gpu else "A GPU, or a smaller model.")
    return tuple(said)


def fair_fps(demands: Sequence[Demand], rate_per_s: float) -> float:
    """The greatest limit for all cameras alike under which they ask for no more than `rate_per_s` together."""
    left, count = rate_per_s, len(demands)
    for fps in sorted(map(accepted_fps, demands)):
        if fps * count >= left:
            return left / count
        left -= fps
        count -= 1
    return max(map(accepted_fps, demands))


def _about_decoding(demands: Sequence[Demand], site: Site) -> tuple[str, ...]:
    width, height = site.model_input
    large = [each.camera_id for each in demands if each.width_px > 2 * width and each.height_px > 2 * height]
    said = ["Lower the frame rate in the cameras themselves: `max_fps` does not save decoding."]
    if large:
        names = ", ".join(large[:4]) + (", ..." if len(large) > 4 else "")
        said.insert(0, f"The smaller stream of {names}: the model sees {width}x{height} whatever comes.")
    said.append("Decoding in hardware: `vision doctor` says whether there is some (nvv4l2decoder, NVDEC).")
    return tuple(said)


def _about_results(site: Site) -> tuple[str, ...]:
    said = []
    if site.encoding == "json":
        said.append("`publish: {encoding: msgpack}` is cheaper than JSON.")
    if site.objects_per_frame > _MANY_OBJECTS:
        said.append(
            f"`detect: {{score_threshold: ...}}` higher: there are {site.objects_per_frame:.0f} objects in a frame."
        )
    said.append("Two programs with half of the cameras each: Python runs one thread at a time.")
    return tuple(said)
