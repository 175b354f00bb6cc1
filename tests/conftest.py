"""What holds under pytest only: shapes and types are checked, and no array's rank is raised in silence."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for each other where XLA has the cores

# Tests spend their time in compiling. Without optimisations and XLA's newer emitters that takes a fifth. Those on
# real data, which need the variable, compute more than they compile.
if "TFDS_DATA_DIR" not in os.environ:
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        " --xla_cpu_parallel_codegen_split_count=1",
    )

from tests import checked

checked.install()  # before any import of gengap

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Compiled programs hold memory mappings, and XLA crashes where Linux allows a process no more of them."""
    yield
    jax.clear_caches()
