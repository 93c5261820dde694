from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, ExplicitKernel, IKANDirect
from ika_lightning.models import EncoderDecoder

WIDTH, HEADS, SOURCE, TARGET = 15, 5, 13, 17
LAYERS = {
    "DotProduct": DotProduct,
    "RBF": partial(RBF, p=1.0),
    "ExplicitKernel": ExplicitKernel,
    "IKANDirect": partial(IKANDirect, num_samples=7, p=1.0),
    "IKAN": partial(IKAN, num_samples=7, p=1.8),
    "MIKAN": partial(MIKAN, num_samples=7),
    "MIKAN chunked": partial(MIKAN, num_samples=7, backend="chunked"),
    "IKAN linear": partial(IKAN, num_samples=7, backend="linear", init="rbf"),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def build(name: str, target: int | None = TARGET, **options) -> EncoderDecoder:
    """A network in float64 whose parameters are far from where they start, so that no part of it rests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = EncoderDecoder(
            SOURCE, target, width=WIDTH, depth=2, num_heads=HEADS, attention=LAYERS[name], **options
        ).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return net.eval()


def sentences(lengths: list[int], vocabulary: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, vocabulary, (len(lengths), max(lengths)), generator=generator)
    return tokens.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1), 0)


@pytest.fixture
def source() -> Tensor:
    return sentences([7, 3, 5], SOURCE, seed=1)


@pytest.fixture
def target() -> Tensor:
    return sentences([6, 9, 4], TARGET, seed=2)


@every_layer
class TestForward:
    @pytest.mark.parametrize("training", [False, True])
    def test_a_later_token_never_changes_an_earlier_output(self, name, training, source, target):
        net = build(name).train(training)
        changed = target.clone()
        changed[:, 4:] = torch.where(target[:, 4:] == 5, 6, 5)
        outs = []
        for tokens in (target, changed):
            torch.manual_seed(3)  # layers that draw their frequencies in training draw the same ones
            outs.append(net(source, tokens))
        assert_close(outs[0][:, :4], outs[1][:, :4], rtol=0, atol=0)
        assert (outs[0][:, 4] != outs[1][:, 4]).any(-1).all()

    def test_a_later_token_has_no_gradient_from_an_earlier_output(self, name, source, target):
        net = build(name).train()
        embedded = []
        net.target_embedding.register_forward_hook(lambda _, __, out: embedded.append(out))
        net.target_embedding.weight.requires_grad_()
        scores = net(source, target)
        (gradient,) = torch.autograd.grad(scores[:, :4].sum(), embedded[0])
        assert gradient[:, 4:].abs().max() == 0.0
        assert (gradient[:, :4].abs().amax(-1) > 0).all()

    def test_padding_changes_nothing(self, name, source, target):
        net = build(name)
        expected = net(source[1:2, :3], target[1:2])
        assert_close(net(source, target)[1:2], expected, rtol=1e-10, atol=1e-10)
        longer = torch.cat([target, torch.zeros(3, 4, dtype=torch.long)], 1)
        assert_close(net(source, longer)[:, :9], net(source, target), rtol=1e-10, atol=1e-10)

    def test_the_source_matters(self, name, source, target):
        other = source.clone()
        other[:, 0] = torch.where(source[:, 0] == 5, 6, 5)
        net = build(name)
        assert not net(source, target).isclose(net(other, target)).all(-1).any()

    def test_every_parameter_learns(self, name, source, target):
        net = build(name).train()
        net(source, target).square().sum().backward()
        assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


@every_layer
class TestDecode:
    @pytest.mark.parametrize("sizes", [[1] * 9, [4, 1, 3, 1], [9]], ids=str)
    def test_parts_give_what_the_whole_gives(self, name, sizes, source, target):
        net = build(name)
        state, scores = net.start(source), []
        with torch.no_grad():
            for part in target.split(sizes, 1):
                out, state = net.decode(part, state)
                scores.append(out)
        assert_close(torch.cat(scores, 1), net(source, target), rtol=1e-9, atol=1e-9)
        assert state.length == 9

    def test_hypotheses_of_a_source_share_its_keys(self, name, source):
        net, k = build(name), 4
        target = sentences([9] * 3 * k, TARGET, seed=4)
        state = net.start(source)
        with torch.no_grad():
            first, state = net.decode(target[:, :5], state)
            second, state = net.decode(target[:, 5:], state)
        expected = net(source.repeat_interleave(k, 0), target)
        assert_close(torch.cat([first, second], 1), expected, rtol=1e-9, atol=1e-9)
        assert {keys.num_sequences for keys in state.sources} == {3}

    def test_reordered_and_selected(self, name, source):
        net, k = build(name), 2
        target = sentences([6] * 3 * k, TARGET, seed=4)
        with torch.no_grad():
            _, state = net.decode(target[:, :5], net.start(source))
            kept, moved = torch.tensor([2, 0]), torch.tensor([5, 5, 1, 0])
            out, _ = net.decode(target[moved, 5:], state.select_sources(kept).select_(moved))
        expected = net(source[kept].repeat_interleave(k, 0), target[moved])
        assert_close(out, expected[:, 5:], rtol=1e-9, atol=1e-9)


def test_attentions_are_where_they_were_asked_for() -> None:
    net = EncoderDecoder(
        SOURCE, width=8, depth=1, num_heads=2, attention=IKAN, decoder_attention=DotProduct, cross_attention=RBF
    )
    (encoder,), (decoder,) = net.encoder.layers, net.layers
    assert [type(x) for x in (encoder.attention, decoder.self_attention, decoder.cross_attention)] == [
        IKAN,
        DotProduct,
        RBF,
    ]
    one = EncoderDecoder(SOURCE, width=8, depth=1, num_heads=2, attention=MIKAN).layers[0]
    assert type(one.self_attention) is type(one.cross_attention) is MIKAN


@pytest.mark.parametrize("conditional", [True, False])
def test_only_what_may_look_at_its_keys_does(conditional, source, target, monkeypatch) -> None:
    """Encoder and cross-attention pool the real source tokens; causal self-attention pools nothing."""
    from ika_lightning.attention import core

    pooled = []
    pool = core.mean_key
    monkeypatch.setattr(
        core, "mean_key", lambda key, mask, bias: pooled.append(mask.sum().item()) or pool(key, mask, bias)
    )
    net = EncoderDecoder(
        SOURCE, TARGET, width=8, depth=1, num_heads=2, attention=partial(IKAN, conditional=conditional)
    )
    net(source, target)
    assert pooled == ([15, 15] if conditional else [])


def test_tables_are_shared() -> None:
    joint, separate = build("DotProduct", None), build("DotProduct")
    assert joint.source_embedding is joint.target_embedding
    assert (len(separate.source_embedding.weight), len(separate.target_embedding.weight)) == (SOURCE, TARGET)
    hidden = torch.randn(2, WIDTH).double()
    assert_close(separate.scores(hidden), hidden @ separate.target_embedding.weight.T)
    shared = sum(parameter.numel() for parameter in joint.parameters())
    assert sum(parameter.numel() for parameter in separate.parameters()) == shared + TARGET * WIDTH


def test_scores_start_of_the_size_of_one() -> None:
    torch.manual_seed(0)
    net = EncoderDecoder(997, width=64, depth=2, num_heads=4, attention=DotProduct)
    tokens = torch.randint(4, 997, (11, 13))
    assert 0.8 < net(tokens, tokens).std() < 1.6
