import pytest

from ika_lightning.data.tokenizer import UNKNOWN, Tokenizer

TEXTS = ["The rose isn't red.", "the tulip is well-known", "Ein Tännlein grünet wo", "ein Röslein auch, wer weiß"]
UNUSUAL = ["naïve 日本語 🤷🏽‍♀️", "שלום עולם", "<pad> and </s> are words here", "tab\tand  blanks", ""]


@pytest.mark.parametrize("unit", ["word", "subword"])
def test_learning_repeats(unit):
    learned = [Tokenizer.learn(TEXTS, unit=unit, size=300).state() for _ in range(3)]
    assert len(set(learned)) == 1


@pytest.mark.parametrize("unit", ["word", "subword"])
def test_state_is_everything(unit):
    tokenizer = Tokenizer.learn(TEXTS, unit=unit, size=300)
    again = Tokenizer(tokenizer.state())
    assert again.encode(TEXTS + UNUSUAL) == tokenizer.encode(TEXTS + UNUSUAL)
    assert len(again) == len(tokenizer)


def test_words():
    tokenizer = Tokenizer.learn(["It isn't well-known. It's so"], unit="word", size=100)
    assert sorted(tokenizer.words[4:]) == [".", "It", "It's", "isn't", "so", "well-known"]


def test_words_that_are_rare_or_new_are_unknown():
    tokenizer = Tokenizer.learn(["a a b", "a b c"], unit="word", size=100, min_count=2)
    assert tokenizer.encode(["a c d", "b"]) == [[4, UNKNOWN, UNKNOWN], [5]]
    assert tokenizer.encode([""]) == [[]]


def test_the_most_frequent_words_are_kept():
    tokenizer = Tokenizer.learn(["a a a b b c"], unit="word", size=6)
    assert tokenizer.words == ["<pad>", "<unk>", "<s>", "</s>", "a", "b"]


@pytest.mark.parametrize("text", TEXTS + UNUSUAL)
def test_subwords_give_the_text_back(text):
    tokenizer = Tokenizer.learn(TEXTS, unit="subword", size=300)
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_digits_on_their_own():
    texts = ["in 1984", "1984 and 1984,", "19.84"]
    tokenizer = Tokenizer.learn(texts, unit="subword", size=400, split_digits=True)
    assert not [word for word in tokenizer.words if sum(letter.isdigit() for letter in word) and len(word) > 1]
    assert [tokenizer.decode(tokens) for tokens in tokenizer.encode(texts + UNUSUAL)] == texts + UNUSUAL
    (tokens,) = tokenizer.encode(["in 1984"])
    assert "".join(tokenizer.names(tokens)[-4:]) == "1984"
    assert len(tokenizer.encode(["in 1984"])[0]) > len(
        Tokenizer.learn(texts, unit="subword", size=400).encode(["in 1984"])[0]
    )


@pytest.mark.parametrize("unit", ["word", "subword"])
def test_names_of_special_tokens_in_a_text_are_text(unit):
    tokenizer = Tokenizer.learn(TEXTS, unit=unit, size=300)
    assert not {0, 2, 3}.intersection(tokenizer.encode(["<pad> <s> </s>"])[0])


def test_lowercase():
    tokenizer = Tokenizer.learn(["Rose ROSE Ä"], unit="word", size=100, lowercase=True)
    assert sorted(tokenizer.words[4:]) == ["rose", "ä"]
    assert tokenizer.encode(["rOsE"]) == tokenizer.encode(["rose"])


def test_the_same_letter_in_two_forms():
    tokenizer = Tokenizer.learn(["\u00e9t\u00e9"], unit="word", size=100)
    assert tokenizer.encode(["e\u0301te\u0301"]) == [[4]]


def test_names_are_for_people():
    tokenizer = Tokenizer.learn(TEXTS, unit="subword", size=300)
    tokens = [0, *tokenizer.encode(["ein Röslein"])[0]]
    assert tokenizer.names(tokens)[0] == "<pad>"
    assert "".join(tokenizer.names(tokens)[1:]).strip().startswith("ein R")


def test_no_room():
    with pytest.raises(ValueError, match="a vocabulary of subwords needs a size of at least 260, got 99"):
        Tokenizer.learn(TEXTS, unit="subword", size=99)
    with pytest.raises(ValueError, match="unit must be 'word' or 'subword', got 'letter'"):
        Tokenizer.learn(TEXTS, unit="letter", size=99)
