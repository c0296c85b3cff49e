"""L1 (lasso) regularisation of PyTorch models made real: exact zeros, one meaning of the strength."""

from torchlasso.activations import ActivationL1
from torchlasso.certify import certificate, strength_max
from torchlasso.estimators import LassoMLPClassifier, LassoMLPRegressor
from torchlasso.groups import Blocks, Heads, Units
from torchlasso.hierarchy import hierarchical
from torchlasso.optim.attach import attach
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.constraints import NM, L1Ball, TopK
from torchlasso.penalties.counting import L0, LHalf
from torchlasso.penalties.group_mcp import GroupMCP
from torchlasso.penalties.hierarchical import Hierarchical
from torchlasso.penalties.nonconvex import MCP, SCAD, LogSum
from torchlasso.penalties.ordered import SLOPE
from torchlasso.penalties.separable import L1, ElasticNet
from torchlasso.penalties.sparse_group import SparseGroupLasso
from torchlasso.penalties.spectral import NuclearNorm
from torchlasso.penalties.structured import GroupLasso
from torchlasso.penalties.variation import TotalVariation
from torchlasso.regularizer import Regularizer
from torchlasso.simplenet import SimpleNet
from torchlasso.sparsity import sparsity
from torchlasso.target import TargetSparsity

__version__ = "0.1.0"

__all__ = [
    "L0",
    "L1",
    "MCP",
    "NM",
    "SCAD",
    "SLOPE",
    "ActivationL1",
    "Blocks",
    "ElasticNet",
    "GroupLasso",
    "GroupMCP",
    "Heads",
    "Hierarchical",
    "L1Ball",
    "LHalf",
    "LassoMLPClassifier",
    "LassoMLPRegressor",
    "LogSum",
    "NuclearNorm",
    "Penalty",
    "Regularizer",
    "SimpleNet",
    "SparseGroupLasso",
    "TargetSparsity",
    "TopK",
    "TotalVariation",
    "Units",
    "attach",
    "certificate",
    "hierarchical",
    "sparsity",
    "strength_max",
]
