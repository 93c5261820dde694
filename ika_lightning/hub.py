"""Pretrained encoders of text as data: what there is of one in a folder, or by its name on Hugging Face's hub.

What is read becomes text and tensors, which a checkpoint can hold: a tokenizer and a configuration as JSON, and
weights. Nothing of the folder is run. Needs the extra ``huggingface`` (``pip install 'ika-lightning[huggingface]'``),
which is imported when something is read, and not before.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ika_lightning.data.tokenizer import Tokenizer

__all__ = [
    "ENCODERS",
    "Kind",
    "build_encoder",
    "check_tokenizer",
    "count_positions",
    "read_config",
    "read_tokenizer",
    "read_weights",
]

Read = TypeVar("Read")


@dataclass(frozen=True)
class Kind:
    """What has to be known of a model type that its configuration does not tell.

    Args:
        layers: Where in the model its layers are.
        skips_positions: Whether positions are counted from behind the token of padding, whose number is then lost.
    """

    layers: str = "encoder.layer"
    skips_positions: bool = False


#: The model types whose attention can be replaced.
ENCODERS: Mapping[str, Kind] = {
    "bert": Kind(),
    "camembert": Kind(skips_positions=True),
    "distilbert": Kind("transformer.layer"),
    "electra": Kind(),
    "ernie": Kind(),
    "modernbert": Kind("layers"),
    "nomic_bert": Kind("layers"),
    "roberta": Kind(skips_positions=True),
    "xlm-roberta": Kind(skips_positions=True),
}

# What a configuration has that is of the file it was read from, or of how it was loaded.
_PASSING = (
    "_attn_implementation",
    "_attn_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
)


def read_config(source: str) -> str:
    """Read the configuration of an encoder.

    Args:
        source: A folder, or a name on the hub.

    Returns:
        It as JSON, without where it was read, for :func:`build_encoder`.

    Raises:
        ValueError: If there is none, or it is of no encoder of :data:`ENCODERS`.
        ImportError: If the extra is missing.
    """
    _check_extra()
    from transformers import PreTrainedConfig

    def read() -> dict[str, Any]:
        settings: dict[str, Any]
        settings, _ = PreTrainedConfig.get_config_dict(source)
        return settings

    settings = _read("config.json", source, read)
    if "model_type" not in settings:
        raise ValueError(f"pretrained: {source} has no config.json that says a model_type; {_WHOLE}")
    # with the defaults of today, which another version might have others for
    whole = _config_of({"architectures": None, **settings}, f"pretrained: {source}").to_dict()
    return json.dumps({key: value for key, value in sorted(whole.items()) if key not in _PASSING})


def read_tokenizer(source: str) -> str:
    """Read the tokenizer of an encoder.

    Args:
        source: A folder, or a name on the hub.

    Returns:
        It as JSON of the library ``tokenizers``, which says what texts are padded with, and neither cuts nor pads.

    Raises:
        ValueError: If there is none, or it marks no beginning or end of a text, or has no token for padding.
        ImportError: If the extra is missing.
    """
    _check_extra()
    from transformers import AutoTokenizer

    tokenizer = _read("tokenizer", source, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    # where there is no vocabulary, the library makes one of special tokens
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"pretrained: {source} has no tokenizer (tokenizer.json, or a vocabulary); {_WHOLE}")
    if not tokenizer.is_fast:
        raise ValueError(
            f"pretrained: the tokenizer of {source} is written in Python, and a checkpoint keeps none; give a folder "
            "with a tokenizer.json"
        )
    backend = tokenizer.backend_tokenizer
    if tokenizer.pad_token_id is None or not backend.num_special_tokens_to_add(False):
        raise ValueError(
            f"pretrained: the tokenizer of {source} has no tokens for padding and around a text, which encoders need; "
            "give the one that the encoder was trained with"
        )
    backend.no_truncation()
    backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    state: str = backend.to_str()
    return state


def read_weights(source: str) -> dict[str, Tensor]:
    """Read the weights of an encoder, in float32.

    Args:
        source: A folder, or a name on the hub.

    Raises:
        ValueError: If some are missing, or are of other shapes than the configuration says.
        ImportError: If the extra is missing.
    """
    config = _config_of(json.loads(read_config(source)), f"pretrained: {source}")
    from transformers import AutoModel

    def read() -> tuple[PreTrainedModel, dict[str, Any]]:
        return AutoModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **_without_pooler(config)
        )

    encoder, found = _read("weights", source, read)
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(f"pretrained: the weights of {source} lack {missing[0]}{more}; {_WHOLE}")
    return dict(encoder.state_dict())


def build_encoder(config: str) -> PreTrainedModel:
    """Build an encoder with random weights.

    Args:
        config: What :func:`read_config` returned.

    Raises:
        ValueError: If it is of no encoder of :data:`ENCODERS`.
        ImportError: If the extra is missing.
    """
    _check_extra()
    from transformers import AutoModel

    settings = _config_of(json.loads(config), "encoder")
    encoder: PreTrainedModel = AutoModel.from_config(
        settings, attn_implementation="eager", trust_remote_code=False, **_without_pooler(settings)
    )
    return encoder


def count_positions(config: str) -> int:
    """Return how many tokens of a text an encoder has positions for, special tokens included.

    Args:
        config: What :func:`read_config` returned.

    Example:
        >>> count_positions('{"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}')
        512
    """
    settings = json.loads(config)
    positions: int = settings["max_position_embeddings"]
    return positions - (settings["pad_token_id"] + 1 if ENCODERS[settings["model_type"]].skips_positions else 0)


def check_tokenizer(config: str, tokenizer: Tokenizer, max_length: int) -> None:
    """Check that an encoder knows all tokens that it will be given.

    Args:
        config: What :func:`read_config` returned.
        tokenizer: What texts become tokens by.
        max_length: How many tokens of a text there may be.

    Raises:
        ValueError: If not.
    """
    settings, positions = json.loads(config), count_positions(config)
    if len(tokenizer) > settings["vocab_size"] or tokenizer.padding != settings["pad_token_id"]:
        raise ValueError(
            f"pretrained: the tokenizer has {len(tokenizer)} tokens and pads with number {tokenizer.padding}, but the "
            f"encoder knows {settings['vocab_size']} and pads with {settings['pad_token_id']}; give a folder whose "
            "tokenizer is the encoder's own"
        )
    if max_length > positions:
        raise ValueError(
            f"max_length={max_length} is more than the {positions} positions of the encoder; give "
            f"--data.max_length {positions} or less, where longer texts are cut, or an encoder for longer texts"
        )


_WHOLE = "give a folder that save_pretrained has written, with config.json, model.safetensors and tokenizer.json"


def _config_of(settings: Mapping[str, Any], what: str) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING

    kind = str(settings.get("model_type"))
    if kind not in ENCODERS:
        raise ValueError(
            f"{what} is of model type {kind!r}, whose attention cannot be replaced; those that can be are "
            f"{', '.join(ENCODERS)}"
        )
    if settings.get("is_decoder"):
        raise ValueError(f"{what} is a decoder (is_decoder is true in its configuration); give an encoder")
    kept = {key: value for key, value in settings.items() if key not in _PASSING}
    config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(kept)
    return config


def _without_pooler(config: PreTrainedConfig) -> dict[str, Any]:
    """The argument that leaves out a layer on top for the first token, of which nothing here makes use."""
    from transformers import MODEL_MAPPING

    # typed as several, which model types of other tasks have
    takes = inspect.signature(MODEL_MAPPING[type(config)]).parameters  # type: ignore[arg-type]
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def _check_extra() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(
            "pretrained takes transformers, which the extra huggingface brings: pip install "
            "'ika-lightning[huggingface]'"
        )


def _read(what: str, source: str, read: Callable[[], Read]) -> Read:
    """Read something, and tell in one line why that cannot be."""
    is_folder = Path(source).is_dir()
    if not is_folder and (Path(source).is_absolute() or source.startswith((".", "~")) or Path(source).exists()):
        raise ValueError(f"pretrained: there is no folder {source}; give that of an encoder, or a name on the hub")
    try:
        with _quiet():
            return read()
    # a damaged file raises anything, and so does a name that means nothing
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        if is_folder:
            raise ValueError(f"pretrained: the {what} of {source} cannot be read ({reason}); {_WHOLE}") from error
        raise ValueError(
            f"pretrained: there is no folder {source}, and the {what} of that name cannot be had from the hub "
            f"({reason}); give a folder"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the reports and bars of the library: what is missing is told by errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
