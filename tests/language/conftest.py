"""Fixtures: the tiny model, and a server that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.language.llama_server import LlamaServer, llama_server
from tests.language.tiny_model import write_language_model, write_projector

KEY = "key-of-the-server"


class TinyModel(NamedTuple):
    """Paths of the tiny model and of its vision projector."""

    model: Path
    projector: Path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = tmp_path_factory.mktemp("tiny-model")
    files = TinyModel(folder / "tiny.gguf", folder / "projector.gguf")
    write_language_model(files.model)
    write_projector(files.projector)
    return files


@pytest.fixture(scope="module")
def llama(tiny_model: TinyModel) -> Iterator[LlamaServer]:
    """Run a server that accepts images and requires the API key `KEY`."""
    with llama_server(*tiny_model, KEY) as server:
        yield server
