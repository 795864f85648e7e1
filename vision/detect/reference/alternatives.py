"""Check that a model's outputs for sample frames fit the head in model.yaml. If not, all other heads are tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config import HeadSpec, ModelSpec
from vision.detect.classes import class_names
from vision.detect.reference.decoder import Decoder
from vision.detect.reference.extras import SOFTMAX_KINDS, TASKS
from vision.detect.reference.heads import HEADS, make_head
from vision.detect.reference.layout import Shape, with_batch
from vision.detect.reference.sample_check import (
    Finding,
    Reading,
    agreement,
    judge,
    judge_class_ids,
    judge_offsets,
    judge_scores,
)
from vision.errors import ModelError

Outputs: TypeAlias = Mapping[str, NDArray[Any]]
"""All outputs of a model for one frame, by name, as a model returns them for a batch of one."""

_BOXES: Final = 2000  # maximum number of boxes of each frame that are judged, best first
_STRIDES: Final = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
_BINS: Final = (8, 11, 16, 17, 32)


def of_batch(outputs: Outputs, index: int, batch: int) -> Outputs:
    """Return a model's outputs for frame `index` of a batch of `batch` frames, shaped as for a batch of one.

    Outputs that are not numeric are omitted. In a batch of several frames, outputs without a row per frame are omitted.
    """
    numbers = {name: output for name, output in outputs.items() if output.dtype.kind in "fiub"}
    if batch == 1:
        return numbers
    batched = {name: output for name, output in numbers.items() if output.ndim and len(output) == batch}
    return {name: output[index : index + 1] for name, output in batched.items()}


@dataclass(frozen=True, slots=True)
class Sample:
    """Outputs of a model for the frames of `sample_frames`, with which each model is checked."""

    frames: Sequence[Outputs]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the outputs for a batch of one, by name."""
        return {name: output.shape for name, output in self.frames[0].items()}

    def read_by(self, decoder: Decoder) -> list[list[NDArray[np.float32]]]:
        """Return the outputs that `decoder` needs, for each sample frame, as arguments for `Decoder.decode`."""
        return [decoder.of_frame([frame[name] for name in decoder.outputs], 0) for frame in self.frames]


@dataclass(frozen=True, slots=True)
class Match:
    """A head that can read a model's outputs for sample frames, so that the checks find no fault in the results."""

    head: HeadSpec
    classes: int | None  # number of classes; None if the outputs do not show it
    agreement: float  # mean IoU of the boxes that describe the same object, from 0 to 1

    def in_words(self) -> str:
        """Return the head as it is written in model.yaml."""
        return f"`head: {head_text(self.head)}`"


def head_text(head: HeadSpec) -> str:
    """Return a head as a mapping in YAML, without the keys that have their default values."""
    given = head.model_dump(mode="json", exclude_defaults=True)
    return f"{{{', '.join(f'{key}: {value}' for key, value in given.items())}}}"


def check_sample(spec: ModelSpec, sample: Sample) -> None:
    """Check that the boxes, scores, and classes that the configured head reads in a sample can be right.

    Raises:
        ModelError: the head does not fit the outputs, or its results cannot be right. The hint contains a head that
            fits the sample, if there is one.
    """
    class_count = len(class_names(spec))
    try:
        decoder = make_head(_limited(spec, spec.head), class_count, 0.0).bind(sample.shapes)
    except ModelError as error:
        if error.code != "head-mismatch":
            raise
        raise ModelError(error.args[0], hint=advice(spec, class_count, sample), code=error.code) from None
    finding, _ = _finding(spec, decoder, sample)
    if finding is not None:
        raise ModelError(
            f"{spec.name}: head `{spec.head.kind}` does not fit the outputs: {finding.text}",
            hint=advice(spec, class_count, sample),
            code=finding.code,
        )


