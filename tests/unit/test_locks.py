"""Tests that the lock files contain the requirements of pyproject.toml, with hashes, and that tools can read them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = "vision-streams"
ENTRY = re.compile(
    r"""^([\w.-]+)==(\S+?)(?:\ ;\ (.*?))?\ \\\n     # package, version, and marker
    ((?:\ {4}--hash=sha256:[0-9a-f]{64}(?:\ \\)?\n)+)
    ((?:\ {4}\#.*\n)*)                              # the packages that require it""",
    re.MULTILINE | re.VERBOSE,
)
MACHINES = {
    "service": [(python, machine) for python in ("3.10", "3.11", "3.12", "3.13") for machine in ("x86_64", "aarch64")],
    "jetpack6": [("3.10", "aarch64")],
    "jetpack7": [("3.12", "aarch64")],
}
JETSONS = {"jetpack6": 35, "jetpack7": 39}
"""For each lock file of a Jetson, the minor version of its glibc, which limits the wheels that it can use."""


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


LOCK, AUDIT = tool("lock"), tool("audit")


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def required(extras: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield the requirements of the project and of the extras `extras`."""
    sections = project()["project"]
    lists = [sections["dependencies"], *(sections["optional-dependencies"][extra] for extra in extras)]
    for requirement in (Requirement(text) for texts in lists for text in texts):
        if requirement.name == PROJECT:
            yield from required(tuple(requirement.extras))
        else:
            yield requirement


def environment(python: str, machine: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": "linux",
    }


def pins(name: str, place: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """Return the versions that a lock file installs, by package, and the directly required packages."""
    versions: dict[str, str] = {}
    direct = set()
    for package, version, marker, _, origin in ENTRY.findall((ROOT / "locks" / f"{name}.txt").read_text()):
        if not marker or Requirement(f"{package} ; {marker}").marker.evaluate(dict(place)):  # type: ignore[union-attr]
            assert package not in versions
            versions[package] = version
            if PROJECT in origin or not origin:
                direct.add(package)
    return versions, direct


@pytest.mark.parametrize("name", MACHINES)
def test_lock_agrees_with_the_requirements(name: str) -> None:
    """If this test fails, run `make lock`, which rewrites the files."""
    lock = LOCK.LOCKED[name]
    for place in (environment(*machine) for machine in MACHINES[name]):
        versions, direct = pins(name, place)
        wanted = [*required(lock.extras), *map(Requirement, (*LOCK.BUILD, *lock.more))]
        wanted = [each for each in wanted if each.marker is None or each.marker.evaluate(dict(place))]
        assert {canonicalize_name(each.name) for each in wanted} == direct
        for each in wanted:
            assert each.specifier.contains(versions[canonicalize_name(each.name)], prereleases=True), each


@pytest.mark.parametrize("name", MACHINES)
def test_each_package_has_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert len(ENTRY.findall(text)) == len(re.findall(r"^[a-z].*==", text, re.M)) > 40
    assert "://" not in text and "index-url" not in text


def pip_install(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Make pip select, download, and check the packages for an empty environment, without installing them."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *arguments]
    command += ["--disable-pip-version-check", "--require-hashes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    if done.returncode and re.search(r"Connection|timed out", done.stderr):
        pytest.skip("the registry of packages cannot be reached")
    return done


@pytest.mark.packages
@pytest.mark.integration
def test_pip_installs_the_locked_packages_with_their_hashes() -> None:
    done = pip_install("--report", "-", "--requirement", ROOT / "locks" / "service.txt")
    assert done.returncode == 0, done.stderr[-2000:]
    chosen = {each["metadata"]["name"]: each["metadata"]["version"] for each in json.loads(done.stdout)["install"]}
    here = {name: str(value) for name, value in default_environment().items()}
    expected, _ = pins("service", here)
    assert {canonicalize_name(name): version for name, version in chosen.items()} == expected


def options_of_a_jetson(name: str) -> list[str]:
    """Return the options with which pip selects, on any machine, the packages for a Jetson."""
    python = MACHINES[name][0][0].replace(".", "")
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(JETSONS[name], 16, -1)]
    return [
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--abi={abi}" for abi in (f"cp{python}", "abi3", "none")),
        *(f"--platform={platform}" for platform in (*platforms, "manylinux2014_aarch64", "linux_aarch64")),
        # pip would compare these two with the Python and the machine that run the test. The test compares them itself.
        *("--ignore-requires-python", "--no-deps"),
    ]


@pytest.mark.packages
@pytest.mark.integration
@pytest.mark.parametrize("name", JETSONS)
def test_pip_finds_the_locked_packages_for_a_jetson(name: str, tmp_path: Path) -> None:
    lock = ROOT / "locks" / f"{name}.txt"
    done = pip_install(*options_of_a_jetson(name), "--target", tmp_path, "--report", "-", "--requirement", lock)
    assert done.returncode == 0, done.stderr[-2000:]
    place = environment(*MACHINES[name][0])
    chosen = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    versions, _ = pins(name, place)
    assert {canonicalize_name(each["name"]): each["version"] for each in chosen} == versions
    for each in chosen:
        assert SpecifierSet(each.get("requires_python") or "").contains(place["python_full_version"]), each["name"]
        for needed in map(Requirement, each.get("requires_dist", ())):
            if needed.marker is None or needed.marker.evaluate({**place, "extra": ""}):
                assert needed.specifier.contains(versions[canonicalize_name(needed.name)], prereleases=True), needed


@pytest.mark.packages
@pytest.mark.integration
def test_pip_refuses_a_package_with_a_different_hash(tmp_path: Path) -> None:
    (line,) = re.findall(r"^idna==\S+", (ROOT / "locks" / "service.txt").read_text(), re.MULTILINE)
    lock = tmp_path / "lock.txt"
    lock.write_text(f"{line} --hash=sha256:{'0' * 64}\n")
    done = pip_install("--no-deps", "--requirement", lock)
    assert done.returncode != 0
    assert "0" * 64 in done.stderr  # the hash that was expected


@pytest.mark.packages
@pytest.mark.integration
def test_no_locked_package_has_a_known_vulnerability() -> None:
    command = [sys.executable, str(ROOT / "tools" / "audit.py")]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=280, env={**os.environ, "PATH": path}
    )
    if done.returncode == AUDIT.EXIT_TEMPORARY:
        pytest.skip(f"the advisory service does not answer for all packages: {done.stdout.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout


def test_all_locks_and_the_build_requirements_are_known() -> None:
    assert {path.stem for path in (ROOT / "locks").glob("*.txt")} == set(LOCK.LOCKED) == set(MACHINES)
    assert list(LOCK.BUILD) == project()["build-system"]["requires"]


@pytest.mark.integration
def test_bill_of_materials_lists_the_locked_packages(tmp_path: Path) -> None:
    if not (ROOT / "build" / "cyclonedx").exists():
        pytest.skip("needs build/cyclonedx, which ./test creates")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "cyclonedx").symlink_to(ROOT / "build" / "cyclonedx")
    for name in ("locks", "pyproject.toml", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = ["make", "-s", "sbom", "SBOM_OPTIONS=--no-validate"]  # validation takes seconds
    subprocess.run([*command, f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"], cwd=tmp_path, check=True)
    for name in MACHINES:
        bill = json.loads((tmp_path / "build" / "sbom" / f"{name}.json").read_text())
        assert bill["bomFormat"] == "CycloneDX"
        assert bill["metadata"]["component"]["name"] == PROJECT
        entries = ENTRY.findall((ROOT / "locks" / f"{name}.txt").read_text())
        assert {(each["name"], each["version"]) for each in bill["components"]} == {entry[:2] for entry in entries}


def package(**more: Any) -> dict[str, Any]:
    return {"name": "a", "version": "1", **more}


@pytest.mark.parametrize(
    ("report", "code"),
    [
        ({"dependencies": [package(vulns=[])]}, 0),
        ({"dependencies": [package(vulns=[]), package(skip_reason="unknown")]}, 75),
        ({"dependencies": [package(vulns=[{"id": "X-1", "fix_versions": []}]), package(skip_reason="unknown")]}, 1),
        ({"dependencies": []}, 75),
        (None, 75),
    ],
)
def test_audit_is_only_successful_if_all_packages_were_checked(report: Any, code: int) -> None:
    assert AUDIT.audit("a.txt", report) == code


@pytest.mark.integration
def test_audit_without_a_service_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    lock = tmp_path / "a.txt"
    lock.write_text(f"six==1.17.0 --hash=sha256:{'0' * 64}\n")
    assert AUDIT.ask(lock) is None
