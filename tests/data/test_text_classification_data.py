"""TextClassificationData: splits, vocabularies, batches, checkpoints, predictions, and what it says of bad input."""

import csv
import hashlib
import io
from itertools import chain
from pathlib import Path

import pytest
import torch

from ika_lightning.data import TextClassificationData
from ika_lightning.data.datasets import DATASETS

CLASSES = {"a": "apple ant", "b": "bear bee bat", "c": "cat"}


@pytest.fixture
def write(tmp_path):
    def write(rows: int = 60, name: str = "rows.tsv", start: int = 0) -> str:
        """Classes in turn; texts are distinct and of different lengths."""
        names = list(CLASSES)
        lines = [
            f"{names[i % 3]}\t{CLASSES[names[i % 3]]} {'very ' * (i % 7)}n{i}\n" for i in range(start, start + rows)
        ]
        (tmp_path / name).write_text("".join(lines))
        return str(tmp_path / name)

    return write


def fitted(path: str, **options) -> TextClassificationData:
    data = TextClassificationData(path=path, **options)
    data.setup("fit")
    return data


def texts_of(data: TextClassificationData, part: str) -> list[str]:
    """What the batches of a part say, word by word."""
    loader = getattr(data, f"{part}_dataloader")()
    rows = [row[row > 0].tolist() for batch in loader for row in batch.tokens]
    return sorted(" ".join(data.tokenizer.names(row)) for row in rows)


def all_texts(path: str) -> list[str]:
    return sorted(line.split("\t")[1] for line in Path(path).read_text().splitlines())


