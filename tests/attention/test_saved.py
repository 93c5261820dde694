"""What the first version saved means what it meant."""

import pytest
import torch
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, IKANDirect, KernelGATConv, KernelTransformerConv


def as_saved(layer: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """The state of a layer with init="rbf" as the first version had it: no scale of a generator, other prefixes."""
    state = {key.replace(prefix, ""): value for key, value in layer.state_dict().items()}
    return {key: value for key, value in state.items() if not key.endswith(".scale")}


def trained(layer: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layer.eval()


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_a_layer_without_an_exact_part_is_the_same_in_one_with_it(kind, stationary) -> None:
    torch.manual_seed(0)
    options = {"num_samples": 7, "stationary": stationary, "batch_first": True}
    old, new = trained(kind(15, 3, init="rbf", **options)).double(), kind(15, 3, **options).double().eval()
    new.load_state_dict(as_saved(old, "no such prefix"))
    x = torch.randn(2, 5, 15).double()
    assert_close(new(x, x, x), old(x, x, x), rtol=1e-6, atol=1e-9)
    again = kind(15, 3, **options).double().eval()
    again.load_state_dict(new.state_dict())
    assert again(x, x, x)[0].equal(new(x, x, x)[0])


@pytest.mark.parametrize("spectrum", ["direct", "implicit", "copula"])
@pytest.mark.parametrize("kind", [KernelGATConv, KernelTransformerConv])
def test_a_convolution_without_an_exact_part_is_the_same_in_one_with_it(kind, spectrum) -> None:
    torch.manual_seed(0)
    options = {"heads": 3, "spectrum": spectrum, "num_samples": 7}
    old, new = trained(kind(5, 4, init="rbf", **options)).double(), kind(5, 4, **options).double().eval()
    new.load_state_dict(as_saved(old, "core."))
    x, edge_index = torch.randn(6, 5).double(), torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
    assert_close(new(x, edge_index), old(x, edge_index), rtol=1e-6, atol=1e-9)
