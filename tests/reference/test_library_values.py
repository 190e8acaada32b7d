"""Bits per byte and pass@k against the reference numbers of the training library."""

import pytest

from optim.library import bits_per_byte, evaluate_pass_at_k, mean_nats, pass_at_k, perplexity
from tests.reference.cases import each, of

FILE = "training_library.json.gz"


@each(FILE, "cases", where=of("bits_per_byte"))
def test_bits_per_byte(case):
    given = case["input"]
    nats = mean_nats(given["batch_mean_nats"], given["batch_tokens"])
    found = {
        "nats": nats,
        "bits_per_byte": bits_per_byte(nats, given["bytes_per_token"]),
        "perplexity": perplexity(nats),
    }
    assert found == pytest.approx(case["right"], rel=1e-9)


@each(FILE, "cases", where=of("pass_at_k"))
def test_pass_at_k(case):
    if isinstance(case["right"], dict):
        with pytest.raises(ValueError, match=r"^pass@k needs"):
            pass_at_k(**case["input"])
        return
    assert pass_at_k(**case["input"]) == pytest.approx(case["right"], abs=1e-9)


@each(FILE, "cases", where=of("pass_at_k_set"))
def test_pass_at_k_set(case):
    given = case["input"]
    assert evaluate_pass_at_k(given["passed"], given["k_values"]) == pytest.approx(case["right"], abs=1e-9)
