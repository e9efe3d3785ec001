"""Training from Python: settings, recipes, schedules, epochs, measuring, predicting."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import data, models, nn, train
from gpucnn import functional as F
from gpucnn.data import Dataset, Normalize, Splits
from gpucnn.tensor import Tensor
from gpucnn.train import augmentation
from gpucnn.train.config import OPTIMIZERS, RULES, from_dict
from gpucnn.train.diagnosis import first_non_finite
from gpucnn.train.evaluation import count_top
from gpucnn.train.report import epoch_line
from gpucnn.train.trainer import is_better, is_done, make_schedule

SMALL = {"epochs": 2, "limit": 96, "batch_size": 32}


@pytest.fixture(scope="module")
def digits() -> Splits:
    return data.load("digits")


def config(dataset: Dataset, **settings: Any) -> train.TrainConfig:
    return train.recipe("lenet5", dataset, **settings)


def trainer(splits: Splits, **settings: Any) -> train.Trainer:
    """A Trainer of LeNet-5 on 96 images."""
    chosen = config(splits.train, **{**SMALL, **settings})
    training = splits.train.limit(96)
    model = models.create(chosen.model, **chosen.arguments)
    return train.Trainer(model, chosen, training, None, Normalize(*training.statistics()))


# Settings


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("epochs", 0, "epochs is 0; it must be a whole number of at least 1"),
        ("epochs", 2.5, "epochs is 2.5; it must be a whole number"),
        ("epochs", True, "epochs is True; it must be a whole number"),
        ("batch_size", -3, "batch_size is -3; it must be a whole number of at least 1"),
        ("lr", math.nan, "lr is nan; it must be a finite number above 0"),
        ("lr", 0, "lr is 0; it must be a finite number above 0"),
        ("weight_decay", -1e-4, "weight_decay is -0.0001; it must be a finite number of at least 0"),
        ("momentum", 1.0, "momentum is 1.0; it must be a number of at least 0 and below 1"),
        ("validation", 1.0, "validation is 1.0; it must be a fraction of at least 0 and below 1"),
        ("seed", 2**63, r"seed is 9223372036854775808; it must be a whole number from 0 to 2\*\*63 - 1"),
        ("augment", True, r"augment is True; it must be a list such as \['shift:2', 'flip'\], or \[\] for none"),
        ("augment", "flip", "augment is 'flip'; it must be a list"),
        ("augment", ["turn:3"], r"augment: 'turn:3' is no change of images; use shift:PIXELS, crop:PIXELS, flip\["),
        ("l1_decay", -1, "l1_decay is -1; it must be a finite number of at least 0"),
        ("clip_norm", 0, "clip_norm is 0; it must be a finite number above 0"),
        ("optimizer", "lion", "optimizer 'lion' is unknown; use one of sgd, adam, adamw"),
        ("schedule", "exp", "schedule 'exp' is unknown; use one of cosine, step, constant, plateau"),
        ("device", "cuda", "device 'cuda': CuPy is not installed"),
        ("device", "tpu", "device 'tpu' is unknown"),
        ("early_stop", 2, "early_stop is 2, which follows the validation part, but there is none"),
        ("schedule", "plateau", "schedule is 'plateau', which follows the validation part, but there is none"),
    ],
)
def test_config_refuses(digits: Splits, setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(digits.train, **{setting: value})


def test_config_survives_json(digits: Splits) -> None:
    chosen = config(digits.train, validation=0.1, early_stop=3)
    assert from_dict(json.loads(json.dumps(chosen.as_dict()))) == chosen
    with pytest.raises(ValueError, match=r"\['speed'\] are missing or unknown"):
        from_dict({**chosen.as_dict(), "speed": 1})


def test_config_names_what_differs(digits: Splits) -> None:
    one, other = config(digits.train), config(digits.train, lr=0.5, width=0.5)
    assert one.differences(one) == []
    assert sorted(one.differences(other)) == ["arguments.width", "lr"]
    assert (other.get("lr"), other.get("arguments.width")) == (0.5, 0.5)


@pytest.mark.parametrize("text", ["abc", "", "1.5", "0", "-1", "nan", "1e3"])
def test_rule_names_text_and_rule(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not a whole number of at least 1"):
        RULES["epochs"].parse(text)


def test_recipe_for_digits(digits: Splits) -> None:
    chosen = config(digits.train)
    assert (chosen.epochs, chosen.schedule, chosen.augment) == (40, "cosine", ["shift:2"])
    assert chosen.arguments == {"num_classes": 10, "in_channels": 1, "image_size": 28, "width": 1.0}


def test_recipe_follows_the_data() -> None:
    images = np.zeros((3, 3, 20, 20), np.uint8)
    dataset = Dataset("three", images, np.arange(3), ("a", "b", "c"))
    chosen = train.recipe("vgg16_bn", dataset, width=0.25)
    assert chosen.arguments == {"num_classes": 3, "in_channels": 3, "image_size": 32, "width": 0.25}
    assert chosen.augment == ["shift:2"]  # of 32 pixels
    assert train.recipe("alexnet", dataset, variant="paper").arguments["image_size"] == 67


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("shift:3", data.Shift(3)),
        ("crop:4", data.Crop(4)),
        ("flip", data.Flip(0.5)),
        ("flip:0.25", data.Flip(0.25)),
        ("rotate:10", data.Rotate(10.0)),
        ("brightness:0.2", data.Brightness(0.2)),
        ("contrast:1", data.Contrast(1.0)),
        ("saturation:2e-1", data.Saturation(0.2)),
        ("sharpness:3", data.Sharpness(3.0)),
    ],
)
def test_changes_by_name(text: str, wanted: Any) -> None:
    assert augmentation.parse(text) == wanted
    assert text.partition(":")[0] in augmentation.FORMS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop", "'crop' lacks its number, a whole number of pixels of at least 0; use crop:NUMBER"),
        ("crop:", "'crop:': '' is not a whole number of pixels"),
        ("crop:1.5", "'crop:1.5': '1.5' is not a whole number of pixels"),
        ("crop:-1", "'-1' is not a whole number of pixels of at least 0"),
        ("crop:4:4", "'4:4' is not a whole number"),
        ("flip:1.5", "'1.5' is not a probability from 0 to 1"),
        ("rotate:181", "'181' is not an angle from 0 to 180 degrees"),
        ("sharpness:nan", "'nan' is not a finite number of at least 0"),
        ("Flip", "'Flip' is no change of images; use shift:PIXELS"),
        ("", "'' is no change of images"),
    ],
)
def test_changes_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation.parse(text)


def test_moves_come_before_distortions(digits: Splits) -> None:
    loader = trainer(digits, augment=["rotate:5", "flip", "contrast:0.1", "shift:1"]).loader
    assert repr(loader.augment) == "Augment(Flip(probability=0.5), Shift(pixels=1), fill=0)"
    assert repr(loader.transform) == "Compose(Rotate(degrees=5.0, fill=0.0), Contrast(amount=0.1))"
    assert trainer(digits, augment=[]).loader.transform is None


def test_l1_decay_and_clipping_reach_the_step(digits: Splits) -> None:
    """A rate of 1 moves the weights by the gradient: no further than the norm, and by the L1 decay on top."""
    moved = []
    for settings in ({"clip_norm": 1e-3}, {"clip_norm": 1e-3, "l1_decay": 0.25}):
        run = trainer(
            digits, optimizer="sgd", lr=1.0, momentum=0, weight_decay=0, schedule="constant", warmup=0, **settings
        )
        before = [parameter.numpy().copy() for parameter in run.model.parameters()]
        run._take_step(*next(run.loader.epoch(0)))
        after = [parameter.numpy() for parameter in run.model.parameters()]
        moved.append([(a - b, np.sign(b)) for a, b in zip(after, before, strict=True)])
    assert sum(float((step**2).sum()) for step, _ in moved[0]) ** 0.5 <= 1.01e-3
    for (plain, _), (decayed, sign) in zip(*moved, strict=True):
        assert (np.abs(decayed - plain + 0.25 * sign) <= 2e-3).all()


def test_recipe_has_a_rate_for_each_optimiser(digits: Splits) -> None:
    for name in OPTIMIZERS:
        chosen = train.recipe("vgg11", digits.train, optimizer=name)
        assert chosen.lr > 0
        assert (chosen.momentum > 0) == (name == "sgd")


def test_recipe_refuses_unknown_models(digits: Splits) -> None:
    with pytest.raises(ValueError, match="model 'lenet' is unknown; use one of lenet5, alexnet"):
        train.recipe("lenet", digits.train)


# Schedules: rates at chosen steps, computed by hand


def rates(digits: Splits, steps: int, **settings: Any) -> list[float]:
    """The rate before each of `steps` steps, of lr 1 and 10 steps an epoch."""
    run = trainer(digits)
    schedule = make_schedule(dataclasses.replace(run.config, lr=1.0, **settings), run.optimizer, 10)
    run.optimizer.lr = schedule.base_lr = 1.0
    schedule.load_state_dict({"count": 0, "base_lr": 1.0})
    found = []
    for _ in range(steps):
        found.append(run.optimizer.lr)
        schedule.step()
    return found


def test_cosine_reaches_zero_after_the_last_step(digits: Splits) -> None:
    found = rates(digits, 21, epochs=2, schedule="cosine", warmup=0.0)
    assert found[0] == 1
    assert found[10] == pytest.approx(0.5)
    assert found[20] == pytest.approx(0, abs=1e-15)


def test_warmup_takes_at_most_a_fifth_of_the_run(digits: Splits) -> None:
    found = rates(digits, 21, epochs=2, schedule="cosine", warmup=1.0)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[20] == pytest.approx(0, abs=1e-15)


def test_step_schedule_takes_a_tenth_after_each_third(digits: Splits) -> None:
    found = rates(digits, 30, epochs=3, schedule="step", warmup=0.0)
    assert [found[0], found[9], found[10], found[19], found[20], found[29]] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_constant_schedule_does_not_depend_on_the_epochs(digits: Splits) -> None:
    short, long = (rates(digits, 30, epochs=epochs, schedule="constant", warmup=1.0) for epochs in (3, 50))
    assert short == long
    assert short[10:] == [1.0] * 20


def test_multi_step_schedule_takes_a_tenth_after_a_half_and_three_quarters(digits: Splits) -> None:
    found = rates(digits, 40, epochs=4, schedule="multi-step", warmup=0.0)
    assert found == pytest.approx([1] * 20 + [0.1] * 10 + [0.01] * 10)


def test_polynomial_schedule_is_a_straight_line_after_the_warmup(digits: Splits) -> None:
    found = rates(digits, 51, epochs=5, schedule="polynomial", warmup=1.0)
    assert found[:10] == pytest.approx(np.arange(1, 11) / 11)
    assert found[10:] == pytest.approx(np.linspace(1, 0, 41))


def test_one_cycle_schedule_rises_in_three_tenths_of_the_run(digits: Splits) -> None:
    found = rates(digits, 100, epochs=10, schedule="one-cycle", warmup=0.0)
    assert (found[0], found[29], found[99]) == pytest.approx((0.04, 1, 4e-6))
    assert max(found) == found[29]


@pytest.mark.parametrize("schedule", ["plateau", "one-cycle"])
def test_recipe_gives_no_warmup_to_schedules_that_take_none(digits: Splits, schedule: str) -> None:
    chosen = config(digits.train, schedule=schedule, validation=0.1)
    assert chosen.warmup == 0
    with pytest.raises(ValueError, match=f"warmup is 1.0, but schedule '{schedule}' takes no warm-up; use 0"):
        dataclasses.replace(chosen, warmup=1.0)


# Training


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_lowers_the_loss(digits: Splits, name: str) -> None:
    run = trainer(digits, optimizer=name, epochs=20, augment=[])
    while not run.done:
        run.run_epoch()
    assert run.history[-1]["train_loss"] < 0.75 * run.history[0]["train_loss"]


def test_overfits_a_few_images(digits: Splits) -> None:
    run = trainer(digits, epochs=30, lr=0.03, augment=[])
    while not run.done:
        run.run_epoch()
    assert run.history[-1]["train_accuracy"] == 1.0
    assert run.history[-1]["train_loss"] < 0.1
    assert run.step == 30 * 3


def test_seed_decides_everything(digits: Splits, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> list[bytes]:
        outcome = train.fit("lenet5", digits, tmp_path / name, seed=seed, **SMALL)
        return [array.tobytes() for array in outcome.measured.model.state_dict().values()]

    first = weights("first", 5)
    assert weights("second", 5) == first
    assert weights("third", 6) != first


def test_history_entry(digits: Splits) -> None:
    run = trainer(digits)
    run.run_epoch()
    entry = run.history[0]
    assert list(entry) == ["epoch", "train_loss", "train_accuracy", "lr", "images_per_second", "seconds"]
    assert entry["epoch"] == 1
    assert 1.5 < entry["train_loss"] < 3
    assert entry["images_per_second"] == pytest.approx(96 / entry["seconds"])
    assert epoch_line(entry, 40).startswith(f"epoch  1/40  loss {entry['train_loss']:.4f}  accuracy ")


def test_epoch_line_shows_the_gap() -> None:
    entry = {"epoch": 3, "train_loss": 0.5, "train_accuracy": 0.9, "lr": 0.02, "images_per_second": 1234.5}
    entry |= {"validation_loss": 0.75, "validation_accuracy": 0.875}
    assert epoch_line(entry, 10) == (
        "epoch  3/10  loss 0.5000  accuracy 0.9000  validation loss 0.7500  accuracy 0.8750 (gap +0.0250)  "
        "lr 0.02  1,234 images/s"
    )


def test_better_is_more_accurate_then_of_lower_loss() -> None:
    base = {"validation_accuracy": 0.9, "validation_loss": 0.3}
    assert is_better(base, None)
    assert is_better({**base, "validation_accuracy": 0.91}, base)
    assert is_better({**base, "validation_loss": 0.2}, base)
    assert not is_better(dict(base), base)


def test_is_done(digits: Splits) -> None:
    chosen = config(digits.train, epochs=10, validation=0.1, early_stop=3)
    assert not is_done(chosen, 6, {"epoch": 4})
    assert is_done(chosen, 7, {"epoch": 4})
    assert is_done(chosen, 10, {"epoch": 9})
    assert not is_done(config(digits.train, epochs=10), 9, None)


@pytest.mark.filterwarnings("error")
def test_non_finite_loss_names_the_layer(digits: Splits) -> None:
    run = trainer(digits, lr=1e12)
    with pytest.raises(train.NonFiniteError, match=r"the (loss is|weight of|bias of).*use a smaller --lr than 1e\+12"):
        run.run_epoch()


def test_first_non_finite_names_layer_weight_or_images() -> None:
    model = models.lenet5()
    images = np.ones((2, 1, 28, 28), np.float32)
    state = {"seed": 0, "offset": 0, "host": np.random.PCG64(0).state}
    assert first_non_finite(model, images, state) == "all layers' outputs are finite"
    model.features[3].weight.data[...] = 3e38
    found = first_non_finite(model, images, state)
    assert found == "the first layer whose output is not finite is features.3 (Conv2d)"
    model.classifier[1].bias.data[0] = np.nan
    assert first_non_finite(model, images, state) == "the bias of classifier.1 (Linear) is not finite"
    assert first_non_finite(model, images * np.inf, state) == "the images themselves are not finite"


# Measuring


class Pixels(nn.Module):
    """Scores each class by one pixel of the first row."""

    def forward(self, x: Any) -> Any:
        return F.flatten(x)[:, :6]


def labelled(rows: list[list[int]], labels: list[int]) -> Dataset:
    images = np.array(rows, np.uint8)[:, None, None, :]
    return Dataset("rows", images, np.array(labels), tuple("abcdef"))


def test_evaluate_by_hand() -> None:
    rows = [[255, 0, 0, 0, 0, 0], [0, 255, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]]
    found = train.evaluate(Pixels(), labelled(rows, [0, 2, 5]), batch_size=2)
    assert (found.accuracy, found.top5, found.count) == (1 / 3, 2 / 3, 3)
    assert found.predictions.tolist() == [0, 1, 0]
    scores = np.array(rows) / 255
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[[0, 1, 2], [0, 2, 5]]
    assert found.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert found.probabilities[0] == pytest.approx(math.e / (math.e + 5), rel=1e-6)


def test_evaluate_keeps_modes_and_draws_nothing(digits: Splits) -> None:
    model = models.alexnet(num_classes=10, in_channels=1, image_size=63, width=0.05)
    model.classifier.eval()
    modes = [module.training for module in model.modules()]
    first, second = (train.evaluate(model, digits.test.limit(10)) for _ in range(2))
    assert first.loss == second.loss  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluate_refuses_other_data(digits: Splits) -> None:
    with pytest.raises(ValueError, match="the network has 3 channels but data 'digits' has 1"):
        train.evaluate(models.lenet5(in_channels=3), digits.test)
    with pytest.raises(ValueError, match="the network has 7 classes but data 'digits' has 10"):
        train.evaluate(models.lenet5(num_classes=7), digits.test)


def test_count_top() -> None:
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [np.nan, np.nan, np.nan]])
    labels = np.array([1, 2, 0])
    assert [count_top(scores, labels, k) for k in (1, 2, 3, 5)] == [0, 1, 2, 2]


# Predicting


@pytest.fixture(scope="module")
def trained(digits: Splits) -> train.TrainedModel:
    """An untrained LeNet-5 that knows of digits."""
    mean, std = digits.train.statistics()
    return train.TrainedModel(models.lenet5().eval(), digits.test.classes, Normalize(mean, std), "digits")


def save_picture(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    from PIL import Image

    picture = Image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(path, **options)
    return path


def test_predict_equals_the_network(trained: train.TrainedModel, digits: Splits, tmp_path: Path) -> None:
    paths = [save_picture(tmp_path / f"{i}.png", digits.test.images[i, 0]) for i in range(3)]
    found = train.predict(trained, paths)
    pixels = trained.normalize(digits.test.images[:3].astype(np.float32) / 255)
    expected = F.softmax(trained.model(Tensor(pixels))).data
    for prediction, row, path in zip(found, expected, paths, strict=True):
        assert prediction.image == str(path)
        assert [label for label, _ in prediction.top5] == [str(i) for i in np.argsort(-row)[:5]]
        assert [p for _, p in prediction.top5] == pytest.approx(sorted(row, reverse=True)[:5], rel=1e-5)
        assert prediction.note == ""
    assert list(found[0].to_json()) == ["image", "top5"]
    assert list(found[0].to_json()["top5"][0]) == ["label", "probability"]


def test_read_image_converts_every_mode(tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    shape = (1, 32, 32)
    for mode in ("L", "RGB", "P", "LA", "RGBA"):
        path = save_picture(tmp_path / f"{mode}.png", grey, mode)
        np.testing.assert_array_equal(train.read_image(path, shape)[0], grey, err_msg=mode)
    wide = save_picture(tmp_path / "16.png", grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(train.read_image(wide, shape)[0], grey)
    bits = save_picture(tmp_path / "1.png", grey > 100)
    np.testing.assert_array_equal(train.read_image(bits, shape)[0], np.where(grey > 100, 255, 0))
    colour = train.read_image(tmp_path / "L.png", (3, 16, 8))
    assert colour.shape == (3, 16, 8)
    assert (colour == colour[:1]).all()


def test_read_image_puts_transparent_pictures_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255  # the upper half is black, the lower one transparent
    found = train.read_image(save_picture(tmp_path / "a.png", pixels), (1, 8, 8))[0]
    np.testing.assert_array_equal(found[:4], 0)
    np.testing.assert_array_equal(found[4:], 255)


def test_read_image_turns_upright(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: what is on top comes to the right
    found = train.read_image(save_picture(tmp_path / "a.jpg", pixels, exif=exif, quality=100), (1, 8, 8))[0]
    assert found[:, 6:].min() > 250
    assert found[:, :2].max() < 5


def test_predict_doubts_dark_digits_on_light_paper(trained: train.TrainedModel, digits: Splits, tmp_path: Path) -> None:
    usual = save_picture(tmp_path / "light.png", digits.test.images[0, 0])
    dark = save_picture(tmp_path / "dark.png", 255 - digits.test.images[0, 0])
    first, second = train.predict(trained, [usual, dark])
    assert first.note == ""
    assert second.note == "it looks dark on light, but the network was trained on light on dark"
    (inverted,) = train.predict(trained, [dark], invert=True)
    assert (inverted.note, inverted.top5) == ("", first.top5)


def test_predict_names_the_bad_picture(trained: train.TrainedModel, digits: Splits, tmp_path: Path) -> None:
    good = save_picture(tmp_path / "good.png", digits.test.images[0, 0])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png: not a PNG or JPEG image"):
        train.predict(trained, [good, text])
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such image"):
        train.predict(trained, [good, tmp_path / "none.png"])
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:150])
    with pytest.raises(OSError, match=r"cut\.png: the image cannot be read"):
        train.predict(trained, [cut])
    with pytest.raises(ValueError, match=r"a\.gif: not a PNG or JPEG image"):
        train.predict(trained, [save_picture(tmp_path / "a.gif", digits.test.images[0, 0])])
    with pytest.raises(OSError, match="the image cannot be read"):
        train.predict(trained, [tmp_path])


@pytest.mark.parametrize("side", [8_100, 9_700, 14_000])
def test_read_image_refuses_bombs(side: int, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png: the image has .* 64,000,000"):
        train.read_image(tmp_path / "bomb.png", (1, 28, 28))
