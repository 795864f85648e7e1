"""Configurations for benchmarks, and functions that run `vision run` on them in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "configs" / "vtest.mp4"
MODEL = ROOT / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"


def write_config(path: Path, sources: list[str], *, port: int = 0, reader: str = "auto", **top: Any) -> Path:
    """Write a camera.yaml with one camera per source, and return its path. The content is JSON, which is valid YAML."""
    cameras = [
        {"id": f"camera-{number}", "source": source, "reader": reader}
        | ({"loop": True} if not source.startswith("synthetic:") else {})
        for number, source in enumerate(sources)
    ]
    publish = {"bind": f"tcp://127.0.0.1:{port}" if port else f"ipc://{path}.ipc"}
    path.write_text(json.dumps({"cameras": cameras, "publish": publish} | top))
    return path


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `vision run CONFIG ARGUMENTS`, and wait until it ends.

    Raises:
        RuntimeError: the command failed. The message contains its standard error.
    """
    command = [sys.executable, "-m", "vision.cli.main", "run", str(config), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done


def offline_results(sources: list[str], **top: Any) -> list[dict[str, Any]]:
    """Run `vision run --offline` on these sources. Return the recorded results of all frames."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder) / "camera.yaml", sources, **top)
        record = Path(folder) / "results.jsonl"
        run(config, "--offline", "--record", str(record))
        return [json.loads(line) for line in record.read_text().splitlines()]


@contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `vision run CONFIG` in the background until the end of the `with` block."""
    command = [sys.executable, "-m", "vision.cli.main", "--log-level", "warning", "run", str(config)]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)
