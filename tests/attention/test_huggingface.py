"""Models of Hugging Face with the attention of this package."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, ExplicitKernel, IKANDirect, attention_kl
from ika_lightning.attention.core import Core
from ika_lightning.pictures import Recorder

transformers = pytest.importorskip("transformers")

from transformers import T5Config, T5EncoderModel  # noqa: E402

from ika_lightning.attention.huggingface import attach_kernel_attention, attend, register_kernel_attention  # noqa: E402

LEARNED = [IKANDirect, IKAN, MIKAN]
PAPER = {"init": "rbf"}
KINDS = [(kind, {}) for kind in (DotProduct, RBF, ExplicitKernel, *LEARNED)] + [(kind, PAPER) for kind in LEARNED]
every_kind = pytest.mark.parametrize(
    "kind, options", KINDS, ids=lambda x: x.__name__ if isinstance(x, type) else "paper" if x else ""
)
VOCABULARY, LENGTH = 31, 9


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def bert(**kwargs) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **kwargs,
    )
    return transformers.BertModel(config).eval()


def llama(**kwargs) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=16,
        **{"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.3, **kwargs},
    )
    return transformers.LlamaForCausalLM(config).eval()


def move(model: nn.Module) -> nn.Module:
    """Move the cores, so that encoders of the mean key, which start at zero, do something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "kernel_core" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def attached(model: nn.Module, kind, **options) -> nn.Module:
    return move(attach_kernel_attention(model, kind, **options))


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


PADDING = torch.arange(LENGTH) < torch.tensor([[9], [5]])


@pytest.mark.parametrize("build", [bert, llama])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", [DotProduct, RBF, *LEARNED])
def test_start_is_the_model_that_it_was(kind, padded, build):
    model = build()
    masks = {"attention_mask": PADDING.long()} if padded else {}
    expected = model(tokens(), **masks)[0]
    out = attach_kernel_attention(model, kind)(tokens(), **masks)[0]
    real = PADDING if padded else PADDING >= 0
    assert_close(out[real], expected[real], rtol=1e-4, atol=1e-5)


def test_core_has_the_sizes_of_its_module():
    for model, heads, width in ((bert(), 3, 8), (llama(), 6, 4)):
        assert attach_kernel_attention(model, IKAN, p=1.8, num_samples=7) is model
        cores = [x for x in model.modules() if isinstance(x, Core)]
        assert len(cores) == 2
        assert all(core.spectrum.points.shape == (heads, 7, width) and core.p == 1.8 for core in cores)
        assert model.config._attn_implementation == "ikan"


@every_kind
@pytest.mark.parametrize("build", [bert, llama])
def test_every_parameter_gets_a_gradient(build, kind, options):
    model = attached(build(), kind, **options).train()
    out = model(tokens(), attention_mask=PADDING.long())[0]
    kl = attention_kl(model)
    (out.square().mean() + kl).backward()
    assert (kl > 0) == (kind in (IKAN, MIKAN))
    for name, parameter in model.named_parameters():
        if "pooler" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@every_kind
def test_padding_changes_nothing(kind, options):
    model, ids = attached(bert(), kind, **options), tokens()
    mask = PADDING.long()
    before = model(ids, attention_mask=mask)[0]
    ids[~PADDING] = 5
    assert_close(model(ids, attention_mask=mask)[0][PADDING], before[PADDING])
    alone = model(ids[1:, :5])[0]
    assert_close(before[1:, :5], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, PAPER], ids=["", "paper"])
@pytest.mark.parametrize("kind", [IKAN, MIKAN])
def test_encoder_knows_its_keys(kind, options):
    """Padding alone is the same for all queries, and hides nothing from the mean key."""
    model, told = attached(bert(), kind, **options), []
    for core in (x for x in model.modules() if isinstance(x, Core)):
        core.spectrum.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    model(tokens())
    model(tokens(), attention_mask=PADDING.long())
    assert len(told) == 4
    assert all(mean.shape == (2, 3, 8) for mean in told)


