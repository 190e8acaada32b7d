"""Multiply-accumulates in closed form are those counted on the authors' models."""

import config
from models.macs import count_macs
from models.settings import ModelSettings
from tests.reference.cases import each

each_model = each("macs.json")


@each_model
def test_macs_are_those_counted_on_the_authors_model(case):
    assert count_macs(config.parse_args(case["argv"]), case["T"], case["length_factors"]) == case["macs"]


@each_model
def test_macs_can_be_counted_from_model_settings(case):
    settings = ModelSettings.from_args(config.parse_args(case["argv"]))
    assert count_macs(settings, case["T"], case["length_factors"]) == case["macs"]
