"""Tests of the check of heads on a sample image: only the right head passes, and the hint names the right head."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.detector_scene import FORMS, Scene
from vision.config import HeadSpec, ModelSpec
from vision.detect.reference.alternatives import Sample, check_sample, head_text
from vision.errors import ModelError

PLAIN, NOISE = Scene(), Scene(objects=(), seed=2)


def spec(head: dict[str, object], scene: Scene = PLAIN, **changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "mine",
            "file": "mine.onnx",
            "input": {"width": scene.width, "height": scene.height},
            "head": head,
            "classes": scene.names,
            "licence": "CC0-1.0",
            **changes,
        }
    )


def sample(form: str, *scenes: Scene) -> Sample:
    frames = [FORMS[form][1](scene) for scene in scenes or (PLAIN, NOISE)]
    return Sample([{name: value[None] for name, value in outputs.items()} for outputs in frames])


def refusal(head: dict[str, object], outputs: Sample) -> ModelError | None:
    try:
        check_sample(spec(head), outputs)
    except ModelError as error:
        return error
    return None


@pytest.mark.parametrize("form", FORMS)
def test_right_head_passes(form: str) -> None:
    assert refusal(FORMS[form][0], sample(form)) is None


@pytest.mark.parametrize("form", FORMS)
def test_sample_without_objects_passes(form: str) -> None:
    assert refusal(FORMS[form][0], sample(form, NOISE, replace(NOISE, seed=3))) is None


@pytest.mark.parametrize("form", FORMS)
def test_every_other_head_is_refused_with_the_right_one(form: str) -> None:
    right = HeadSpec.model_validate(FORMS[form][0])
    outputs = sample(form)
    for head, _ in FORMS.values():
        if HeadSpec.model_validate(head) == right:
            continue
        error = refusal(head, outputs)
        assert error is not None, head
        assert error.exit_code == 78
        written = re.search(r"`head: (\{.*?\})`", error.hint)
        assert written is not None, (head, error.hint)
        assert written[1] == head_text(right), (head, error.code)
