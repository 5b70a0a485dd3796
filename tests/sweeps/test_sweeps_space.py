"""What is searched, by the table and by a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accel.api.sweeping import base_recipe, searched_of
from accel.errors import ConfigError, UsageError
from accel.sweeps.space import SPACE, Parameter, read_space
from accel.trainers import MODELS


def searched(model: str = "resnet18", changes: dict[str, Any] | None = None) -> dict[str, Parameter]:
    return searched_of(model, base_recipe(model, None, {}, "cpu"), changes or {}, (model,))


def test_the_table_is_relative_to_the_recipe_where_models_differ() -> None:
    found = searched()
    assert found["lr"] == Parameter(0.1, 1.6, log=True)
    assert found["epochs"] == Parameter(40, 80)
    assert found["label_smoothing"] == Parameter(0.0, 0.2)
    assert found["cutout"] == Parameter(choices=(0, 4, 8, 12, 16))
    assert searched("airbench94")["lr"] == Parameter(335.0, 5360.0, log=True)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_can_be_searched(model: str) -> None:
    assert set(searched(model)) <= set(SPACE)
    assert {"lr", "epochs"} <= set(searched(model))


def test_a_file_changes_adds_and_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        "mixup = false\n[lr]\nlow = 1\nhigh = 2\n[optimizer]\nchoices = ['sgd', 'muon']\n[resnet18.lr]\ntimes = [1.0, 2.0]\nlog = true\n"
    )
    changes = read_space(path)
    found, other = searched("resnet18", changes), searched("student_a", changes)
    assert "mixup" not in found
    assert found["optimizer"].choices == ("sgd", "muon")
    assert found["lr"] == Parameter(0.4, 0.8, log=True)
    assert other["lr"] == Parameter(1.0, 2.0)
    assert isinstance(other["lr"].low, float)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lrr": {"low": 0, "high": 1}}, "lrr, which no recipe has"),
        ({"lr": {"low": 1}}, "lr = "),
        ({"lr": {"low": 2, "high": 1}}, "searched from 2 to 1"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "above 0"),
        ({"lr": {"low": -1, "high": 1}}, "outside"),
        ({"optimizer": {"choices": ["sgd", "adam"]}}, "'adam' is not one of"),
        ({"cutout": {"choices": []}}, "choices of cutout"),
        ({"mixup": {"times": [1, 2]}}, "mixup = 0"),
        (dict.fromkeys(SPACE, False), "nothing of resnet18"),
        ({"resnet18": 3}, "resnet18 = 3"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        searched("resnet18", changes)
    assert said in str(caught.value)


def test_what_all_trials_share_is_not_searched() -> None:
    with pytest.raises(UsageError, match="split"):
        searched("resnet18", {"split": {"choices": ["full"]}})


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("lr = = 3")
    with pytest.raises(ConfigError, match=r"space\.toml is not TOML"):
        read_space(tmp_path / "space.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_space(tmp_path / "absent.toml")
