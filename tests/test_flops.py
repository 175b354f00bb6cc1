"""The operations of the networks' programs against those counted from the shapes."""

import pytest

from benchmarks import flops


@pytest.mark.parametrize(("network", "parameters"), [("f1", 1_462_794), ("c1", 1_757_834), ("c2", 14_991_946)])
def test_operations_of_the_programs_are_those_counted_by_hand(network, parameters) -> None:
    """The programs have activations, batch norm and the loss on top: up to 4 % in C2's small layers."""
    by_hand, (forward, gradient) = flops.count(network), flops.lowered(network)
    assert by_hand.parameters == parameters
    assert by_hand.forward < forward < 1.04 * by_hand.forward
    assert by_hand.gradient < gradient < 1.04 * by_hand.gradient
