"""`python -m gengap compare my_model.py --out DIR`: compare the minima of a Python file, in a table and a page."""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from gengap import comparison

__all__ = ["main"]

_FILE = """A Python file that defines minima, a dictionary of name -> parameters (or a list of the parameters of
several seeds), and loss, params -> mean loss of the training set. It may also define test, params -> test loss or
(test loss, test accuracy); start, where training began; and measures, name -> (loss, params, key) -> number."""


def main(args: Sequence[str] | None = None) -> None:
    """Compare the minima of a file. A wrong flag or an unusable file gives one sentence and exit code 2."""
    quick = comparison.QUICK
    parser = argparse.ArgumentParser("python -m gengap", description="Tools for your own networks.")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="measure how the minima of a file differ", description=_FILE)
    compare.add_argument("file", type=Path, help="the Python file")
    compare.add_argument("--out", type=Path, required=True, help="directory of the page, report.html")
    compare.add_argument(
        "--epsilons", type=float, nargs="+", default=list(quick.epsilons), help="sizes of the sharpness box"
    )
    compare.add_argument(
        "--num-draws", type=int, default=quick.num_draws, help="number of random subspaces; 0: none"
    )
    compare.add_argument("--dim", type=int, default=quick.dim, help="columns of the random matrix A")
    compare.add_argument(
        "--max-evaluations", type=int, default=quick.max_evaluations, help="gradients per maximum"
    )
    compare.add_argument("--no-hessian", action="store_true", help="skip the Hessian eigenvalue and trace")
    compare.add_argument("--seed", type=int, default=0, help="random seed")
    given = parser.parse_args(args)
    if not given.file.is_file():
        compare.error(f"{given.file} is no file")
    if given.out.exists() and not given.out.is_dir():
        compare.error(f"--out is {given.out}; it must be a directory")
    sys.path.insert(0, str(given.file.resolve().parent))
    defined = runpy.run_path(str(given.file), run_name="gengap_compare")
    if missing := [name for name in ("minima", "loss") if name not in defined]:
        compare.error(f"{given.file} does not define {' and '.join(missing)}")
    metric = quick._replace(
        epsilons=tuple(given.epsilons),
        num_draws=given.num_draws,
        dim=given.dim,
        max_evaluations=given.max_evaluations,
    )
    options = {name: defined[name] for name in ("test", "start", "measures") if name in defined}
    try:
        comparison.check_arguments(
            defined["minima"], defined["loss"], metric, options.get("start"), options.get("measures", {})
        )
    except ValueError as error:
        compare.error(str(error))
    result = comparison.compare(
        defined["minima"],
        defined["loss"],
        jax.random.key(given.seed),
        test=options.get("test"),
        start=options.get("start"),
        measures=options.get("measures", {}),
        metric=metric,
        with_hessian=not given.no_hessian,
        progress="compare",
    )
    sys.stdout.write(f"{result}\n{result.report(given.out)}\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        sys.exit(130)
