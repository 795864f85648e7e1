"""Quantization with NVIDIA ModelOpt, a package that runs in a separate environment, because it needs PyTorch."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vision.config import ModelSpec
from vision.errors import Closed, ConfigError, ModelError, from_os_error
from vision.optimize.feed import Feed
from vision.optimize.frames import Frames
from vision.optimize.onnx_graph import Graph, open_session

if TYPE_CHECKING:
    from vision.optimize.thresholds import Algorithm

_METHODS: Final[Mapping[str, str]] = {"minmax": "max", "entropy": "entropy"}
_POLL_S: Final = 0.2
_TAIL: Final = 800  # characters of ModelOpt's output in an error message
_FIND: Final = "import importlib.util, sys; sys.exit(importlib.util.find_spec('modelopt') is None)"


@dataclass(frozen=True, slots=True)
class ModelOpt:
    """An installation of ModelOpt, specified by the Python interpreter of its environment."""

    python: Path

    def require(self, algorithms: Sequence[Algorithm]) -> None:
        """Check that ModelOpt is installed, and supports the algorithms.

        Raises:
            ConfigError: the interpreter cannot be run, its environment lacks ModelOpt, or ModelOpt lacks an algorithm.
            Unavailable: the interpreter cannot be started at present.
        """
        for algorithm in algorithms:
            if algorithm not in _METHODS:
                expected = " or ".join(_METHODS)
                raise ConfigError(
                    f"--with modelopt: expected the algorithm {expected}, got {algorithm}", code="invalid-value"
                )
        try:
            found = subprocess.run([str(self.python), "-c", _FIND], check=False, capture_output=True)
        except OSError as error:
            raise from_os_error(f"--python: cannot run {self.python}", error, code="invalid-value") from error
        if found.returncode:
            raise ConfigError(
                f"the environment of {self.python} does not contain nvidia-modelopt",
                hint="`python3 -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]'`, then add "
                "`--python modelopt/bin/python`",
                code="modelopt-missing",
            )

    def quantize(
        self,
        graph: Graph,
        spec: ModelSpec,
        frames: Frames,
        *,
        algorithm: Algorithm,
        kept: Sequence[str],
        folder: Path,
        stop: threading.Event,
    ) -> bytes:
        """Quantize a model to int8, calibrated with all frames. Return the contents of the quantized ONNX file.

        Args:
            kept: names of the layers that stay in float.
            folder: temporary folder, with room for all frames as float32.

        Raises:
            Closed: `stop` was set.
            ConfigError: the folder cannot be written, or ONNX Runtime is not installed.
            ModelError: ModelOpt cannot quantize the model.
            Unavailable: the folder cannot be written at present, for example because the disk is full.
        """
        source, target, data = folder / "source.onnx", folder / "target.onnx", folder / "frames.npz"
        contents = graph.serialized()
        try:
            source.write_bytes(contents)
            target.unlink(missing_ok=True)
            _write_inputs(data, folder, contents, spec, frames)
        except OSError as error:
            raise from_os_error("cannot write the frames for ModelOpt", error, code="not-writable") from error
        output = _run([str(self.python), *arguments(source, target, data, algorithm, kept)], folder, stop)
        if not target.exists():
            raise ModelError(
                f"{spec.name}: ModelOpt cannot quantize the model: ...{output[-_TAIL:]}",
                hint="quantize it with `--with onnxruntime`, the default",
                code="modelopt-fails",
            )
        return target.read_bytes()


def arguments(source: Path, target: Path, data: Path, algorithm: Algorithm, kept: Sequence[str]) -> list[str]:
    """Return the interpreter's arguments for a quantization of `source` to `target`. `data` is the file of inputs."""
    given = {
        "onnx_path": source,
        "output_path": target,
        "calibration_data_path": data,
        "calibration_method": _METHODS[algorithm],
        "calibration_eps": "cpu",
        "quantize_mode": "int8",
        "high_precision_dtype": "fp32",  # TensorRT converts the other layers, as for models of `quantize`
        "log_level": "WARNING",
    }
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return ["-m", "modelopt.onnx.quantization", *options, *(("--nodes_to_exclude", *kept) if kept else ())]


def _write_inputs(target: Path, folder: Path, model: bytes, spec: ModelSpec, frames: Frames) -> None:
    """Write the inputs of all frames to an npz file, without keeping them in memory."""
    feed = Feed(open_session(model), spec)
    arrays: dict[str, np.memmap[tuple[int, ...], np.dtype[np.float32]]] = {}
    batches = -(-len(frames.paths) // feed.batch)
    for number, (inputs, _) in enumerate(feed.batches(frames.images())):
        for index, (name, values) in enumerate(inputs.items()):
            if name not in arrays:
                shape = (batches * len(values), *values.shape[1:])
                path = folder / f"input-{index}.npy"
                arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
            arrays[name][number * len(values) : (number + 1) * len(values)] = values
    np.savez(target, **dict[str, Any](arrays))


def _run(command: Sequence[str], folder: Path, stop: threading.Event) -> str:
    """Run a command in `folder`. Return its standard output and errors as text. The exit status is not checked.

    If `stop` is set, kill the command and its children, and raise `Closed`.
    """
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None:
                if stop.wait(_POLL_S):
                    raise Closed("stopped")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return output.read().decode(errors="replace").strip()
