"""Kernel attention inside the models of Hugging Face ``transformers``, by the interface that they have for attention.

Needs the extra ``huggingface`` (``pip install 'ika-lightning[huggingface]'``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from ika_lightning.attention.core import Core
from ika_lightning.attention.layer import MultiheadAttention
from ika_lightning.attention.mask import Mask

# What some models add to their logits. Dropping it in silence would make another model of theirs.
_UNSUPPORTED = ("position_bias", "softcap", "s_aux")


def attach_kernel_attention(
    model: PreTrainedModel,
    attention: Callable[[int, int], MultiheadAttention],
    *,
    inputs: dict[str, Tensor] | None = None,
    name: str = "ikan",
    **options: Any,
) -> PreTrainedModel:
    """Give every attention module of a model a core of this package, and switch the model over to it.

    The model keeps its projections, positions, masks, key-value cache and ``generate``; what happens between queries,
    keys and values becomes that of ``attention``. The core of a module is its submodule ``kernel_core``, so it trains,
    moves and is saved with the model, and :func:`~ika_lightning.attention.attention_kl` finds it. Trained cores are
    loaded with ``load_state_dict`` after this call; ``from_pretrained`` does not know of them.

    Modules do not agree on the names of their sizes, so the model is run once, in evaluation, to see which modules
    attend and with what. A core has a head for each head of the queries; heads of keys that several share are repeated.

    Args:
        model: A model whose attention goes through ``transformers.AttentionInterface``, as nearly all do.
        attention: The class of layers whose core is used, or anything else that makes such a layer when it is called
            with the width of all heads and the number of heads.
        inputs: What to run the model with; if None, ``model.dummy_inputs``, or for a model of images a black one of the
            size that its configuration tells.
        name: Name of the attention implementation, see :func:`register_kernel_attention`.
        **options: Further arguments of it, such as p and num_samples.

    Returns:
        The model.

    Raises:
        ValueError: If no module of the model attends through the interface, one adds to its logits what kernel
            attention has no place for, the model does not run without inputs, or the layer is none of this package.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from ika_lightning.attention import IKAN
        >>> sizes = dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=11, intermediate_size=8, **sizes))
        >>> model = attach_kernel_attention(model, IKAN, p=1.8)
        >>> model(torch.tensor([[1, 5, 3]])).logits.shape
        torch.Size([1, 3, 11])
    """
    sizes = _measure_heads(model, inputs, name)
    for module, (num_heads, head_dim) in sizes.items():
        layer = attention(num_heads * head_dim, num_heads, **options)
        if not isinstance(layer, MultiheadAttention):
            raise ValueError(
                f"attention must make a layer of this package, whose core is put in, got a {type(layer).__name__}"
            )
        module.kernel_core = layer.core.to(next(module.parameters())).train(module.training)
    return model


def register_kernel_attention(name: str = "ikan") -> None:
    """Make the attention implementation ``name`` known to ``transformers``, with the masks that it needs.

    A model that is switched to it (``model.set_attn_implementation(name)``) must have its cores, see
    :func:`attach_kernel_attention`, which calls this function.

    Example:
        >>> register_kernel_attention()
        >>> "ikan" in AttentionInterface()
        True
    """
    AttentionInterface.register(name, attend)
    # An implementation without a mask function gets no masks: causal models would read the future.
    AttentionMaskInterface.register(name, make_mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    r"""Attend with the module's ``kernel_core``, as an implementation of ``transformers.AttentionInterface``.

    Where a model scales logits by something else than :math:`1 / \sqrt d`, queries and keys are scaled, so that
    the product :math:`q \cdot k / \sqrt d`, which cores start from, is the model's own.

    Shapes:
        query (b, h, n, d); key and value (b, h or a divisor of it, m, d); attention_mask (b, 1, 1 or n, m), True = may
        attend; the result (b, n, h, d), and weights (b, h, n, m) if ``output_attentions`` asks for them, else None.

    Raises:
        RuntimeError: If the module has no core.
        ValueError: If the model adds to its logits what kernel attention has no place for.
    """
    core: Core | None = getattr(module, "kernel_core", None)
    if core is None:
        raise RuntimeError(
            f"{type(module).__name__} has no kernel_core: call attach_kernel_attention(model, ...) first"
        )
    if refusal := _refusal(module, kwargs):
        raise ValueError(refusal)
    n, d = query.shape[-2:]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and n > 1:
        # no mask, yet more keys than queries: the empty rest of a static cache
        key, value = key[:, :, :n], value[:, :, :n]
    groups = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if scaling is not None and not math.isclose(scaling * math.sqrt(d), 1.0):
        root = math.sqrt(scaling * math.sqrt(d))
        query, key = query * root, key * root

    need_weights = bool(kwargs.get("output_attentions", False))
    mask = _mask(attention_mask, causal, n, key)
    out, weights = core(query, key, value, mask, dropout_p=dropout, need_weights=need_weights)
    return out.transpose(1, 2).contiguous(), weights


def _refusal(module: nn.Module, kwargs: dict[str, Any]) -> str | None:
    """Why a module cannot be served, given what it says of a call; None if it can."""
    asked = next((name for name in _UNSUPPORTED if kwargs.get(name) is not None), None)
    return asked and f"kernel attention has no {asked}, which {type(module).__name__} asks for"


def _mask(attention_mask: Tensor | None, causal: bool, n: int, key: Tensor) -> Mask:
    """Read what ``transformers`` says of a call."""
    if attention_mask is not None:
        shared = not causal and attention_mask.size(-2) == 1
        read = Mask.of(attention_mask)
        if shared or read.pairs is not None:
            return read
        return Mask(pairs=read.keys, pair_bias=read.key_bias)
    if causal and n == 1:
        # Nothing to forbid; but a mask of pairs says that the mean key would leak, so that this step of generation has
        # the kernel that the whole sequence has.
        return Mask(pairs=torch.ones(1, key.size(-2), dtype=torch.bool, device=key.device))
    return Mask(causal=causal)


def make_mask(*, q_length: int, mask_function: Callable[..., Any], **kwargs: Any) -> Tensor | None:
    """Make the boolean mask (b, 1, 1 or n, m), True = may attend, of a call, or None where ``is_causal`` says it all.

    It has one row where all queries share it, as with padding alone: what n equal rows mean, a core cannot know.
    """
    shared = mask_function is bidirectional_mask_function
    mask: Tensor | None = sdpa_mask(q_length=1 if shared else q_length, mask_function=mask_function, **kwargs)
    return mask


def _dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Make inputs for one run of a model, if its configuration tells enough of them."""
    if model.main_input_name != "pixel_values":
        inputs: dict[str, Tensor] = model.dummy_inputs
        return inputs
    sizes = model.config.image_size
    height, width = (sizes, sizes) if isinstance(sizes, int) else sizes
    return {"pixel_values": torch.zeros(1, model.config.num_channels, height, width, dtype=model.dtype)}


