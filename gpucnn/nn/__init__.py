"""Layers: parameters, and one call of a function."""

from gpucnn.nn import init as init
from gpucnn.nn.activation import ELU as ELU
from gpucnn.nn.activation import LeakyReLU as LeakyReLU
from gpucnn.nn.activation import LogSoftmax as LogSoftmax
from gpucnn.nn.activation import ReLU as ReLU
from gpucnn.nn.activation import Sigmoid as Sigmoid
from gpucnn.nn.activation import Softmax as Softmax
from gpucnn.nn.activation import Tanh as Tanh
from gpucnn.nn.conv import Conv1d as Conv1d
from gpucnn.nn.conv import Conv2d as Conv2d
from gpucnn.nn.conv import Conv3d as Conv3d
from gpucnn.nn.conv import ConvTranspose2d as ConvTranspose2d
from gpucnn.nn.dropout import Dropout as Dropout
from gpucnn.nn.linear import Flatten as Flatten
from gpucnn.nn.linear import Linear as Linear
from gpucnn.nn.local import LocallyConnected2d as LocallyConnected2d
from gpucnn.nn.loss import CrossEntropyLoss as CrossEntropyLoss
from gpucnn.nn.module import Module as Module
from gpucnn.nn.module import Parameter as Parameter
from gpucnn.nn.module import Sequential as Sequential
from gpucnn.nn.normalization import BatchNorm2d as BatchNorm2d
from gpucnn.nn.normalization import LocalResponseNorm as LocalResponseNorm
from gpucnn.nn.pool import AdaptiveAvgPool2d as AdaptiveAvgPool2d
from gpucnn.nn.pool import AvgPool2d as AvgPool2d
from gpucnn.nn.pool import MaxPool2d as MaxPool2d
