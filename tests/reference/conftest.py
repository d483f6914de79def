"""What diffq 0.2.4 drew and computed, for the tests of the oracle."""

import pytest


@pytest.fixture(params=range(5))
def noise_case(request, golden, golden_cases):
    """Tensors that diffq 0.2.4 drew and computed, and the arguments it had. Case 4 has ties at both ends."""
    tensors = {
        name.split(".", 1)[1]: tensor
        for name, tensor in golden("noise").items()
        if name.startswith(f"{request.param}.")
    }
    tensors["z"] = tensors["z"].reshape(-1)  # row-major, one value per element
    case = golden_cases[f"noise_{request.param}"]
    options = {name: case[name] for name in ("min_bits", "max_bits", "param")}
    return tensors, case["group_size"], options
