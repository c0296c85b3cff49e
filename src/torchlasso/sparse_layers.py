"""A linear layer that stores and multiplies its nonzero weights only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError

_HALF = (torch.float16, torch.bfloat16)  # torch has no sparse product in these types on the CPU


class SparseLinear(nn.Module):
    r"""A linear layer for inference whose weight matrix is sparse: $y = x W^\top + b$.

    The weights are kept row by row (CSR) with 32-bit indices, as ordinary tensors: ``crow_indices``,
    ``col_indices`` and ``values``, so that any file format takes its ``state_dict``.  A new layer is zero
    throughout; `from_linear` takes over a dense layer, and ``load_state_dict`` any number of weights.

    One row is multiplied as a vector, which is about twice as fast as a matrix of one column; several rows
    as $(W x^\top)^\top$.  In half precision the product is computed in float32 and rounded once.  Unlike the
    dense layer, a weight of zero hides an input that is infinite or not a number.

    Gradients reach the input and the bias, never the weights: a forward pass that should give them one is
    refused.  ``torch.compile`` steps around the product (so without ``fullgraph``); ``torch.export`` is
    refused.

    Args:
        in_features: length of an input.
        out_features: length of an output.
        bias: whether there is a bias.
        nonzero: how many weights are stored; in a new layer the first ones, all zero.
        device: where the tensors are.
        dtype: of the values and the bias.

    Example:
        >>> dense = nn.Linear(3, 2, bias=False)
        >>> _ = dense.weight.data.copy_(torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
        >>> layer = SparseLinear.from_linear(dense)
        >>> layer
        SparseLinear(in_features=3, out_features=2, bias=False, nonzero=2 (33.3%))
        >>> layer(torch.tensor([1.0, 2.0, 3.0]))
        tensor([6., 2.])
    """

    crow_indices: Tensor
    col_indices: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        nonzero: int = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        weights = in_features * out_features
        if not 0 <= nonzero <= weights:
            msg = f"nonzero must be from 0 to {weights}, the number of weights, not {nonzero}"
            raise InputError(msg)
        crow = (in_features * torch.arange(out_features + 1, device=device)).clamp(max=nonzero)
        col = torch.arange(nonzero, device=device) % max(1, in_features)
        self.register_buffer("crow_indices", crow.int())
        self.register_buffer("col_indices", col.int())
        self.values = _frozen(torch.zeros(nonzero, device=device, dtype=dtype))
        zeros = torch.zeros(out_features, device=device, dtype=dtype)
        self.register_parameter("bias", _frozen(zeros) if bias else None)
        self._built: tuple[tuple[int, int, int], Tensor] | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Return the sparse layer with the nonzero weights of a dense one, which stays as it is.

        Args:
            linear: the dense layer.
        """
        with torch.inference_mode(False), torch.no_grad(), _silent():
            weight = linear.weight.detach()
            layer = cls(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                device=weight.device,
                dtype=weight.dtype,
            )
            matrix = weight.clone().to_sparse_csr()
            layer.crow_indices = matrix.crow_indices().int()
            layer.col_indices = matrix.col_indices().int()
            layer.values = _frozen(matrix.values().clone())
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """Return the dense layer with the very same weights, ready to train.

        Example:
            >>> dense = nn.Linear(3, 2)
            >>> torch.equal(SparseLinear.from_linear(dense).to_dense().weight, dense.weight)
            True
        """
        values = self.values.detach()
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            device=values.device,
            dtype=values.dtype,
        )
        rows = torch.arange(self.out_features, device=values.device)
        rows = rows.repeat_interleave(self.crow_indices.diff())
        with torch.no_grad():
            linear.weight.zero_()
            linear.weight[rows, self.col_indices.long()] = values
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs.

        Args:
            x: ``[..., in_features]``, any number of leading dimensions.

        Returns:
            ``[..., out_features]``.

        Raises:
            InputError: the input has another length, the weights should get a gradient, or the stored
                indices are no matrix.
        """
        if torch.compiler.is_exporting():
            msg = "torch.export cannot hold a sparse layer; export torchlasso.densify(model) instead"
            raise InputError(msg)
        return _forward(self, x)

    @property
    def nonzero(self) -> int:
        """How many weights are stored."""
        return self.values.numel()

    def extra_repr(self) -> str:
        """Return the sizes and how many weights there are."""
        share = self.nonzero / max(1, self.in_features * self.out_features)
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, nonzero={self.nonzero:,} ({share:.1%})"

    def matrix(self) -> Tensor:
        """Return the weights as a CSR tensor, of float32 where the values have half precision.

        It shares their memory and is built once, until one of the tensors is another.

        Raises:
            InputError: the indices are no matrix of this size.
        """
        own, values = self._buffers, self._parameters["values"]
        crow, col = own["crow_indices"], own["col_indices"]
        assert crow is not None
        assert col is not None
        assert values is not None
        key = (crow.data_ptr(), col.data_ptr(), values.data_ptr())
        if self._built is not None and self._built[0] == key:
            return self._built[1]
        with torch.inference_mode(False):
            built = _build(crow, col, values.detach(), (self.out_features, self.in_features))
        # Half precision was copied, and the copy would not follow a change of the values in place.
        self._built = None if values.dtype in _HALF else (key, built)
        return built

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": None}  # a copy or a pickle builds its own

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for as many nonzero weights as the state has; what is no matrix stays out."""
        parts = [state_dict.get(prefix + name) for name in ("crow_indices", "col_indices", "values")]
        crow, col, values = parts
        if crow is not None and col is not None and values is not None:
            try:
                # `values` may be of any type here: only its length has to fit.
                _build(crow, col, values.detach(), (self.out_features, self.in_features))
            except InputError as error:
                messages: list[str] = args[-1]
                messages.append(f"{prefix.rstrip('.') or 'the layer'}: {error}")
                return
            if values.shape != self.values.shape:
                self.values = _frozen(self.values.new_zeros(values.shape))
                self.col_indices = self.col_indices.new_zeros(col.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _forward(layer: SparseLinear, x: Tensor) -> Tensor:
    values = layer._parameters["values"]  # the layer's own look-up takes as long as a small product
    bias = layer._parameters["bias"]
    assert values is not None
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        msg = f"expected inputs of length {layer.in_features}, got the shape {tuple(x.shape)}"
        raise InputError(msg)
    if values.requires_grad and torch.is_grad_enabled():
        msg = (
            "a sparse layer gives its weights no gradient; train layer.to_dense(), or freeze it with "
            "layer.requires_grad_(False)"
        )
        raise InputError(msg)
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            y = _rounded(layer.matrix(), x.to(values.dtype), bias)
        return y if values.dtype == torch.float64 else y.to(torch.get_autocast_dtype(kind))
    if x.dtype != values.dtype:
        msg = f"expected inputs of {values.dtype}, the type of the weights, got {x.dtype}"
        raise InputError(msg)
    if x.dtype in _HALF:
        return _rounded(layer.matrix(), x, bias)
    return _affine(layer.matrix(), x, bias)


def _rounded(matrix: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Compute in the type of the matrix and round to that of ``x``."""
    wide = None if bias is None else bias.to(matrix.dtype)
    return _affine(matrix, x.to(matrix.dtype), wide).to(x.dtype)


def _affine(matrix: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ matrix.T + bias``."""
    shape = (*x.shape[:-1], matrix.shape[0])
    count = x.shape[:-1].numel()
    if count == 1:
        row = x.reshape(-1)
        y = matrix @ row if bias is None else torch.addmv(bias, matrix, row)
        return y.view(shape)
    columns = x.reshape(count, x.shape[-1]).T
    y = matrix @ columns if bias is None else torch.addmm(bias[:, None], matrix, columns)
    return y.T.reshape(shape).contiguous()


def _build(crow: Tensor, col: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the CSR tensor; its indices are checked, since torch would read outside of the memory."""
    dtype = torch.float32 if values.dtype in _HALF else values.dtype
    try:
        with _silent():
            return torch.sparse_csr_tensor(crow, col, values.to(dtype), size, check_invariants=True)
    except (RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())
        msg = f"the stored indices are no sparse matrix of {size[0]} rows and {size[1]} columns: {why}"
        raise InputError(msg) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep back torch's two notices on sparse tensors: the layout is all that is used, and is checked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        yield


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
