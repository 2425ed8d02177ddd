"""Every parameter of every known architecture has a role; what has none is refused by name.

The tables in ``role_tables/`` were read once by eye and are frozen: name, count, role, and the
Adam factor of ``nfd`` at four times the width and sixteen times the depth.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import ARCHITECTURES, TRANSFORMERS, TorchvisionResNet
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.multipliers import choose_multipliers
from lightning_suite.depth_mup.param_groups import plan_groups, role_factors
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.reinit import reinitialize
from lightning_suite.depth_mup.residual_scale import attach_residual_scale, fold_residual_scale
from lightning_suite.depth_mup.role_table import format_table
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.errors import SuiteError
from tests.support.versions import TRANSFORMERS_5

RENAMED = {"gpt_neox", "vit"}
TABLES = Path(__file__).parent / "role_tables"


def described(name: str) -> str:
    role_map = assign_roles(ARCHITECTURES[name]())
    shapes = Parametrization("nfd", 1, 16, base_width=8, width=32)
    return (
        f"preset {role_map.preset}, {role_map.depth} blocks, width {role_map.width}\n"
        f"branch ends of the first block: "
        f"{', '.join(e for e in role_map.branch_ends if e.startswith(role_map.blocks[0] + '.'))}\n"
        f"readout: {', '.join(role_map.readouts)}\n\n"
        f"{format_table(role_map, role_factors(shapes, 'adam'))}\n"
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles_are_those_of_the_frozen_table(name: str) -> None:
    if name in RENAMED and not TRANSFORMERS_5:
        pytest.skip("the table has the names of transformers 5")
    assert described(name) == (TABLES / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["residual_mlp", "resnet_bottleneck", "vit_timm"])
def test_every_parameter_has_exactly_one_role(name: str) -> None:
    model = ARCHITECTURES[name]()
    assert list(assign_roles(model).roles) == [n for n, _ in model.named_parameters()]


def branch_size(model: nn.Module, c: float) -> float:
    """Return RMS(block(h) - h) of the first block, with every branch end multiplied by c."""
    role_map = assign_roles(model)
    sizes: list[float] = []

    def measure(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        h: Tensor = args[0] if args else kwargs["hidden_states"]
        out: Tensor = output[0] if isinstance(output, tuple) else output
        sizes.append((out - h).square().mean().sqrt().item())

    handles = attach_residual_scale(model, role_map, c)
    block = model.get_submodule(role_map.blocks[0])
    handles.append(block.register_forward_hook(measure, with_kwargs=True))
    torch.manual_seed(0)
    images = hasattr(model.config, "image_size")
    with torch.no_grad():
        model(torch.randn(2, 3, 16, 16) if images else torch.randint(5, 50, (2, 6)))
    for handle in handles:
        handle.remove()
    return sizes[0]


# Not BERT: its stream itself is normalised after every branch, block(h) - h is no branch there.
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_branch_ends_are_what_is_added_to_the_stream(name: str) -> None:
    torch.manual_seed(0)
    model = TRANSFORMERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    # not exact: the second branch of the block sees another stream
    assert branch_size(model, 0.01) / branch_size(model, 1.0) == pytest.approx(0.01, rel=0.3)


def test_gemmas_norm_cannot_be_folded() -> None:
    model = ARCHITECTURES["gemma2"]()
    with pytest.raises(SuiteError, match=r"Gemma2RMSNorm.*1 \+ weight"):
        fold_residual_scale(model, assign_roles(model), 0.5)


def mlp(depth: int) -> ResidualMLP:
    return ResidualMLP(8, 3, width=16, depth=depth)


def frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


@pytest.mark.parametrize("first", ["net", "ema"])
def test_a_frozen_copy_or_teacher_is_no_part_of_the_network(first: str) -> None:
    net = mlp(4)
    parts = {"net": net, "ema": frozen(net), "teacher": frozen(ARCHITECTURES["llama"]())}
    order = sorted(parts, key=lambda name: name != first)
    found = assign_roles(nn.ModuleDict({name: parts[name] for name in order}))
    assert found.blocks == tuple(f"net.blocks.{i}" for i in range(4))
    assert {name.partition(".")[0] for name in found.roles} == {"net"}
    assert (found.readouts, found.width) == (("net.readout",), 16)
    assert found.branch_ends == tuple(f"net.blocks.{i}.last" for i in range(4))


def test_what_has_no_role_is_not_redrawn_and_no_optimizers_business() -> None:
    teacher, net = (
        ResidualMLP(8, 3, width=16, depth=depth, rule="nfd", base_depth=1, base_width=4)
        for depth in (3, 2)
    )
    model = nn.ModuleDict({"teacher": frozen(teacher), "net": net})
    role_map, shapes = assign_roles(model), net.parametrization
    assert choose_multipliers(model, shapes, role_map).note == "the model's own"
    before = copy.deepcopy(model)
    reinitialize(model, role_map, shapes)
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new) == name.startswith("teacher.")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = SGD(model.parameters(), lr=0.1).param_groups
    with pytest.raises(SuiteError, match=r"frozen parameter 'teacher\..*if p.requires_grad"):
        plan_groups(groups, names, role_map.roles, role_factors(shapes, "sgd"))


def test_a_pretrained_teacher_says_nothing_about_the_students_weights() -> None:
    llama = ARCHITECTURES["llama"]
    teacher = frozen(llama())
    teacher.config.name_or_path = "some/teacher"
    model = nn.ModuleDict({"teacher": teacher, "student": llama()})
    shapes = Parametrization("nfd", 1, 3)
    found = choose_multipliers(model, shapes, assign_roles(model))
    assert (found.keeps_function, found.residual) == (False, 3**-0.5)


def test_a_copy_inside_the_network_itself_is_found_too() -> None:
    net = mlp(3)
    net.add_module("ema", frozen(net))
    assert assign_roles(net).roles == assign_roles(mlp(3)).roles


def test_a_network_with_adapters_is_trained_though_its_weights_are_frozen() -> None:
    llama = ARCHITECTURES["llama"]
    student = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]))
    found = assign_roles(nn.ModuleDict({"teacher": frozen(llama()), "student": student}))
    assert found.depth == 3
    assert all(name.startswith("student.") for name in (*found.roles, *found.blocks))


def test_one_frozen_network_alone_is_the_network() -> None:
    net = mlp(3).requires_grad_(False)
    assert assign_roles(net).roles == assign_roles(mlp(3)).roles


def test_two_trained_networks_are_refused_until_one_is_named() -> None:
    gan = nn.ModuleDict({"generator": mlp(2), "critic": mlp(3)})
    with pytest.raises(SuiteError, match=r"(?s)2 networks.*blocks='critic.blocks': 3 blocks"):
        assign_roles(gan)
    with pytest.raises(SuiteError, match=r"(?s)have no role.*critic.blocks.2.last.weight"):
        assign_roles(gan, blocks="generator.blocks")
    found = assign_roles(gan, blocks="generator.blocks", patterns={r"^critic\.": "input"})
    assert (found.depth, found.readouts) == (2, ("generator.readout",))
    assert found.branch_ends == ("generator.blocks.0.last", "generator.blocks.1.last")
    with pytest.raises(SuiteError, match="may be any of generator.blocks, critic.blocks"):
        assign_roles(gan, blocks="blocks")


def test_stages_are_one_network() -> None:
    resnet = TorchvisionResNet(bottleneck=False)
    pair = nn.ModuleDict({"left": resnet, "right": copy.deepcopy(resnet)})
    with pytest.raises(SuiteError, match=r"(?s)2 networks.*blocks='right': 6 blocks"):
        assign_roles(pair)
    found = assign_roles(pair, blocks="left", patterns={r"^right\.": "input"})
    assert (found.depth, found.readouts) == (6, ("left.fc",))
    # a stage alone: the convolutions of the others are no stem
    with pytest.raises(SuiteError, match="layer2.0.conv1.weight"):
        assign_roles(resnet, blocks="layer1")


def test_an_averaged_copy_is_to_be_frozen() -> None:
    net = mlp(2)
    both = nn.ModuleDict({"net": net, "ema": AveragedModel(net)})
    with pytest.raises(SuiteError, match=r"Freeze copies"):
        assign_roles(both)
    with pytest.raises(SuiteError, match=r"(?s)ema.module.*Frozen .* need no role"):
        assign_roles(both, blocks="net.blocks")
    both["ema"].requires_grad_(False)
    assert assign_roles(both).depth == 2


def test_frozen_parameters_outside_the_blocks_need_no_role() -> None:
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    both = nn.ModuleDict({"net": mlp(2), "perceptual": features})
    with pytest.raises(SuiteError, match="perceptual.0.weight"):
        assign_roles(both)
    features.requires_grad_(False)
    assert set(assign_roles(both).roles) == {f"net.{n}" for n, _ in both["net"].named_parameters()}


def test_roles_do_not_depend_on_where_the_model_sits() -> None:
    net = ResidualMLP(4, 2, width=8, depth=2)
    wrapped = nn.ModuleDict({"student": nn.ModuleDict({"net": net})})
    outer = assign_roles(wrapped)
    assert outer.blocks == ("student.net.blocks.0", "student.net.blocks.1")
    inner = assign_roles(net).roles
    assert outer.roles == {f"student.net.{name}": role for name, role in inner.items()}


def test_lora_takes_the_role_of_the_wrapped_matrix() -> None:
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    roles = assign_roles(peft.get_peft_model(ARCHITECTURES["llama"](), config)).roles
    q = {role for name, role in roles.items() if "q_proj" in name}
    down = {role for name, role in roles.items() if "down_proj" in name}
    assert (q, down) == ({"hidden_first"}, {"hidden_last"})
    assert sum("lora_" in name for name in roles) == 3 * 2 * 2


def test_lora_on_the_embedding_is_input() -> None:
    config = peft.LoraConfig(target_modules=["embed_tokens"])
    roles = assign_roles(peft.get_peft_model(ARCHITECTURES["llama"](), config)).roles
    assert [role for name, role in roles.items() if "lora_embedding_" in name] == ["input"] * 2


class Branch(nn.Module):
    """A user's own block, with names that no preset knows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gain, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)