@every_kind
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_past_does_not_depend_on_the_future(training, padded, kind, options):
    model, ids = attached(llama(), kind, **options).train(training), tokens()
    masks = {"attention_mask": PADDING.flip(1).long()} if padded else {}

    def logits(ids: Tensor) -> Tensor:
        torch.manual_seed(2)
        return model(ids, **masks).logits

    before = logits(ids)
    for t in (0, 4, 7):
        changed = ids.clone()
        changed[:, t + 1 :] = (ids[:, t + 1 :] - 2 + 7) % (VOCABULARY - 2) + 2
        after = logits(changed)
        assert after[:, : t + 1].equal(before[:, : t + 1])
        assert not after[:, t + 1 :].isclose(before[:, t + 1 :]).all(-1).any()


@every_kind
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_is_the_full_forward(cache, kind, options):
    model, ids = attached(llama(), kind, **options), tokens()
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(ids, cache_implementation=cache, **options)
    logits = model(found.sequences).logits
    assert_close(torch.stack(found.logits, 1), logits[:, LENGTH - 1 : -1], rtol=1e-3, atol=1e-4)
    assert found.sequences[:, LENGTH:].equal(logits.argmax(-1)[:, LENGTH - 1 : -1])


@every_kind
def test_generation_with_padding_on_the_left(kind, options):
    model, ids, mask = attached(llama(), kind, **options), tokens(), PADDING.flip(1).long()
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(ids, attention_mask=mask, **options)
    alone = model.generate(ids[1:, 4:], attention_mask=mask[1:, 4:], **options)
    assert_close(found.logits[0][1], alone.logits[0][0], rtol=1e-3, atol=1e-4)
    assert found.sequences[1, LENGTH:].equal(alone.sequences[0, 5:])


def test_scale_of_the_model_is_kept():
    config = transformers.GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=16,
        attention_multiplier=1.3,
    )
    model = transformers.GraniteForCausalLM(config).eval()
    expected = model(tokens()).logits
    assert_close(attach_kernel_attention(model, RBF)(tokens()).logits, expected, rtol=1e-4, atol=1e-5)


def test_encoder_and_decoder():
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=3,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    model = transformers.BartModel(config).eval()
    inputs = {"input_ids": tokens(), "attention_mask": PADDING.long(), "decoder_input_ids": tokens()[:, :4]}
    expected = model(**inputs)[0]
    twin = copy.deepcopy(model)
    assert_close(attach_kernel_attention(model, DotProduct)(**inputs)[0], expected, rtol=1e-4, atol=1e-5)
    attached(twin, MIKAN)
    before = twin(**inputs)[0]
    inputs["decoder_input_ids"][:, 3] += 1
    assert twin(**inputs)[0][:, :3].equal(before[:, :3])


def test_any_maker_of_layers_will_do_and_no_other_layers():
    model = attach_kernel_attention(bert(), functools.partial(IKAN, num_samples=7))
    assert all(core.spectrum.points.shape == (3, 7, 8) for core in model.modules() if isinstance(core, Core))
    with pytest.raises(ValueError, match=r"attention must make a layer of this package, .*, got a MultiheadAttention"):
        attach_kernel_attention(bert(), nn.MultiheadAttention)


def test_pictures_know_its_layers():
    model = attach_kernel_attention(bert(), IKAN)
    with Recorder(model) as recorder:
        model(tokens())
    assert list(recorder.recordings) == [f"encoder.layer.{number}.attention.self" for number in range(2)]
    assert all(recording.query.shape == (2, 3, LENGTH, 8) for recording in recorder.recordings.values())


def test_weights_are_returned_to_those_who_ask():
    model = attached(bert(), IKAN)
    out = model(tokens(), output_attentions=True)
    assert len(out.attentions) == 2
    assert_close(out.attentions[0].sum(-1), torch.ones(2, 3, LENGTH))


def test_state_dict_brings_the_same_answers():
    model, other = attached(llama(), IKAN), attach_kernel_attention(llama(), IKAN)
    other.load_state_dict(model.state_dict())
    assert other(tokens()).logits.equal(model(tokens()).logits)


