"""The tools of the quickstart's agents: plain functions, named in agents.yaml as `tools:calculate` and so on.

The model sees a tool's name, its docstring and its parameters' types.  If a tool raises, the model gets the error as
the tool's answer, and the run continues.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from batchray import AgentRequest

STOCK = {"apples": 120, "cherries": 900, "lemons": 45, "oranges": 60, "pears": 80, "plums": 210}
"""The stock of the quickstart's shop, in pieces."""

_MAX_EXPRESSION_CHARS = 200
_MAX_EXPONENT = 64
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def calculate(expression: str) -> float:
    """Evaluate an arithmetic expression of numbers, brackets and + - * / // % **.

    Args:
        expression: For example "(3 + 4) * 12".
    """
    if len(expression) > _MAX_EXPRESSION_CHARS:
        raise ValueError(f"an expression has at most {_MAX_EXPRESSION_CHARS} characters")
    return _value(ast.parse(expression.strip(), mode="eval").body)


def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


def look_up(key: str) -> int:
    """Return how many pieces of a fruit are in stock.

    Args:
        key: The fruit, in the plural.
    """
    if key not in STOCK:
        raise LookupError(f"no {key!r} in stock; there are: {', '.join(STOCK)}")
    return STOCK[key]


def headline(request: AgentRequest) -> str:
    """Return the request's text as a headline: an agent that is a function, without a model."""
    return str(request.input).strip().title()


def _value(node: ast.expr) -> float:
    """Evaluate a parsed expression; refuse everything except numbers and operators."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            base, other = _value(left), _value(right)
            if isinstance(op, ast.Pow) and abs(other) > _MAX_EXPONENT:
                raise ValueError(f"an exponent is at most {_MAX_EXPONENT}")
            return _OPERATORS[type(op)](base, other)
    raise ValueError("only numbers, brackets and + - * / // % ** can be evaluated")
