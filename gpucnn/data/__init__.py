"""Data sets, transforms of batches, and the loader that feeds training."""

from gpucnn.data.dataset import Dataset, Splits, split
from gpucnn.data.distortions import Brightness, Compose, Contrast, Rotate, Saturation, Sharpness
from gpucnn.data.idx import read_idx
from gpucnn.data.loader import DataLoader
from gpucnn.data.shapes import make_shapes
from gpucnn.data.sizes import Pad, Resize
from gpucnn.data.sources import load
from gpucnn.data.transforms import Augment, Crop, Flip, Normalize, Plan, Shift

__all__ = [
    "Augment",
    "Brightness",
    "Compose",
    "Contrast",
    "Crop",
    "DataLoader",
    "Dataset",
    "Flip",
    "Normalize",
    "Pad",
    "Plan",
    "Resize",
    "Rotate",
    "Saturation",
    "Sharpness",
    "Shift",
    "Splits",
    "load",
    "make_shapes",
    "read_idx",
    "split",
]