def test_half_precision():
    model = attach_kernel_attention(llama(initializer_range=0.1).bfloat16(), IKAN)
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert model(tokens()).logits.isfinite().all()


def test_model_without_cores_says_what_to_call():
    register_kernel_attention()
    model = llama()
    model.set_attn_implementation("ikan")
    with pytest.raises(RuntimeError, match=r"LlamaAttention has no kernel_core: call attach_kernel_attention"):
        model(tokens())


def test_model_that_fails_is_left_as_it_was():
    model = llama().train()
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="specify exactly one of input_ids or inputs_embeds"):
        attach_kernel_attention(model, IKAN, inputs={"pixels": torch.ones(1)})
    assert model.training
    assert model.config._attn_implementation == before
    assert model(tokens()).logits.shape == (2, LENGTH, VOCABULARY)


def vit(**kwargs) -> nn.Module:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.ViTConfig(**sizes, **dropout, **{"image_size": 10, "patch_size": 5, **kwargs})
    return transformers.ViTModel(config).eval()


@pytest.mark.parametrize("kind", [DotProduct, RBF, *LEARNED])
@pytest.mark.parametrize("options", [{}, {"image_size": [15, 10], "num_channels": 2}], ids=str)
def test_a_model_of_images_needs_no_inputs(options, kind):
    model = vit(**options)
    height, width = options.get("image_size", [10, 10])
    images = torch.randn(2, options.get("num_channels", 3), height, width)
    expected = model(images)[0]
    assert_close(attach_kernel_attention(model, kind)(images)[0], expected, rtol=1e-4, atol=1e-5)
    assert len([x for x in model.modules() if isinstance(x, Core)]) == 2


def test_a_model_that_its_dummy_inputs_do_not_fit_asks_for_inputs():
    config = transformers.Wav2Vec2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8, conv_dim=[8], conv_stride=[2],
        conv_kernel=[3], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=r"^inputs must be given for a Wav2Vec2Model, .*; give inputs={name: tensor}$"):
        attach_kernel_attention(model, IKAN)
    assert model.config._attn_implementation == before
    inputs = {"input_values": torch.randn(1, 101)}
    assert attach_kernel_attention(model, IKAN, inputs=inputs)(**inputs)[0].isfinite().all()


# the name that all supported versions have
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("options", [{}, PAPER], ids=["", "paper"])
@pytest.mark.parametrize("kind", [IKAN, MIKAN])
@pytest.mark.parametrize("build", [bert, llama, vit])
def test_gradient_checkpointing_keeps_the_gradient_of_the_regulariser(build, kind, options, use_reentrant):
    model = attached(build(), kind, **options).train()
    inputs = torch.randn(2, 3, 10, 10) if build is vit else tokens()
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(2)
        out = model(inputs)[0]
        kl = attention_kl(model)
        (out.square().mean() + 3.0 * kl).backward()
        found.append((kl.detach(), {name: p.grad for name, p in model.named_parameters() if "pooler" not in name}))
    assert found[0][0] > 0
    assert_close(*found)


@pytest.mark.parametrize("option", ["position_bias", "softcap", "s_aux"])
def test_additions_to_the_logits_are_refused(option):
    module = nn.Module()
    module.kernel_core = DotProduct(4, 2).core
    q = torch.ones(1, 2, 3, 2)
    with pytest.raises(ValueError, match=f"kernel attention has no {option}"):
        attend(module, q, q, q, None, **{option: torch.ones(())})


def test_a_model_that_adds_to_its_logits_is_left_as_it_was():
    """Found when it is switched over, and not in its first step of training."""
    sizes = {"vocab_size": 17, "num_layers": 1, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2}
    model = T5EncoderModel(T5Config(**sizes)).eval()
    tokens = torch.tensor([[1, 5, 3]])
    before = model(tokens).last_hidden_state
    with pytest.raises(ValueError, match="kernel attention has no position_bias, which T5Attention asks for"):
        attach_kernel_attention(model, IKAN, inputs={"input_ids": tokens})
    assert model(tokens).last_hidden_state.equal(before)
