from __future__ import annotations

import dataclasses

import pytest
from trainable_net import TINY

from accel.errors import ConfigError, UnknownName
from accel.trainers import MODELS, default_recipe, read_recipe, write_recipe


def test_a_recipe_survives_the_file(tmp_path):
    changed = {"lr": 1e-05, "model": 'a "quoted" name', "limit": 7, "flip": "none", "compile": False}
    changed |= {"optimizer": "muon", "schedule": "triangular", "accumulate": 3, "train_fraction": 0.1, "clip_norm": 1.5, "muon_lr": 0.02}
    changed |= {"mixup": 0.2, "cutmix": 1.0, "randaugment": 2, "randaugment_magnitude": 7.5, "upscale": 128, "rotation": 15.0, "shear": 5.0}
    changed |= {"teacher": "resnet18,runs/mine", "kd_temperature": 2.5, "kd_alpha": 0.75}
    changed |= {"dataset": "imagefolder:my photos", "image_size": 64, "loader": "workers", "deterministic": True}
    changed |= {"bias_lr": 106.0, "bias_weight_decay": 3.774e-05, "whitening_epochs": 3}
    recipe = TINY.replaced(changed)
    write_recipe(recipe, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_a_recipe_that_learns_from_the_whole_train_set_with_seed_0(name):
    recipe = default_recipe(name)
    assert (recipe.model, recipe.dataset, recipe.split, recipe.limit, recipe.seed) == (name, "cifar10", "full", 0, 0)


def test_there_is_no_recipe_for_an_unknown_model():
    with pytest.raises(UnknownName, match="resnet19"):
        default_recipe("resnet19")


def test_a_file_over_a_base_changes_only_what_it_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("# less\nepochs = 3\nlr = 1\n")
    got = read_recipe(path, base=TINY)
    assert got == dataclasses.replace(TINY, epochs=3, lr=1.0)
    assert isinstance(got.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3\n\nlearning_rate = 0.1\n", r"line 3.*no key 'learning_rate'"),
        ("# one\nepochs = 2.5\n", r"line 2.*epochs = 2\.5 is of type float, not int"),
        ("epochs = true\n", r"line 1.*epochs = True is of type bool, not int"),
        ("lr = 0.1\nflip = 'sideways'\n", r"line 2.*flip = 'sideways' is not one of alternating, random, none"),
        ("lr = 0.1\nmomentum = 1.5\n", r"line 2.*momentum = 1\.5 is outside"),
        ("optimizer = 'adam'\n", r"line 1.*optimizer = 'adam' is not one of sgd, adamw, muon"),
        ("accumulate = 0\n", r"line 1.*accumulate = 0 is outside"),
        ("train_fraction = 0.0\n", r"line 1.*train_fraction = 0\.0 is outside"),
        ("loader = 'cpu'\n", r"line 1.*loader = 'cpu' is not one of gpu, workers"),
        ("lr = nan\n", r"line 1.*lr = nan is outside"),
        ("epochs = 3\n[train]\nlr = 0.1\n", r"line 2.*no key 'train'"),
        ("epochs = \n", r"not TOML.*line 1"),
    ],
)
def test_a_bad_key_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path, base=TINY)


def test_a_file_alone_must_be_complete(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text('model = "resnet18"\nepochs = 3\n')
    with pytest.raises(ConfigError, match="has no batch_size, lr"):
        read_recipe(path)


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_overrides_of_none_are_left_out_and_wrong_ones_named():
    assert TINY.replaced({"epochs": None, "seed": 3}) == dataclasses.replace(TINY, seed=3)
    with pytest.raises(ConfigError, match="no key 'epoch'"):
        TINY.replaced({"epoch": 3})
