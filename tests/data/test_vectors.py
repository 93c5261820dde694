import gzip

import numpy as np
import pytest
import torch

from ika_lightning.data.vectors import read_vectors

GLOVE = "the 0.25 -1 2e-1\n. . . 1 1 1\nrose 2 3 4\nis 5 6 7\nthe 9 9 9\n"


@pytest.fixture
def save(tmp_path):
    def save(content: str | bytes, name: str = "vectors.txt") -> str:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize(
    "content, name",
    [
        (GLOVE, "vectors.txt"),
        ("5 3\n" + GLOVE, "vectors.vec"),  # as word2vec writes it
        (GLOVE.replace("\n", " \r\n"), "vectors.txt"),
        (gzip.compress(GLOVE.encode(), mtime=0), "vectors.txt.gz"),
    ],
)
def test_words_wanted_are_found_and_the_first_line_of_each_counts(save, content, name) -> None:
    found, vectors = read_vectors(save(content, name), ["<pad>", "is", "red", ". . .", "the"])
    assert found.tolist() == [4, 3, 1]
    assert torch.equal(vectors, torch.tensor([[0.25, -1, 0.2], [1, 1, 1], [5, 6, 7]]))


def test_words_that_are_no_utf8(save) -> None:
    found, _ = read_vectors(save("ros\xe9 1 2\nrosé 3 4\n".encode("latin-1") + "rosé 5 6\n".encode()), ["rosé"])
    assert found.tolist() == [0]


def test_a_large_file_is_read_in_a_stream(save) -> None:
    rng = np.random.default_rng(0)
    lines = [f"w{i} " + " ".join(f"{x:.3f}" for x in row) for i, row in enumerate(rng.normal(size=(2000, 50)))]
    found, vectors = read_vectors(save("\n".join(lines)), ["w1999", "w7"])
    assert found.tolist() == [1, 0] and vectors.shape == (2, 50)


@pytest.mark.parametrize(
    "content, name, message",
    [
        ("the 1 2\nrose 1\n", "v.txt", "v.txt, line 2: 1 numbers after the word where the first line has 2"),
        ("the 1 2\nrose 1 2 3\n", "v.txt", "v.txt, line 2: 3 numbers after the word where the first line has 2"),
        ("the 1 2\n\n", "v.txt", "line 2: 0 numbers"),
        ("the\n", "v.txt", "line 1: 0 numbers"),
        ("rose 1 red\n", "v.txt", "v.txt, line 1: 'red' is no number"),
        ("the 1 2\n", "v.txt", "none of the 1 words wanted; is it of this language and case"),
        ("", "v.txt", "none of the 1 words"),
        (b"rose 1 2\n", "v.txt.gz", "no complete gzip file"),
        (gzip.compress(GLOVE.encode(), mtime=0)[:-9], "v.txt.gz", "no complete gzip file"),
    ],
)
def test_wrong(save, content, name, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_vectors(save(content, name), ["rose"])


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.txt of word vectors"):
        read_vectors("nowhere.txt", ["rose"])
