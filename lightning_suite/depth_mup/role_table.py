"""The table that a person checks: parameter, role, and what its options are multiplied by."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_suite.depth_mup.param_groups import Factors
from lightning_suite.depth_mup.roles import RoleMap, row_name
from lightning_suite.depth_mup.rules import Role


def format_table(role_map: RoleMap, factors: Mapping[Role, Factors]) -> str:
    """Return the printable table name -> role -> factors.

    Parameters that differ only in the number of their block share a row. The columns of weight
    decay and epsilon are there where a factor in them is not 1.

    Args:
        role_map: From :func:`~lightning_suite.depth_mup.roles.assign_roles`.
        factors: From :func:`~lightning_suite.depth_mup.param_groups.role_factors`.
    """
    rows: dict[tuple[str, Role], int] = {}
    for full, role in role_map.roles.items():
        name = row_name(full, role_map.blocks)
        rows[name, role] = rows.get((name, role), 0) + 1

    columns: dict[str, dict[Role, float]] = {
        "lr factor": {role: factors[role].lr for _, role in rows},
        "weight decay": {role: factors[role].weight_decay for _, role in rows},
        "eps": {role: factors[role].eps for _, role in rows},
    }
    shown = {
        title: column
        for title, column in columns.items()
        if title == "lr factor" or any(value != 1.0 for value in column.values())
    }
    cells = [("parameter", "count", "role", *shown)] + [
        (name, str(count), role, *(f"{column[role]:.4g}" for column in shown.values()))
        for (name, role), count in rows.items()
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)
