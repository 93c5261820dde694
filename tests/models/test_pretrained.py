"""Pretrained encoders with the attention of this package."""

import functools
import json

import pytest
import torch
from tiny_encoders import configuration, make_encoder, minilm
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect
from ika_lightning.attention.parameters import kernel_parameters
from ika_lightning.hub import ENCODERS, read_config, read_tokenizer, read_weights
from ika_lightning.models import compile_layers

pytest.importorskip("transformers")

from ika_lightning.models.pretrained import PretrainedClassifier

FEW = {"num_samples": 5}
LAYERS = [DotProduct, RBF, *(functools.partial(layer, **FEW) for layer in (IKANDirect, IKAN, MIKAN))]
name_of = lambda layer: getattr(layer, "func", layer).__name__  # noqa: E731


def classifier(kind: str = "bert", attention=DotProduct, frozen_layers: int = 0, **options) -> PretrainedClassifier:
    encoder = make_encoder(kind, **options)
    net = PretrainedClassifier(json.dumps(configuration(kind, **options)), 2, attention, frozen_layers)
    net.load_encoder({name: x for name, x in encoder.state_dict().items() if not name.startswith("pooler.")})
    return net.eval()


def texts(padding: int) -> tuple[Tensor, Tensor]:
    """Tokens of two texts, the second of which is padded, and which of them are real."""
    real = torch.arange(11) < torch.tensor([[11], [5]])
    tokens = torch.randint(4, 50, (2, 11), generator=torch.Generator().manual_seed(1))
    return tokens.masked_fill(~real, padding), real


@pytest.mark.parametrize("attention", LAYERS, ids=name_of)
@pytest.mark.parametrize("kind", ENCODERS)
def test_it_starts_as_the_encoder_that_it_was(kind, attention):
    net = classifier(kind, attention)
    tokens, real = texts(net.padding)
    asked = {"input_ids": tokens, "attention_mask": real.long(), "output_hidden_states": True}
    found, wanted = (encoder(**asked).hidden_states for encoder in (net.encoder, make_encoder(kind)))
    assert len(found) == len(wanted) == 3
    for layer, before in zip(found, wanted, strict=True):
        assert (layer - before)[real].norm() < 1e-5 * before[real].norm()
    # it is another attention all the same
    assert bool(kernel_parameters(net)) == (attention is not DotProduct)


@pytest.mark.parametrize("attention", [*LAYERS, functools.partial(RBF, p="learned")], ids=name_of)
def test_a_real_encoder_starts_as_it_was(attention):
    source = minilm()
    from transformers import AutoModel, AutoTokenizer

    before = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    net = PretrainedClassifier(read_config(source), 2, attention)
    net.load_encoder(read_weights(source))
    sentences = ["How far is it from Denver to Aspen?", "What is an atom, and why does it not fall apart?", "Who?"]
    asked = AutoTokenizer.from_pretrained(source)(sentences, padding=True, return_tensors="pt")
    real = asked["attention_mask"].bool()
    with torch.no_grad():
        found, wanted = (
            encoder(**asked, output_hidden_states=True).hidden_states for encoder in (net.eval().encoder, before)
        )
    assert len(found) == 7
    for layer, expected in zip(found, wanted, strict=True):
        assert (layer - expected)[real].norm() < 1e-5 * expected[real].norm()


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_a_text_is_the_mean_of_its_tokens_whatever_it_is_batched_with(kind):
    net = classifier(kind, IKAN)
    tokens, _ = texts(net.padding)
    logits = net(tokens)
    alone = net(tokens[1:, :5])
    assert_close(logits[1:], alone, rtol=1e-4, atol=1e-5)
    hidden = net.encoder(input_ids=tokens[1:, :5]).last_hidden_state
    assert_close(alone, net.head(hidden.mean(1)), rtol=1e-4, atol=1e-5)


