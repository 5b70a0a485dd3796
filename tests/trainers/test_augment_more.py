"""Affine maps, mixing and RandAugment against slow ones that go image by image, and the order in which a run applies them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from trainable_net import TINY

torch = pytest.importorskip("torch")

from accel.trainers import affine, augment, mixing, randaugment  # noqa: E402
from accel.trainers.views import Views  # noqa: E402

COUNT = 12
PLAIN = ((0.0,) * 3, (1.0,) * 3)


def pixels(count: int = COUNT, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def recipe(**changes):
    return dataclasses.replace(TINY, **changes)


def views(chosen, images: np.ndarray, colours=PLAIN) -> Views:
    labels = torch.arange(len(images)) % 10
    return Views(torch.from_numpy(images), labels, chosen, colours=colours, dtype=torch.float32, num_classes=10)


def slow_warp(image: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """For each pixel: where does it come from, and the four neighbours' weighted sum there; 0 beyond the border."""
    height, width = image.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    out = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            source = np.linalg.solve(matrix, np.array([x, y]) - centre - shift * [width, height]) + centre
            left, top = math.floor(source[0]), math.floor(source[1])
            for row in (top, top + 1):
                for column in (left, left + 1):
                    if 0 <= row < height and 0 <= column < width:
                        out[y, x] += (1 - abs(source[0] - column)) * (1 - abs(source[1] - row)) * image[row, column]
    return out


def test_a_warp_equals_the_slow_one_image_by_image():
    chosen = recipe(rotation=40.0, translation=0.2, scaling=0.3, shear=15.0)
    images, maps = pixels(6, 10, 14).astype(np.float32), affine.draw_maps(chosen, 3, 6)
    got = affine.warp(torch.from_numpy(images), maps).numpy()
    for one, image, matrix, shift in zip(got, images, maps.matrix.numpy(), maps.shift.numpy(), strict=True):
        np.testing.assert_allclose(one, slow_warp(image, matrix.astype(np.float64), shift.astype(np.float64)), atol=0.02)


def test_a_rotation_by_a_quarter_is_exact_and_goes_clockwise():
    images = torch.from_numpy(pixels(2).astype(np.float32))
    quarter = affine.Maps(affine.rotations(torch.full((2,), math.pi / 2)), torch.zeros(2, 2))
    torch.testing.assert_close(affine.warp(images, quarter), torch.rot90(images, -1, (1, 2)), atol=1e-2, rtol=0)


def test_maps_stay_within_the_recipe_and_depend_on_seed_and_epoch():
    maps = affine.draw_maps(recipe(rotation=10.0, translation=0.1, scaling=0.2), 0, 5000)
    size = maps.matrix.det().sqrt()
    angle = torch.atan2(maps.matrix[:, 1, 0], maps.matrix[:, 0, 0]).rad2deg()
    for values, low, high in ((size, 0.8, 1.2), (angle, -10, 10), (maps.shift, -0.1, 0.1)):
        reach = (high - low) * 0.01
        assert low - 1e-4 <= float(values.min()) < low + reach
        assert high - reach < float(values.max()) <= high + 1e-4
    again, later = (affine.draw_maps(recipe(rotation=10.0, translation=0.1, scaling=0.2), epoch, 5000) for epoch in (0, 1))
    assert torch.equal(maps.matrix, again.matrix)
    assert not torch.equal(maps.matrix, later.matrix)


def slow_mix(image, partner, label, partner_label, share, cut, row, column):
    """One image at a time, a box pixel by pixel."""
    own = np.full(image.shape[:2], share)
    if cut:
        own[:] = 1
        height, width = image.shape[:2]
        tall, wide = int(math.sqrt(1 - share) * height), int(math.sqrt(1 - share) * width)
        top, left = int(row * height) - tall // 2, int(column * width) - wide // 2
        for y in range(max(top, 0), min(top + tall, height)):
            for x in range(max(left, 0), min(left + wide, width)):
                own[y, x] = 0
    target = np.zeros(10)
    target[label] += own.mean()
    target[partner_label] += 1 - own.mean()
    return own[..., None] * image + (1 - own[..., None]) * partner, target


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=["mixup", "cutmix", "both"])
def test_mixing_equals_the_slow_one_image_by_image(alphas):
    images, labels = pixels(COUNT, 8, 12).astype(np.float32), np.arange(COUNT) % 10
    mix = mixing.draw_mix(recipe(**alphas), 1, COUNT)
    assert set(mix.cut.tolist()) == {"mixup": {False}, "cutmix": {True}}.get("+".join(alphas), {False, True})
    got, targets = mixing.mixed(torch.from_numpy(images), torch.from_numpy(labels), mix, 10)
    for i in range(COUNT):
        partner = COUNT - 1 - i
        drawn = (float(mix.share[i]), bool(mix.cut[i]), float(mix.row[i]), float(mix.column[i]))
        want, target = slow_mix(images[i], images[partner], labels[i], labels[partner], *drawn)
        np.testing.assert_allclose(got[i].numpy(), want, atol=1e-3)
        np.testing.assert_allclose(targets[i].numpy(), target, atol=1e-6)
    assert 0 < float(mix.share.std()) < 0.5


