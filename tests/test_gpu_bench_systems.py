"""bench/gpu.sh on what main.py trains beside the nine models: real trainings, on the CPU and on an emulated
device.
"""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

import pytest
import torch

from bench.gpu import blocks, graphs, systems, trainings
from bench.gpu.systems import BY_NAME
from tests.emulated_cuda import emulated_cuda


def given(device: str, dtype: str = "bfloat16") -> Namespace:
    return Namespace(device=device, dtype=dtype, tiny=True)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {each["row"]: each for each in rows}


def keep(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(systems, "SYSTEMS", tuple(BY_NAME[name] for name in names))


@pytest.mark.slow
def test_objectives_and_times_are_near_the_reference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, "lora", "coalescence, adapter")
    systems.near(given("cpu"))
    assert {each["verdict"] for each in told(capsys).values()} == {"PASS"}


@pytest.mark.slow
def test_a_system_pauses_and_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, "dpo")
    systems.resume(given("cpu"))
    torch.use_deterministic_algorithms(False)
    assert {each["verdict"] for each in told(capsys).values()} == {"PASS"}


def test_a_package_that_data_need_and_is_missing_skips_the_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, "sft")
    monkeypatch.setattr(systems, "find_spec", lambda name: None)
    systems.learns(given("cpu"))
    row = told(capsys)["sft, bfloat16"]
    assert (row["verdict"], row["note"]) == ("SKIPPED", "Lacking: its data need the package zstandard")


@pytest.mark.slow
def test_systems_learn_on_an_emulated_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, "multi-token")
    monkeypatch.setattr(systems, "STEPS", 4)
    with emulated_cuda():
        systems.learns(given("cuda", "float16"))
    rows = told(capsys)
    names = ("multi-token, float16", "multi-token, float16: waits")
    assert {name: each["verdict"] for name, each in rows.items()} == dict.fromkeys(names, "PASS")


@pytest.mark.slow
def test_attention_in_blocks_is_set_beside_a_mask_on_an_emulated_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with emulated_cuda():
        blocks.blocks(given("cuda"))
    rows = told(capsys)
    assert {name for name, each in rows.items() if each["verdict"] == "PASS"} == {
        "FlexAttention, bfloat16",
        "window: off the mask's",
        "passes that tokens leave: off the mask's",
    }
    assert not [name for name, each in rows.items() if each["verdict"] == "FAIL"]


@pytest.mark.slow
def test_figures_of_whole_trainings_are_told_on_an_emulated_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "rate_of_products", lambda device, dtype: 1e12)
    with emulated_cuda():
        trainings.gpt(given("cuda"))
    rows = told(capsys)
    assert not [each for each in rows.values() if each["verdict"] == "FAIL"]
    peak = rows["share of the peak that the maker states, modern GPT, eager"]["value"]
    of_products = rows["share of the matrix product's rate, modern GPT, eager"]["value"]
    assert of_products == pytest.approx(989 * peak)  # an emulated H100


@pytest.mark.slow
def test_generation_by_graphs_is_set_beside_that_without_on_an_emulated_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "WARM", 1)
    monkeypatch.setattr(graphs, "TOKENS", 2)
    with emulated_cuda():
        graphs.graphs(given("cuda"))
    rows = told(capsys)
    assert {name for name, each in rows.items() if each["verdict"] == "PASS"} == {
        "lncot: off those without",
        "modern GPT, depth 12: off those without",
    }
    assert rows["lncot: tokens"]["unit"] == "tokens/s"


@pytest.mark.slow
def test_micro_batches_by_graphs_are_set_beside_those_without_on_an_emulated_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with emulated_cuda():
        graphs.batches(given("cuda"))
    rows = told(capsys)
    assert {name for name, each in rows.items() if each["verdict"] == "PASS"} == {
        f"{name}: loss off that without" for name in ("base", "lncot", "gpt")
    }
    assert rows["gpt: a step over one without"]["unit"] == "of the time"
