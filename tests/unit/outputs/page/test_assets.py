"""Tests of the files that a browser loads: their sizes, their origins, and forbidden content."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import vision.outputs.page
from tests.unit.outputs.page.client import client_of
from vision.outputs.page.assets import Assets
from vision.outputs.page.event_texts import KINDS

STATIC = Path(vision.outputs.page.__file__).parent / "static"
OWN = sorted(path for path in STATIC.iterdir() if path.is_file())


def test_vendored_files_are_those_of_the_listed_version() -> None:
    vendored = json.loads((STATIC / "vendor" / "vendored.json").read_text())
    listed = {name: digest for package in vendored.values() for name, digest in package["sha256"].items()}
    found = {path.name for path in (STATIC / "vendor").iterdir()} - {"vendored.json"}
    assert found == listed.keys()
    for name, digest in listed.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest
    assert f"v{vendored['uplot']['version']}" in (STATIC / "vendor" / "uPlot.iife.min.js").read_text()[:200]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_file_loads_nothing_from_other_hosts_and_sets_no_html(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?|wss?)://[a-z0-9]|\"//|\beval\(|new Function", text)
    assert not re.search(r"[iI]nnerHTML|outerHTML|insertAdjacentHTML|document\.write|\bon[a-z]+=", text)


def loaded(name: str) -> set[str]:
    """Return the files that a browser loads together with the file `name`, without files that it imports later."""
    found = set(
        re.findall(
            r"""(?:from |\{\{assets\}\}/|^import )"?(?:\./)?([\w./]+\.(?:js|css|svg))""", (STATIC / name).read_text()
        )
    )
    own = {each for each in found if not each.startswith("vendor/")} - {name}
    return own.union(*(loaded(each) for each in own if each.endswith(".js")), {name})


def test_own_files_are_small_above_all_those_of_the_first_view() -> None:
    names = loaded("index.html") | loaded("head.html") | loaded("overview.js")
    assert {"app.js", "ui.js", "live.js", "style.css", "health.js"} <= names
    assert sum((STATIC / name).stat().st_size for name in names) <= 25_600
    assert sum(path.stat().st_size for path in OWN) <= 60_000


def test_file_has_an_address_with_a_hash_and_can_be_kept() -> None:
    client, version = client_of(), Assets().version
    response = client.get(f"/static/{version}/app.js")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/javascript")
    assert "immutable" in response.headers["cache-control"]
    assert f"/static/{version}/app.js" in client.get("/").text
    for path in ("/static/0000/app.js", f"/static/{version}/x.js", f"/static/{version}/../../server.py",
                 f"/static/{version}/%2e%2e/server.py", f"/static/{version}/index.html"):  # fmt: skip
        assert client.get(path).status_code in (307, 404)


def test_event_filter_offers_the_kinds_of_the_program() -> None:
    package = Path(vision.outputs.page.__file__).parents[2]
    own = package / "outputs" / "page"
    sources = [path.read_text() for path in package.rglob("*.py") if not path.is_relative_to(own)]
    assert {name for name in KINDS if not any(f'"{name}"' in text for text in sources)} == set()
