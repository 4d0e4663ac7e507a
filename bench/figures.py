"""What every bench takes and says, so that its figures can be had again."""

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import seed  # noqa: E402


def parse(parser: argparse.ArgumentParser, once: str) -> argparse.Namespace:
    """Add --once and --seed, parse, and print what the figures to come belong to.

    What is left to chance afterwards, in whatever module, is left to this seed.

    :param once: what --once measures, in a few words
    """
    parser.add_argument("--once", action="store_true", help=f"as the tests do: {once}")
    parser.add_argument("--seed", default=seed.SEED, help="of what is left to chance")
    options = parser.parse_args()
    # As it is for an operator: what is ours is compiled once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    seed.SEED = options.seed
    random.seed(options.seed)
    name = Path(sys.argv[0]).name
    cores = os.cpu_count()
    print(f"{name}: seed {options.seed}, commit {commit()}, {cores} cores", flush=True)
    return options


def commit() -> str:
    """The revision of this checkout, and whether it is what is measured."""
    found = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    return f"{found} with changes" if _git("status", "--porcelain") else found


def _git(*words: str) -> str:
    result = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip()
