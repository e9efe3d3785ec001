"""Finding, compiling and launching kernels: `launch` runs one by its name, on the engine of its arrays' device."""

from gpucnn.launch.dispatch import Strided as Strided
from gpucnn.launch.dispatch import architecture_of as architecture_of
from gpucnn.launch.dispatch import grid_for as grid_for
from gpucnn.launch.dispatch import launch as launch
from gpucnn.launch.dispatch import max_pointers as max_pointers
from gpucnn.launch.dispatch import shared_limit as shared_limit
from gpucnn.launch.plan import Plan as Plan
from gpucnn.launch.plan import changing as changing
from gpucnn.launch.plan import random_stream as random_stream
from gpucnn.launch.plan import recording as recording
from gpucnn.launch.simulator import SimulatorError as SimulatorError
from gpucnn.launch.tensor_map import TensorMap as TensorMap
