"""Optimisers and learning-rate schedules."""

from gpucnn.optim.adam import Adam as Adam
from gpucnn.optim.adam import AdamW as AdamW
from gpucnn.optim.optimizer import Optimizer as Optimizer
from gpucnn.optim.schedule import ConstantSchedule as ConstantSchedule
from gpucnn.optim.schedule import CosineSchedule as CosineSchedule
from gpucnn.optim.schedule import PlateauSchedule as PlateauSchedule
from gpucnn.optim.schedule import Schedule as Schedule
from gpucnn.optim.schedule import StepSchedule as StepSchedule
from gpucnn.optim.schedule import WarmupSchedule as WarmupSchedule
from gpucnn.optim.sgd import SGD as SGD