def _measure_heads(
    model: PreTrainedModel, inputs: dict[str, Tensor] | None, name: str
) -> dict[nn.Module, tuple[int, int]]:
    """Switch the model over, and return heads and width of a head of each module that attends.

    The model is left as it was if no module does, one asks for what there is not, or the run fails.
    """
    sizes: dict[nn.Module, tuple[int, int]] = {}
    refusals: list[str] = []

    def measure(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if refusal := _refusal(module, kwargs):
            refusals.append(refusal)
        sizes[module] = query.size(1), query.size(-1)
        return value.new_zeros(query.size(0), query.size(2), query.size(1), value.size(-1)), None

    training, before = model.training, model.config._attn_implementation
    register_kernel_attention(name)
    AttentionInterface.register(name, measure)
    try:
        model.set_attn_implementation(name)
        try:
            given = _dummy_inputs(model) if inputs is None else inputs
            with torch.no_grad():
                model.eval()(**{key: x.to(model.device) for key, x in given.items()})
        except Exception as error:
            if inputs is not None:
                raise
            raise ValueError(
                f"inputs must be given for a {type(model).__name__}, to run it once: its dummy inputs do not fit "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); give inputs={{name: tensor}}"
            ) from error
        if refusals:
            raise ValueError(refusals[0])
        if not sizes:
            raise ValueError(
                f"model must attend through transformers.AttentionInterface, but no module of {type(model)} does"
            )
    except Exception:
        model.set_attn_implementation(before)
        raise
    finally:
        model.train(training)
        AttentionInterface.register(name, attend)
    return sizes
