"""Sums of two numbers as examples for fine-tuning, each problem once: what is held out is not trained on.

    python bench/arithmetic.py FOLDER [--digits 2] [--problems 5000] [--seed 0]

Writes chat.jsonl (prompt, completion), pairs.jsonl (prompt, chosen, rejected: a sum that is wrong by 1 to 9)
and prompts.jsonl (prompt, answer), all with the same problems, for python -m data.tokenize --format.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path


def problems(digits: int, count: int, seed: int) -> list[tuple[int, int]]:
    """So many different pairs of numbers of at most so many digits, in random order.

    Raises ValueError where there are not so many.
    """
    below = 10**digits
    chosen = random.Random(seed).sample(range(below * below), count)
    return [divmod(number, below) for number in chosen]


def rows(digits: int, count: int, seed: int) -> Iterator[dict[str, str]]:
    """Of each problem: prompt, its answer, and a wrong one."""
    draws = random.Random(seed + 1)
    for first, second in problems(digits, count, seed):
        total, sign, error = first + second, draws.choice((-1, 1)), draws.randint(1, 9)
        wrong = total + (sign * error if sign * error >= -total else error)  # no negative numbers
        yield {"prompt": f"{first}+{second}=", "answer": str(total), "wrong": str(wrong)}


# file -> its keys, and the keys of `rows` that they have
FILES = {
    "chat": {"prompt": "prompt", "completion": "answer"},
    "pairs": {"prompt": "prompt", "chosen": "answer", "rejected": "wrong"},
    "prompts": {"prompt": "prompt", "answer": "answer"},
}


def write(folder: Path, digits: int = 2, count: int = 5000, seed: int = 0) -> None:
    """The three files, in a folder that is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    made = list(rows(digits, count, seed))
    for name, keys in FILES.items():
        lines = [json.dumps({key: row[of] for key, of in keys.items()}) for row in made]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Sums of two numbers as examples for fine-tuning.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--digits", type=int, default=2, help="most digits of a number [2]")
    parser.add_argument("--problems", type=int, default=5000, help="how many different sums [5000]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.digits, given.problems, given.seed)


if __name__ == "__main__":
    main()
