"""The tests on an emulated device notice faults in the branches of CUDA: each is put into a copy of the
sources, where the test that it names must fail.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forked
from tests.programs import ROOT, copy_sources, environment

pytestmark = pytest.mark.slow
# pytest in a fork that has torch, and none of the modules that stand in the repository itself
PYTEST = f"""import sys
for name, module in list(sys.modules.items()):
    path = getattr(module, "__file__", None) or ""
    is_ours = path.startswith({str(ROOT) + "/"!r}) and "/site-packages/" not in path
    if is_ours or name.split(".")[0] == "tests":
        del sys.modules[name]
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
EMULATED, WAITS = "tests/test_gpu_emulated.py", "tests/test_gpu_waits.py"
FLEX, CAPTURED = "tests/test_flex.py", "tests/test_captured.py"


@dataclass(frozen=True)
class Fault:
    """right, wrong: a text of the file and what it becomes. noticed_by: file and name of a test."""

    file: str
    right: str
    wrong: str
    noticed_by: tuple[str, str]


FAULTS = {
    "queries and keys in float32 beside values in half precision": Fault(
        "models/attention.py",
        "dim=-1).flatten(-2).type_as(x)",
        "dim=-1).flatten(-2)",
        (EMULATED, "test_every_model_computes_the_same_as_on_the_cpu"),
    ),
    "numbers of heads told as numbers of queries and keys": Fault(
        "models/attention.py",
        "q.shape[2], k.shape[2], 0.0, causal, no_dropout",
        "q.shape[1], k.shape[1], 0.0, causal, no_dropout",
        (EMULATED, "test_flash_attention_is_used_in_half_precision"),
    ),
    "log-sum-exp merged in half precision": Fault(
        "models/attention.py",
        "torch.stack([part[1] for part in parts]).logsumexp(0)",
        "torch.stack([part[1] for part in parts]).bfloat16().logsumexp(0).float()",
        (EMULATED, "test_attention_by_passes_is_that_over_all_keys"),
    ),
    "outputs merged, and left in float32": Fault(
        "models/attention.py",
        "return total.to(parts[0][0].dtype), lse",
        "return total, lse",
        (EMULATED, "test_flash_attention_is_used_in_half_precision"),
    ),
    "causal order lost": Fault(
        "models/attention.py",
        "flash_attention(q, k, v, 0.0, causal)[:2]",
        "flash_attention(q, k, v, 0.0, False)[:2]",
        (EMULATED, "test_flash_attention_is_used_in_half_precision"),
    ),
    "seeds of the generator on the CPU": Fault(
        "models/attention.py",
        "torch.zeros(2, dtype=torch.uint64, device=q.device)",
        "torch.zeros(2, dtype=torch.uint64)",
        (EMULATED, "test_flash_attention_is_used_in_half_precision"),
    ),
    "a kernel without a mask where one is needed": Fault(
        "models/planner.py",
        'or (device.type != "cpu" and not alike)',
        "or False",
        (EMULATED, "test_a_window_is_kept_to"),
    ),
    "window lost from the mask": Fault(
        "models/planner.py",
        "mask=visible(positions, all_keys, window)",
        "mask=visible(positions, all_keys, None)",
        (EMULATED, "test_a_window_is_kept_to"),
    ),
    "the rule lost in blocks": Fault(
        "models/flex.py",
        "return (distance >= 0) &",
        "return (distance >= -1) &",
        (FLEX, "test_it_is_taken_in_half_precision"),
    ),
    "blocks left out in which keys are seen": Fault(
        "models/flex.py",
        "least <= last, most <= first",
        "most <= last, most <= first",
        (FLEX, "test_it_is_taken_in_half_precision"),
    ),
    "blocks taken for whole that are not": Fault(
        "models/flex.py",
        "least <= last, most <= first",
        "least <= last, least <= first",
        (FLEX, "test_it_is_taken_in_half_precision"),
    ),
    "window lost in blocks": Fault(
        "models/flex.py",
        "(distance >= 0) & (distance <= furthest)",
        "distance >= 0",
        (FLEX, "test_it_is_taken_in_half_precision"),
    ),
    "a graph that is given no new positions": Fault(
        "optim/captured.py",
        "        self.positions.copy_(torch.tensor(positions))\n",
        "",
        (CAPTURED, "test_captured_steps_give_the_logits_of_the_cpu"),
    ),
    "a graph with too few slots": Fault(
        "optim/captured.py",
        "slots = min(-(-used // BUCKET) * BUCKET, self.longest)",
        "slots = min(used // BUCKET * BUCKET + 1, self.longest)",
        (CAPTURED, "test_captured_steps_give_the_logits_of_the_cpu"),
    ),
    "graphs of a cache that is gone": Fault(
        "optim/generation.py",
        "        self._steps = CapturedSteps(",
        "        self._steps = getattr(self, '_steps', None) or CapturedSteps(",
        (CAPTURED, "test_captured_steps_give_the_logits_of_the_cpu"),
    ),
    "slots in use forgotten after a graph": Fault(
        "optim/generation.py",
        "            self.cache.length = used\n",
        "",
        (CAPTURED, "test_captured_steps_give_the_logits_of_the_cpu"),
    ),
    "positions on the CPU": Fault(
        "models/transformer.py",
        "torch.arange(x.shape[1], device=x.device)",
        "torch.arange(x.shape[1])",
        (EMULATED, "test_every_model_computes_the_same_as_on_the_cpu"),
    ),
    "sums that --deterministic refuses": Fault(
        "models/losses.py",
        'if x.device.type == "cpu":',
        "if True:",
        (EMULATED, "test_deterministic_algorithms_refuse_nothing_in_a_training_step"),
    ),
    "autocast of the CPU": Fault(
        "optim/setup.py",
        "torch.autocast(device.type, dtype=dtype)",
        'torch.autocast("cpu", dtype=dtype)',
        (EMULATED, "test_products_run_in_the_dtype_of_the_autocast"),
    ),
    "gradient not unscaled": Fault(
        "optim/step.py",
        "        self.scaler.unscale_(self.optimizer)\n",
        "",
        (EMULATED, "test_a_step_unscales_the_gradient_before_it_is_clipped"),
    ),
    "an overflow that is not passed over": Fault(
        "optim/step.py",
        "self.scaler.step(self.optimizer)",
        "self.optimizer.step()",
        (EMULATED, "test_a_step_that_overflows_is_passed_over_and_the_scale_is_halved"),
    ),
    "scaler on in bfloat16, off in float16": Fault(
        "optim/step.py",
        "world.device) == torch.float16",
        "world.device) == torch.bfloat16",
        (EMULATED, "test_the_scaler_scales_in_float16_alone"),
    ),
    "batches from memory that is not pinned": Fault(
        "data/batch.py",
        "value.pin_memory().to(",
        "value.to(",
        (EMULATED, "test_batches_come_from_pinned_memory_and_are_not_waited_for"),
    ),
    "generator of the device not saved": Fault(
        "optim/checkpoint.py",
        'torch.cuda.get_rng_state(device) if device.type == "cuda" else None',
        "None",
        (EMULATED, "test_the_generator_of_the_device_is_saved_and_restored"),
    ),
    "generator of the device not restored": Fault(
        "optim/checkpoint.py",
        'if states["cuda"] is not None and device.type == "cuda":',
        "if False:",
        (EMULATED, "test_the_generator_of_the_device_is_saved_and_restored"),
    ),
    "an evaluation that moves the generator of the device": Fault(
        "optim/evaluate.py",
        'fork_rng([device] if device.type == "cuda" else [])',
        "fork_rng([])",
        (EMULATED, "test_evaluation_leaves_the_generator_of_the_device_as_it_was"),
    ),
    "logits in float32": Fault(
        "models/loss.py",
        "dtype = computing_dtype(hidden.device, hidden.dtype)",
        "dtype = hidden.dtype",
        (EMULATED, "test_logits_are_made_in_the_dtype_of_the_autocast"),
    ),
    "gradient norm fetched by itself": Fault(
        "optim/step.py",
        "self.meter.add(norm_on_cpu)",
        "self.meter.add(norm.cpu())",
        (WAITS, "test_a_step_in_bfloat16_waits_for_the_device_once"),
    ),
    "a number sent to the device in each forward pass": Fault(
        "models/policies.py",
        "torch.full((), passes, device=x.device)",
        "torch.tensor(passes, device=x.device)",
        (WAITS, "test_nothing_that_a_step_sends_to_the_device_is_waited_for"),
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, for faults."""
    folder = tmp_path_factory.mktemp("faulty")
    copy_sources(folder)
    return folder


def outcome(copy: Path, test: tuple[str, str]) -> tuple[int, str]:
    """Exit code of pytest, and what it said."""
    file, name = test
    words = [sys.executable, "-c", PYTEST, "-x", "-p", "no:cacheprovider", file, "-k", name]
    found = forked.run(words, copy, environment(PYTHONDONTWRITEBYTECODE="1"), timeout=120)
    return found.returncode, found.stdout


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_branch_of_cuda_is_noticed(copy: Path, name: str) -> None:
    fault = FAULTS[name]
    path = copy / fault.file
    source = path.read_text()
    assert source.count(fault.right) == 1, "the text stands once in the file"
    path.write_text(source.replace(fault.right, fault.wrong))
    try:
        code, said = outcome(copy, fault.noticed_by)
    finally:
        path.write_text(source)
    assert code == 1, said
    assert f"FAILED {fault.noticed_by[0]}::{fault.noticed_by[1]}" in said
