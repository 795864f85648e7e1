"""Tests that `vision run` serves metrics over HTTP, and rejects an unsafe section `http`."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.unit.cli.test_main import read_until, run, started, write_config
from vision.messaging.curve import new_key

pytestmark = pytest.mark.integration

TOKEN = "canary-0123456789"


def test_metrics_are_served_also_with_encrypted_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that serves the metrics has its own key. After a kill, the program restarts this process."""
    monkeypatch.setenv("METRICS_TOKEN", TOKEN)
    new_key(tmp_path / "keys" / "server.key")
    http = {"bind": "127.0.0.1:*", "token": "${METRICS_TOKEN}"}
    config = write_config(tmp_path, publish={"bind": f"ipc://{tmp_path}/out", "curve": "keys"}, http=http)
    with started("run", str(config)) as process:
        match = re.search(r"metrics and health on (\S+)", read_until(process, "metrics and health on"))
        assert match is not None
        wait_for(f"{match[1]}/metrics", 'vision_stage_seconds_count{camera="a",stage="infer"}')
        wait_for(f"{match[1]}/metrics", 'vision_camera_state{camera="a",state="streaming"} 1.0')
        children = psutil.Process(process.pid).children()
        assert not any(TOKEN in " ".join(child.cmdline()) for child in children)
        server = next(child for child in children if "monitoring" in " ".join(child.cmdline()))
        server.kill()
        wait_for(f"{match[1]}/metrics", 'vision_camera_state{camera="a",state="streaming"} 1.0')
        assert httpx.get(f"{match[1]}/readyz").status_code == 200
        assert httpx.get(f"{match[1]}/metrics").status_code == 401


def wait_for(url: str, text: str) -> None:
    """Repeat a request until the response contains `text`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(url, headers={"authorization": f"Bearer {TOKEN}"}).text
        except httpx.HTTPError:
            answer = ""
        if text in answer:
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not contain {text}")


@pytest.mark.parametrize(
    ("http", "expected"),
    [
        ({"bind": "*:9102"}, "insecure-address"),
        ({"token": "0123456789abcdef"}, "written-password"),
        ({"token": "${SHORT}"}, "string-too-short"),
        ({"bind": "http://127.0.0.1:1"}, "bind-form"),
    ],
)
def test_unsafe_section_is_refused(tmp_path: Path, http: dict[str, str], expected: str) -> None:
    done = run("check", "--json", str(write_config(tmp_path, http=http)), env=os.environ | {"SHORT": "s3cr3t"})
    assert done.returncode == 1 or "fault" in done.stdout
    assert f'"code": "{expected}"' in done.stdout
    assert "s3cr3t" not in done.stdout + done.stderr