def test_padding_of_another_number_is_no_padding():
    net = classifier("roberta")
    zero = torch.tensor([[0, 5, 6, 2]])
    assert net.padding == 1
    assert not net(zero).allclose(net(zero[:, 1:]))
    assert_close(net(torch.tensor([[0, 5, 6, 2, 1, 1]])), net(zero), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_parameters_are_split_from_the_bottom_to_the_top(kind):
    net = classifier(kind, IKANDirect)
    split = net.split()
    names = {id(x): name for name, x in net.named_parameters()}
    found = [*split.embeddings, *(x for layer in split.layers for x in layer), *split.top, *kernel_parameters(net)]
    assert sorted(map(id, found)) == sorted(names)
    assert all("embed" in names[id(x)] for x in split.embeddings) and split.embeddings
    for number, layer in enumerate(split.layers):
        assert layer and all(f"{net.path}.{number}." in names[id(x)] for x in layer)
    top = [names[id(x)] for x in split.top]
    assert top[-2:] == ["head.weight", "head.bias"] and not any("embed" in name for name in top)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_layers_get_no_gradient(frozen):
    net = classifier("bert", IKANDirect, frozen)
    net(texts(net.padding)[0]).sum().backward()
    embeddings, layers, top = net.split()
    assert all((x.grad is None) == (frozen > 0) for x in embeddings)
    for number, layer in enumerate(net.layers):
        assert all((x.grad is None) == (number < frozen) for x in layer.parameters())
    assert all(x.grad is not None for x in top) and len(layers) == 2


def test_every_parameter_is_used():
    """Distributed training stops at one that is not: an encoder comes without a layer on top for its first token."""
    for kind in ("bert", "roberta", "distilbert", "electra"):
        net = classifier(kind, IKAN).train()
        net(texts(net.padding)[0]).sum().backward()
        assert not [name for name, x in net.named_parameters() if x.grad is None]


def test_layers_of_others_are_refused():
    with pytest.raises(ValueError, match=r"attention must make a layer of this package, .*, got a MultiheadAttention"):
        classifier("bert", nn.MultiheadAttention)


@pytest.mark.parametrize("frozen", [-1, 3])
def test_there_are_as_many_layers_to_freeze_as_there_are(frozen):
    with pytest.raises(ValueError, match=f"frozen_layers must be 0 to 2, as many layers as there are, got {frozen}"):
        classifier("bert", frozen_layers=frozen)


def test_it_starts_again_in_place():
    net = classifier("bert", MIKAN)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    net.reset_parameters()
    assert not net.encoder.embeddings.word_embeddings.weight.equal(before["encoder.embeddings.word_embeddings.weight"])
    assert net(texts(net.padding)[0]).isfinite().all()


def test_a_tokenizer_encodes_as_its_own_does():
    source = minilm()
    from transformers import AutoTokenizer

    from ika_lightning.data.tokenizer import Tokenizer

    tokenizer = Tokenizer(read_tokenizer(source))
    sentences = ["How far is it from Denver to Aspen ?", "naïve 😀", "x" * 300, "word " * 200, ""]
    expected = AutoTokenizer.from_pretrained(source)(sentences)["input_ids"]
    assert [[*tokenizer.first, *ids, *tokenizer.last] for ids in tokenizer.encode(sentences)] == expected
    assert (tokenizer.first, tokenizer.last, tokenizer.padding, len(tokenizer)) == ([101], [102], 0, 30522)
    assert tokenizer.names([101, 2129, 102, 0]) == ["[CLS]", "how", "[SEP]", "[PAD]"]


# the compiler keeps this to itself, unless warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_its_layers_share_what_is_compiled(monkeypatch):
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_(module, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    net = classifier(attention=LAYERS[2])
    tokens, _ = texts(net.padding)
    expected = net(tokens)
    compile_layers(net)
    assert_close(net(tokens), expected)
    assert len(net.layers) == 2 and counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
