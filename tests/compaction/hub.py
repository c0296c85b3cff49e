"""Architectures from ``transformers``, small and random, with their groups written down by hand."""

from collections.abc import Callable

import pytest
import torch

from tests.compaction.models import Case, Group, channels, heads_of, layer

transformers = pytest.importorskip("transformers")


def heads(
    count: int, width: int, makes: list[str], out: str, shared: int = 1, reads_dim: int = 1
) -> list[Group]:
    """Attention heads in separate projections; ``shared`` query heads read one head of keys and values."""
    groups = []
    for h in range(count):
        own, wide = (
            list(range(h * width, (h + 1) * width)),
            list(range(h * width * shared, (h + 1) * width * shared)),
        )
        slices = [(name, 0, wide if ".q_proj" in name else own) for name in makes]
        groups.append(Group(slices, [(out, reads_dim, wide)]))
    return groups


def parts(prefix: str, names: list[str], bias: bool = True) -> list[str]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return [f"{prefix}.{name}.{kind}" for name in names for kind in kinds]


def hf_resnet() -> Case:
    config = transformers.ResNetConfig(
        embedding_size=10, hidden_sizes=[10, 20], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    groups = []
    for stage, width in ((0, 10), (1, 20)):
        p = f"resnet.encoder.stages.{stage}.layers.0.layer"
        makes = [(f"{p}.0.convolution.weight", 0), *layer(f"{p}.0.normalization")]
        groups.append(channels(width, makes, [(f"{p}.1.convolution.weight", 1)]))
    return Case(model, lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)}, groups)


def hf_convnext() -> Case:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, num_labels=3)
    model = transformers.ConvNextForImageClassification(config)
    groups = []
    for stage, width in ((0, 8), (1, 12)):
        p = f"convnext.encoder.stages.{stage}.layers.0"
        groups.append(channels(4 * width, layer(f"{p}.pwconv1"), [(f"{p}.pwconv2.weight", 1)]))
        torch.nn.init.uniform_(model.get_parameter(f"{p}.layer_scale_parameter"))
    return Case(model, lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)}, groups)


def hf_vit() -> Case:
    config = transformers.ViTConfig(
        hidden_size=20,
        num_hidden_layers=1,
        num_attention_heads=10,
        intermediate_size=40,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    model = transformers.ViTForImageClassification(config)
    return Case(model, lambda n: {"pixel_values": torch.randn(n, 3, 16, 16)}, _found(model, 10, 2))


def _found(model: torch.nn.Module, count: int, width: int) -> list[list[Group]]:
    """Heads and inner channels of encoders whose parameters are named by their jobs."""
    names = [name for name, _ in model.named_parameters()]

    def ending(*ends: str) -> list[str]:
        return [next(n for n in names if n.endswith(end)) for end in ends]

    keys = "q_proj k_proj v_proj" if any(".q_proj." in n for n in names) else "query key value"
    makes = ending(*(f".{key}.{kind}" for key in keys.split() for kind in ("weight", "bias")))
    out = next(
        n
        for n in names
        if n.endswith(("attention.output.dense.weight", ".o_proj.weight", ".out_proj.weight"))
    )
    inner = next(
        n for n in names if n.endswith(("intermediate.dense.weight", "fc1.weight", "up_proj.weight"))
    )
    after = next(
        n
        for n in names
        if n.endswith((".output.dense.weight", "fc2.weight", "down_proj.weight")) and "attention" not in n
    )
    made = [(inner, 0), (inner.replace("weight", "bias"), 0)]
    return [heads(count, width, makes, out), channels(40, made, [(after, 1)])]


def hf_bert() -> Case:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=20,
        num_hidden_layers=1,
        num_attention_heads=10,
        intermediate_size=40,
        max_position_embeddings=32,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)

    def inputs(n: int) -> object:
        mask = torch.ones(n, 7, dtype=torch.long)
        mask[-1, 5:] = 0
        return {"input_ids": torch.randint(30, (n, 7)), "attention_mask": mask}

    return Case(model, inputs, _found(model, 10, 2))


def hf_gpt2() -> Case:
    config = transformers.GPT2Config(
        vocab_size=30,
        n_embd=20,
        n_layer=1,
        n_head=10,
        n_positions=32,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    p = "transformer.h.0"
    attention = heads_of(10, 2, f"{p}.attn.c_attn.weight", f"{p}.attn.c_proj.weight")
    for group in attention:  # these layers store their weights as (inputs, outputs)
        group.makes = [(name, 1 if name.endswith("weight") else 0, rows) for name, _, rows in group.makes]
        group.reads = [(name, 0, rows) for name, _, rows in group.reads]
    inner = channels(
        80, [(f"{p}.mlp.c_fc.weight", 1), (f"{p}.mlp.c_fc.bias", 0)], [(f"{p}.mlp.c_proj.weight", 0)]
    )
    return Case(model, lambda n: {"input_ids": torch.randint(30, (n, 6))}, [attention, inner])


def hf_llama() -> Case:
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=40,
        intermediate_size=30,
        num_hidden_layers=1,
        num_attention_heads=20,
        num_key_value_heads=10,
        max_position_embeddings=32,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config)
    p = "model.layers.0"
    attention = heads(
        10,
        2,
        parts(f"{p}.self_attn", ["q_proj", "k_proj", "v_proj"], bias=False),
        f"{p}.self_attn.o_proj.weight",
        2,
    )
    gated = [(f"{p}.mlp.gate_proj.weight", 0), (f"{p}.mlp.up_proj.weight", 0)]
    inner = channels(30, gated, [(f"{p}.mlp.down_proj.weight", 1)])
    return Case(model, lambda n: {"input_ids": torch.randint(30, (n, 6))}, [attention, inner])


HUB: dict[str, Callable[[], Case]] = {
    f.__name__: f for f in (hf_resnet, hf_convnext, hf_vit, hf_bert, hf_gpt2, hf_llama)
}
