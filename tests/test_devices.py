"""No tensor stays behind when programs move to a GPU. Found without one: see `tests.devices`."""

from __future__ import annotations

from typing import Any

import pytest

import tabdiff
from tabdiff.config import FitConfig
from tabdiff.model import Model
from tests.conftest import make_mixed_table
from tests.devices import run_on_one_device


@pytest.mark.parametrize("score", [{"contaminated": True}, {"kernel_rows": 0}])
def test_programs_of_other_scores(score: dict[str, Any]) -> None:
    options = {"score": score, "train": {"steps": 2}, "network": {"width": 16, "blocks": 1}}
    run_on_one_device(tabdiff.fit(make_mixed_table(200), FitConfig.model_validate(options)).bundle)


def test_programs_of_a_table(small_model: Model) -> None:
    run_on_one_device(small_model.bundle)
