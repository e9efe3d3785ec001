"""Weights of other programs: readers that run nothing a file holds, and their import as a checkpoint."""

from gpucnn.weights.importing import import_weights as import_weights
from gpucnn.weights.importing import read_weights as read_weights
