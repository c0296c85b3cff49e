"""L1 (lasso) regularisation of PyTorch models made real: exact zeros, one meaning of the strength."""

from torchlasso.activations import ActivationL1
from torchlasso.certify import certificate, strength_max
from torchlasso.compaction.compact import compact
from torchlasso.compaction.coupled import coupled_groups
from torchlasso.estimators import LassoMLPClassifier, LassoMLPRegressor
from torchlasso.estimators_cv import LassoMLPClassifierCV, LassoMLPRegressorCV
from torchlasso.export import export_model
from torchlasso.fit.settings import Budget
from torchlasso.groups import Blocks, Heads, Units
from torchlasso.hierarchy import hierarchical
from torchlasso.importance import feature_importance
from torchlasso.knockoffs import knockoff_filter
from torchlasso.lasso_path import lasso_path
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
from torchlasso.saving import load, save
from torchlasso.simplenet import SimpleNet
from torchlasso.sparse_layers import SparseLinear
from torchlasso.sparsification import densify, sparsify, sparsify_table
from torchlasso.sparsity import sparsity
from torchlasso.stability import stability_selection
from torchlasso.survival import concordance_index
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
    "Budget",
    "ElasticNet",
    "GroupLasso",
    "GroupMCP",
    "Heads",
    "Hierarchical",
    "L1Ball",
    "LHalf",
    "LassoMLPClassifier",
    "LassoMLPClassifierCV",
    "LassoMLPRegressor",
    "LassoMLPRegressorCV",
    "LogSum",
    "NuclearNorm",
    "Penalty",
    "Regularizer",
    "SimpleNet",
    "SparseGroupLasso",
    "SparseLinear",
    "TargetSparsity",
    "TopK",
    "TotalVariation",
    "Units",
    "attach",
    "certificate",
    "compact",
    "concordance_index",
    "coupled_groups",
    "densify",
    "export_model",
    "feature_importance",
    "hierarchical",
    "knockoff_filter",
    "lasso_path",
    "load",
    "save",
    "sparsify",
    "sparsify_table",
    "sparsity",
    "stability_selection",
    "strength_max",
]
