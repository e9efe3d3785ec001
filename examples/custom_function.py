"""A differentiable function of your own: forward, backward, a check of its gradient, and a network that trains with it.

Swish (Ramachandran et al. 2017): y = x · σ(βx); dy/dx = σ(βx) + βy·(1 − σ(βx)), dy/dβ = x·y·(1 − σ(βx)).

Run: python examples/custom_function.py
"""

import numpy as np

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim


class SwishFunction(gpucnn.Function):
    """What the tape records: forward takes arrays and keeps what backward needs."""

    def forward(self, x: np.ndarray, beta: np.ndarray) -> np.ndarray:
        self.x, self.beta, self.gate = x, beta, F.sigmoid(beta * x)
        return x * self.gate

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One gradient for each argument of forward, in its shape."""
        y = self.x * self.gate
        gx = gradient * (self.gate + self.beta * y * (1 - self.gate))
        gbeta = (gradient * self.x * y * (1 - self.gate)).sum().reshape(self.beta.shape)
        return gx, gbeta


class Swish(nn.Module):
    """The function as a layer with one trained number."""

    def __init__(self) -> None:
        self.beta = nn.Parameter(np.ones(1, np.float32))

    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        return SwishFunction()(x, self.beta)


def check_gradient(step: float = 1e-6) -> float:
    """The largest difference between backward and central differences, in float64."""
    rng = np.random.default_rng(0)
    x, beta, weights = rng.standard_normal(9), np.array([1.5]), rng.standard_normal(9)
    leaves = [gpucnn.tensor(array, requires_grad=True) for array in (x, beta)]
    SwishFunction()(*leaves).backward(weights)

    def value(x: np.ndarray, beta: np.ndarray) -> float:
        return float((SwishFunction()(x, beta) * weights).sum())  # on plain arrays nothing is recorded

    differences = [(value(x + d, beta) - value(x - d, beta)) / (2 * step) for d in step * np.eye(x.size)]
    differences.append((value(x, beta + step) - value(x, beta - step)) / (2 * step))
    gradients = np.concatenate([leaf.grad.numpy() for leaf in leaves])
    return float(np.abs(gradients - differences).max())


def train(steps: int = 300) -> tuple[float, float]:
    """Fit sin(3x) with a small network; returns the mean squared errors before and after."""
    gpucnn.manual_seed(0)
    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    inputs, targets = gpucnn.tensor(x), gpucnn.tensor(np.sin(3 * x))
    model = nn.Sequential(nn.Linear(1, 16), Swish(), nn.Linear(16, 1))
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = ((model(inputs) - targets) ** 2).mean()
        losses.append(float(loss.item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]


def main() -> None:
    difference = check_gradient()
    print(f"backward and central differences agree within {difference:.1e}")
    assert difference < 1e-8, "the gradient is wrong"
    before, after = train()
    print(f"mean squared error of sin(3x): {before:.4f} before training, {after:.6f} after")


if __name__ == "__main__":
    main()
