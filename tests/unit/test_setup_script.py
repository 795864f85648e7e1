"""Tests of the functions of tools/setup.sh, which ./demo and ./test use."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.getuid() != 0 or not shutil.which("apt-get"), reason="needs root and apt-get, to install a package"
    ),
]

ROOT = Path(__file__).parents[2]
APT_CONFIG = """\
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/root/var/lib/dpkg/status";
Dir::Cache "{folder}/cache";
APT::Sandbox::User "root";
DPkg::Options {{ "--root={folder}/root"; "--log={folder}/dpkg.log"; }};
"""


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """Return the folder of a distribution that consists of one empty package, and that apt installs into root/."""
    for name in (
        "state/lists/partial",
        "cache/archives/partial",
        "root/var/lib/dpkg/updates",
        "root/var/lib/dpkg/info",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/var/lib/dpkg/status").touch()
    control = tmp_path / "package/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: vision-test-package\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: empty\n"
    )
    packages = tmp_path / "packages"
    packages.mkdir()
    subprocess.run(["dpkg-deb", "--build", str(control.parents[1]), str(packages)], check=True, capture_output=True)
    (file,) = packages.iterdir()
    index = control.read_text() + f"Filename: ./{file.name}\nSize: {file.stat().st_size}\n"
    (packages / "Packages").write_text(f"{index}SHA256: {hashlib.sha256(file.read_bytes()).hexdigest()}\n")
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{packages} ./\n")
    (tmp_path / "apt.conf").write_text(APT_CONFIG.format(folder=tmp_path))
    return tmp_path


def apt_install(distribution: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    script = 'set -euo pipefail; . tools/setup.sh; apt_install "$@"'  # with the options of ./test
    line = [shutil.which("bash") or "bash", "-c", script, "bash", *packages]
    environment = {**os.environ, "APT_CONFIG": str(distribution / "apt.conf")}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def installed(distribution: Path) -> str:
    return (distribution / "root/var/lib/dpkg/status").read_text()


def test_available_packages_are_installed_although_one_is_absent(distribution: Path) -> None:
    done = apt_install(distribution, "vision-absent-package", "vision-test-package")
    assert done.returncode == 1
    assert "do not contain: vision-absent-package" in done.stderr
    assert "Status: install ok installed" in installed(distribution), done.stderr


def test_packages_of_which_all_are_available(distribution: Path) -> None:
    done = apt_install(distribution, "vision-test-package")
    assert (done.returncode, installed(distribution).count("Package:")) == (0, 1), done.stderr


def test_package_with_many_versions(distribution: Path) -> None:
    """The list of versions is longer than the buffer of a pipe. A reader that stops early would end apt-cache."""
    index = distribution / "packages/Packages"
    other = index.read_text()
    older = [other.replace("Version: 1\n", f"Version: 0.{number}\n") for number in range(3_000)]
    index.write_text("\n".join([other, *older]))
    done = apt_install(distribution, "vision-test-package")
    assert (done.returncode, installed(distribution).count("Package:")) == (0, 1), done.stderr


def test_packages_of_which_none_is_available(distribution: Path) -> None:
    done = apt_install(distribution, "vision-absent-package")
    assert (done.returncode, installed(distribution)) == (1, ""), done.stderr
