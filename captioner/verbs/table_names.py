"""The names in a table of this package, read from its source.

``--help`` and tab completion list the names of metrics, cells and the like. Importing a table would
import torch or numpy, for which a shell would have to wait.
"""

from __future__ import annotations

import ast
from pathlib import Path

METRICS = "metrics/table.py:METRICS"


def names_in(table: str) -> list[str]:
    """The keys of a dict, or the items of a tuple.

    Args:
        table: FILE:NAME, the file relative to this package, such as "metrics/table.py:METRICS".

    Raises:
        LookupError: the file has no table of that name.
    """
    file, _, name = table.partition(":")
    source = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if name in map(ast.unparse, targets):
                return _literal_names(statement.value)
    raise LookupError(table)


def _literal_names(value: ast.expr) -> list[str]:
    """The keys of the first dict in an expression, or the items of its first tuple."""
    inside = next(node for node in ast.walk(value) if isinstance(node, (ast.Dict, ast.Tuple)))
    names = inside.keys if isinstance(inside, ast.Dict) else inside.elts
    return [str(node.value) for node in names if isinstance(node, ast.Constant)]
