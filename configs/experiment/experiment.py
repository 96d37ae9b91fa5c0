"""Compare agents on the same questions: `python experiment.py` in any directory.

Each question goes to each agent twice, as one batch.  The answers are scored, and each group is compared with the
first one.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

import batchray

HERE = Path(__file__).parent


def is_right(result: batchray.Result) -> bool:
    """Score an answer: its last number is that of the column `answer`."""
    numbers = re.findall(r"-?\d+", result.text)
    return bool(numbers) and int(numbers[-1]) == result.row["answer"]


def main() -> None:
    """Run the experiment and print the comparison."""
    agents = batchray.load_agents([HERE / "agents.yaml"])
    questions = pd.read_csv(HERE / "questions.csv")
    requests = batchray.cross(questions, agents, repeats=2)

    job = batchray.run(requests, agents, input_column="question")  # reuse=job of an earlier run asks only what is new
    ratings = batchray.apply(job, is_right)
    frame = batchray.compare(ratings, by=["prompt", "help"])
    columns = ["requests", "success_rate", "score", "score_low", "score_high", "score_difference", "prompt_tokens"]
    print(frame[columns].round(3).to_string())


if __name__ == "__main__":
    main()
