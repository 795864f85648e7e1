"""Tests of `vision llm recipes`: the memory of models, the choice of a model, and the commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.paths import ROOT
from vision.benchmark.host import parse_jetson, read_memory
from vision.benchmark.memory import model_memory
from vision.cli.main import main
from vision.errors import ConfigError
from vision.language.known_models import CONTEXT_TOKENS, KNOWN_MODELS, Precision
from vision.language.recipes import MACHINES, MARGIN, SERVERS, Host, Recipe, host_of, recipes

ORIN_NANO = Host("jetpack7", 87, 7620, 5000)
AGX_ORIN = Host("jetpack7", 87, 62_800, 50_000)
THOR = Host("jetpack7", 110, 125_000, 90_000)
ORIN_NX_JETPACK_6 = Host("jetpack6", 87, 15_300, 9_000)
WORKSTATION = Host("gpu", 89, 24_000, 20_000)
LAPTOP = Host("cpu", 0, 24_000, 12_000)
HOSTS = [ORIN_NANO, AGX_ORIN, THOR, ORIN_NX_JETPACK_6, WORKSTATION, LAPTOP]


def options(recipe: Recipe) -> dict[str, str]:
    """Return the options of a recipe's last command, together with the values that follow them."""
    words = shlex.split(recipe.commands[-1])
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("-")}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("parallel", [1, 4])
def test_recipes_fit_in_the_free_memory(host: Host, parallel: int) -> None:
    found = recipes(host, parallel=parallel)
    assert {recipe.server for recipe in found} <= set(SERVERS[host.platform])
    assert all(recipe.need_mib * MARGIN <= host.left_mib for recipe in found)
    assert all(options(recipe)["--host"] == "127.0.0.1" for recipe in found)


@pytest.mark.parametrize("host", HOSTS)
def test_every_server_of_the_platform_has_a_recipe(host: Host) -> None:
    assert {recipe.server for recipe in recipes(host)} == set(SERVERS[host.platform])


def test_without_memory_there_is_no_recipe() -> None:
    assert recipes(Host("jetpack7", 87, 7620, 1500)) == []


def test_weights_have_a_format_of_the_gpu() -> None:
    assert {recipe.precision for recipe in recipes(ORIN_NANO)} == {"int4", "q4_k_m"}
    assert recipes(THOR)[0].precision == "nvfp4"
    assert recipes(WORKSTATION)[0].precision == "fp8"


def test_more_memory_serves_a_larger_model() -> None:
    sizes = {known.name: number for number, known in enumerate(KNOWN_MODELS)}
    assert sizes[recipes(ORIN_NANO)[0].model] < sizes[recipes(AGX_ORIN)[0].model]


def test_more_parallel_requests_need_more_memory() -> None:
    for known in KNOWN_MODELS:
        added = known.need_mib("fp16", 4) - known.need_mib("fp16", 1)
        assert added == pytest.approx(3 * CONTEXT_TOKENS * known.cache_bytes / 2**20)


def test_computed_weights_match_the_published_numbers_of_parameters() -> None:
    published = {  # millions, from the pages of the models
        "qwen3-vl-2b": 2_127,
        "qwen2.5-vl-3b": 3_755,
        "qwen3-vl-4b": 4_438,
        "qwen2.5-vl-7b": 8_292,
        "qwen3-vl-8b": 8_767,
    }
    for known in KNOWN_MODELS:
        assert known.linear + known.vocabulary + known.encoder == pytest.approx(published[known.name], rel=0.01)


def test_documentation_lists_the_computed_memory() -> None:
    page = (ROOT / "docs" / "language-models.md").read_text(encoding="utf-8")
    for known in KNOWN_MODELS:
        (row,) = re.findall(rf"^\| {re.escape(known.name)} \| (.*) \|$", page, re.MULTILINE)
        formats: list[Precision] = ["fp16", "fp8", "int4", "q4_k_m"]
        for precision, shown in zip(formats, row.split(" | "), strict=True):
            published = precision != "q4_k_m" or precision in known.checkpoints
            assert shown == (f"{known.need_mib(precision) / 1024:.1f} GiB" if published else "not published")


