"""The command `vision cameras`, which finds cameras, and adds or removes cameras of a running program."""

from __future__ import annotations

import getpass
import importlib.util
import json as json_module
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml
from rich.table import Table
from rich.text import Text

from vision.cli.control import RunningConfig, Socket, ask_program, print_changes
from vision.cli.options import Json, ModelConfig, given, parse_duration, read_config, table_console
from vision.cli.session import add_command, command
from vision.config import AppConfig
from vision.config.changes import read_camera
from vision.config.user_files import read_input
from vision.errors import EXIT_OK, ConfigError, SourceError, Unavailable, from_os_error, redact, register_secret
from vision.messaging.control_protocol import AddCameraRequest, RemoveCameraRequest
from vision.version import install_hint

if TYPE_CHECKING:
    from vision.capture.onvif.device import Device, Profile
    from vision.capture.onvif.find import Camera, Target
    from vision.capture.onvif.soap import Account

PASSWORD_VARIABLE: Final = "ONVIF_PASSWORD"
_PACKAGES: Final = ("httpx", "defusedxml")
_TARGET: Final = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))(?::([0-9]{1,5}))?")
_TIMEOUT_S: Final = 5.0
_SILENT: Final = frozenset({"onvif-unreachable", "onvif-slow"})  # codes of problems of a device that does not answer
_MAX_PORT: Final = 65535


@command()
def add(
    context: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE.yaml]", help="File with the keys of one camera.", show_default=False),
    ] = None,
    camera_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Id of the camera.")] = None,
    source: Annotated[str | None, typer.Option(metavar="SOURCE", help="Address of the camera.")] = None,
    config: RunningConfig = None,
    socket: Socket = None,
    json: Json = False,
) -> int:
    """Add a camera to a running program.

    The change lasts until the program reloads its configuration, or starts again. It is not written to a file.

    Examples:
      vision cameras add --id gate --source rtsp://192.0.2.4/stream1
      vision cameras add gate.yaml
    """
    if file is None and (camera_id is None or source is None):
        raise typer.BadParameter("expected a file, or --id and --source")
    camera = {} if file is None else read_camera(Path(file))
    request = AddCameraRequest(camera={**camera, **given(id=camera_id, source=source)})
    print_changes(ask_program(request, config, socket), json=json)
    return EXIT_OK


@command()
def remove(
    context: typer.Context,
    camera_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the camera.")],
    config: RunningConfig = None,
    socket: Socket = None,
    json: Json = False,
) -> int:
    """Remove a camera from a running program.

    The change lasts until the program reloads its configuration, or starts again. It is not written to a file.

    Examples:
      vision cameras remove gate
    """
    print_changes(ask_program(RemoveCameraRequest(id=camera_id), config, socket), json=json)
    return EXIT_OK


@command()
def find(
    context: typer.Context,
    addresses: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HOST[:PORT]]...",
            help="Devices to ask, instead of all devices in the networks of this machine. PORT is that of HTTP.",
            show_default=False,
        ),
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="User of the cameras.")] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File with the password. Default: the environment variable {PASSWORD_VARIABLE}, or else a question.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            parser=parse_duration,
            metavar="TIME",
            help="Time for answers to the search, and then for all answers of one device.",
        ),
    ] = _TIMEOUT_S,
    config: ModelConfig = None,
    json: Json = False,
) -> int:
    """Find ONVIF cameras in the network, and print their streams and the lines for camera.yaml.

    Among the streams of a camera, the command prefers the smallest stream that is at least as wide or as high as the
    input of the model. Larger frames take more time to decode, and the detector scales them down. If all streams are
    smaller than the input, the command prefers the largest stream.

    Examples:
      vision cameras find
      vision cameras find --user viewer
      vision cameras find 192.0.2.4 192.0.2.5:8080 --user viewer --password-file /etc/vision/onvif-password
    """
    _require_packages()
    if user is None and password_file is not None:
        raise typer.BadParameter("expected --user too", param_hint="--password-file")
    from vision.capture.onvif.find import cameras_of, find_devices
    from vision.runtime.builder import find_model

    targets = [_target(address) for address in addresses or ()]
    account = None if user is None else _account(user, password_file)
    spec = find_model((AppConfig.model_fields["model"].default) if config is None else read_config(config).model)[1]
    devices = find_devices(targets, timeout, account)
    found = cameras_of(devices, (spec.input.width, spec.input.height))
    sections = _sections(found, account)
    if json:
        print(json_module.dumps([_as_json(device, cameras, sections) for device, cameras in found], indent=1))
    else:
        _print_devices(found)
        _print_sections(sections)
    if not any(map(_has_answered, devices)):
        hint = "to ask devices in other networks, or without multicast: vision cameras find HOST"
        raise Unavailable("no ONVIF device answers", hint=hint, code="no-onvif-device")
    return EXIT_OK