class TestNamed:
    def test_languages(self):
        data = TextClassificationData("languages")
        data.prepare_data()
        data.setup("fit")
        parts = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
        assert [sum(len(batch.row) for batch in part) for part in parts] == [7680, 960, 960]
        assert data.class_counts.tolist() == [320] * 24
        assert "Danish" in data.classes

    @pytest.mark.parametrize(
        "name, classes, sizes",
        [
            ("trec", 6, [4907, 545, 500]),
            ("trec_fine", 50, [4907, 545, 500]),
            ("sst2", 2, [6920, 872, 1821]),
            ("mr", 2, [8530, 1066, 1066]),
            ("subj", 2, [8000, 1000, 1000]),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.* are also in training")
    def test_benchmarks(self, benchmark_root, name, classes, sizes):
        data = TextClassificationData(name, root=str(benchmark_root))
        data.prepare_data()
        data.setup("fit")
        parts = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
        assert [sum(len(batch.row) for batch in part) for part in parts] == sizes
        assert len(data.classes) == classes

    def test_labels_of_benchmarks_have_names(self, benchmark_root):
        data = TextClassificationData("trec", val_fraction=0, root=str(benchmark_root))
        with pytest.warns(UserWarning, match=r"10 of the 500 test texts \(.*test\.tsv\) are also in training"):
            data.setup("fit")
        assert data.classes == ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
        test = data._parts["test"]
        assert dict(zip(test.texts, test.labels, strict=True))["Who was Galileo ?"] == "HUM"

    @pytest.mark.parametrize("name, encoding", [("trec", "latin-1"), ("mr", "cp1252"), ("sst2", "utf-8")])
    def test_the_public_original_becomes_the_stored_file(self, benchmark_root, name, encoding):
        """The original, as it is documented, is made of the stored file here."""
        remote = DATASETS[name].files["train"]
        stored = (benchmark_root / remote.path).read_bytes()
        original = stored.decode().replace("\t", " ").encode(encoding)
        assert remote.convert(original) == stored
        for remote in DATASETS[name].files.values():
            content = (benchmark_root / remote.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (remote.size, remote.sha256)

    def test_bytes_that_are_something_else_do_not_break_the_conversion(self):
        assert DATASETS["mr"].files["train"].convert(b"\x81\xff") == "\ufffd\xff".encode()


class TestSplits:
    def test_every_row_once_and_each_class_its_share(self, write):
        path = write(60)
        data = fitted(path, test_fraction=0.2)
        parts = [texts_of(data, part) for part in ("train", "val", "test")]
        assert [len(part) for part in parts] == [42, 6, 12]
        for part, each in zip(parts[1:], (2, 4), strict=True):
            assert [sum(text.startswith(word) for text in part) for word in ("apple", "bear", "cat")] == [each] * 3

    def test_folds_part_the_rows(self, write):
        path = write(53)
        folds = [fitted(path, fold=fold, folds=7) for fold in range(7)]
        held_out = [batch.row for data in folds for batch in data.test_dataloader()]
        assert sum(map(len, held_out)) == 53
        tested = list(chain(*(data._parts["test"].texts for data in folds)))
        assert sorted(tested) == all_texts(path)
        for data in folds:
            assert not set(data._parts["test"].texts) & {*data._parts["train"].texts, *data._parts["val"].texts}

    def test_seeded(self, write):
        path = write(60)
        first, again, other = (fitted(path, seed=seed)._parts["test"].texts for seed in (0, 0, 1))
        assert first == again != other

    def test_own_files(self, write):
        train, val, test = write(30), write(9, "val.tsv", start=100), write(6, "test.tsv", start=200)
        data = fitted(train, val_path=val, test_path=test)
        assert [len(data._parts[part].texts) for part in ("train", "val", "test")] == [30, 9, 6]

    def test_nothing_held_out(self, write):
        data = fitted(write(10), val_fraction=0, test_fraction=0)
        assert len(texts_of(data, "train")) == 10
        assert data.val_dataloader() == []
        with pytest.raises(ValueError, match="there are no test texts, as test_fraction=0"):
            data.test_dataloader()

    def test_numbers_are_sorted_by_value(self, tmp_path):
        (tmp_path / "rows.tsv").write_text("".join(f"{i % 11}\ttext {i}\n" for i in range(44)))
        assert fitted(str(tmp_path / "rows.tsv")).classes == [str(number) for number in range(11)]

    def test_duplicates_across_splits_are_counted(self, write, tmp_path):
        train = write(30)
        lines = Path(train).read_text().splitlines(keepends=True)
        (tmp_path / "test.tsv").write_text("".join(lines[:4]) + "a\tnew\n")
        (tmp_path / "val.tsv").write_text("a\told\n")
        with pytest.warns(UserWarning, match=r"4 of the 5 test texts \(.*test\.tsv\) are also in training"):
            fitted(train, val_path=str(tmp_path / "val.tsv"), test_path=str(tmp_path / "test.tsv"))


class TestBatches:
    def test_tokens_and_labels_belong_together(self, write):
        data = fitted(write(60), batch_size=7)
        seen = 0
        for batch in data.train_dataloader():
            assert batch.tokens.size(1) == (batch.tokens > 0).sum(1).max()
            first = [data.tokenizer.names(tokens[:1].tolist())[0] for tokens in batch.tokens]
            assert [CLASSES[data.classes[label]].split()[0] for label in batch.label] == first
            seen += len(batch.label)
        assert seen == 48

    def test_vocabulary_is_of_training_texts_alone(self, write):
        data = fitted(write(60))
        words = set(data.tokenizer.words)
        assert {text.split()[-1] for text in data._parts["train"].texts} <= words
        for part in ("val", "test"):
            assert not {text.split()[-1] for text in data._parts[part].texts} & words

    def test_options_of_the_vocabulary(self, tmp_path):
        (tmp_path / "rows.tsv").write_text("a\tRed red RED rose\nb\tblue\n" * 20)
        path, whole = str(tmp_path / "rows.tsv"), {"val_fraction": 0, "test_fraction": 0}
        assert fitted(path, **whole).tokenizer.words[4:] == ["red", "blue", "rose"]
        assert sorted(fitted(path, lowercase=False, **whole).tokenizer.words[4:]) == [
            "RED",
            "Red",
            "blue",
            "red",
            "rose",
        ]
        assert fitted(path, min_count=21, **whole).tokenizer.words[4:] == ["red"]
        assert fitted(path, unit="subword", vocab_size=263, **whole).vocab_size == 263

    def test_cut_texts_are_counted(self, tmp_path):
        long = "word " * 20_000  # 100,000 characters
        (tmp_path / "rows.tsv").write_text(f"a\t{long}\nb\tshort\n" * 3)
        data = fitted(str(tmp_path / "rows.tsv"), max_length=17, val_fraction=0, test_fraction=0)
        with pytest.warns(UserWarning, match="3 of the 6 train texts have more than 17 tokens and are cut there"):
            (batch,) = data.train_dataloader()
        assert batch.tokens.shape == (6, 17)

    def test_texts_without_a_token_are_unknown_and_counted(self, tmp_path):
        (tmp_path / "rows.tsv").write_text("a\t\nb\t  \na\tword\nb\tother\n")
        data = fitted(str(tmp_path / "rows.tsv"), val_fraction=0, test_fraction=0)
        with pytest.warns(UserWarning, match="2 of the 4 train texts have no token; each is read as one unknown token"):
            (batch,) = data.train_dataloader()
        first, second, *others = batch.tokens[batch.row.argsort()].tolist()
        assert first == second == [1] and sorted(others) == [[4], [5]]

    def test_scripts_and_line_ends(self, tmp_path):
        (tmp_path / "rows.tsv").write_bytes("he\tשלום עולם\r\nja\t🤷🏽‍♀️ 日本\r\n".encode() * 5)
        data = fitted(str(tmp_path / "rows.tsv"), unit="subword", vocab_size=300, val_fraction=0, test_fraction=0)
        (batch,) = data.train_dataloader()
        decoded = {data.tokenizer.decode(tokens[tokens > 0].tolist()) for tokens in batch.tokens}
        assert decoded == {"שלום עולם", "🤷🏽‍♀️ 日本"}
        assert data.classes == ["he", "ja"]

    def test_the_only_text_of_a_class_stays_in_training(self, write):
        path = write(30)
        with Path(path).open("a") as file:
            file.write("rare\tsolitary\n")
        for fold in range(3):
            data = fitted(path, fold=fold, folds=3)
            assert data.class_counts.tolist()[-1] == 1


class TestCheckpoint:
    def test_it_is_enough_to_predict(self, write, tmp_path):
        trained = fitted(write(60), unit="subword", vocab_size=300, max_length=11)
        torch.save(trained.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        (tmp_path / "new.txt").write_text("cat\n\na bear was very very very very very brave")
        new = TextClassificationData(predict_path=str(tmp_path / "new.txt"))
        new.setup("predict")
        new.load_state_dict(state)
        assert new.classes == trained.classes and new.vocab_size == trained.vocab_size
        with pytest.warns(UserWarning) as said:
            (batch,) = new.predict_dataloader()
        assert [str(warning.message).split(";")[0] for warning in said] == [
            "1 of the 3 texts to predict have no token",
            "1 of the 3 texts to predict have more than 11 tokens and are cut there",
        ]
        assert batch.row.tolist() == [0, 1, 2] and batch.label.tolist() == [-1] * 3

    def test_standard_input(self, write, monkeypatch):
        trained = fitted(write(60))
        new = TextClassificationData(predict_path="-")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"cat\nbee")))
        new.setup("predict")
        new.setup("predict")  # it can be read once only
        new.load_state_dict(trained.state_dict())
        (batch,) = new.predict_dataloader()
        assert [new.tokenizer.names(tokens.tolist()) for tokens in batch.tokens] == [["cat"], ["bee"]]

    def test_testing_needs_no_training_texts(self, write):
        trained = fitted(write(60))
        new = TextClassificationData(test_path=write(9, "test.tsv", start=100))
        new.setup("test")
        new.load_state_dict(trained.state_dict())
        assert sum(len(batch.row) for batch in new.test_dataloader()) == 9

    def test_without_one(self, tmp_path):
        (tmp_path / "new.txt").write_text("text")
        data = TextClassificationData(predict_path=str(tmp_path / "new.txt"))
        data.setup("predict")
        with pytest.raises(ValueError, match="the vocabulary of the training texts is not known: this needs a checkp"):
            data.predict_dataloader()


class TestPredictions:
    @pytest.mark.parametrize("name, separator", [("out.csv", ","), ("out.tsv", "\t")])
    def test_rows_are_in_the_order_of_the_file(self, write, tmp_path, name, separator):
        data = fitted(write(60))
        (tmp_path / "new.txt").write_text('a long "text", really\nb\ttab\n\nvery very c\n')
        data.predict_path = str(tmp_path / "new.txt")
        data.setup("predict")
        data.batch_size = 3
        with pytest.warns(UserWarning, match="no token"):
            batches = list(data.predict_dataloader())
        rows = torch.cat([batch.row for batch in batches])
        assert rows.tolist() != [0, 1, 2, 3]
        data.write_predictions(tmp_path / name, torch.eye(4, 3)[rows])
        with (tmp_path / name).open(newline="") as file:
            written = list(csv.DictReader(file, delimiter=separator))
        assert list(written[0]) == ["row", "text", "predicted_label", "probability_a", "probability_b", "probability_c"]
        assert [row["row"] for row in written] == ["1", "2", "3", "4"]
        assert [row["text"] for row in written] == ['a long "text", really', "b\ttab", "", "very very c"]
        assert [row["predicted_label"] for row in written[:3]] == ["a", "b", "c"]
        assert written[1]["probability_b"] == "1.0"

    def test_a_wrong_number(self, write, tmp_path):
        data = fitted(write(60), predict_path=write(2, "new.txt"))
        data.setup("predict")
        with pytest.raises(ValueError, match=r"predictions must have shape \(2, 3\), .* got \(1, 3\)"):
            data.write_predictions(tmp_path / "out.csv", torch.ones(1, 3))
        assert not (tmp_path / "out.csv").exists()


WRONG_ARGUMENTS = [
    ({}, r"no data: give --data\.name"),
    ({"name": "trek"}, r"no known data set \(did you mean 'trec'\?\)"),
    ({"name": "trec", "path": "a.tsv"}, "name or path, not both"),
    ({"name": "trec", "fold": 1}, "fold says which rows are for testing, but there is a test file"),
    ({"name": "mr", "fold": 10}, "fold must be 0 to 9, one of folds=10, got 10"),
    ({"name": "mr", "folds": 1}, "folds must be at least 2, got 1"),
    ({"name": "mr", "val_fraction": 1.0}, "val_fraction must be at least 0 and less than 1, got 1.0"),
    ({"name": "mr", "val_fraction": 0.5, "test_fraction": 0.5}, "nothing would be left for training"),
    ({"name": "mr", "max_length": 0}, "max_length must be at least 1, got 0"),
    ({"name": "mr", "seed": -1}, "seed must be at least 0, got -1"),
]


@pytest.mark.parametrize("arguments, message", WRONG_ARGUMENTS)
def test_wrong_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        TextClassificationData(**arguments)


class TestWrongFiles:
    def test_one_class(self, tmp_path):
        (tmp_path / "rows.tsv").write_text("a\tone\na\ttwo\n")
        with pytest.raises(ValueError, match="has one class only, 'a'; a classifier needs two or more"):
            fitted(str(tmp_path / "rows.tsv"))

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("classes", [2, 10])
    def test_training_has_every_class_however_many_rows_are_held_out(self, tmp_path, seed, classes):
        (tmp_path / "rows.tsv").write_text("".join(f"{row % classes}\tword {row}\n" for row in range(2 * classes)))
        data = fitted(str(tmp_path / "rows.tsv"), val_fraction=0.5, test_fraction=0.0, seed=seed)
        assert data.classes == [str(number) for number in range(classes)]
        data = fitted(str(tmp_path / "rows.tsv"), val_fraction=0.9, test_fraction=0.0, seed=seed)
        assert data.classes == [str(number) for number in range(classes)]

    def test_too_few(self, tmp_path):
        (tmp_path / "rows.tsv").write_text("a\tone\nb\ttwo\n")
        with pytest.raises(ValueError, match="has 2 rows of 2 classes, too few to hold out any of them; give more"):
            fitted(str(tmp_path / "rows.tsv"), label=1, text=2)

    def test_a_label_that_training_never_had(self, write, tmp_path):
        (tmp_path / "val.tsv").write_text("a\tone\n\nd\tother\n")
        data = fitted(write(30), val_path=str(tmp_path / "val.tsv"))
        with pytest.raises(ValueError, match=r"val\.tsv, line 3: the label 'd' was never seen in training, .*'a', 'b'"):
            data.val_dataloader()

    def test_nothing_to_predict(self, tmp_path):
        with pytest.raises(ValueError, match="there is nothing to predict; give a file"):
            TextClassificationData("languages").setup("predict")
        with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.txt"):
            TextClassificationData(predict_path=str(tmp_path / "none.txt")).setup("predict")
        (tmp_path / "empty.txt").touch()
        with pytest.raises(ValueError, match=r"empty\.txt is empty"):
            TextClassificationData(predict_path=str(tmp_path / "empty.txt")).setup("predict")

    def test_nothing_to_train_on(self, write):
        with pytest.raises(ValueError, match=r"there are no texts to split; give --data\.name, or --data\.path"):
            TextClassificationData(test_path=write(3)).setup("fit")
