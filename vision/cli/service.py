"""The commands `vision install-service` and `vision uninstall-service`, which set up and remove systemd services."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from vision.cli.session import command
from vision.config.fields import IDENTIFIER, IDENTIFIER_TITLE
from vision.config.user_files import read_input
from vision.engine.library import TEGRA_RELEASE
from vision.errors import EXIT_OK, ConfigError, VisionError

UNIT: Final = Path(__file__).with_name("vision@.service")
"""The shipped unit file."""
USER: Final = "vision"
"""The user that runs the service."""

_UNITS: Final = Path("/etc/systemd/system")
_CONFIGS: Final = Path("/etc/vision")
_PROGRAM: Final = "/opt/vision/bin/vision"  # path of the program in the shipped unit
HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""Folders that the service cannot see."""
_GROUPS: Final = ("video", "render")  # groups that may use cameras and GPUs
_JETSON: Final = "# The daemon for CSI cameras has its socket in /tmp.\n[Service]\nPrivateTmp=no\n"

Yes = Annotated[bool, typer.Option("--yes", help="Do it. Without this option, the command only prints the steps.")]


@dataclass(frozen=True, slots=True)
class Run:
    """A step that runs a program, to install or remove the systemd service."""

    arguments: Sequence[str]  # the program and its arguments

    def __str__(self) -> str:
        return shlex.join(self.arguments)

    def do(self) -> None:
        """Run the program. Raise `VisionError` if it fails."""
        done = subprocess.run(self.arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            raise VisionError(f"`{self}` failed: {done.stderr.strip()}", code="step-failed")


@dataclass(frozen=True, slots=True)
class Write:
    """A step that writes a file, and creates its folder, to install the systemd service."""

    path: Path
    content: str
    mode: int  # permissions of the file
    group: str | None = None  # group of the file; None means the group of root

    def __str__(self) -> str:
        group = f", group {self.group}" if self.group else ""
        return f"write {self.path} (mode {self.mode:o}{group}, {self.content.count(chr(10))} lines)"

    def do(self) -> None:
        """Write the file, and set its permissions, owner, and group. Raise `OSError` if this fails."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, self.mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self.content)
        self.path.chmod(self.mode)
        shutil.chown(self.path, "root", self.group or "root")


@dataclass(frozen=True, slots=True)
class Remove:
    """A step that removes a file or a folder, to remove the systemd service."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"

    def do(self) -> None:
        """Remove the file, or the folder with its contents. Raise `OSError` if this fails."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink()


Step = Run | Write | Remove


@command()
def install_service(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="Configuration to copy to /etc/vision and to start, if given."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the service; the name of CONFIG without its ending if absent.")
    ] = None,
    yes: Yes = False,
) -> int:
    """Set up a systemd service. By default, print the steps, and change nothing.

    The command creates the user `vision`, installs the unit `vision@.service`, and starts `vision@NAME` if CONFIG is
    given. Relative paths in CONFIG are relative to /etc/vision.

    Examples:
      vision install-service shop.yaml
      sudo vision install-service shop.yaml --yes
    """
    _carry_out(list(_installation(config, name)), yes=yes)
    return EXIT_OK


@command()
def uninstall_service(context: typer.Context, yes: Yes = False) -> int:
    """Remove the systemd services. By default, print the steps, and change nothing.

    The command stops the services. It keeps the configurations in /etc/vision, the state in /var/lib/vision, and the
    user `vision`.

    Examples:
      vision uninstall-service
      sudo vision uninstall-service --yes
    """
    _carry_out(list(_removal()), yes=yes)
    return EXIT_OK


def _installation(config: Path | None, name: str | None) -> Iterator[Step]:
    program = _program()
    name = name or (config.stem if config is not None else None)
    if name is not None and not IDENTIFIER.fullmatch(name):
        text = f"--name: expected {IDENTIFIER_TITLE}, got {name!r}"
        raise ConfigError(text, hint="it is the name of the service: vision@NAME", code="invalid-value")
    if not _exists(pwd.getpwnam, USER):
        home = "/var/lib/vision"
        yield Run(["useradd", "--system", "--user-group", "--home-dir", home, "--shell", "/usr/sbin/nologin", USER])
    if groups := [group for group in _GROUPS if _exists(grp.getgrnam, group)]:
        yield Run(["usermod", "--append", "--groups", ",".join(groups), USER])
    yield Write(_UNITS / UNIT.name, UNIT.read_text(encoding="utf-8").replace(_PROGRAM, program), 0o644)
    drop_ins = _UNITS / f"{UNIT.name}.d"
    if TEGRA_RELEASE.exists():
        yield Write(drop_ins / "jetson.conf", _JETSON, 0o644)
    if config is not None and name is not None:
        yield from _configuration(config, name)
    yield Run(["systemctl", "daemon-reload"])
    if config is not None:
        yield Run(["systemctl", "enable", "--now", f"vision@{name}"])


def _configuration(config: Path, name: str) -> Iterator[Step]:
    """Yield the steps that copy a configuration, and create the file for its secrets. Leave out files that exist.

    Raises:
        ConfigError: the configuration cannot be read, or a different configuration of this name exists.
    """
    target, secrets = _CONFIGS / f"{name}.yaml", _CONFIGS / f"{name}.env"
    try:
        content = read_input(config).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {config}: {error}", code="unreadable") from error
    if target.exists() and target.read_text(encoding="utf-8") != content:
        hint = "edit that file, or set a different --name"
        raise ConfigError(f"{target} exists and differs from {config}", hint=hint, code="config-exists")
    if not target.exists():
        yield Write(target, content, 0o640, group=USER)
    if not secrets.exists():
        yield Write(secrets, "# One line for each variable of the configuration, such as CAMERA_PASSWORD=...\n", 0o600)


def _removal() -> Iterator[Step]:
    if shutil.which("systemctl") is not None and Path("/run/systemd/system").exists():
        yield Run(["systemctl", "stop", "vision@*"])
        enabled = sorted(path.name for path in _UNITS.glob("*.wants/vision@*.service"))
        if enabled:
            yield Run(["systemctl", "disable", *enabled])
    for path in (_UNITS / UNIT.name, _UNITS / f"{UNIT.name}.d"):
        if path.exists():
            yield Remove(path)
    yield Run(["systemctl", "daemon-reload"])


def _carry_out(steps: Sequence[Step], *, yes: bool) -> None:
    """Print the steps. If `yes` is True, also do them.

    Raises:
        VisionError: the user is not root, systemd does not run, or a step failed.
    """
    if yes and os.geteuid():
        raise VisionError("only root can change services", hint="run the command with sudo", code="not-root")
    if yes and not Path("/run/systemd/system").exists():
        hint = "without systemd, start `vision run` with the service manager of this machine"
        raise VisionError("systemd does not run on this machine", hint=hint, code="no-systemd")
    for step in steps:
        print(step, flush=True)
        if yes:
            _do(step)
    if not yes:
        print("\nNothing was changed. To do these steps, add --yes, and run the command as root.")


def _do(step: Step) -> None:
    try:
        step.do()
    except OSError as error:
        raise VisionError(f"{step}: {error.strerror}", code="step-failed") from error


def _program() -> str:
    """Return the path of the program `vision` in this environment.

    Raises:
        VisionError: the program is not installed, or is in a folder that the service cannot see.
    """
    program = Path(sys.prefix) / "bin" / "vision"
    if not program.exists():
        raise VisionError(
            f"the program is not installed: there is no {program}", hint="pip install .", code="no-program"
        )
    if str(program).startswith(tuple(f"{folder}/" for folder in HIDDEN)):
        hint = "install it in a system folder: `python3 -m venv /opt/vision`, then `/opt/vision/bin/pip install ...`"
        raise VisionError(f"the service cannot see {program}", hint=hint, code="program-hidden")
    return str(program)


def _exists(find: Callable[[str], object], name: str) -> bool:
    try:
        find(name)
    except KeyError:
        return False
    return True
