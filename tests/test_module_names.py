"""A module keeps its name whatever compilation and sharding have wrapped around it."""

from __future__ import annotations

from torch import nn

from lightning_suite.module_names import clean_module_name, clean_name, modules_by_name


def test_names_are_those_without_wrappers() -> None:
    name = "model._orig_mod.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.fc1.weight"
    assert clean_name(name) == "model.layers.0.fc1.weight"
    assert clean_name("_orig_mod") == ""
    assert clean_module_name("layers.0._orig_mod") == "layers.0"
    assert clean_module_name("_orig_mod") == clean_module_name("") == ""


def test_of_a_wrapper_and_what_it_holds_the_inner_has_the_name() -> None:
    inner = nn.Linear(2, 2)
    model = nn.Sequential(nn.ModuleDict({"_orig_mod": inner}), nn.ReLU())
    assert modules_by_name(model) == {"": model, "0": inner, "1": model[1]}