def test_model_without_a_checkpoint_is_quantized_first() -> None:
    quantize, serve = (
        next(shlex.split(line) for line in recipes(ORIN_NANO, model="qwen3-vl-2b")[0].commands if name in line)
        for name in ("edgellm-quantize", "edgellm-serve")
    )
    assert quantize[quantize.index("--quantization") + 1] == "int4_awq"
    assert serve[1] == f"./{quantize[quantize.index('--output_dir') + 1]}"


def text_of(host: Host, server: str) -> str:
    return "\n".join(line for each in recipes(host) if each.server == server for line in (*each.commands, *each.notes))


@pytest.mark.parametrize(
    ("jetpack", "version"), [("7.1", "0.11.0"), ("7.2", "0.11.0"), ("7.2.1", "0.11.0"), ("7.2.2", "0.11.1")]
)
def test_version_of_edge_llm_fits_jetpack(jetpack: str, version: str) -> None:
    text = text_of(host_of("thor-128gb", jetpack), "edge-llm")
    assert set(re.findall(r"tensorrt-edgellm\[\w+\]==([\d.]+)", text)) == {version}
    quantized = "\n".join(recipes(host_of("orin-nano-8gb"), model="qwen3-vl-2b")[0].commands)
    assert set(re.findall(r"tensorrt-edgellm\[(\w+)\]==0.11.0", quantized)) == {"tools", "server"}


def test_compiler_is_on_the_path_of_edge_llm() -> None:
    text = text_of(THOR, "edge-llm")
    assert "export PATH=/usr/local/cuda/bin:$PATH" in text
    assert "nvcc" in text


@pytest.mark.parametrize(
    ("host", "container"),
    [
        (ORIN_NX_JETPACK_6, "ghcr.io/nvidia-ai-iot/vllm:r36.4-tegra-aarch64-cu126-22.04 vllm serve Qwen/"),
        (ORIN_NANO, "vllm/vllm-openai:latest Qwen/"),
    ],
)
def test_container_of_vllm_fits_jetpack(host: Host, container: str) -> None:
    assert container in text_of(host, "vllm")


def test_memory_of_the_draft_model_counts() -> None:
    (recipe,) = [recipe for recipe in recipes(AGX_ORIN) if recipe.draft is not None]
    (known,) = [known for known in KNOWN_MODELS if known.name == recipe.model]
    without_mib = known.need_mib("fp16")
    assert recipe.need_mib == without_mib + known.draft_mib()
    assert known.draft_mib() == pytest.approx((1378e6 * 2 + 2048 * CONTEXT_TOKENS) / 2**20)
    tight = Host("jetpack7", 87, 62_800, (without_mib + known.draft_mib() / 2) * MARGIN)
    assert all(recipe.draft is None for recipe in recipes(tight))


