"""Tests of `vision plan` with a language model on the same machine."""

from __future__ import annotations

import psutil
import pytest

from tests.language.conftest import KEY
from tests.language.llama_server import LlamaServer
from tests.messages.processes import wait_until
from vision.benchmark.language_load import is_local, language_load
from vision.benchmark.plan import Plan, make_plan
from vision.benchmark.tables import print_plan
from vision.cli.options import table_console
from vision.config import AppConfig
from vision.config.language import LanguageServer


def plan(url: str, **language: object) -> Plan:
    zones = [{"name": "yard", "polygon": [[0, 0], [60, 0], [60, 40]]}]
    document = {
        "cameras": [{"id": "c0", "source": "synthetic:64x48@20"}],
        "analytics": {"c0": {"zones": zones}},
        "detect": {"backend": "fake"},
        "processes": 1,
        "language": {"url": url, "timeout_s": 30.0, **language},
        "verify": [{"name": "real", "prompt": "Is it real?"}],
    }
    return make_plan(AppConfig.model_validate(document), seconds=0.4)


def test_plan_keeps_the_server_busy(llama: LlamaServer, capsys: pytest.CaptureFixture[str]) -> None:
    # A grammar forces the model, which speaks no language, to one of the words.
    planned = plan(llama.url, api_key=KEY, parallel=2, extra_body={"grammar": 'root ::= "yes"'})
    assert planned.language is not None
    assert planned.language.durations.count > 2
    assert planned.language.failures == {}
    assert planned.as_json()["language"]["durations"]["p50_ms"] > 0
    print_plan(planned, table_console())
    assert "language model" in capsys.readouterr().out


def test_server_that_does_not_run_is_a_failure() -> None:
    with language_load(LanguageServer(url="http://127.0.0.1:9/v1")) as load:
        assert load is not None
        wait_until(lambda: bool(load.result().failures), "a failure", 60)
    assert set(load.result().failures) == {"unreachable"}
    assert load.result().durations.count == 0


def test_server_on_another_machine_is_not_asked() -> None:
    with language_load(LanguageServer(url="http://192.0.2.1:8000/v1")) as load:
        assert load is None
    with language_load(None) as load:
        assert load is None


def test_local_addresses_are_recognized() -> None:
    own = [address.address for each in psutil.net_if_addrs().values() for address in each if "." in address.address]
    assert all(is_local(f"http://{host}:8000/v1") for host in ("127.0.0.1", "localhost", "127.3.2.1", "[::1]", *own))
    assert not any(is_local(f"http://{host}/v1") for host in ("192.0.2.1", "models.example.com", "[2001:db8::1]"))
