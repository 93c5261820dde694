"""From text to tokens and back, by the ``tokenizers`` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

__all__ = ["END", "HOW_TO_TOKENIZE", "PADDING", "START", "UNKNOWN", "Tokenizer"]

Unit = Literal["word", "subword"]

_SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
#: The first tokens of every vocabulary.
PADDING, UNKNOWN, START, END = range(4)

#: How a text becomes ids, for a reader who has the library and the JSON of a tokenizer.
HOW_TO_TOKENIZE = (
    "Read the tokenizer with the library 'tokenizers', as Tokenizer.from_str(json.dumps(tokenizer)); it normalises "
    "texts itself. Set its encode_special_tokens to True, so that a text with <pad> in it is not padding. A text is "
    "then encode(text, add_special_tokens=False).ids."
)

# A word with the apostrophes and hyphens inside it, or a single sign that is neither word nor blank.
_WORD = tokenizers.Regex(r"\w+(?:['’\-]\w+)*|[^\w\s]")


class Tokenizer:
    """A vocabulary of words or of parts of words, learned on training text.

    Words that the vocabulary lacks become the unknown token. Parts of words are byte-pair encodings (Sennrich et al.
    2016) of the text's bytes, so there is no unknown text, and :meth:`decode` gives back what was encoded.

    That of a pretrained encoder (:func:`ika_lightning.hub.read_tokenizer`) is one, too, with tokens that it puts around
    every text.

    Args:
        state: What :meth:`state` of another one gave.

    Attributes:
        padding: The token that texts are padded with.
        first: The tokens that come before those of a text, none in a vocabulary that was learned here.
        last: Those that come after.

    Example:
        >>> tokenizer = Tokenizer.learn(["a rose is a rose"], unit="word", size=100)
        >>> tokenizer.encode(["a rose is red"])
        [[4, 5, 6, 1]]
        >>> tokenizer.decode([4, 5])
        'a rose'
        >>> len(tokenizer)
        7
    """

    def __init__(self, state: str) -> None:
        self._state = state
        self._tokenizer = tokenizers.Tokenizer.from_str(state)
        self._tokenizer.encode_special_tokens = True  # a text with "<pad>" in it is not padding
        padding = self._tokenizer.padding
        self.padding: int = PADDING if padding is None else padding["pad_id"]
        # what it is padded with is known now, and batches pad
        self._tokenizer.no_padding()
        self.first, self.last = self._special_around()

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        *,
        unit: Unit,
        size: int,
        min_count: int = 1,
        lowercase: bool = False,
        split_digits: bool = False,
    ) -> Tokenizer:
        """Learn a vocabulary.

        Args:
            texts: Training texts.
            unit: ``"word"``, or ``"subword"`` for byte-pair encoding.
            size: Most tokens in the vocabulary, with four special ones, and for ``"subword"`` the 256 bytes.
            min_count: How often a word, or a pair of parts, has to occur to become a token.
            lowercase: Fold case, here and in all texts to be encoded.
            split_digits: For ``"subword"``, make each digit a token of its own, so that numbers can be copied.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If size leaves no room for the special tokens and bytes, or unit is unknown.
        """
        least = len(_SPECIAL) + (256 if unit == "subword" else 1)
        if unit not in ("word", "subword"):
            raise ValueError(f"unit must be 'word' or 'subword', got {unit!r}")
        if size < least:
            raise ValueError(f"a vocabulary of {unit}s needs a size of at least {least}, got {size}")
        shared: dict[str, Any] = {
            "vocab_size": size,
            "min_frequency": min_count,
            "special_tokens": _SPECIAL,
            "show_progress": False,
        }
        trainer: trainers.Trainer
        if unit == "word":
            tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=_SPECIAL[UNKNOWN]))
            tokenizer.pre_tokenizer = pre_tokenizers.Split(_WORD, behavior="removed", invert=True)
            trainer = trainers.WordLevelTrainer(**shared)
        else:
            tokenizer = tokenizers.Tokenizer(models.BPE())
            splits: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=True)]
            if split_digits:
                splits.append(pre_tokenizers.Digits(individual_digits=True))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **shared)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    def state(self) -> str:
        """Everything there is to know about this tokenizer, as JSON: a checkpoint keeps it."""
        return self._state

    def describe(self) -> dict[str, Any]:
        """The same as lists and dicts, as the ``tokenizers`` library reads it from JSON."""
        described: dict[str, Any] = json.loads(self.state())
        return described

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without special ones; none for a text without any."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return self._tokenizer.decode(tokens).removeprefix(" ")

    def starts_word(self, token: int) -> bool:
        """Whether a token is the beginning of a word, and not a part from its inside."""
        return self._tokenizer.decode([token]).startswith(" ")

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Return each token as a person would read it, for the axes of a picture."""
        return [self._tokenizer.decode([token], skip_special_tokens=False) for token in tokens]

    @property
    def words(self) -> list[str]:
        """The tokens of the vocabulary, in the order of their numbers."""
        numbers = self._tokenizer.get_vocab()
        return sorted(numbers, key=numbers.__getitem__)

    def _special_around(self) -> tuple[list[int], list[int]]:
        """The tokens before those of a text, and those after."""
        encoded = self._tokenizer.encode("a")
        own = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
        return (encoded.ids[: own[0]], encoded.ids[own[-1] + 1 :]) if own else (encoded.ids, [])
