"""No group of the byte-level training loop's reference numbers is passed over."""

import importlib

import pytest

from tests.reference.byte_loop import DRIVEN, FILE
from tests.reference.cases import cases, folder


@pytest.mark.reference
def test_every_group_has_a_test():
    found = cases(FILE, "cases")
    if found is None:
        pytest.skip(f"no cases in {folder() / FILE}")
    for module in ("test_byte_loop", "test_byte_config"):
        importlib.import_module(f"tests.reference.{module}")
    assert {case["group"] for case in found} <= DRIVEN
