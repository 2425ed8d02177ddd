"""Which parameter plays which role in the architectures that are known by the names they use.

A preset is data: regular expressions over module and parameter names. Names inside a residual
block are matched relative to the block (``self_attn.q_proj.weight``), all others as a suffix of
the full name, so that it does not matter under which attribute a user's module holds the network.
Vectors need no pattern: inside a block they are ``vector``, outside they follow their matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning_suite.depth_mup.rules import Role


@dataclass(frozen=True)
class Preset:
    """Names of one family of architectures.

    Attributes:
        name: What the user calls it.
        blocks: Matches the module name of a residual block, after the start of the name or a dot;
            what stands before it names the network.
        marker: Matches, relative to a block, a parameter that tells this family from others with
            the same block names.
        inside: (pattern, role) of the matrices inside a block, matched at the start of the name
            relative to the block; the first that matches counts.
        outside: (pattern, role) of all other parameters, matched after the start of the full name
            or a dot.
        branch_ends: Matches, relative to a block, the modules whose output is added to the stream.
        readout: Matches the module that makes the logits, after the start of the name or a dot.
    """

    name: str
    blocks: str
    marker: str
    inside: tuple[tuple[str, Role], ...]
    outside: tuple[tuple[str, Role], ...]
    branch_ends: str
    readout: str


# Heads that the transformers library puts on any of its backbones.
_HEADS = r"(?:lm_head|score|classifier|qa_outputs)"
_OUTPUT: tuple[str, Role] = (_HEADS + r"\.", "output")

RESIDUAL_NET = Preset(
    name="residual_net",
    blocks=r"blocks\.\d+",
    marker=r"last\.weight$",
    inside=((r"first\.", "hidden_first"), (r"last\.", "hidden_last")),
    outside=((r"embed\.", "input"), (r"final_norm\.", "final_norm"), (r"readout\.", "output")),
    branch_ends=r"last",
    readout=r"readout",
)

LLAMA = Preset(  # Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma, SmolLM, OLMo …
    name="llama",
    blocks=r"layers\.\d+",
    marker=r"mlp\.(?:up_proj|gate_up_proj)\.",
    inside=(
        (r"self_attn\.(?:[qkv]|qkv)_proj\.", "hidden_first"),
        (r"self_attn\.o_proj\.", "hidden_last"),
        (r"mlp\.(?:gate|up|gate_up)_proj\.", "hidden_first"),
        (r"mlp\.down_proj\.", "hidden_last"),
    ),
    outside=((r"embed_tokens\.", "input"), (r"norm\.", "final_norm"), _OUTPUT),
    branch_ends=r"self_attn\.o_proj|mlp\.down_proj",
    readout=_HEADS,
)

# A norm at the end of a branch undoes whatever the matrix before it is multiplied with, so the norm
# is the branch end. The names deceive: Llama's and GLM4's `post_attention_layernorm` stands before
# the MLP, here it ends the attention's branch.
BRANCH_NORM = replace(  # Gemma 2 and 3, OLMo 2 and 3, Exaone 4
    LLAMA,
    name="branch_norm",
    marker=r"post_feedforward_layernorm\.",
    branch_ends=r"post_attention_layernorm|post_feedforward_layernorm",
)

GLM4 = replace(
    LLAMA,
    name="glm4",
    marker=r"post_mlp_layernorm\.",
    branch_ends=r"post_self_attn_layernorm|post_mlp_layernorm",
)

GPT2 = Preset(
    name="gpt2",
    blocks=r"h\.\d+",
    marker=r"attn\.c_attn\.",
    inside=(
        (r"(?:attn|crossattention)\.(?:c_attn|q_attn)\.", "hidden_first"),
        (r"(?:attn|crossattention)\.c_proj\.", "hidden_last"),
        (r"mlp\.c_fc\.", "hidden_first"),
        (r"mlp\.c_proj\.", "hidden_last"),
    ),
    outside=((r"wte\.", "input"), (r"wpe\.", "input"), (r"ln_f\.", "final_norm"), _OUTPUT),
    branch_ends=r"(?:attn|crossattention|mlp)\.c_proj",
    readout=_HEADS,
)

GPT_NEOX = Preset(  # GPT-NeoX, Pythia
    name="gpt_neox",
    blocks=r"layers\.\d+",
    marker=r"attention\.query_key_value\.",
    inside=(
        (r"attention\.query_key_value\.", "hidden_first"),
        (r"attention\.dense\.", "hidden_last"),
        (r"mlp\.dense_h_to_4h\.", "hidden_first"),
        (r"mlp\.dense_4h_to_h\.", "hidden_last"),
    ),
    outside=(
        (r"embed_in\.", "input"),
        (r"final_layer_norm\.", "final_norm"),
        (r"embed_out\.", "output"),
        _OUTPUT,
    ),
    branch_ends=r"attention\.dense|mlp\.dense_4h_to_h",
    readout=rf"(?:embed_out|{_HEADS})",
)

OPT = Preset(
    name="opt",
    blocks=r"decoder\.layers\.\d+",
    marker=r"self_attn\.out_proj\.",
    inside=(
        (r"self_attn\.[qkv]_proj\.", "hidden_first"),
        (r"self_attn\.out_proj\.", "hidden_last"),
        (r"fc1\.", "hidden_first"),
        (r"fc2\.", "hidden_last"),
    ),
    outside=(
        (r"embed_(?:tokens|positions)\.", "input"),
        (r"project_(?:in|out)\.", "hidden_stream"),
        (r"final_layer_norm\.", "final_norm"),
        _OUTPUT,
    ),
    branch_ends=r"self_attn\.out_proj|fc2",
    readout=_HEADS,
)

# BERT and ViT name their blocks alike; the paper's statements are about pre-norm streams, BERT's is
# post-norm: the roles are right, the theory says nothing about it.
BERT = Preset(  # BERT, RoBERTa, ELECTRA, ViT and DeiT of transformers
    name="bert",
    blocks=r"(?:encoder\.layer|layers)\.\d+",
    marker=r"attention\.(?:self|attention)\.query\.|attention\.q_proj\.",
    inside=(
        (r"attention\.(?:self|attention)\.(?:query|key|value)\.", "hidden_first"),
        (r"attention\.[qkv]_proj\.", "hidden_first"),
        (r"attention\.(?:output\.dense|o_proj)\.", "hidden_last"),
        (r"(?:intermediate\.dense|mlp\.fc1)\.", "hidden_first"),
        (r"(?:output\.dense|mlp\.fc2)\.", "hidden_last"),
    ),
    outside=(
        (r"embeddings\.", "input"),
        (r"pooler\.dense\.", "hidden_stream"),
        (r"predictions\.transform\.dense\.", "hidden_stream"),
        (r"predictions\.transform\.LayerNorm\.", "final_norm"),
        (r"predictions\.(?:decoder\.|bias)", "output"),
        (r"seq_relationship\.", "output"),
        (r"lm_head\.dense\.", "hidden_stream"),
        (r"lm_head\.layer_norm\.", "final_norm"),
        (r"classifier\.dense\.", "hidden_stream"),
        (r"layernorm\.", "final_norm"),
        _OUTPUT,
    ),
    branch_ends=r"attention\.(?:output\.dense|o_proj)|output\.dense|mlp\.fc2",
    readout=(
        r"(?:predictions\.decoder|seq_relationship|lm_head\.decoder|classifier\.out_proj"
        r"|classifier|qa_outputs)"
    ),
)

TIMM_VIT = Preset(  # timm's vision transformers
    name="timm_vit",
    blocks=r"blocks\.\d+",
    marker=r"attn\.qkv\.",
    inside=(
        (r"attn\.qkv\.", "hidden_first"),
        (r"attn\.proj\.", "hidden_last"),
        (r"mlp\.fc1\.", "hidden_first"),
        (r"mlp\.fc2\.", "hidden_last"),
    ),
    outside=(
        (r"patch_embed\.", "input"),
        (r"(?:cls_token|dist_token|reg_token|pos_embed)$", "input"),
        (r"(?:norm_pre|norm|fc_norm)\.", "final_norm"),
        (r"head\.", "output"),
    ),
    branch_ends=r"attn\.proj|mlp\.fc2",
    readout=r"head",
)

_RESNET_OUTSIDE: tuple[tuple[str, Role], ...] = (
    (r"conv1\.", "input"),
    (r"bn1\.", "input"),
    (r"fc\.", "output"),
)

# The branch ends are the norms after the last convolution: scaling the convolution itself would be
# undone by the norm.
RESNET_BOTTLENECK = Preset(  # torchvision and timm, three convolutions a block
    name="resnet_bottleneck",
    blocks=r"layer[1-4]\.\d+",
    marker=r"conv3\.",
    inside=(
        (r"conv[12]\.", "hidden_first"),
        (r"conv3\.", "hidden_last"),
        (r"downsample\.", "hidden_stream"),
    ),
    outside=_RESNET_OUTSIDE,
    branch_ends=r"bn3",
    readout=r"fc",
)

RESNET_BASIC = Preset(  # torchvision and timm, two convolutions a block
    name="resnet_basic",
    blocks=r"layer[1-4]\.\d+",
    marker=r"conv2\.",
    inside=(
        (r"conv1\.", "hidden_first"),
        (r"conv2\.", "hidden_last"),
        (r"downsample\.", "hidden_stream"),
    ),
    outside=_RESNET_OUTSIDE,
    branch_ends=r"bn2",
    readout=r"fc",
)

_HF_RESNET_OUTSIDE: tuple[tuple[str, Role], ...] = (
    (r"embedder\.", "input"),
    (r"classifier\.", "output"),
)

HF_RESNET_BOTTLENECK = Preset(  # ResNet of transformers, three convolutions a block
    name="hf_resnet_bottleneck",
    blocks=r"stages\.\d+\.layers\.\d+",
    marker=r"layer\.2\.convolution\.",
    inside=(
        (r"layer\.[01]\.convolution\.", "hidden_first"),
        (r"layer\.2\.convolution\.", "hidden_last"),
        (r"shortcut\.", "hidden_stream"),
    ),
    outside=_HF_RESNET_OUTSIDE,
    branch_ends=r"layer\.2",
    readout=r"classifier\.1",
)

HF_RESNET_BASIC = Preset(  # ResNet of transformers, two convolutions a block
    name="hf_resnet_basic",
    blocks=r"stages\.\d+\.layers\.\d+",
    marker=r"layer\.1\.convolution\.",
    inside=(
        (r"layer\.0\.convolution\.", "hidden_first"),
        (r"layer\.1\.convolution\.", "hidden_last"),
        (r"shortcut\.", "hidden_stream"),
    ),
    outside=_HF_RESNET_OUTSIDE,
    branch_ends=r"layer\.1",
    readout=r"classifier\.1",
)

# The first whose blocks and marker are found is taken: the more special ones stand first.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        RESIDUAL_NET,
        BRANCH_NORM,
        GLM4,
        LLAMA,
        GPT2,
        GPT_NEOX,
        OPT,
        BERT,
        TIMM_VIT,
        RESNET_BOTTLENECK,
        RESNET_BASIC,
        HF_RESNET_BOTTLENECK,
        HF_RESNET_BASIC,
    )
}
