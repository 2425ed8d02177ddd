"""Small models of every architecture that has a preset, built from shapes, without weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_suite.depth_mup.models import ResidualConvNet, ResidualMLP


class TorchvisionBlock(nn.Module):
    """A residual block with torchvision's names."""

    def __init__(self, width_in: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        shapes = (
            [(width_in, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
            if bottleneck
            else [(width_in, width, 3, stride), (width, width, 3, 1)]
        )
        self.n_convs = len(shapes)
        for i, (n_in, n_out, kernel, step) in enumerate(shapes, start=1):
            self.add_module(
                f"conv{i}", nn.Conv2d(n_in, n_out, kernel, step, kernel // 2, bias=False)
            )
            self.add_module(f"bn{i}", nn.BatchNorm2d(n_out))
        self.downsample = (
            nn.Sequential(nn.Conv2d(width_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or width_in != out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for i in range(1, self.n_convs + 1):
            z = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(z))
            z = z.relu() if i < self.n_convs else z
        return (z + (x if self.downsample is None else self.downsample(x))).relu()


class TorchvisionResNet(nn.Module):
    """A ResNet with torchvision's names and four stages."""

    def __init__(self, bottleneck: bool, depths: tuple[int, ...] = (2, 1, 1, 2)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        width_in = 4
        for stage, n_blocks in enumerate(depths):
            width = 4 * 2**stage
            blocks = []
            for i in range(n_blocks):
                stride = 2 if stage and not i else 1
                blocks.append(TorchvisionBlock(width_in, width, stride, bottleneck))
                width_in = 4 * width if bottleneck else width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean(dim=(-2, -1)))


class TimmBlock(nn.Module):
    """A transformer block with timm's names (no attention is computed: only names matter)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)}
        )


class TimmViT(nn.Module):
    """A vision transformer with timm's names."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 4, 4)})
        self.blocks = nn.Sequential(*[TimmBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)


def _transformers(auto: str, config: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        if not hasattr(transformers, config):
            pytest.skip(f"transformers {transformers.__version__} has no {config}")
        return getattr(transformers, auto).from_config(getattr(transformers, config)(**options))

    return build


_LM = "AutoModelForCausalLM"
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 50,
}

_GROUPED = {**_TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "residual_mlp": lambda: ResidualMLP(12, 5, width=16, depth=3, branch_input="norm", bias=True),
    "residual_mlp_one_matrix": lambda: ResidualMLP(12, 5, width=16, depth=3, block_depth=1),
    "residual_conv": lambda: ResidualConvNet(3, 5, width=16, depth=3),
    "llama": _transformers(_LM, "LlamaConfig", **_TEXT),
    "qwen2": _transformers(
        _LM, "Qwen2Config", **_TEXT, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "mistral": _transformers(_LM, "MistralConfig", **_TEXT, num_key_value_heads=2),
    "gemma": _transformers(_LM, "GemmaConfig", **_GROUPED, head_dim=8),
    "gemma2": _transformers(_LM, "Gemma2Config", **_GROUPED, head_dim=8),
    "gemma3": _transformers(_LM, "Gemma3TextConfig", **_GROUPED, head_dim=8),
    "olmo2": _transformers(_LM, "Olmo2Config", **_GROUPED),
    "olmo3": _transformers(_LM, "Olmo3Config", **_GROUPED),
    "exaone4": _transformers(_LM, "Exaone4Config", **_GROUPED),
    "glm4": _transformers(_LM, "Glm4Config", **_GROUPED, head_dim=8),
    "gpt2": _transformers(_LM, "GPT2Config", n_embd=32, n_layer=3, n_head=4, vocab_size=50),
    "gpt_neox": _transformers(_LM, "GPTNeoXConfig", **_TEXT),
    "opt": _transformers(
        _LM,
        "OPTConfig",
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=50,
        word_embed_proj_dim=16,
    ),
    "opt_without_final_norm": _transformers(
        _LM,
        "OPTConfig",
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=50,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
    ),
    "bert_masked_lm": _transformers("AutoModelForMaskedLM", "BertConfig", **_TEXT),
    "bert_classifier": _transformers("AutoModelForSequenceClassification", "BertConfig", **_TEXT),
    "vit": _transformers(
        "AutoModelForImageClassification", "ViTConfig", **_IMAGE, intermediate_size=48
    ),
    "vit_timm": TimmViT,
    "resnet_basic": lambda: TorchvisionResNet(bottleneck=False),
    "resnet_bottleneck": lambda: TorchvisionResNet(bottleneck=True),
    "hf_resnet_basic": _transformers(
        "AutoModelForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 3],
        layer_type="basic",
    ),
    "hf_resnet_bottleneck": _transformers(
        "AutoModelForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 3],
    ),
}

# Whose branches come from the names of a preset; as above, or with a preset's names by chance.
TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: ARCHITECTURES[name]
        for name in (
            *("llama", "qwen2", "mistral", "gemma", "gemma2", "gemma3", "olmo2", "olmo3"),
            *("exaone4", "glm4", "gpt2", "gpt_neox", "opt", "vit"),
        )
    },
    "qwen3": _transformers(_LM, "Qwen3Config", **_GROUPED, head_dim=8),
    "phi3": _transformers(_LM, "Phi3Config", **_GROUPED),
    "olmo": _transformers(_LM, "OlmoConfig", **_GROUPED),
    "glm": _transformers(_LM, "GlmConfig", **_GROUPED, head_dim=8),
    "granite": _transformers(_LM, "GraniteConfig", **_GROUPED),
    "cohere": _transformers(_LM, "CohereConfig", **_GROUPED),
    "cohere2": _transformers(_LM, "Cohere2Config", **_GROUPED),
    "stablelm": _transformers(_LM, "StableLmConfig", **_GROUPED),
    "smollm3": _transformers(_LM, "SmolLM3Config", **_GROUPED),
    "helium": _transformers(_LM, "HeliumConfig", **_GROUPED, head_dim=8),
    "seed_oss": _transformers(_LM, "SeedOssConfig", **_GROUPED, head_dim=8),
    "arcee": _transformers(_LM, "ArceeConfig", **_GROUPED),
    "apertus": _transformers(_LM, "ApertusConfig", **_GROUPED),
    "ernie4_5": _transformers(_LM, "Ernie4_5Config", **_GROUPED),
    "hunyuan": _transformers(_LM, "HunYuanDenseV1Config", **_GROUPED, head_dim=8),
    "bitnet": _transformers(_LM, "BitNetConfig", **_GROUPED),
    "diffllama": _transformers(_LM, "DiffLlamaConfig", **_GROUPED),
    "bigcode": _transformers(
        _LM, "GPTBigCodeConfig", n_embd=32, n_layer=3, n_head=4, vocab_size=50
    ),
    "beit": _transformers(
        "AutoModelForImageClassification", "BeitConfig", **_IMAGE, intermediate_size=48
    ),
    "dinov2": _transformers("AutoModelForImageClassification", "Dinov2Config", **_IMAGE),
}
