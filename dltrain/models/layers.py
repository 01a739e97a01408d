"""What the models share: activations, normalisation, embeddings, residuals, stochastic depth, initialisation.

A setting that is off ("none", "identity", a rate of 0) makes an nn.Identity, and `without_identities` leaves
it out: a model runs no layer for what it does not use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}

NORMS = {0: ("none", "batch", "layer", "group", "rms")} | dict.fromkeys(
    (1, 2, 3), ("none", "batch", "layer", "group", "instance")
)
"""Names that `norm` knows, by the number of spatial dimensions."""

_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def activation(name: str) -> nn.Module:
    """Return the activation `name`, one of `ACTIVATIONS`. Raises ConfigError for another name."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation: {name!r} is unknown; possible: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def pool(name: str, size: int, dims: int) -> nn.Module:
    """Return pooling of `size` along each of 1 or 2 `dims` by maximum ("max") or mean ("avg"), rounding up.

    Raises ConfigError for an unknown name.
    """
    if name not in ("max", "avg"):
        raise ConfigError(f"pool: {name!r} is unknown; possible: max, avg")
    if size == 1:
        return nn.Identity()
    kinds: dict[tuple[str, int], type[nn.Module]] = {
        ("max", 1): nn.MaxPool1d,
        ("avg", 1): nn.AvgPool1d,
        ("max", 2): nn.MaxPool2d,
        ("avg", 2): nn.AvgPool2d,
    }
    return kinds[name, dims](size, ceil_mode=True)


def norm(name: str, num_features: int, dims: int = 0) -> nn.Module:
    """Return the normalisation `name` for inputs (B, num_features, ...) with `dims` spatial dimensions.

    * batch: each feature over the batch (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167)
    * layer: each sample over all that it has (Ba et al. 2016, https://arxiv.org/abs/1607.06450)
    * group: each sample over groups of features (Wu & He 2018, https://arxiv.org/abs/1803.08494), in at most
      32 groups of at least 8: of the paper's 32, those of a narrow layer would hold one or two and lose them
    * instance: each sample and feature over space (Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022)
    * rms: like layer, without the mean; flat only (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)

    Raises ConfigError for a name that is unknown or has no meaning here.
    """
    if name not in NORMS[dims]:
        inputs = "flat inputs" if dims == 0 else f"inputs with {dims} spatial dimensions"
        raise ConfigError(f"norm: {name!r} is not possible for {inputs}; possible: {', '.join(NORMS[dims])}")
    if dims == 0 and num_features == 1 and name in ("layer", "group", "rms"):
        raise ConfigError(f"norm: {name!r} over a single feature leaves nothing of it; widen the layer or use 'batch'")
    if name == "batch":
        return _BATCH_NORMS[dims](num_features)
    if name == "layer":
        return nn.LayerNorm(num_features) if dims == 0 else nn.GroupNorm(1, num_features)
    if name == "group":
        return nn.GroupNorm(_num_groups(num_features), num_features)
    if name == "instance":
        return _INSTANCE_NORMS[dims](num_features, affine=True)
    return RMSNorm(num_features, eps=1e-5) if name == "rms" else nn.Identity()


class RMSNorm(nn.RMSNorm):
    """torch's, with the weight in the dtype of the input: under autocast torch's warns and is slow."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (..., num_features) with a root mean square of 1, times the weight."""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


def _num_groups(num_features: int) -> int:
    """Return the most groups, at most 32, that share the features evenly and get at least 8 each; else 1."""
    return next((n for n in (32, 16, 8, 4, 2) if num_features % n == 0 and num_features >= 8 * n), 1)


def dropout(rate: float) -> nn.Module:
    """Return dropout of single values at `rate`, at least 0 and below 1.

    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    return nn.Dropout(rate) if rate > 0 else nn.Identity()


def without_identities(*modules: nn.Module) -> list[nn.Module]:
    """Return the modules that do something, in order."""
    return [module for module in modules if not isinstance(module, nn.Identity)]


class Residual(nn.Module):
    """x + layers(x), for layers that keep the shape (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + layers(x), of the shape of `x`."""
        output: Tensor = x + self.layers(x)
        return output


class StochasticDepth(nn.Module):
    """Drop a residual branch for some samples, drawn anew each time.

    It stands at the end of the branch (Huang et al. 2016, https://arxiv.org/abs/1603.09382). Differs from the
    paper in that the branches kept are scaled up in training, so that evaluation changes nothing, and in that
    each sample is drawn for itself, not the batch as a whole. `rate` is the probability to drop,
    at least 0 and below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError(f"stochastic_depth: {rate} is not possible; it is at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, ...), in training with some samples zeroed and the others divided by 1 - rate."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)

    def extra_repr(self) -> str:
        """Return what the printed module shows."""
        return f"rate={self.rate:g}"


class Embeddings(nn.Module):
    """A learned vector for each value of each categorical column.

    Guo & Berkhahn 2016, https://arxiv.org/abs/1604.06737. `cardinalities` are the numbers of indices of the
    columns, index 0 included. Index 0 stands for values that training never saw: its vector starts at zero,
    and stays there unless training meets index 0. `dim` is the width of every column; None: by fastai's rule,
    see `embedding_dim`. `width` is the width of all together.
    """

    def __init__(self, cardinalities: Sequence[int], dim: int | None = None) -> None:
        super().__init__()
        dims = [embedding_dim(cardinality) if dim is None else dim for cardinality in cardinalities]
        self.tables = nn.ModuleList(nn.Embedding(n, d) for n, d in zip(cardinalities, dims, strict=True))
        self.width = sum(dims)
        for table in self.tables:
            nn.init.zeros_(table.get_parameter("weight")[0])

    def forward(self, categories: Tensor) -> Tensor:
        """Return the vectors of `categories` (B, C) int64 side by side, (B, width) float."""
        return torch.cat([table(categories[:, i]) for i, table in enumerate(self.tables)], dim=1)


def embedding_dim(cardinality: int) -> int:
    """Return a width for a column of `cardinality` values: 1.6 * cardinality ** 0.56, at most 600.

    Found by experiment by fastai (Howard & Gugger 2020, https://docs.fast.ai/tabular.model.html).
    """
    return min(600, round(1.6 * math.pow(cardinality, 0.56)))


def _kaiming(weight: Tensor) -> None:
    """Fill a convolution by its fan-out, as the authors' code does, and a linear layer by its fan-in."""
    nn.init.kaiming_normal_(weight, mode="fan_in" if weight.dim() == 2 else "fan_out", nonlinearity="relu")


INITIALIZERS: dict[str, Callable[[Tensor], object]] = {
    "kaiming": _kaiming,
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "trunc_normal": lambda weight: nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04),
    "zeros": nn.init.zeros_,
}


def initialize(module: nn.Module, name: str) -> None:
    """Fill the weights of all linear layers and convolutions in `module` anew, and set their biases to 0.

    * default: leave torch's own
    * kaiming: normal, for ReLU (He et al. 2015, https://arxiv.org/abs/1502.01852)
    * xavier: uniform (Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html)
    * orthogonal: Saxe et al. 2014, https://arxiv.org/abs/1312.6120
    * trunc_normal: deviation 0.02, cut at two deviations (Devlin et al. 2019,
      https://arxiv.org/abs/1810.04805)
    * zeros: for a last layer, so that all outputs start equal

    Raises ConfigError for another name.
    """
    if name == "default":
        return
    if name not in INITIALIZERS:
        raise ConfigError(f"init: {name!r} is unknown; possible: default, {', '.join(INITIALIZERS)}")
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            INITIALIZERS[name](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
