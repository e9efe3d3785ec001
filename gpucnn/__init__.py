"""gpucnn: convolutional networks on CuPy arrays, on CUDA kernels you can read, run and debug anywhere."""

# First of all: threads loads the extension, in the way its workers need.
from gpucnn.threads import get_num_threads as get_num_threads
from gpucnn.threads import set_num_threads as set_num_threads

# isort: split

from gpucnn import data as data
from gpucnn import functional as functional
from gpucnn import models as models
from gpucnn import nn as nn
from gpucnn import optim as optim
from gpucnn.device import DeviceLost as DeviceLost
from gpucnn.functional import concatenate as concatenate
from gpucnn.ops import UnsupportedAlgorithm as UnsupportedAlgorithm
from gpucnn.ops import tuning as tuning
from gpucnn.ops import workspace_limit as workspace_limit
from gpucnn.precision import autocast as autocast
from gpucnn.precision import get_autocast as get_autocast
from gpucnn.precision import get_precision as get_precision
from gpucnn.precision import parameters_changed as parameters_changed
from gpucnn.precision import precision as precision
from gpucnn.random import manual_seed as manual_seed
from gpucnn.tensor import Function as Function
from gpucnn.tensor import Tensor as Tensor
from gpucnn.tensor import no_grad as no_grad
from gpucnn.tensor import tensor as tensor
from gpucnn.version import __version__ as __version__
