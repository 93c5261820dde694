import math

import pytest
import torch
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, DotProduct, IKANDirect
from ika_lightning.models import TextClassifier
from ika_lightning.models.positions import sinusoids

LAYERS = [DotProduct, IKANDirect, IKAN, MIKAN]
POOLINGS = ["mean", "max", "cls", "attention"]
TEXTS = torch.tensor([[5, 3, 2, 7, 11, 4, 9], [6, 1, 0, 0, 0, 0, 0], [2, 4, 4, 0, 0, 0, 0]])


def build(attention=MIKAN, **options) -> TextClassifier:
    torch.manual_seed(0)
    net = TextClassifier(13, 3, **{"width": 10, "depth": 2, "num_heads": 2, "attention": attention, **options})
    # what starts at zero would hide a mistake
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.embed.weight.data[0] = 0.0
    return net.double().eval()


@pytest.mark.parametrize("attention", LAYERS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("window", [1, 5])
def test_a_prediction_does_not_depend_on_its_batch(attention, pooling, window) -> None:
    net = build(attention, pooling=pooling, window=window)
    together = net(TEXTS)
    assert_close(net(TEXTS[1:2, :2]), together[1:2], rtol=1e-12, atol=1e-12)
    assert_close(net(TEXTS[2:, :3]), together[2:], rtol=1e-12, atol=1e-12)
    more = torch.cat([TEXTS, torch.zeros(3, 17, dtype=torch.long)], 1)
    assert_close(net(more), together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_gets_no_gradient(pooling) -> None:
    net = build(pooling=pooling).train()
    net(TEXTS).sum().backward()
    assert net.embed.weight.grad[0].abs().sum() == 0.0
    used = TEXTS.unique()
    assert (net.embed.weight.grad[used[1:]].abs().sum(1) > 0.0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_order_matters(pooling) -> None:
    net = build(DotProduct, pooling=pooling, window=1)
    assert not torch.allclose(net(TEXTS[:1]), net(TEXTS[:1].flip(1)), atol=1e-4)


def test_evaluation_gives_the_same_twice() -> None:
    net = build(IKAN, dropout=0.3, embed_dropout=0.5, word_dropout=0.2)
    assert_close(net(TEXTS), net(TEXTS), rtol=0, atol=0)
    net.train()
    assert not torch.equal(net(TEXTS), net(TEXTS))


def test_window_by_hand() -> None:
    """Without encoder layers, the mean of a linear map of neighbours and of positions."""
    net = build(DotProduct, depth=0, embed_dim=7, pooling="mean", window=3)
    words = net.embed(TEXTS[2, :3])
    zero = torch.zeros(1, 7, dtype=torch.double)
    padded = torch.cat([zero, words, zero])
    rows = []
    for t in range(3):
        row = net.window.bias.clone()
        for offset in range(3):
            row = row + net.window.weight[:, :, offset] @ padded[t + offset]
        rows.append(row + 0.1 * sinusoids(0, 3, row)[t])
    expected = net.head(net.encoder.norm(torch.stack(rows)).mean(0))
    assert_close(net(TEXTS)[2], expected)


def test_poolings_by_hand() -> None:
    x = torch.randn(2, 5, 10, dtype=torch.double)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    pooled = {pooling: build(pooling=pooling)._pool(x, padding) for pooling in POOLINGS}
    assert_close(pooled["mean"][1], x[1, :2].mean(0))
    assert_close(pooled["max"][1], x[1, :2].max(0).values)
    assert_close(pooled["cls"], x[:, 0])
    net = build(pooling="attention")
    scores = [math.exp(net.weigh(row).item()) for row in x[1, :2]]
    assert_close(pooled["attention"][1], (scores[0] * x[1, 0] + scores[1] * x[1, 1]) / sum(scores))


def test_word_dropout_drops_whole_words_in_training() -> None:
    net = build(word_dropout=0.5, window=1).train()
    seen = []
    net.window.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mT))
    net(torch.full((50, 40), 3))
    dropped = (seen[0] == 0.0).all(-1)
    assert 0.4 < dropped.double().mean() < 0.6
    assert_close(seen[0][~dropped], net.embed.weight[3].expand((~dropped).sum(), -1))


@pytest.mark.parametrize("option, message", [({"window": 2}, "window must be an odd number of words, got 2"),
                                             ({"window": -1}, "got -1"),
                                             ({"pooling": "last"}, "pooling must be .* got 'last'")])  # fmt: skip
def test_wrong(option, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**option)
