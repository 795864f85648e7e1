"""Tests of malicious files: programs that other users can write, programs that end the process, and endless faults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vision.config.load import load_config, load_config_text
from vision.errors import ConfigError
from vision.pipelines import load_pipeline

BUILD = "from vision.pipelines import pipeline_with\nbuild = pipeline_with([])\n"


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(str(path))
    return caught.value.code


@pytest.mark.parametrize(("target", "mode"), [("mine.py", 0o666), ("mine.py", 0o646), ("", 0o777)])
def test_pipeline_that_others_can_write_is_not_run(tmp_path: Path, target: str, mode: int) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"{BUILD}open({str(tmp_path / 'was-run')!r}, 'w').close()\n")
    load_pipeline(str(path))
    (tmp_path / "was-run").unlink()
    (tmp_path / target).chmod(mode)
    assert refusal(path) == "pipeline-untrusted"
    assert not (tmp_path / "was-run").exists()


def test_link_to_a_pipeline_that_others_can_write_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "real.py").write_text(BUILD)
    (tmp_path / "real.py").chmod(0o666)
    (tmp_path / "mine.py").symlink_to(tmp_path / "real.py")
    assert refusal(tmp_path / "mine.py") == "pipeline-untrusted"


@pytest.mark.parametrize("text", ["import sys; sys.exit(3)", "raise SystemExit", "raise RuntimeError('x')", "1/"])
def test_pipeline_that_ends_the_program_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert refusal(path) == "pipeline-import"


@pytest.mark.parametrize(
    "text",
    [
        "cameras: [{id: a, source: a.mp4}]\n" + "".join(f"key{number}: 1\n" for number in range(5000)),
        "cameras:\n" + "".join(f"- {{id: a b{number}, source: a.mp4}}\n" for number in range(900)),
    ],
)
def test_number_of_printed_faults_is_limited(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(text, {})
    assert len(str(caught.value)) < 50_000
    assert 50 < len(caught.value.faults) < 2000


def test_number_of_cameras_is_limited() -> None:
    cameras = "".join(f"- {{id: c{number}, source: a.mp4}}\n" for number in range(1001))
    with pytest.raises(ConfigError) as caught:
        load_config_text(f"cameras:\n{cameras}", {})
    assert [fault.code for fault in caught.value.faults] == ["too-long"]


@pytest.mark.parametrize(
    "value",
    ["$(touch x)", "`touch x`", "; touch x", "| touch x", "!!python/object/apply:os.system ['touch x']", "{{7*7}}"],
)
def test_commands_in_a_configuration_are_plain_text_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("source", "user", "password", "tls"):
        camera = {"id": "a", "source": "rtsp://h/1", "user": "u", "password": "${P}", key: value}
        with pytest.raises(ConfigError):
            load_config_text(f"cameras: [{camera}]\nmodel: {value!r}\nnode: {value!r}\n", {"P": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(20)
def test_named_pipe_without_a_writer_is_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    os.mkfifo(path)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert caught.value.code == "empty"


@pytest.mark.timeout(20)
def test_pipe_is_read_to_its_end() -> None:
    """Shells pass the output of a command as a pipe, for example in ``vision check <(envsubst < camera.yaml)``."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("cameras: [{id: a, source: 'synthetic:'}]")
    try:
        assert [camera.id for camera in load_config(Path(f"/dev/fd/{reading}"), {}).cameras] == ["a"]
    finally:
        os.close(reading)