def slow_operation(name: str, image: np.ndarray, level: float) -> np.ndarray:
    """torchvision's, on one image."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    whole = torch.from_numpy(image).permute(2, 0, 1)
    unit, factor, size = whole.float() / 255, 1 + 0.9 * level, image.shape[1]
    fill = torch.tensor([0.5, 0.25, 0.75]).view(3, 1, 1)
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    degrees = math.degrees(math.atan(0.3 * level))

    def moved(**changes):
        # Its own `fill` weighs a pixel on the border twice by what lies inside, so the colour is taken off and put back here.
        return functional.affine(unit - fill, **{**still, **changes}, interpolation=functional.InterpolationMode.BILINEAR) + fill

    table = {
        "identity": lambda: unit,
        "shear_x": lambda: moved(shear=[-degrees, 0.0]),
        "shear_y": lambda: moved(shear=[0.0, -degrees]),
        "translate_x": lambda: moved(translate=[round(150 / 331 * size * level), 0]),
        "translate_y": lambda: moved(translate=[0, round(150 / 331 * size * level)]),
        "rotate": lambda: moved(angle=30 * level),
        "brightness": lambda: functional.adjust_brightness(unit, factor),
        "colour": lambda: functional.adjust_saturation(unit, factor),
        "contrast": lambda: functional.adjust_contrast(unit, factor),
        "sharpness": lambda: functional.adjust_sharpness(unit, factor),
        "posterize": lambda: functional.posterize(whole, 8 - round(abs(level) * 4)) / 255,
        "solarize": lambda: functional.solarize(whole, 255 * (1 - abs(level))) / 255,
        "autocontrast": lambda: functional.autocontrast(unit),
        "equalize": lambda: functional.equalize(whole) / 255,
    }
    return 255 * table[name]().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", list(randaugment.OPERATIONS))
def test_an_operation_is_torchvisions_image_by_image(name):
    images = np.concatenate([pixels(3), pixels(1) // 3 + 40, np.full((1, 32, 32, 3), 77, np.uint8)])
    images[2, :20] = 5  # an uneven histogram
    # 331 / 32 / 150 · k: a translation by whole pixels, which is all that torchvision's takes.
    level = torch.tensor([3, -5, 9, -2, 4]) * 331 / 32 / 150
    fill = 255 * torch.tensor([0.5, 0.25, 0.75])
    got = randaugment.OPERATIONS[name](torch.from_numpy(images).float(), level, fill).numpy()
    for one, image, amount in zip(got, images, level.tolist(), strict=True):
        np.testing.assert_allclose(one, slow_operation(name, image, amount), atol=0.02)


def test_randaugment_runs_what_was_drawn_in_turn():
    images, names = pixels(3), list(randaugment.OPERATIONS)
    chosen = np.array([[names.index("solarize"), names.index("rotate")], [0, 0], [names.index("rotate"), names.index("solarize")]])
    signs = np.float32([[1, -1], [1, 1], [1, 1]])
    fill = torch.full((3,), 100.0)
    got = randaugment.augmented(torch.from_numpy(images).float(), chosen, signs, 15.0, fill)

    def run(name: str, image, level: float):
        return randaugment.OPERATIONS[name](image, torch.tensor([level]), fill)

    first, second, third = (torch.from_numpy(images[i : i + 1]).float() for i in range(3))
    torch.testing.assert_close(got[0:1], run("rotate", run("solarize", first, 0.5), -0.5))
    torch.testing.assert_close(got[1:2], second)
    torch.testing.assert_close(got[2:3], run("solarize", run("rotate", third, 0.5), 0.5))


def test_operations_and_signs_are_drawn_evenly():
    chosen, signs = randaugment.draw_operations(recipe(randaugment=2), 0, 7000)
    counts = np.bincount(chosen.ravel(), minlength=14)
    assert chosen.shape == signs.shape == (7000, 2)
    assert counts.min() > 850
    assert counts.max() < 1150
    assert set(np.unique(signs)) == {-1.0, 1.0}


def test_a_plain_epoch_is_cropped_flipped_normalised_and_cut_out_in_this_order():
    chosen, images = recipe(batch_size=5, cutout=6, seed=4), pixels()
    seen = views(chosen, images, ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    generator = torch.Generator().manual_seed(4)
    drawn = augment.draw(chosen, 0, (32, 32), augment.first_mirrored(COUNT, generator), generator)
    moved = augment.crop_and_flip(torch.from_numpy(images), drawn.order, drawn.top, drawn.left, drawn.mirrored)
    want = augment.cut_out(augment.normalise(moved, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), torch.float32), drawn.hole_row, drawn.hole_column, 6)
    seen.begin(0)
    batches = [seen.batch(index) for index in range(3)]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), want)
    assert torch.equal(torch.cat([labels for _, labels in batches]), drawn.order % 10)
    assert [len(batch) for batch, _ in batches] == [5, 5, 2]


def test_every_augmentation_together_gives_enlarged_images_and_soft_targets():
    chosen = recipe(batch_size=4, randaugment=2, mixup=0.3, cutmix=1.0, upscale=48, rotation=20.0)
    seen = views(chosen, pixels())
    example, _ = seen.example()
    seen.begin(0)
    batch, targets = seen.batch(0)
    assert torch.equal(example, batch)  # an example leaves no trace
    assert (batch.shape, targets.shape) == ((4, 48, 48, 3), (4, 10))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    assert bool(batch.isfinite().all())


def test_images_are_enlarged_before_they_are_turned():
    given = {"batch_size": COUNT, "rotation": 20.0, "scaling": 0.2}
    enlarged, small = views(recipe(upscale=48, **given), pixels()), views(recipe(batch_size=COUNT), pixels())
    enlarged.begin(0)
    small.begin(0)
    maps = affine.draw_maps(recipe(**given), 0, COUNT)
    plain, got = small.batch(0)[0], enlarged.batch(0)[0]
    torch.testing.assert_close(got, affine.warp(affine.upscaled(plain, 48), maps))
    assert not torch.allclose(got, affine.upscaled(affine.warp(plain, maps), 48), atol=1e-3)


def test_an_untouched_epoch_with_randaugment_of_identities_is_the_normalised_one(monkeypatch):
    quiet = {"crop_padding": 0, "flip": "none", "cutout": 0, "batch_size": COUNT}
    plain = views(recipe(**quiet), pixels())
    monkeypatch.setattr(randaugment, "draw_operations", lambda *_: (np.zeros((COUNT, 1), int), np.ones((COUNT, 1), np.float32)))
    through = views(recipe(randaugment=1, **quiet), pixels())
    plain.begin(0)
    through.begin(0)
    assert torch.equal(plain.batch(0)[0], through.batch(0)[0])


def test_views_go_on_from_their_state():
    chosen = recipe(batch_size=COUNT, flip="random")
    one, other = views(chosen, pixels()), views(chosen, pixels())
    one.begin(0)
    state = one.state_dict()
    one.begin(1)
    other.load_state_dict(state)
    other.begin(1)
    assert torch.equal(one.batch(0)[0], other.batch(0)[0])


def test_a_run_with_every_augmentation_trains(tiny, tmp_path):
    from accel.trainers import read_recipe, train

    changes = {"randaugment": 1, "mixup": 0.2, "cutmix": 1.0, "rotation": 5.0, "label_smoothing": 0.0}
    checkpoint = train("tiny", recipe=tiny, overrides=changes, out=tmp_path / "one", device="cpu")
    again = train("tiny", recipe=read_recipe(tmp_path / "one" / "recipe.toml"), out=tmp_path / "two", device="cpu")
    assert again.sha256 == checkpoint.sha256


def test_only_a_model_that_enlarges_its_images_itself_is_trained_on_enlarged_ones(tiny, tmp_path, monkeypatch):
    import trainable_net

    from accel.errors import ConfigError
    from accel.trainers import train

    build = trainable_net.build
    changes = {"upscale": 40, "rotation": 5.0}
    with pytest.raises(ConfigError, match=r"upscale = 40 .* does not enlarge"):
        train("tiny", recipe=tiny, overrides=changes, out=tmp_path, device="cpu")

    def enlarging(num_classes: int = 10):
        return torch.nn.Sequential(torch.nn.Upsample((40, 40), mode="bilinear"), *build(num_classes))

    monkeypatch.setattr(trainable_net, "build", enlarging)
    assert train("tiny", recipe=tiny, overrides=changes, out=tmp_path, device="cpu").top1 is not None
