"""What holds under pytest only: shapes and types are checked, and no array's rank is raised in silence."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for each other where XLA has the cores

from jaxtyping import install_import_hook

# A module that is already in sys.modules escapes the hook, so this comes before any import of gengap.
# The numeric tower lets an int stand where a float is asked for, as it may everywhere else.
install_import_hook("gengap", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Compiled programs hold memory mappings, and XLA crashes where Linux allows a process no more of them."""
    yield
    jax.clear_caches()
