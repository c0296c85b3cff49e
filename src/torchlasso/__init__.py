"""L1 (lasso) regularisation of PyTorch models made real: exact zeros, one meaning of the strength."""

from torchlasso.certify import certificate, strength_max
from torchlasso.estimators import LassoMLPClassifier, LassoMLPRegressor
from torchlasso.optim.attach import attach
from torchlasso.penalties.separable import L1, ElasticNet
from torchlasso.penalties.structured import GroupLasso
from torchlasso.regularizer import Regularizer
from torchlasso.simplenet import SimpleNet
from torchlasso.sparsity import sparsity

__version__ = "0.1.0"

__all__ = [
    "L1",
    "ElasticNet",
    "GroupLasso",
    "LassoMLPClassifier",
    "LassoMLPRegressor",
    "Regularizer",
    "SimpleNet",
    "attach",
    "certificate",
    "sparsity",
    "strength_max",
]
