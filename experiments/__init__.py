"""One file an experiment; `python -m experiments.NAME --help`."""
