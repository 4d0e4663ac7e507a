"""The seed of everything random in a run: `SEED=4711 script/test` takes the same again."""

import os
import random

# Workers inherit the environment of the process that started them.
SEED = os.environ.setdefault("SEED", str(random.SystemRandom().randrange(10**6)))


def generator(name: str) -> random.Random:
    """Random numbers that depend on the seed and this name alone, not on what ran before."""
    return random.Random(f"{SEED} {name}")
