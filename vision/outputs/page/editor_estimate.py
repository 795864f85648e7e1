"""`Estimator` computes how a draft changes the events of the last hour, with a `vision whatif` process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from vision.config import AppConfig
from vision.errors import ConfigError, Unavailable
from vision.messaging.control_protocol import own_folder
from vision.outputs.page.texts import words
from vision.state.private_files import make_private_folder

RANGE_S: Final = 3600
CPU_LIMIT_S: Final = 60
LIMIT_S: Final = 300.0
_WAIT_S: Final = 2.0  # time to wait for the end of an estimate that a browser has canceled

# In isolated mode, no file in the current folder can replace a module. The process has a low priority.
_PROGRAM: Final = (
    "import json, os, resource, sys; sys.path[:] = json.loads(sys.argv.pop(1)); os.nice(10); "
    f"resource.setrlimit(resource.RLIMIT_CPU, ({CPU_LIMIT_S},) * 2); from vision.cli.main import entry; entry()"
)


class Estimator:
    """Estimator of the effect of drafts. It runs at most one `vision whatif` process at a time."""

    def __init__(self, limit_s: float = LIMIT_S, wait_s: float = _WAIT_S) -> None:
        """Create the estimator.

        Args:
            limit_s: longest duration of an estimate, in seconds.
            wait_s: maximum time in seconds to wait for a running estimate to end.
        """
        self._limit_s = limit_s
        self._wait_s = wait_s
        self._lock = asyncio.Lock()

    async def estimate(self, running: AppConfig, draft: AppConfig, camera: str) -> dict[str, Any]:
        """Compute with `vision whatif` how the events of the last hour would differ with a draft.

        If the call is canceled, end the process of `vision whatif`.

        Args:
            running: the configuration of the file, with absolute paths.
            draft: the configuration with the draft.
            camera: id of the camera whose events are compared.

        Returns:
            Numbers of events, as published and with the draft, for JSON: see `_summary`.

        Raises:
            ConfigError: there is no archive, or `vision whatif` has failed.
            ModelError: other users can write to the runtime folder of the program, or this folder cannot be created.
            Unavailable: a different estimate is running, or this estimate exceeds a time limit.
        """
        if running.archive is None:
            hint = "add the section `archive` to the configuration, and restart the program"
            raise ConfigError("the program keeps no archive of the last hour", hint=hint, code="no-archive")
        try:
            await asyncio.wait_for(self._lock.acquire(), self._wait_s)
        except asyncio.TimeoutError:
            hint = "try again when it has ended"
            raise Unavailable("a different estimate is running", hint=hint, code="estimate-busy") from None
        try:
            # A service on a Jetson cannot write to /tmp.
            parent = own_folder()
            make_private_folder(parent)
            with tempfile.TemporaryDirectory(prefix="estimate-", dir=parent) as folder:
                return await self._run(Path(folder), _reduced(running, draft), camera)
        finally:
            self._lock.release()

    async def _run(self, folder: Path, content: dict[str, Any], camera: str) -> dict[str, Any]:
        config, found = folder / "draft.yaml", folder / "difference.json"
        config.write_text(json.dumps(content))
        until = datetime.fromtimestamp(time.time(), timezone.utc)
        since = datetime.fromtimestamp(until.timestamp() - RANGE_S, timezone.utc)
        arguments = ["whatif", config, "--since", since.isoformat(), "--until", until.isoformat()]
        command = [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path)]
        process = await asyncio.create_subprocess_exec(
            *command,
            *map(str, [*arguments, "--camera", camera, "--json", found]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await asyncio.wait_for(process.communicate(), self._limit_s)
        except asyncio.TimeoutError:
            raise self._over_limit() from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise self._over_limit()
        if process.returncode != 0 or not found.exists():
            text = errors.decode(errors="replace").strip() or f"`vision whatif` ended with {process.returncode}"
            raise ConfigError(text, code="estimate-failed")
        return _summary(json.loads(found.read_text()), camera)

    def _over_limit(self) -> Unavailable:
        hint = "use `vision whatif` on the command line, which has no limit"
        text = f"the estimate needs more than {CPU_LIMIT_S} s of computing time, or {self._limit_s:g} s in total"
        return Unavailable(text, hint=hint, code="estimate-limit")


def _reduced(running: AppConfig, draft: AppConfig) -> dict[str, Any]:
    """Return the configuration for `vision whatif`: the parts of the draft on which events depend.

    The configuration contains the model and the archive of the file, but no address and no password of a camera.
    """
    content = draft.model_dump(mode="json", exclude_unset=True)
    kept: dict[str, Any] = {
        key: content[key] for key in ("pipeline", "detect", "track", "analytics", "rules") if key in content
    }
    for section in kept.get("analytics", {}).values():
        section.pop("accuracy", None)  # intervals of totals, which are not in events
    assert running.archive is not None
    return {
        **kept,
        "model": running.model,
        "cameras": [{"id": camera.id, "source": "synthetic:"} for camera in draft.cameras],
        "archive": {"folder": running.archive.folder},
    }


def _summary(report: dict[str, Any], camera: str) -> dict[str, Any]:
    """Return the numbers of events, as published and with the draft, for JSON.

    ``published`` and ``now`` (with the draft) are totals. ``rows`` contains both numbers for each kind, name, and
    direction. ``texts`` contains the rows as pairs of texts, and ``note`` contains remarks for a person. The other keys
    are the period, the numbers of differing events, the number of frames, and the number of lost frames.
    """
    total = report["cameras"][camera]
    now = Counter({_key(event): event["events"] for event in total["tallies"]})
    published = Counter(now)
    for change in report["changes"]:
        if change["before"] is None:
            published[_row(change["after"])] -= 1
        if change["after"] is None:
            published[_row(change["before"])] += 1
    rows, texts = [], []
    for key in sorted({*now, *published}):
        kind, name, direction = key
        rows.append({"kind": kind, "name": name, "direction": direction, "published": published[key], "now": now[key]})
        title = f"{words(kind)} {name} {direction}".strip()
        texts.append((title, f"{published[key]} counted, {now[key]} with the draft"))
    lost = sum(gap["messages"] for gap in total["gaps"] if gap["kind"] in ("detections", "disk"))
    notes = [
        "" if rows else "There were no events, and the draft causes none.",
        f"The archive lacks {lost} frames of this hour." if lost else "",
    ]
    keys = ("published", "now", "same", "gained", "lost", "moved", "changed", "equal", "frames")
    return {
        "since": report["since"],
        "until": report["until"],
        **{key: total[key] for key in keys},
        "lost_frames": lost,
        "rows": rows,
        "texts": texts,
        "note": " ".join(filter(None, notes)),
    }


def _key(tally: dict[str, Any]) -> tuple[str, str, str]:
    return tally["kind"], tally["name"], tally["direction"] or ""


def _row(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["kind"], event["name"], event["data"].get("direction") or ""
