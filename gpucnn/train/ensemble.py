"""Several networks as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.nn import Module
from gpucnn.tensor import Tensor, no_grad
from gpucnn.train.evaluation import evaluating, scores_of


def average_predictions(models: Sequence[Module], images: Any) -> np.ndarray:
    """Class probabilities (N, classes): the mean over the models of softmax(model(images)), in evaluation mode.

    - models: networks with the same classes; images: an array or a Tensor that each of them takes, (N, C, H, W)
    Networks that were trained from different seeds make different mistakes, so that their mean makes fewer (Krizhevsky
    et al. 2012, §6). Raises ValueError for no models, or if the shapes of their scores differ.
    """
    if not models:
        raise ValueError("average_predictions: there are no models; give at least one")
    scores = []
    for model in models:
        with evaluating(model), no_grad():
            scores.append(scores_of(model, images.data if isinstance(images, Tensor) else images))
    shapes = sorted({score.shape for score in scores})
    if len(shapes) > 1:
        raise ValueError(f"average_predictions: the models' scores have the shapes {shapes}; they must have the same")
    return np.mean([F.softmax(score) for score in scores], axis=0)
