"""`Reloader`, which handles the requests of the control socket.

A request does one of the following:

* It returns the status of the program, or the lines, zones, and masks of a camera.
* It reloads the configuration file.
* It adds or removes a camera.
* It replaces the lines, zones, and masks of a camera.

The reloader checks a new configuration completely before it applies any part of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psutil
from msgspec import UnsetType

from vision.capture.open import require_library
from vision.config import AppConfig, CameraConfig, check_classes
from vision.config.changes import (
    Plan,
    compare,
    require_camera,
    required_score,
    restart_error,
    with_analytics,
    with_camera,
    with_privacy,
    without_camera,
)
from vision.config.model_file import checked_model_file
from vision.detect.detector import ReportsMemory
from vision.detect.open import published_class_names
from vision.errors import ConfigError, Unavailable, VisionError
from vision.messaging.control_protocol import (
    AddCameraRequest,
    AnalyticsReply,
    ChangedReply,
    GetAnalyticsRequest,
    ReloadRequest,
    RemoveCameraRequest,
    Reply,
    Request,
    SetAnalyticsRequest,
    StatusReply,
    StatusRequest,
    own_folder,
    socket_name,
)
from vision.messaging.control_server import ControlServer, remove_unused_sockets
from vision.messaging.schema import REMOVED
from vision.runtime.builder import find_model, find_second_model, require_hiding
from vision.runtime.camera_factory import CameraFactory
from vision.runtime.live_change import change_running
from vision.runtime.runtime import Runtime
from vision.stages.analytics import open_accuracy
from vision.state.private_files import make_private_folder
from vision.state.service_manager import notify

log = logging.getLogger(__name__)

_DESCRIPTORS_PER_CAMERA: Final = 8


class Reloader:
    """Handler of the control requests to one running program. Call `handle` from one thread at a time."""

    def __init__(
        self,
        runtime: Runtime,
        config: AppConfig,
        read: Callable[[], AppConfig],
        path: Path,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Create the handler.

        Args:
            runtime: the program, which need not run yet.
            config: configuration of the program.
            read: function that reloads the configuration.
            path: file of the configuration.
            environ: variables that replace ``${NAME}`` in the password of an added camera.
        """
        self._runtime = runtime
        self._config = config
        self._read = read
        self.path = path
        self._environ = environ
        self._detector_score = required_score(config)

    def handle(self, request: Request) -> Reply:
        """Handle a request. Return the reply once the program has carried out the request.

        Raises:
            ConfigError: the new configuration is invalid, the camera is unknown, the change requires a restart, or the
                lines, zones, or masks have changed since the client read them. Nothing was changed.
            VisionError: the request is refused for a different reason, such as an invalid model, or `Unavailable` if
                the program is still starting or lacks memory. Nothing was changed.
        """
        if isinstance(request, StatusRequest):
            return self._status()
        if isinstance(request, GetAnalyticsRequest):
            return self._analytics(request.camera)
        with _reported_to_service_manager():
            if isinstance(request, ReloadRequest):
                return self._apply(self._read(), self.path)
            if isinstance(request, AddCameraRequest):
                return self._apply(with_camera(self._config, request.camera, self._environ))
            if isinstance(request, RemoveCameraRequest):
                return self._apply(without_camera(self._config, request.id))
            assert isinstance(request, SetAnalyticsRequest)
            if request.version not in (None, self._analytics(request.camera).version):
                text = f"the lines, zones, or masks of {request.camera} have changed since they were read"
                raise ConfigError(text, hint="read them again", code="changed-meanwhile")
            config = with_analytics(self._config, request.camera, request.analytics)
            if not isinstance(request.privacy, UnsetType):
                config = with_privacy(config, request.camera, request.privacy)
            return self._apply(config)

    def _status(self) -> StatusReply:
        report = self._runtime.last_report
        if report is None:
            raise Unavailable("the program is starting", code="starting")
        return StatusReply(node=report.node, cameras=[each for each in report.cameras if each.state != REMOVED])

    def _analytics(self, camera_id: str) -> AnalyticsReply:
        require_camera(self._config, camera_id)
        sections = self._config.analytics.get(camera_id), self._config.privacy.get(camera_id)
        contents = [
            None if section is None else section.model_dump(mode="json", exclude_unset=True) for section in sections
        ]
        digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
        return AnalyticsReply(analytics=contents[0], privacy=contents[1], version=digest.hexdigest())

    def _apply(self, config: AppConfig, path: Path | None = None) -> ChangedReply:
        """Check a configuration, and apply it. `path` is the configuration file, if any.

        Errors contain the line numbers of this file.
        """
        factory = self._factory()
        plan = compare(self._config, config, self._detector_score)
        if plan.restart:
            raise restart_error(plan, path)
        check_models(config, path)
        require_hiding(config)
        open_accuracy(config.analytics)
        opened = [camera for camera in config.cameras if camera.id in (*plan.added, *plan.reopened)]
        for camera in opened if factory.options.open_source is None else ():
            require_library(camera)
        factory.check(opened)
        check_room(factory, [camera for camera in opened if camera.id in plan.added])
        if not plan.is_empty:
            self._runtime.steps.submit(change_running(self._runtime, factory, config, plan)).result()
        self._config = config
        log.info("%s", _summary(plan))
        return ChangedReply(
            added=list(plan.added),
            removed=list(plan.removed),
            reopened=list(plan.reopened),
            adjusted=list(plan.adjusted),
            stages=list(plan.stages),
        )

    def _factory(self) -> CameraFactory:
        factory = self._runtime.cameras.factory
        reason = "its pipeline does not come from `pipeline`"
        if factory is not None:
            reason = (
                "--offline" if factory.options.offline else "--video or --show" if factory.options.has_video else ""
            )
        if factory is None or reason:
            text = f"this program cannot change while it runs: {reason}"
            raise ConfigError(text, hint="restart the program instead", code="not-changeable")
        return factory


