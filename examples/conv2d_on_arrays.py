"""conv2d for NumPy users: arrays in, arrays out, no Tensors, no layers, no training.

Run: python examples/conv2d_on_arrays.py
"""

import numpy as np

from gpucnn import data
from gpucnn import functional as F
from gpucnn.ops import ALGORITHMS


def edges(images: np.ndarray) -> np.ndarray:
    """The strength of edges in images (N, 1, H, W): the length of the gradient by Sobel's two filters."""
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
    filters = np.stack([across, across.T])[:, None]  # (K, C, R, S) = (2, 1, 3, 3)
    gradient = F.conv2d(images, filters, padding=1)  # (N, 2, H, W)
    return np.sqrt((gradient**2).sum(axis=1, keepdims=True))


def draw(image: np.ndarray) -> str:
    """An image (H, W) as text, two characters a pixel."""
    levels = np.round(image / image.max() * 4).astype(int)
    return "\n".join("".join(" .:#@"[level] * 2 for level in row).rstrip() for row in levels)


def main() -> None:
    digits = data.load("digits").test.images[:8].astype(np.float32)  # (N, C, H, W), as PyTorch's
    strength = edges(digits)
    print(f"edges of {digits.shape} are {strength.shape}, {strength.dtype}; those of the first digit:")
    print(draw(strength[0, 0]))

    weight = np.random.default_rng(0).standard_normal((16, 1, 5, 5), np.float32)
    first = F.conv2d(digits, weight, stride=2, padding=2)
    for algorithm in ALGORITHMS["conv2d_forward"]:
        try:
            other = F.conv2d(digits, weight, stride=2, padding=2, algorithm=algorithm)
        except ValueError as reason:  # UnsupportedAlgorithm says why, and what would work
            print(reason)
        else:
            print(f"{algorithm}: differs from auto by at most {abs(other - first).max() / abs(first).max():.1e}")

    small = F.max_pool2d(F.relu(first), 2)
    large = F.conv_transpose2d(small, weight, stride=4)
    print(f"conv2d {first.shape}, max_pool2d {small.shape}, conv_transpose2d {large.shape}")


if __name__ == "__main__":
    main()
