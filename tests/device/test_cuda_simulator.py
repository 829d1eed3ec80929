"""The logic of the CUDA reductions, thread by thread, without a GPU."""

import pytest


@pytest.mark.slow
def test_every_kernel_and_operation_in_the_simulator(run_in_simulator):
    run_in_simulator("cuda_simulator.py")
