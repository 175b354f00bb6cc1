"""A toy `make paper`, killed at random moments and begun again until it ends, has the rows of one never killed.

    python -m tests.kills --kills 20 --jobs 1 3

Prints what was killed when, and ends with exit code 1 where rows differ or are missing.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOY = """
import sys
from experiments import paper
from experiments.lib import command
command.cache_compilations()
config = paper.Config(num_seeds=1, train_size=100, epochs=2)
paper.run(config, sys.argv[1], jobs=int(sys.argv[2]), settings="SMOKE")
"""


def toy(out, jobs):
    return [sys.executable, "-c", TOY, str(out), str(jobs)]


def rows(root):
    """The rows of every part by their cell, without when and where they were computed."""
    found = {}
    for path in sorted(root.glob("*/*/rows.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            kept = {name: value for name, value in row.items() if name not in ("origin", "seconds")}
            found.setdefault(path.parent.parent.name, []).append(json.dumps(kept, sort_keys=True))
    return {name: sorted(lines) for name, lines in found.items()}


def killed_and_resumed(command, kills, longest, chance):
    """How often it was killed before it ended, its exit code, and what it said then."""
    count = 0
    while True:
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        wait = chance.uniform(0, longest) if count < kills else None
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            kind = chance.choice([signal.SIGKILL, signal.SIGTERM])
            process.send_signal(kind)
            process.communicate()
            count += 1
            sys.stdout.write(f"  {signal.Signals(kind).name} after {wait:.1f} s\n")
            continue
        return count, process.returncode, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    chance, failed = random.Random(args.seed), False
    with tempfile.TemporaryDirectory() as directory:
        began = time.monotonic()
        _, code, errors = killed_and_resumed(toy(Path(directory, "whole/paper/toy"), 1), 0, 0, chance)
        longest = time.monotonic() - began
        expected = rows(Path(directory, "whole"))
        sys.stdout.write(f"never killed: {sum(map(len, expected.values()))} rows in {longest:.0f} s\n")
        failed |= code != 0
        for jobs in args.jobs:
            sys.stdout.write(f"--jobs {jobs}\n")
            done = 0
            while done < args.kills:  # a run that ended begins anew
                root = Path(directory, f"jobs{jobs}-{done}")
                command = toy(root / "paper/toy", jobs)
                count, code, errors = killed_and_resumed(command, args.kills - done, longest / 3, chance)
                same = code == 0 and rows(root) == expected
                sys.stdout.write(
                    f"  killed {count} times: {'the same rows' if same else f'OTHER ROWS {errors}'}\n"
                )
                done, failed = done + max(1, count), failed or not same
    sys.exit(failed)


if __name__ == "__main__":
    main()