def own_model(depth: int = 3) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            stem=nn.Linear(4, 8, bias=False),
            trunk=nn.ModuleList([Branch() for _ in range(depth)]),
            top=nn.Linear(8, 2),
        )
    )


PATTERNS = {
    r"stem\.": "input",
    r"\.up\.weight": "hidden_first",
    r"\.down\.weight": "hidden_last",
    r"top\.weight": "output",
    r"top\.bias": "output_bias",
}


def test_patterns_name_the_roles_of_any_other_model() -> None:
    found = assign_roles(own_model(), patterns=PATTERNS)
    assert found.blocks == ("trunk.0", "trunk.1", "trunk.2")
    assert found.branch_ends == ("trunk.0.down", "trunk.1.down", "trunk.2.down")
    assert (found.readouts, found.width, found.preset) == (("top",), 8, "patterns")
    assert found.roles["trunk.1.gain.bias"] == "vector"


def test_a_parameter_without_a_role_is_refused_with_all_names() -> None:
    some = {k: v for k, v in PATTERNS.items() if k not in (r"stem\.", r"\.down\.weight")}
    with pytest.raises(SuiteError) as error:
        assign_roles(own_model(), patterns=some)
    message = str(error.value)
    assert "4 parameter(s) have no role" in message
    assert "\n  stem.weight\n  trunk.*.down.weight (3)\n" in message
    assert r"patterns={'stem\\.weight': 'input'}" in message
    assert "\n  patterns: {'stem\\.weight': input}\n" in message  # as YAML has it


