"""Small models, each with the groups of slices that can only go together, written down by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Slice = tuple[str, int, list[int]]


@dataclass
class Group:
    """A channel: the slices that make it, and those that read it."""

    makes: list[Slice]
    reads: list[Slice]


@dataclass
class Case:
    model: nn.Module
    inputs: Callable[[int], object]
    groups: list[list[Group]] = field(default_factory=list)


def channels(
    count: int, makes: list[tuple[str, int]], reads: list[tuple[str, int]], width: int = 1
) -> list[Group]:
    """Groups of one entry in what makes them, and ``width`` consecutive ones in what reads them."""
    return [
        Group(
            [(name, dim, [i]) for name, dim in makes],
            [(name, dim, list(range(i * width, (i + 1) * width))) for name, dim in reads],
        )
        for i in range(count)
    ]


def layer(name: str) -> list[tuple[str, int]]:
    return [(f"{name}.weight", 0), (f"{name}.bias", 0)]


def mlp() -> Case:
    model = nn.Sequential(
        nn.Linear(12, 30), nn.ReLU(), nn.Dropout(0.1), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3)
    )
    groups = [channels(30, layer("0"), [("3.weight", 1)]), channels(20, layer("3"), [("5.weight", 1)])]
    return Case(model, lambda n: torch.randn(n, 12), groups)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 10, 5, padding=2), nn.BatchNorm2d(10)
        self.conv2, self.norm2 = nn.Conv2d(10, 20, 3, bias=False), nn.BatchNorm2d(20)
        self.fc1, self.fc2 = nn.Linear(20 * 9, 30), nn.Linear(30, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm1(self.conv1(x)).relu(), 2)
        x = F.avg_pool2d(self.norm2(self.conv2(x)).relu(), 2)
        return self.fc2(F.gelu(self.fc1(x.flatten(1))))


def lenet() -> Case:
    groups = [
        channels(10, layer("conv1") + layer("norm1"), [("conv2.weight", 1)]),
        channels(20, [("conv2.weight", 0), *layer("norm2")], [("fc1.weight", 1)], width=9),
        channels(30, layer("fc1"), [("fc2.weight", 1)]),
    ]
    return Case(LeNet(), lambda n: torch.randn(n, 1, 16, 16), groups)


class Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.layer1 = nn.Sequential(Block(10, 10, 1), Block(10, 10, 1))
        self.layer2 = nn.Sequential(Block(10, 20, 2), Block(20, 20, 1))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.fc(torch.flatten(self.pool(x), 1))


def resnet() -> Case:
    def conv(name: str, norm: str) -> list[tuple[str, int]]:
        return [(f"{name}.weight", 0), *layer(norm)]

    blocks = ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    inner = [
        channels(n, conv(f"{b}.conv1", f"{b}.bn1"), [(f"{b}.conv2.weight", 1)])
        for b, n in zip(blocks, (10, 10, 20, 20), strict=True)
    ]
    stream1 = conv("conv1", "bn1") + [s for b in blocks[:2] for s in conv(f"{b}.conv2", f"{b}.bn2")]
    reads1 = [(f"{b}.conv1.weight", 1) for b in blocks[:3]] + [("layer2.0.downsample.0.weight", 1)]
    stream2 = [s for b in blocks[2:] for s in conv(f"{b}.conv2", f"{b}.bn2")]
    stream2 += conv("layer2.0.downsample.0", "layer2.0.downsample.1")
    reads2 = [("layer2.1.conv1.weight", 1), ("fc.weight", 1)]
    return Case(
        ResNet(),
        lambda n: torch.randn(n, 3, 8, 8),
        [*inner, channels(10, stream1, reads1), channels(20, stream2, reads2)],
    )


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(10, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU6())
        self.depth = nn.Sequential(
            nn.Conv2d(40, 40, 3, padding=1, groups=40, bias=False), nn.BatchNorm2d(40), nn.ReLU6()
        )
        self.squeeze, self.excite = nn.Conv2d(40, 10, 1), nn.Conv2d(10, 40, 1)
        self.project = nn.Sequential(nn.Conv2d(40, 10, 1, bias=False), nn.BatchNorm2d(10))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depth(self.expand(x))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(scale * y)
        return self.head(x.mean([2, 3]))


def mobilenet() -> Case:
    expanded = [("expand.0.weight", 0), *layer("expand.1"), ("depth.0.weight", 0), *layer("depth.1")]
    stream = [("stem.0.weight", 0), *layer("stem.1"), ("project.0.weight", 0), *layer("project.1")]
    groups = [
        channels(40, expanded + layer("excite"), [("project.0.weight", 1), ("squeeze.weight", 1)]),
        channels(10, layer("squeeze"), [("excite.weight", 1)]),
        channels(10, stream, [("expand.0.weight", 1), ("head.weight", 1)]),
    ]
    return Case(MobileNet(), lambda n: torch.randn(n, 3, 8, 8), groups)


class Attention(nn.Module):
    """Fused queries, keys and values, with the width of a head written into the views."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).split(c, dim=2)
        q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).contiguous().view(b, t, c))


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(17, 20), nn.Embedding(16, 20), nn.Dropout(0.1)
        self.h = nn.ModuleList([GPTBlock(20, 10) for _ in range(2)])
        self.ln_f, self.head = nn.LayerNorm(20), nn.Linear(20, 17, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


def heads_of(count: int, width: int, fused: str, out: str, bias: bool = True) -> list[Group]:
    """Attention heads in one fused projection of queries, keys and values."""
    total = count * width
    groups = []
    for h in range(count):
        rows = [part * total + h * width + i for part in range(3) for i in range(width)]
        makes = [(fused, 0, rows)] + ([(fused.replace("weight", "bias"), 0, rows)] if bias else [])
        groups.append(Group(makes, [(out, 1, list(range(h * width, (h + 1) * width)))]))
    return groups


def gpt() -> Case:
    groups = []
    for i in range(2):
        groups.append(heads_of(10, 2, f"h.{i}.attn.qkv.weight", f"h.{i}.attn.proj.weight"))
        groups.append(channels(80, layer(f"h.{i}.mlp.0"), [(f"h.{i}.mlp.2.weight", 1)]))
    return Case(GPT(), lambda n: torch.randint(17, (n, 6)), groups)


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 20, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 20)), nn.Parameter(torch.randn(1, 5, 20))
        self.block, self.norm, self.head = ViTBlock(), nn.LayerNorm(20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.block(x))[:, 0])


class ViTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(20), nn.Linear(20, 60), nn.Linear(20, 20)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(20), nn.Linear(20, 40), nn.Linear(40, 20)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 10, 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = ((q * 2**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        x = x + self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def vit() -> Case:
    groups = [
        heads_of(10, 2, "block.qkv.weight", "block.proj.weight"),
        channels(40, layer("block.fc1"), [("block.fc2.weight", 1)]),
    ]
    return Case(ViT(), lambda n: torch.randn(n, 3, 8, 8), groups)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 10)
        self.rnn = kind(10, 20, batch_first=True, **settings)
        self.head = nn.Linear(20 * (2 if self.rnn.bidirectional else 1), 4)

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.rnn(self.embed(tokens))
        return self.head(out[:, -1])


def _recurrent(kind: type[nn.RNNBase], gates: int) -> Case:
    groups = []
    for unit in range(20):
        rows = [gate * 20 + unit for gate in range(gates)]
        makes: list[Slice] = [
            (f"rnn.{n}_l0", 0, rows) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        groups.append(Group(makes, [("rnn.weight_hh_l0", 1, [unit]), ("head.weight", 1, [unit])]))
    columns = channels(10, [("embed.weight", 1)], [("rnn.weight_ih_l0", 1)])
    return Case(Recurrent(kind), lambda n: torch.randint(11, (n, 7)), [groups, columns])


def lstm() -> Case:
    return _recurrent(nn.LSTM, 4)


def gru() -> Case:
    return _recurrent(nn.GRU, 3)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.head = nn.MultiheadAttention(20, 10, batch_first=True), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.attn(x, x, x, need_weights=False)
        return self.head(y.mean(1)), y[:, 0]


def multihead() -> Case:
    groups = heads_of(10, 2, "attn.in_proj_weight", "attn.out_proj.weight")
    return Case(SelfAttention(), lambda n: torch.randn(n, 5, 20), [groups])


def encoder() -> Case:
    model = nn.TransformerEncoderLayer(20, 10, 40, batch_first=True)
    groups = [
        heads_of(10, 2, "self_attn.in_proj_weight", "self_attn.out_proj.weight"),
        channels(40, layer("linear1"), [("linear2.weight", 1)]),
    ]
    return Case(model, lambda n: torch.randn(n, 5, 20), groups)


class Tied(nn.Module):
    """An embedding that is also the output layer, with a gated layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 20)
        self.gate, self.up = nn.Linear(20, 30, bias=False), nn.Linear(20, 30, bias=False)
        self.down, self.out = nn.Linear(30, 20, bias=False), nn.Linear(20, 13, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.out(x + self.down(F.silu(self.gate(x)) * self.up(x)))


def tied() -> Case:
    stream = [("embed.weight", 1), ("down.weight", 0)]
    groups = [
        channels(30, [("gate.weight", 0), ("up.weight", 0)], [("down.weight", 1)]),
        channels(20, stream, [("gate.weight", 1), ("up.weight", 1), ("embed.weight", 1)]),
    ]
    return Case(Tied(), lambda n: torch.randint(13, (n, 4)), groups)


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: f for f in (mlp, lenet, resnet, mobilenet, gpt, vit, lstm, gru, multihead, encoder, tied)
}


@torch.no_grad()
def kill(case: Case, share: float, generator: torch.Generator) -> int:
    """Set a share of every list of groups to zero, on the making side, the reading side or both.

    Returns how many weights are in no slice that stays: what an exact removal can remove.
    """
    tensors = dict(case.model.named_parameters())
    gone: dict[str, Tensor] = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in tensors.items()}
    for groups in case.groups:
        count = round(share * len(groups))
        for index in torch.randperm(len(groups), generator=generator)[:count].tolist():
            group, way = groups[index], int(torch.randint(3, (), generator=generator))
            for name, dim, indices in (group.makes if way != 0 else []) + (group.reads if way != 1 else []):
                tensors[name].index_fill_(dim, torch.tensor(indices), 0.0)
            for name, dim, indices in group.makes + group.reads:
                gone[name].index_fill_(dim, torch.tensor(indices), True)
    return sum(int(mask.sum()) for mask in gone.values())


@torch.no_grad()
def unsettle(model: nn.Module, generator: torch.Generator) -> None:
    """Give norms statistics and weights of their own, so that nothing is right by accident."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)) and module.weight is not None:
            module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