def open_control(reloader: Reloader, resources: ExitStack) -> ControlServer | None:
    """Open the control socket. If this is not possible, log the reason, and return None."""
    path = own_folder() / socket_name(reloader.path)
    try:
        make_private_folder(path.parent)
        remove_unused_sockets(path.parent)
        return resources.enter_context(ControlServer(path, reloader.handle))
    except (VisionError, OSError) as error:
        reason = error.args[0] if isinstance(error, VisionError) else error
        log.warning("`vision status` and `vision reload` do not work: %s", reason)
        return None


@contextmanager
def _reported_to_service_manager() -> Iterator[None]:
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


def check_models(config: AppConfig, path: Path | None) -> None:
    """Check the folders of the models, because each process that is started after the change reads these folders.

    Errors contain the line numbers of `path`, the configuration file. `path` is None if there is no file.

    Raises:
        ConfigError: the configuration names a class that the model does not have.
        ModelError: a folder or file is missing, damaged, or not the model that its model.yaml describes.
    """
    folder, spec = find_model(config.model)
    check_classes(config, published_class_names(spec, config.detect), path)
    if config.detect.backend != "fake":
        checked_model_file(folder, spec)
    if config.cascade is not None:
        checked_model_file(*find_second_model(config.cascade))


def check_room(factory: CameraFactory, added: list[CameraConfig]) -> None:
    """Check that the free memory and the limit of open files suffice for the cameras in `added`.

    If the detector uses a GPU, check the memory of the GPU too.

    Raises:
        Unavailable: the memory or the limit does not suffice at present.
    """
    needed, free = factory.frame_bytes(added), psutil.virtual_memory().available
    if added and isinstance(factory.detector, ReportsMemory):
        from vision.gpu.cuda import memory_info

        free = min(free, memory_info()[0])
    if needed > free:
        text = f"the frames of {len(added)} more cameras need {needed >> 20} MiB of memory, but only {free >> 20} MiB"
        raise Unavailable(f"{text} are free", hint="set a smaller `width` and `height`", code="no-room")
    descriptors = len(os.listdir("/proc/self/fd")) + _DESCRIPTORS_PER_CAMERA * len(added)  # noqa: PTH208 - only names
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if added and descriptors > limit:
        text = f"{len(added)} more cameras need about {descriptors} open files, but the limit is {limit}"
        raise Unavailable(text, hint="raise the limit: `LimitNOFILE=` in the unit, or `ulimit -n`", code="no-room")


def _summary(plan: Plan) -> str:
    """Return the log line that lists the cameras and stages that a reload of the configuration has changed."""
    parts = {
        "added": plan.added,
        "removed": plan.removed,
        "opened again": plan.reopened,
        "adjusted": plan.adjusted,
        "changed": plan.stages,
    }
    texts = [f"{name} {', '.join(values)}" for name, values in parts.items() if values]
    return f"configuration reloaded: {'; '.join(texts) or 'nothing has changed'}"
