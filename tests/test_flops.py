"""The operations of compiled programs against those counted from the shapes."""

import pytest

from benchmarks import flops


@pytest.mark.parametrize(("network", "parameters"), [("f1", 1_462_794), ("c1", 1_757_834), ("c2", 14_991_946)])
def test_compiled_operations_are_those_counted_by_hand(network, parameters) -> None:
    """The compiled programs have activations, batch norm and the loss on top: up to 4 % in C2's small layers."""
    found, (forward, gradient) = flops.count(network), flops.compiled(network)
    assert found.parameters == parameters
    assert found.forward < forward < 1.04 * found.forward
    assert found.gradient < gradient < 1.04 * found.gradient
