"""Tests of `vision llm eval` with the server of llama.cpp, and with a scripted server that looks at the images."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from tests.chat_server import Handler, Request, chat_server, json_answer
from tests.language.conftest import KEY, TinyModel
from tests.language.llama_server import MODEL, LlamaServer, llama_server
from vision.cli.main import main
from vision.detect.reference.crops import JpegEncoder
from vision.errors import Closed, ConfigError
from vision.evaluation.language.evaluate import evaluate_prompts
from vision.types import Frame, FrameMeta

WIDTH_PX, HEIGHT_PX = 64, 48
BOX = (16, 12, 32, 36)
SHADES = [(True, 250), (True, 200), (True, 90), (False, 110), (False, 40), (False, 20)]
"""The label of each event (True for a true event), and the shade of its image. The shade misleads for two events."""

ENTRY = {"name": "fence", "kinds": ["rule"], "prompt": "Is it bright?"}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE_KEY", KEY)


def write_labels(folder: Path, **keys: Any) -> Path:
    lines = []
    for number, (is_true, shade) in enumerate(SHADES):
        image = np.full((HEIGHT_PX, WIDTH_PX, 3), shade, np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), image)
        event = {"camera": "gate", "kind": "rule", "name": "climb", "data": {"class": "person"}, "box": BOX}
        lines.append(json.dumps({"true": is_true, "snapshot": f"{number}.png", **event, **keys}))
    path = folder / "labels.jsonl"
    path.write_text("\n".join(lines))
    return path


def write_config(folder: Path, url: str, *entries: dict[str, Any], **language: Any) -> Path:
    cameras = [{"id": "gate", "source": "synthetic:64x48@5"}]
    zones = [{"name": "yard", "polygon": [[0, 0], [60, 0], [60, 40]]}]
    rules = [{"name": name, "when": "zone_entered yard"} for name in ("climb", "other")]
    document = {
        "cameras": cameras,
        "analytics": {"gate": {"zones": zones}},
        "rules": rules,
        "language": {"url": url, "timeout_s": 60.0, **language},
        "verify": list(entries or (ENTRY,)),
    }
    path = folder / "camera.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def image_of(request: Request, number: int = 0) -> Any:
    url = request.content[number + 1]["image_url"]["url"]
    return cv2.imdecode(np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8), cv2.IMREAD_GRAYSCALE)


def answer_by_brightness(handler: Handler) -> None:
    """Answer "yes" for bright images. The confidence depends on the brightness."""
    with handler.server.lock:
        request = handler.server.requests[-1]
    brightness = float(np.mean(image_of(request))) / 255
    is_bright = brightness > 0.5
    handler.send(json_answer("yes" if is_bright else "no", round(brightness if is_bright else 1 - brightness, 3)))


def evaluate(config: Path, labels: Path, *options: str) -> int:
    return main(["llm", "eval", str(config), str(labels), *options])


def report(config: Path, labels: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert evaluate(config, labels, "--json", "-", *options) == 0
    return json.loads(capsys.readouterr().out)


def test_curve_of_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(answer_by_brightness) as server:
        config = write_config(tmp_path, server.url)
        document = report(config, write_labels(tmp_path), capsys)
        request = server.requests[0]
    assert document["schema"] == "vision.llm-evaluation/1"
    (prompt,) = document["prompts"]
    assert (prompt["name"], prompt["prompt"], prompt["model"]) == ("fence", "Is it bright?", "scripted-vlm")
    assert (prompt["false_alarms"]["removed"], prompt["false_alarms"]["total"]) == (3, 3)
    assert (prompt["true_events"]["lost"], prompt["true_events"]["total"]) == (1, 3)
    points = [(point["removed"], point["lost"]) for point in prompt["curve"]]
    assert points == [(0, 0), (0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (3, 3)]
    assert [each["line"] for each in prompt["judgments"]] == [1, 2, 3, 4, 5, 6]
    assert request.prompt.startswith("Is it bright?")
    assert '"name":"climb"' in request.prompt
    assert '"class":"person"' in request.prompt


def test_prompts_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(handler: Handler) -> None:
        with handler.server.lock:
            is_opposite = "dark" in handler.server.requests[-1].prompt
        if is_opposite:
            handler.send(json_answer("no"))
        else:
            answer_by_brightness(handler)

    (tmp_path / "dark.txt").write_text("Is it dark?\n")
    plot = tmp_path / "removed.svg"
    with chat_server(answer) as server:
        options = ("--prompt", str(tmp_path / "dark.txt"), "--plot", str(plot))
        document = report(write_config(tmp_path, server.url), write_labels(tmp_path), capsys, *options)
    first, second = document["prompts"]
    assert (second["name"], second["prompt"]) == ("fence, dark", "Is it dark?")
    assert (first["true_events"]["lost"], second["true_events"]["lost"]) == (1, 3)
    assert plot.read_text().startswith("<?xml")


def test_entries_choose_their_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"name": "never", "names": ["other"], "prompt": "?"}, ENTRY | {"cameras": ["gate"]}]
    with chat_server(answer_by_brightness) as server:
        document = report(write_config(tmp_path, server.url, *entries), write_labels(tmp_path), capsys)
        assert [prompt["name"] for prompt in document["prompts"]] == ["fence"]
        assert evaluate(write_config(tmp_path, server.url, entries[0]), write_labels(tmp_path)) == 78


def test_images_are_those_of_a_running_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = ENTRY | {"crop": True, "margin": 0.25, "frames": 2, "spacing_s": 1.5}
    with chat_server(answer_by_brightness) as server:
        config = write_config(tmp_path, server.url, entry)
        labels = write_labels(tmp_path, frames=["0.png", "1.png", "2.png"])
        report(config, labels, capsys)
        (request, *_) = server.requests
        assert request.images == 2
        assert image_of(request).shape == (36, 24), "the box with its margin"
        assert "1500 ms" in request.prompt
        labels = write_labels(tmp_path, box=None)
        document = report(config, labels, capsys)
        assert len(document["notes"]) == 2, "no box, and too few images"
        assert image_of(server.requests[-1]).shape == (HEIGHT_PX, WIDTH_PX)


def test_box_is_scaled_to_a_snapshot_that_was_scaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = np.zeros((HEIGHT_PX * 4, WIDTH_PX * 4, 3), np.uint8)
    frame[80:144, 64:192] = 255  # the object, whose box is in pixels of the frame
    meta = FrameMeta("gate", 0, 0, 0, 0, WIDTH_PX * 4, HEIGHT_PX * 4)
    small = JpegEncoder(max_side_px=WIDTH_PX * 2).encode(Frame.wrap(meta, frame, "bgr"))
    (tmp_path / "scaled.jpg").write_bytes(small)
    with chat_server(answer_by_brightness) as server:
        config = write_config(tmp_path, server.url, ENTRY | {"crop": True, "margin": 0.0})
        report(config, write_labels(tmp_path, snapshot="scaled.jpg", box=(64, 80, 192, 144)), capsys)
        image = image_of(server.requests[0])
    assert image.shape == (32, 64)
    assert image.mean() > 245


def test_answers_of_one_word_and_kept_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(handler: Handler) -> None:
        with handler.server.lock:
            bright = float(np.mean(image_of(handler.server.requests[-1]))) > 128
        handler.send(json_answer("?") | {"choices": [{"message": {"content": "a person" if bright else "a shadow"}}]})

    answers = {"answers": ["a shadow", "a person"], "format": "token", "wait_s": 5.0, "keep": ["a person"]}
    with chat_server(answer) as server:
        config = write_config(tmp_path, server.url, ENTRY | answers)
        (prompt,) = report(config, write_labels(tmp_path), capsys)["prompts"]
    assert (prompt["false_alarms"]["removed"], prompt["true_events"]["lost"]) == (3, 1)
    assert {each["probability"] for each in prompt["judgments"]} == {0.0, 1.0}


@pytest.mark.parametrize(("on_timeout", "lost"), [("send", 0), ("drop", 3)])
def test_events_without_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_timeout: str, lost: int
) -> None:
    entry = ENTRY | {"wait_s": 5.0, "on_timeout": on_timeout}
    with chat_server(lambda handler: handler.send(json_answer("perhaps"))) as server:
        config = write_config(tmp_path, server.url, entry)
        (prompt,) = report(config, write_labels(tmp_path), capsys)["prompts"]
    assert prompt["errors"] == {"schema": 6}
    assert prompt["true_events"]["lost"] == lost
    assert prompt["latency_ms"] is None


def test_model_of_llama_cpp_judges_every_event(
    llama: LlamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The constant `confidence` of the schema is a number, which the random model would write with many digits.
    config = write_config(tmp_path, llama.url, ENTRY, api_key="${LANGUAGE_KEY}", parallel=2)
    (prompt,) = report(config, write_labels(tmp_path), capsys)["prompts"]
    answered = [each for each in prompt["judgments"] if not each["error"]]
    assert len(answered) + sum(prompt["errors"].values()) == len(SHADES)
    assert all(each["answer"] in ("yes", "no") and each["latency_ms"] > 0 for each in answered)
    assert prompt["model"] in (MODEL, "")


def test_wrong_key_and_a_server_that_ends(llama: LlamaServer, tiny_model: TinyModel, tmp_path: Path) -> None:
    labels = write_labels(tmp_path)
    assert evaluate(write_config(tmp_path, llama.url), labels) == 78
    with llama_server(*tiny_model) as server:
        config = write_config(tmp_path, server.url)
        server.kill()
        assert evaluate(config, labels) == 75


def test_server_that_ends_during_the_evaluation(tmp_path: Path) -> None:
    with chat_server(answer_by_brightness) as server:

        def end(handler: Handler) -> None:
            threading.Thread(target=server.server_close).start()
            handler.server.closed.wait(0.5)
            handler.close_connection = True

        server.script.chat = end
        assert evaluate(write_config(tmp_path, server.url, timeout_s=2.0), write_labels(tmp_path)) in (0, 75)


def test_stop_ends_the_evaluation(tmp_path: Path) -> None:
    stop = threading.Event()

    def answer(handler: Handler) -> None:
        stop.set()
        answer_by_brightness(handler)

    with chat_server(answer) as server, pytest.raises(Closed):
        config = write_config(tmp_path, server.url)
        evaluate_prompts(str(config), write_labels(tmp_path), (), stop)


NO_SERVER = "http://127.0.0.1:9/v1"


def no_language(folder: Path) -> tuple[Path, Path, list[Path]]:
    config = write_config(folder, NO_SERVER)
    document = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({key: document[key] for key in document if key not in ("language", "verify")}))
    return config, write_labels(folder), []


def no_image(folder: Path) -> tuple[Path, Path, list[Path]]:
    labels = write_labels(folder)
    (folder / "3.png").write_text("no image")
    return write_config(folder, NO_SERVER), labels, []


def empty_prompt(folder: Path) -> tuple[Path, Path, list[Path]]:
    (folder / "empty.txt").write_text(" \n")
    return write_config(folder, NO_SERVER), write_labels(folder), [folder / "empty.txt"]


def binary_prompt(folder: Path) -> tuple[Path, Path, list[Path]]:
    (folder / "binary.txt").write_bytes(b"\xff\xfe")
    return write_config(folder, NO_SERVER), write_labels(folder), [folder / "binary.txt"]


def missing_prompt(folder: Path) -> tuple[Path, Path, list[Path]]:
    return write_config(folder, NO_SERVER), write_labels(folder), [folder / "missing.txt"]


INVALID: list[tuple[Callable[[Path], tuple[Path, Path, list[Path]]], str]] = [
    (no_language, "no-verify"),
    (no_image, "not-an-image"),
    (empty_prompt, "prompt"),
    (binary_prompt, "prompt"),
    (missing_prompt, "prompt-not-readable"),
]


@pytest.mark.parametrize(("arrange", "code"), INVALID)
def test_invalid_input_is_a_configuration_error(
    tmp_path: Path, arrange: Callable[[Path], tuple[Path, Path, list[Path]]], code: str
) -> None:
    with chat_server(answer_by_brightness) as server:
        config, labels, prompts = arrange(tmp_path)
        config.write_text(config.read_text().replace("http://127.0.0.1:9/v1", server.url))
        with pytest.raises(ConfigError) as caught:
            evaluate_prompts(str(config), labels, prompts, threading.Event())
    assert caught.value.code == code


def test_plot_of_an_unknown_format_is_an_invalid_argument(tmp_path: Path) -> None:
    config = write_config(tmp_path, NO_SERVER)
    assert evaluate(config, write_labels(tmp_path), "--plot", str(tmp_path / "plot.txt")) == 2