@pytest.mark.parametrize("machine", MACHINES)
def test_each_machine_has_recipes_for_each_of_its_jetpacks(machine: str, capsys: pytest.CaptureFixture[str]) -> None:
    for jetpack in MACHINES[machine].jetpacks:
        assert main(["llm", "recipes", "--machine", machine, "--jetpack", jetpack, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["host"]["jetpack"] == jetpack
        assert document["host"]["platform"] == ("jetpack6" if jetpack < "7" else "jetpack7")
        assert {recipe["server"] for recipe in document["recipes"]} == set(SERVERS[document["host"]["platform"]])


def test_memory_of_another_machine_can_be_from_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    memory = {"owner": "CPU", "total_mib": 9000.0, "free_mib": 5500.0}
    plan.write_text(json.dumps({"schema": "vision.plan/1", "memory": memory}))
    assert main(["llm", "recipes", "--machine", "orin-nano-8gb", "--plan", str(plan), "--json"]) == 0
    host = json.loads(capsys.readouterr().out)["host"]
    assert (host["capability"], host["total_mib"], host["left_mib"]) == (87, 9000.0, 5500.0)


@pytest.mark.parametrize(
    "arguments",
    [["--machine", "nano"], ["--jetpack", "7.2"], ["--machine", "thor-128gb", "--jetpack", "6.2"],
     ["--machine", "orin-nano-8gb", "--jetpack", "7.1"]],
)  # fmt: skip
def test_unknown_machines_are_refused(arguments: list[str]) -> None:
    assert main(["llm", "recipes", *arguments]) == 2


def test_documentation_names_the_models_that_fit_on_each_jetson() -> None:
    page = (ROOT / "docs" / "language-models.md").read_text(encoding="utf-8")
    for name in MACHINES:
        (row,) = re.findall(rf"^\| [^|]*`{name}`[^|]* \| (.*) \|$", page, re.MULTILINE)
        found = {recipe.model for recipe in recipes(host_of(name)) if recipe.server in ("edge-llm", "vllm")}
        assert found & set(re.findall(r"qwen[\w.-]+", row)), name


def test_speculative_decoding_is_offered_where_it_fits() -> None:
    (recipe,) = [recipe for recipe in recipes(AGX_ORIN) if recipe.draft is not None]
    assert json.loads(options(recipe)["--speculative-config"])["model"] == recipe.draft
    assert all(recipe.draft is None for recipe in recipes(ORIN_NANO))


@pytest.mark.parametrize("host", [AGX_ORIN, THOR, WORKSTATION])
def test_share_of_vllm_holds_the_model_and_is_free(host: Host) -> None:
    (recipe,) = [recipe for recipe in recipes(host) if recipe.server == "vllm"]
    share_mib = float(options(recipe)["--gpu-memory-utilization"]) * host.total_mib
    assert recipe.need_mib <= share_mib <= host.left_mib


@pytest.mark.parametrize(
    ("release", "model", "expected"),
    [
        ("# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic", "NVIDIA Jetson Orin Nano", ("jetpack6", 87, "")),
        ("# R38 (release), REVISION: 2.0", "NVIDIA Jetson AGX Thor Developer Kit", ("jetpack7", 110, "7.0")),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "NVIDIA Jetson AGX Thor", ("jetpack7", 110, "7.1")),
        ("# R39 (release), REVISION: 2.0", "NVIDIA Jetson AGX Orin Developer Kit", ("jetpack7", 87, "7.2")),
        ("# R39 (release), REVISION: 2.1, GCID: 1", "NVIDIA Jetson AGX Orin", ("jetpack7", 87, "7.2.1")),
        ("# R39 (release), REVISION: 2.2, GCID: 1", "NVIDIA Jetson AGX Orin", ("jetpack7", 87, "7.2.2")),
        ("# R39 (release)", "NVIDIA Jetson AGX Orin", ("jetpack7", 87, "")),
        ("", "", ("jetpack6", 87, "")),
    ],
)
def test_jetson_is_recognized(release: str, model: str, expected: tuple[str, int, str]) -> None:
    assert parse_jetson(release, model) == expected


def test_memory_of_this_machine_is_measured() -> None:
    memory = model_memory()
    assert 0 < memory.free_mib <= memory.total_mib


def test_command_uses_the_memory_of_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    memory = {"owner": "CPU", "total_mib": 9000.0, "free_mib": 5500.0}
    plan.write_text(json.dumps({"schema": "vision.plan/1", "memory": memory}))
    assert main(["llm", "recipes", "--plan", str(plan), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["host"]["left_mib"] == 5500.0
    assert all(recipe["need_mib"] * MARGIN <= 5500.0 for recipe in document["recipes"])
    plan.write_text(json.dumps({"schema": "vision.plan/1", "memory": {**memory, "free_mib": 100.0}}))
    assert main(["llm", "recipes", "--plan", str(plan)]) == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "not-readable"),
        ("{", "not-a-plan"),
        ("[]", "not-a-plan"),
        ('{"schema": "vision.bench/1"}', "not-a-plan"),
        ('{"schema": "vision.plan/1"}', "no-memory"),
        ('{"schema": "vision.plan/1", "memory": {"owner": "CPU", "total_mib": "much"}}', "no-memory"),
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, content: str | None, code: str) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_memory(path)
    assert caught.value.code == code


def test_unknown_model_is_an_invalid_argument() -> None:
    assert main(["llm", "recipes", "--model", "gpt"]) == 2
