"""Means of several networks' predictions."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_close

from gpucnn import functional as F
from gpucnn import nn, tensor, train


def scorer(scores: list[float]) -> nn.Module:
    """A layer that gives the same scores for any image of one value 1."""
    layer = nn.Linear(1, len(scores), bias=False)
    layer.weight.data[:, 0] = scores
    return layer


def test_by_hand():
    models = [scorer([0.0, np.log(3)]), scorer([np.log(3), 0.0]), scorer([0.0, np.log(3)])]
    images = np.ones((2, 1), np.float32)
    want = [[5 / 12, 7 / 12]] * 2  # the mean of (1/4, 3/4), (3/4, 1/4), (1/4, 3/4)
    assert_close(train.average_predictions(models, images), want, 1e-6)
    assert_close(train.average_predictions(models, tensor(images)), want, 1e-6)
    assert_close(train.average_predictions(models[:1], images), F.softmax(models[0](images)), 1e-7)


def test_evaluation_mode_and_no_tape():
    models = [nn.Sequential(nn.Dropout(0.5), scorer([1.0, 2.0])) for _ in range(2)]
    models[1].eval()
    got = train.average_predictions(models, np.ones((5, 1), np.float32))
    assert_close(got, np.tile(F.softmax(np.array([1.0, 2.0])), (5, 1)), 1e-6)
    assert [model[0].training for model in models] == [True, False]


def test_as_pytorch(torch):
    rng = np.random.default_rng(1)
    models = [scorer(rng.standard_normal(7).tolist()) for _ in range(4)]
    images = rng.standard_normal((5, 1)).astype(np.float32)
    scores = [torch.tensor(images) @ torch.tensor(model.weight.data).T for model in models]
    want = torch.stack([score.softmax(dim=1) for score in scores]).mean(dim=0)
    assert_close(train.average_predictions(models, images), want, 1e-6)


def test_errors():
    with pytest.raises(ValueError, match="average_predictions: there are no models; give at least one"):
        train.average_predictions([], np.ones((1, 1)))
    models = [scorer([1.0, 2.0]), scorer([1.0, 2.0, 3.0])]
    with pytest.raises(ValueError, match=r"the models' scores have the shapes \[\(1, 2\), \(1, 3\)\]; they must have"):
        train.average_predictions(models, np.ones((1, 1), np.float32))
