"""Tests that a model that other users can replace is rejected, even if it is the second model."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.detect.test_classifier import save
from vision.config import CascadeConfig, shipped_models
from vision.errors import EXIT_CONFIG, ModelError
from vision.runtime import builder
from vision.runtime.builder import find_model, find_second_model

pytestmark = pytest.mark.integration  # the tests run commands of hints

NAME = "nanodet-g-416"
UNKNOWN = 3_999_999
"""Id of a user and of a group that do not exist on this machine."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of a model that only this user can write to."""
    folder = tmp_path / "a model"
    shutil.copytree(shipped_models() / NAME, folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        find_model(str(path))
    assert caught.value.code == "model-untrusted"
    assert caught.value.exit_code == EXIT_CONFIG
    return caught.value


def carry_out(error: ModelError) -> None:
    """Execute the first command in the hint of an error."""
    subprocess.run(shlex.split(error.hint.split("`")[1]), check=True)


def test_private_model_is_accepted(model: Path) -> None:
    assert find_model(str(model))[0] == model


@pytest.mark.parametrize(
    ("changed", "mode"), [(".", 0o777), (".", 0o757), ("model.yaml", 0o666), (f"{NAME}.onnx", 0o646)]
)
def test_model_that_everybody_can_write_is_refused_until_the_command_of_the_hint_was_run(
    model: Path, changed: str, mode: int
) -> None:
    (model / changed).chmod(mode)
    carry_out(refusal(model))
    assert find_model(str(model))[0] == model


@needs_root
@pytest.mark.parametrize("changed", [".", "model.yaml"])
def test_model_of_another_user_is_refused_until_the_command_of_the_hint_was_run(model: Path, changed: str) -> None:
    os.chown(model / changed, pwd.getpwnam("daemon").pw_uid, -1)
    carry_out(refusal(model))
    assert find_model(str(model))[0] == model


@needs_root
@pytest.mark.parametrize(
    ("user", "group", "mode"),
    [
        (UNKNOWN, UNKNOWN, 0o775),  # a container sees a folder of a user of the machine, whose umask is 002
        (UNKNOWN, -1, 0o755),
        (0, UNKNOWN, 0o775),
        (0, 0, 0o775),
    ],
)
def test_users_and_groups_that_do_not_exist_here_are_no_other_users(
    model: Path, user: int, group: int, mode: int
) -> None:
    for path in (model, *model.iterdir()):
        os.chown(path, user, group)
        path.chmod(mode)
    assert find_model(str(model))[0] == model


@needs_root
def test_model_of_the_user_who_runs_sudo_is_accepted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.getpwnam("daemon").pw_uid
    for path in (model, *model.iterdir()):
        os.chown(path, user, -1)
    refusal(model)
    monkeypatch.setenv("SUDO_UID", str(user))
    assert find_model(str(model))[0] == model


@needs_root
def test_model_that_a_group_with_members_can_write_is_refused(model: Path) -> None:
    group = pwd.getpwnam("daemon").pw_gid
    os.chown(model, -1, group)
    model.chmod(0o775)
    carry_out(refusal(model))
    assert find_model(str(model))[0] == model


def test_model_below_a_folder_that_others_can_write_is_refused(model: Path) -> None:
    model.parent.chmod(0o777)
    carry_out(refusal(model))
    assert find_model(str(model))[0] == model


@pytest.mark.parametrize(("mode", "accepted"), [(0o644, True), (0o666, False)])
def test_onnx_file_without_model_yaml_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, accepted: bool
) -> None:
    path = tmp_path / f"{NAME}.onnx"
    shutil.copy(shipped_models() / NAME / path.name, path)
    path.chmod(mode)
    monkeypatch.setattr(builder, "spec_of_file", lambda _: find_model(NAME)[1])  # the file itself is no complete model
    if accepted:
        assert find_model(str(path))[0] == tmp_path
    else:
        refusal(path)


def test_second_model_is_checked_too(tmp_path: Path) -> None:
    folder = save(tmp_path / "second")
    folder.chmod(0o777)
    with pytest.raises(ModelError) as caught:
        find_second_model(CascadeConfig(model=str(folder)))
    assert caught.value.code == "model-untrusted"
    folder.chmod(0o755)
    assert find_second_model(CascadeConfig(model=str(folder)))[0] == folder