def _finding(spec: ModelSpec, decoder: Decoder, sample: Sample) -> tuple[Finding | None, float]:
    """Check whether the results are plausible that a decoder reads in the outputs for the sample frames.

    Returns:
        The first fault, or None, and the highest `agreement` of a frame. If a check of the raw values already finds a
        fault, the agreement is 0.
    """
    frames = sample.read_by(decoder)
    views = [view for frame in frames for view in decoder.raw_scores(frame)]
    finding = judge_scores(views, logits=decoder.rules.sigmoid or decoder.rules.softmax)
    ids = decoder.layout.class_ids
    if finding is None and ids is not None:
        finding = judge_class_ids([ids.table(frame)[:, ids.first] for frame in frames])
    if finding is None and decoder.rules.coding == "grid":
        places = [part.boxes for part in decoder.layout.parts]
        finding = judge_offsets([at.table(frame)[:, at.first : at.first + 4] for frame in frames for at in places])
    if finding is not None:
        return finding, 0.0
    candidates = [decoder.decode(frame) for frame in frames]
    readings = [Reading(each.boxes_xyxy, each.scores, each.class_ids) for each in candidates]
    bounded = decoder.rules.coding == "distances"
    finding = judge(readings, (spec.input.width, spec.input.height), suppressed=not decoder.needs_nms, bounded=bounded)
    return finding, max(map(agreement, readings))


def _limited(spec: ModelSpec, head: HeadSpec) -> ModelSpec:
    """Return a copy of `spec` with this head, in which the decoder returns at most `_BOXES` boxes per frame."""
    nms = spec.nms.model_copy(update={"max_candidates": _BOXES, "max_objects": _BOXES})
    return spec.model_copy(update={"head": head, "nms": nms})


def try_heads(spec: ModelSpec, class_counts: Sequence[int], sample: Sample) -> list[Match]:
    """Try to read a model's outputs for sample frames with every head, and with all options of each head.

    Return the heads in whose results the checks find no fault, the best first.

    Args:
        class_counts: numbers of classes, the most likely first. Each head uses the first number that fits. If the
            sequence is empty, the numbers that the shapes show are tried.
    """
    found: list[Match] = []
    for layout in _layouts(spec.head):
        tried = _limited(spec, layout)
        counts = class_counts or _counts(tried, sample)
        count = next((each for each in counts if _bound(tried, each, sample) is not None), None)
        if count is not None:
            tries = (_try(_limited(spec, head), count, sample) for head in _scalings(layout))
            found += filter(None, tries)

    def rank(match: Match) -> tuple[object, ...]:
        other_task = match.head.task != spec.head.task
        return other_task, -round(match.agreement, 1), *_unusual(match.head, spec.head, sample)

    return sorted(found, key=rank)


def _unusual(head: HeadSpec, configured: HeadSpec, sample: Sample) -> tuple[int, bool, int]:
    """Return a sort key that is lowest for the most usual of several heads that can read the same outputs.

    PaddlePaddle exports the outputs of PicoDet per stride. NanoDet-Plus exports one output.
    """
    options = len(head.model_dump(exclude_defaults=True)) - 1
    separate = len(sample.shapes) > 1
    unlikely = head.kind == ("nanodet-plus" if separate else "picodet")
    kinds = [configured.kind, *(kind for kind in HEADS if kind != configured.kind)]
    return options, unlikely, kinds.index(head.kind)


def _bound(spec: ModelSpec, count: int, sample: Sample) -> Decoder | None:
    """Return the decoder that reads the outputs in `sample` as `spec` describes, for `count` classes.

    Return None if the head does not fit the shapes of the outputs.
    """
    try:
        head = make_head(spec, count, 0.0)
        return head.bind(sample.shapes) if head.could_fit(sample.shapes) else None
    except ModelError:
        return None