def test_a_refusal_of_many_parameters_is_no_flood() -> None:
    net = own_model()
    for number in range(40):
        setattr(net, f"extra{number}", nn.Linear(2, 2))
    with pytest.raises(SuiteError) as error:
        assign_roles(net, patterns={})
    lines = str(error.value).splitlines()
    assert len(lines) < 26
    assert lines[20] == "  … and 66 more"


def test_the_example_of_a_refusal_fits_where_the_parameter_stands() -> None:
    some = {k: v for k, v in PATTERNS.items() if k != r"\.down\.weight"}
    with pytest.raises(SuiteError, match="patterns={.*trunk.*: 'hidden_last'}"):
        assign_roles(own_model(), patterns=some)


def test_a_frozen_copy_of_ones_own_model_is_left_out() -> None:
    net = own_model()
    found = assign_roles(nn.ModuleDict({"ema": frozen(net), "net": net}), patterns=PATTERNS)
    assert found.blocks == ("net.trunk.0", "net.trunk.1", "net.trunk.2")
    assert found.branch_ends == tuple(f"net.trunk.{i}.down" for i in range(3))
    assert found.readouts == ("net.top",)


def test_blocks_of_one_type_must_be_treated_alike() -> None:
    first_only = {r"trunk\.0\.up\.": "hidden_last"}
    with pytest.raises(SuiteError, match=r"'trunk.0.up.weight' is 'hidden_last'.*'trunk.1.up"):
        assign_roles(own_model(), patterns={**first_only, **PATTERNS})  # type: ignore[dict-item]


