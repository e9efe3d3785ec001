"""Training, measuring and using networks: `fit`, `evaluate`, `predict`."""

from gpucnn.train.config import TrainConfig as TrainConfig
from gpucnn.train.diagnosis import NonFiniteError as NonFiniteError
from gpucnn.train.ensemble import average_predictions as average_predictions
from gpucnn.train.evaluation import Evaluation as Evaluation
from gpucnn.train.evaluation import evaluate as evaluate
from gpucnn.train.prediction import Prediction as Prediction
from gpucnn.train.prediction import TrainedModel as TrainedModel
from gpucnn.train.prediction import load_model as load_model
from gpucnn.train.prediction import predict as predict
from gpucnn.train.prediction import read_image as read_image
from gpucnn.train.recipes import recipe as recipe
from gpucnn.train.report import Bar as Bar
from gpucnn.train.report import Console as Console
from gpucnn.train.report import Report as Report
from gpucnn.train.run import Measured as Measured
from gpucnn.train.run import Outcome as Outcome
from gpucnn.train.run import fit as fit
from gpucnn.train.signals import Interrupted as Interrupted
from gpucnn.train.step import CapturedStep as CapturedStep
from gpucnn.train.step import Step as Step
from gpucnn.train.trainer import Trainer as Trainer