def _require_packages() -> None:
    """Raise `ConfigError` if a package of the extra `onvif` is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        text = f"vision cameras find: the package {missing[0]} is missing"
        raise ConfigError(text, hint=install_hint("onvif"), code="package-missing")


def _has_answered(device: Device) -> bool:
    return not any(problem.code in _SILENT for problem in device.problems)


def _target(text: str) -> Target:
    from vision.capture.onvif.find import Target

    match = _TARGET.fullmatch(text)
    if match is None or (match[2] is not None and not 1 <= int(match[2]) <= _MAX_PORT):
        raise typer.BadParameter(f"expected HOST or HOST:PORT, got {redact(text)!r}", param_hint="HOST")
    return Target(match[1], None if match[2] is None else int(match[2]))


def _account(user: str, file: Path | None) -> Account:
    from vision.capture.onvif.soap import Account

    if file is not None:
        try:
            password = read_input(file).decode().removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise from_os_error(f"--password-file: cannot read {file}", error, code="password-file") from error
        except UnicodeDecodeError as error:
            text = f"--password-file: expected UTF-8 in {file}: {error.reason}"
            raise ConfigError(text, code="password-file") from error
    else:
        password = os.environ.get(PASSWORD_VARIABLE, "")
        if not password and sys.stdin.isatty():
            password = getpass.getpass(f"Password of {user}: ")
    if not password:
        hint = f"export {PASSWORD_VARIABLE}, or use --password-file FILE"
        raise ConfigError("--user: the password is missing", hint=hint, code="no-password")
    register_secret(password)
    return Account(user, password)


_Found = list[tuple["Device", list["Camera"]]]
_Sections = dict[str, Mapping[str, Any]]


def _sections(found: _Found, account: Account | None) -> _Sections:
    """Return the keys for camera.yaml, by the id of the camera. Leave out cameras without a usable stream.

    If the address of a stream cannot be used without a change, add the reason to the problems of the device.
    """
    from vision.capture.onvif.find import camera_section

    sections = {}
    for device, cameras in found:
        for camera in cameras:
            section, problem = camera_section(device, camera, account, PASSWORD_VARIABLE)
            if section is not None:
                sections[camera.id] = section
            if problem is not None:
                device.problems.append(problem)
    return sections


def _print_devices(found: _Found) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("camera", "device", "profile", "codec", "size", "frames/s", "", "address"):
        table.add_column(column, overflow="fold")
    console = table_console()
    for device, cameras in found:
        label = " ".join(filter(None, (device.manufacturer, device.model))) or device.host
        for camera in cameras:
            for profile in camera.profiles:
                mark = "preferred" if profile is camera.preferred else ""
                cells = (camera.id, label, *_profile_cells(profile), mark, redact(profile.address))
                table.add_row(*map(Text, cells))
    if table.row_count:
        console.print(table)
    for device, _ in found:
        for problem in dict.fromkeys(map(_problem_text, device.problems)):
            console.print(Text(f"{device.host}: {problem}"), soft_wrap=True)


def _profile_cells(profile: Profile) -> tuple[str, str, str, str]:
    rate = "" if profile.fps is None else f"{profile.fps:g}"
    return profile.name or profile.token, profile.codec, f"{profile.width}x{profile.height}", rate


def _problem_text(problem: SourceError) -> str:
    return f"{problem.args[0]}{f'; {problem.hint}' if problem.hint else ''}"


def _print_sections(sections: _Sections) -> None:
    if sections:
        content = {"cameras": [dict(section) for section in sections.values()]}
        print(f"\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)}", end="")


def _as_json(device: Device, cameras: list[Camera], sections: _Sections) -> dict[str, Any]:
    return {
        **{name: getattr(device, name) for name in ("host", "address", "name", "manufacturer", "model", "firmware")},
        "serial": device.serial,
        "problems": [{"code": each.code, "message": each.args[0], "hint": each.hint} for each in device.problems],
        "cameras": [
            {
                "profiles": [
                    {
                        **{name: getattr(each, name) for name in ("name", "codec", "width", "height", "fps")},
                        "address": redact(each.address),
                        "preferred": each is camera.preferred,
                    }
                    for each in camera.profiles
                ],
                "camera": sections.get(camera.id),
            }
            for camera in cameras
        ],
    }


cameras = typer.Typer(rich_markup_mode=None)
add_command(cameras, "find", find)
add_command(cameras, "add", add)
add_command(cameras, "remove", remove)


@cameras.callback(
    help="Find ONVIF cameras, and add or remove cameras of a running program.",
    epilog="\b\nExamples:\n  vision cameras find --user viewer\n  vision cameras add gate.yaml\n",
    no_args_is_help=True,
)
def _describe() -> None:
    """Do nothing: a group of commands needs a function for its help text."""
