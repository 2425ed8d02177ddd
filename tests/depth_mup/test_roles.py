"""Every parameter of every known architecture has a role; what has none is refused by name.

The tables in ``role_tables/`` were read once by eye and are frozen: name, count, role, and the
Adam factor of ``nfd`` at four times the width and sixteen times the depth.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import peft
import pytest
from architectures import ARCHITECTURES
from torch import nn

from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.roles import assign_roles, format_table
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import clean_name

TABLES = Path(__file__).parent / "role_tables"


def described(name: str) -> str:
    role_map = assign_roles(ARCHITECTURES[name]())
    shapes = Parametrization("nfd", 1, 16, base_width=8, width=32)
    return (
        f"preset {role_map.preset}, {role_map.depth} blocks, width {role_map.width}\n"
        f"branch ends of the first block: "
        f"{', '.join(e for e in role_map.branch_ends if e.startswith(role_map.blocks[0] + '.'))}\n"
        f"readout: {', '.join(role_map.readouts)}\n\n"
        f"{format_table(role_map, shapes, 'adam')}\n"
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles_are_those_of_the_frozen_table(name: str) -> None:
    assert described(name) == (TABLES / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["residual_mlp", "resnet_bottleneck", "vit_timm"])
def test_every_parameter_has_exactly_one_role(name: str) -> None:
    model = ARCHITECTURES[name]()
    assert list(assign_roles(model).roles) == [n for n, _ in model.named_parameters()]


def test_roles_do_not_depend_on_where_the_model_sits() -> None:
    net = ResidualMLP(4, 2, width=8, depth=2)
    wrapped = nn.ModuleDict({"student": nn.ModuleDict({"net": net})})
    outer = assign_roles(wrapped)
    assert outer.blocks == ("student.net.blocks.0", "student.net.blocks.1")
    inner = assign_roles(net).roles
    assert outer.roles == {f"student.net.{name}": role for name, role in inner.items()}


def test_wrappers_are_removed_from_names() -> None:
    name = "model._orig_mod.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.fc1.weight"
    assert clean_name(name) == "model.layers.0.fc1.weight"
    assert clean_name("layers.0._orig_mod.weight") == "layers.0.weight"


def test_lora_takes_the_role_of_the_wrapped_matrix() -> None:
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    roles = assign_roles(peft.get_peft_model(ARCHITECTURES["llama"](), config)).roles
    q = {role for name, role in roles.items() if "q_proj" in name}
    down = {role for name, role in roles.items() if "down_proj" in name}
    assert (q, down) == ({"hidden_first"}, {"hidden_last"})
    assert sum("lora_" in name for name in roles) == 3 * 2 * 2


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
    for name in ("stem.weight", "trunk.0.down.weight", "trunk.2.down.weight", "patterns="):
        assert name in message


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