def test_every_block_ends_in_a_branch_end() -> None:
    model = own_model()
    trunk = model.get_submodule("trunk")
    assert isinstance(trunk, nn.ModuleList)
    trunk.append(nn.Sequential(nn.Linear(8, 8)))
    patterns = {**PATTERNS, r"trunk\.3\.0\.": "hidden_first"}
    with pytest.raises(SuiteError, match="the blocks trunk.3 have no branch end"):
        assign_roles(model, blocks="trunk", patterns=patterns)  # type: ignore[arg-type]


def test_a_bad_regular_expression_is_named() -> None:
    with pytest.raises(SuiteError, match=r"'trunk\.\(' is no regular expression: missing \)"):
        assign_roles(own_model(), patterns={"trunk.(": "input"})


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(SuiteError, match=r"no residual blocks were found.*blocks="):
        assign_roles(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))


def test_blocks_can_be_named() -> None:
    assert assign_roles(own_model(1), blocks="trunk", patterns=PATTERNS).depth == 1
    with pytest.raises(SuiteError, match=r"blocks='trnk': .* Did you mean 'trunk'"):
        assign_roles(own_model(), blocks="trnk", patterns=PATTERNS)


def test_wrong_presets_and_roles_are_refused_with_advice() -> None:
    with pytest.raises(SuiteError, match="unknown preset 'lama'. Did you mean 'llama'"):
        assign_roles(own_model(), preset="lama")
    with pytest.raises(SuiteError, match="preset='llama' does not fit"):
        assign_roles(own_model(), preset="llama")
    with pytest.raises(SuiteError, match="unknown role 'hiden_last'. Did you mean 'hidden_last'"):
        assign_roles(own_model(), patterns={"up": "hiden_last"})  # type: ignore[dict-item]


def test_training_beside_a_frozen_network_is_refused_for_that_reason() -> None:
    model = own_model()
    model.requires_grad_(False)
    beside = nn.ModuleDict({"net": model, "probe": nn.Linear(2, 2)})
    with pytest.raises(
        SuiteError, match=r"are frozen, and what is trained \(probe.weight, probe.b"
    ):
        assign_roles(beside, patterns=PATTERNS)
    assert assign_roles(beside, patterns={**PATTERNS, "probe": "output"}).depth > 0
