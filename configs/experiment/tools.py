"""The tool of the experiment: a plain function."""

from __future__ import annotations

import operator

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def calculate(expression: str) -> int:
    """Work out one operation on two whole numbers.

    Args:
        expression: For example "3 * 4".
    """
    left, sign, right = expression.split()
    return int(_OPERATORS[sign](int(left), int(right)))
