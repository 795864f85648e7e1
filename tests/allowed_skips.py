"""Skips that CI allows. If the environment variable CI is set, any other skip counts as a failure.

On a developer's machine, a package may be missing, so a skip is acceptable. In CI, every package is installed, so a
skip would hide an untested area.
"""

from __future__ import annotations

import os
import re

import pytest

ALLOWED = (
    # There is no GPU in CI. The emulated GPU runs the same tests (tests/unit/gpu/test_emulated_gpu.py).
    (r"tests/gpu/", r"no GPU|needs a real GPU|needs an engine that can be told|needs a driver that can be told"),
    (r"tests/gpu/test_engine\.py", r"could not import|cannot be imported|there is no NVIDIA driver"),
    (r"tests/gpu/test_tensorrt_detector\.py", r"needs an emulated engine"),
    (r"tests/contract/test_detector\.py", r"no GPU|after an error of CUDA every call"),
    # CI runs as root, or in a sandbox without the right to make network namespaces.
    (r"tests/unit/capture/", r"this user may read everything"),
    (r"tests/unit/state/test_private_files\.py", r"only root"),
    (
        r"tests/unit/(runtime/test_start|state/test_(free_space|scratch|failing_disk)|optimize/test_bad_input)\.py",
        r"only root",
    ),
    (r"tests/systemd/", r"only root|no overlay|a service cannot see|does not permit (mounts|containers)"),
    (r"tests/messages/test_power_cut\.py", r"network"),
    (r"tests/messages/test_read_only_disk\.py", r"only root"),
    # Features that only one variant of TensorRT has; ./test runs the engine tests with both variants.
    (
        r"tests/unit/engine/",
        r"TensorRT (takes it|starts only with a driver)|a library (without|whose|that)|1\.4 asks the driver|^TensorRT$",
    ),
    # ModelOpt needs PyTorch, several gigabytes. `VISION_MODELOPT_PYTHON` names an environment that contains it.
    (r"tests/unit/optimize/test_routes\.py", r"VISION_MODELOPT_PYTHON"),
    # The service that knows the vulnerabilities of packages can be unreachable although the packages are reachable.
    (r"tests/unit/test_locks\.py", r"advisory service does not answer"),
    # The registry of packages can be unreachable.
    (r"tests/models/", r"cannot be downloaded"),
    # The project does not ship the video and the ground truth of the accuracy test. The Debian package puts the video
    # into /usr/share/doc, which container images often leave out.
    (r"tests/accuracy/", r"VISION_PETS_GT|opencv-doc"),
)
"""Pairs of regular expressions: the test's id, and the reason of the skip."""


def allowed(nodeid: str, reason: str) -> bool:
    """Return True if the test may be skipped in CI for this reason."""
    return any(re.search(test, nodeid) and re.search(why, reason) for test, why in ALLOWED)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport, nodeid: str) -> None:
    """Turn a skip that is not allowed into a failure. Do nothing if CI is not set."""
    if not report.skipped or hasattr(report, "wasxfail") or "CI" not in os.environ:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not allowed(nodeid, reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which tests/allowed_skips.py does not allow: {reason}"