def _try(spec: ModelSpec, count: int, sample: Sample) -> Match | None:
    """Try to read the outputs in `sample` with the head in `spec`, for `count` classes.

    Return the match if the checks find no fault and no output with results remains unread. Otherwise, return None.
    """
    decoder = _bound(spec, count, sample)
    if decoder is None:
        return None
    if not _accounts_for(decoder.outputs, sample.shapes):
        return None
    if spec.head.activation == "softmax" and decoder.layout.classes in {None, count}:
        return None  # the values of a softmax and of a sigmoid look alike, but only a softmax has a class for no object
    finding, agrees = _finding(spec, decoder, sample)
    return None if finding else Match(spec.head, decoder.layout.classes, agrees)


def _layouts(configured: HeadSpec) -> Iterator[HeadSpec]:
    """Yield each kind of head with each set of options that changes the layout, the configured kind first."""
    for kind in sorted(HEADS, key=lambda kind: kind != configured.kind):
        for options in _cell_options(kind, configured):
            yield HeadSpec.model_validate({"kind": kind, **options})
        for task in (task for task, kinds in TASKS.items() if kind in kinds):
            keypoints = configured.keypoints if task == "pose" else None
            yield HeadSpec.model_validate({"kind": kind, "task": task, "keypoints": keypoints})


def _scalings(head: HeadSpec) -> Iterator[HeadSpec]:
    """Yield copies of a head with every combination of box unit (pixels or fractions) and activation of scores."""
    softmax = ("softmax",) * (head.kind in SOFTMAX_KINDS)
    for scale in ("pixels", "fraction"):
        for activation in ("none", "sigmoid", *softmax):
            yield head.model_copy(update={"box_scale": scale, "activation": activation})


def _cell_options(kind: str, head: HeadSpec) -> Iterator[dict[str, object]]:
    """Yield strides and bins to try for a kind of head: the defaults, the values in `head`, and other common values.

    A key that a result lacks means the default. For heads without grid cells, the only result has no keys.
    """
    family = HEADS[kind]
    if family.coding not in {"distances", "grid"}:
        yield {}
        return
    strides = dict.fromkeys([None, head.strides, *_STRIDES])
    bins = dict.fromkeys([None, head.bins, *_BINS]) if family.coding == "distances" else {None: None}
    for sizes in strides:
        for count in bins:
            if sizes == family.strides or count == family.bins:
                continue  # the same as None
            given = {"strides": sizes, "bins": count}
            yield {key: value for key, value in given.items() if value is not None}


def _counts(spec: ModelSpec, sample: Sample) -> list[int]:
    """Return the numbers of classes that the output shapes show for a head, with 1 for layouts that show no number."""
    head = make_head(spec, 1, 0.0)
    shapes = with_batch(sample.shapes, head.without_batch(sample.shapes))
    return list(dict.fromkeys(way.classes or 1 for way in head._ways(shapes)))


def _accounts_for(read: Sequence[str], shapes: Mapping[str, Shape]) -> bool:
    """Return True if no output that is missing from `read` contains results.

    Outputs with five axes do not contain results: YOLOv5 also exports the maps (batch, anchors, rows, columns, values)
    from which it computes its result.
    """
    return all(len(shape) == 5 for name, shape in shapes.items() if name not in read)


def advice(spec: ModelSpec, class_count: int, sample: Sample) -> str:
    """Return text that states how to change model.yaml so that a head fits the sample, or that no head fits."""
    matches = try_heads(spec, [class_count], sample)
    if matches:
        best = matches[0]
        return f"these outputs fit head `{best.head.kind}`: write {best.in_words()} in model.yaml"
    matches = [match for match in try_heads(spec, [], sample) if match.classes is not None]
    if matches:
        best = matches[0]
        known = ", for example `classes: coco91`" if best.classes == 91 else ""
        also = "" if best.head == spec.head else f", and write {best.in_words()}"
        return f"these outputs have {best.classes} classes: list the same number in `classes`{known}{also}"
    return "no head fits these outputs; docs/models.md lists the outputs that each head expects"
