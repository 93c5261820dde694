import gzip
import hashlib
import io
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ika_lightning.data import TranslationData
from ika_lightning.data.datasets import DATASETS
from ika_lightning.data.tokenizer import END, START

EN = ["Two dogs run .", "A man sleeps .", "The cat is black .", "It rains .", "We sing .", "A dog sings ."]
DE = ["Zwei Hunde laufen .", "Ein Mann schläft .", "Die Katze ist schwarz .", "Es regnet .", "Wir singen .",
      "Ein Hund singt ."]  # fmt: skip
SMALL = {"vocabulary": 300, "batch_tokens": 50, "batch_size": 2}


def write(path: Path, lines: list[str]) -> str:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.fixture
def own(tmp_path) -> dict:
    return SMALL | {
        "source": write(tmp_path / "train.en", 3 * EN), "target": write(tmp_path / "train.de.gz", 3 * DE),
        "val_source": write(tmp_path / "val.en", EN[::-1]), "val_target": write(tmp_path / "val.de", DE[::-1]),
    }  # fmt: skip


def ready(stage: str = "fit", **options) -> TranslationData:
    data = TranslationData(**options)
    data.setup(stage)
    return data


class TestOwnFiles:
    def test_batches_hold_the_pairs(self, own):
        data = ready(**own)
        seen = []
        for batch in data.train_dataloader():
            assert batch.texts == ()
            assert max(batch.source.shape[1], batch.target.shape[1]) * len(batch.source) <= 50
            assert (batch.target[:, 0] == START).all()
            assert ((batch.target == END).sum(1) == 1).all() and ((batch.source == END).sum(1) == 1).all()
            for number, row in zip(batch.number.tolist(), batch.target.tolist(), strict=True):
                assert data.target_texts([row]) == [DE[number % 6]]
                seen.append(number)
        assert sorted(seen) == list(range(18))

    def test_evaluation_batches_bring_their_texts(self, own):
        batches = list(ready(**own).val_dataloader())
        texts = {n: pair for b in batches for n, pair in zip(b.number.tolist(), b.texts, strict=True)}
        assert texts == dict(enumerate(zip(EN[::-1], DE[::-1], strict=True)))
        assert [len(batch.number) for batch in batches] == [2, 2, 2]

    def test_separate_files_for_testing(self, own, tmp_path):
        own |= {"test_source": write(tmp_path / "t.en", EN[:1]), "test_target": write(tmp_path / "t.de", DE[:1])}
        data = ready(**own)
        data.setup("test")
        (batch,) = data.test_dataloader()
        assert batch.texts == [(EN[0], DE[0])]

    def test_held_out_if_there_is_no_validation_file(self, own):
        files = {key: value for key, value in own.items() if not key.startswith("val")}
        lines = {n: [] for n in (0, 1)}
        for seed in (0, 1, 0):
            data = ready(**files, val_fraction=0.2, seed=seed)
            (val,) = [list(chain(*(b.texts for b in data.val_dataloader())))]
            assert len(val) == 4
            assert sum(len(b.number) for b in data.train_dataloader()) == 14
            lines[seed].append(val)
        assert lines[0][0] == lines[0][1] != lines[1][0]

    @pytest.mark.parametrize("joint", [True, False])
    def test_vocabularies(self, own, joint):
        data = ready(**own, joint=joint)
        source, target = data.vocabularies
        assert source <= 300
        assert (target is None) == joint
        if joint:
            assert len(data.state_dict()) == 1

    def test_vocabulary_is_learned_on_training_text_alone(self, own):
        first = ready(**own).state_dict()
        write(Path(own["val_source"]), ["xyzzy plugh " * 50])
        write(Path(own["val_target"]), ["xyzzy plugh " * 50])
        assert ready(**own).state_dict() == first

    def test_every_process_has_as_many_batches(self, own):
        loaders = []
        for rank in range(3):
            data = ready(**own)
            data.trainer = SimpleNamespace(global_rank=rank, world_size=3, accumulate_grad_batches=1)
            loaders.append(data.train_dataloader())
        batches = [list(loader) for loader in loaders]
        assert len({len(share) for share in batches}) == 1
        numbers = list(chain(*(batch.number.tolist() for share in batches for batch in share)))
        assert len(set(numbers)) == len(numbers) > 12

    def test_windows_files_and_byte_order_marks(self, own):
        for side in ("source", "target"):
            path = Path(own[f"val_{side}"])
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        (texts,) = [chain(*(batch.texts for batch in ready(**own).val_dataloader()))]
        assert set(texts) == set(zip(EN, DE, strict=True))


class TestFilters:
    def test_what_is_left_out_is_counted(self, own, capsys):
        write(Path(own["source"]), [*EN, "a " * 60, "a", "", EN[0], " "])
        write(Path(own["target"]).with_suffix(""), [])
        write(Path(own["target"]), [*DE, "b", "b b b b b b b b b b", "b", "", " "])
        data = ready(**own, max_length=40)
        assert "train pairs left out because a side is blank: 3" in capsys.readouterr().err
        loader = data.train_dataloader()
        report = (
            "training pairs: 6 of 8; left out: 1 with more than 40 tokens, 1 with over 4 times as many as the other"
        )
        assert report in capsys.readouterr().err
        assert data.left_out == {"long": 1, "uneven": 1}
        assert sorted(chain(*(batch.number.tolist() for batch in loader))) == list(range(6))

    def test_nothing_is_said_if_nothing_is_left_out(self, own, capsys):
        ready(**own).train_dataloader()
        assert capsys.readouterr() == ("", "")

    def test_evaluation_is_on_all_pairs(self, own):
        data = ready(**own, max_length=7)
        assert sum(len(batch.number) for batch in data.val_dataloader()) == 6

    def test_nothing_left(self, own):
        with pytest.raises(ValueError, match="no training pair is left; raise max_length=1 or max_ratio=4"):
            ready(**own, max_length=1).train_dataloader()


class TestPrediction:
    @pytest.fixture
    def fitted(self, own):
        return ready(**own).state_dict()

    def predicting(self, fitted, path, **options) -> TranslationData:
        data = TranslationData(predict_path=path, **(SMALL | options))
        data.setup("predict")
        data.load_state_dict(fitted)
        return data

    def copying(self, data: TranslationData, n_best: int = 1):
        """What a model would predict that repeats its input, and drops a word for each worse translation."""
        lines: dict[int, list] = {}
        for batch in data.predict_dataloader():
            for number, row in zip(batch.number.tolist(), batch.source.tolist(), strict=True):
                tokens = row[: row.index(END)]
                lines.setdefault(number, []).append([(tokens[: len(tokens) - i], -1.0 - i) for i in range(n_best)])
        return list(lines.items())[::-1]

    def test_lines_stay_in_order_and_blank_ones_blank(self, fitted, tmp_path):
        lines = ["A man sings .", "", "The black dogs sleep and we sing .", "  ", "Rain"]
        data = self.predicting(fitted, write(tmp_path / "in.txt", lines))
        data.write_predictions(tmp_path / "out.txt", self.copying(data))
        assert (tmp_path / "out.txt").read_text() == "A man sings .\n\nThe black dogs sleep and we sing .\n\nRain\n"

    def test_long_lines_are_translated_in_pieces(self, fitted, tmp_path):
        lines = ["A man", "two black dogs run and sing and run and sleep", "x" * 40]
        data = self.predicting(fitted, write(tmp_path / "in.txt", lines), max_length=9)
        with pytest.warns(UserWarning, match=r"2 lines have more than max_length=9 tokens \(first: line 2\); they are"):
            batches = list(data.predict_dataloader())
        assert max(batch.source.size(1) for batch in batches) == 9 + 1
        with pytest.warns(UserWarning, match="in pieces"):
            predictions = self.copying(data)
        assert len(dict(predictions)[1]) > 2
        data.write_predictions(tmp_path / "out.txt", predictions)
        first, second, third = (tmp_path / "out.txt").read_text().splitlines()
        assert [first, second] == lines[:2]  # cut between words
        assert third.replace(" ", "") == lines[2]  # and inside of one that is too long itself

    def test_n_best(self, fitted, tmp_path):
        data = self.predicting(fitted, write(tmp_path / "in.txt", ["A man .", "", "We sing"]))
        data.write_predictions(tmp_path / "out.txt", self.copying(data, n_best=2))
        rows = [line.split(" ||| ") for line in (tmp_path / "out.txt").read_text().splitlines()]
        assert [(row[0], row[-1]) for row in rows] == [
            ("0", "-1.0000"), ("0", "-2.0000"), ("1", "-1.0000"), ("2", "-1.0000"), ("2", "-2.0000"),
        ]  # fmt: skip
        assert rows[0][1] == "A man ." and rows[2][1] == "" and rows[3][1] == "We sing"

    def test_standard_input_and_output(self, fitted, monkeypatch, capsys):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"Wir singen .\n\nEs\n")))
        data = self.predicting(fitted, "-")
        data.setup("predict")  # and it is not read twice
        data.write_predictions("-", self.copying(data))
        assert capsys.readouterr().out == "Wir singen .\n\nEs\n"

    def test_unknown_letters_are_no_problem(self, fitted, tmp_path):
        lines = ["日本語 🤷🏽‍♀️ Ωμέγα", "<pad> </s>"]
        data = self.predicting(fitted, write(tmp_path / "in.txt", lines))
        data.write_predictions(tmp_path / "out.txt", self.copying(data))
        assert (tmp_path / "out.txt").read_text().splitlines() == lines

    def test_a_translation_is_one_line(self, fitted):
        data = TranslationData("dates")
        data.load_state_dict(fitted)
        tokens = data.learned.target.encode(["one\ntwo"])
        assert data.target_texts(tokens) == ["one two"]

    def test_as_many_lines_come_back_as_went_in(self, fitted, tmp_path):
        """Signs that end a line for others than our reader come through a byte-pair encoding like any other."""
        lines = ["a\rman", "two\x0bdogs", "we\x0csing", "a\x85b", "c\u2028d", "e\r"]
        (tmp_path / "in.txt").write_bytes("".join(f"{line}\r\n" for line in lines).encode())
        data = self.predicting(fitted, str(tmp_path / "in.txt"))
        data.write_predictions(tmp_path / "out.txt", self.copying(data))
        written = (tmp_path / "out.txt").read_bytes().decode()
        assert written.splitlines() == ["a man", "two dogs", "we sing", "a b", "c d", "e"]
        assert written.count("\n") == 6

    @pytest.mark.parametrize(
        ("options", "language"),
        [
            ({"source": "a.en", "target": "a.zh.gz"}, "zh"), ({"source": "a.en", "target": "a.txt"}, None),
            ({"source": "a.en", "target": "a.zh", "target_language": "ja"}, "ja"), ({"name": "dates"}, "de"),
            ({"name": "multi30k", "target": "fr"}, "fr"), ({"predict_path": "-"}, None),
        ],
    )  # fmt: skip
    def test_the_language_of_translations(self, options, language):
        assert TranslationData(**options).target_language == language

    def test_all_lines_have_to_be_there(self, fitted, tmp_path):
        data = self.predicting(fitted, write(tmp_path / "in.txt", EN))
        with pytest.raises(ValueError, match="predictions must be one for each of 6 lines, got 5"):
            data.write_predictions(tmp_path / "out.txt", self.copying(data)[1:])

    def test_nothing_to_predict(self, fitted, tmp_path):
        with pytest.raises(ValueError, match=r"nothing to translate; give the sentences with --input FILE"):
            ready("predict", name="dates")
        with pytest.raises(ValueError, match=r"nothing to translate: .*empty.txt has no lines"):
            self.predicting(fitted, write(tmp_path / "empty.txt", []))

    def test_vocabulary_is_needed(self, tmp_path):
        data = ready("predict", predict_path=write(tmp_path / "in.txt", EN))
        with pytest.raises(ValueError, match=r"the vocabulary is not known: this needs a checkpoint \(--ckpt_path"):
            data.predict_dataloader()


class TestBadInput:
    def test_files_of_different_length(self, own):
        write(Path(own["source"]), EN[:4])
        with pytest.raises(ValueError, match=r"train\.en has 4 and .*train\.de\.gz has 18; line n of one"):
            ready(**own)

    def test_no_text_at_all(self, own):
        write(Path(own["source"]), [""] * 18)
        with pytest.raises(ValueError, match="have no line with text in both"):
            ready(**own)

    def test_not_utf8(self, own):
        Path(own["val_target"]).write_bytes("Es regnet .\nEin Mann schläft .\n".encode("latin-1"))
        with pytest.raises(ValueError, match=r"val\.de, line 2: byte 0xe4 is not UTF-8; save the file"):
            ready(**own)

    @pytest.mark.parametrize("content", [b"plain text", gzip.compress(b"Es regnet .\n" * 99, mtime=0)[:-20]])
    def test_not_gzip(self, own, content):
        Path(own["target"]).write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.de\.gz is no complete gzip file"):
            ready(**own)

    def test_no_file(self, own):
        with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.en"):
            ready(**own | {"source": "nowhere.en"})

    def test_too_few_to_hold_one_out(self, tmp_path):
        source, target = write(tmp_path / "a", EN[:1]), write(tmp_path / "b", DE[:1])
        with pytest.raises(ValueError, match="has a single pair with text: too few to hold one out"):
            ready(source=source, target=target, vocabulary=300)

    def test_stages_without_files(self, own):
        with pytest.raises(
            ValueError, match=r"there are no test sentences; give --data\.test_source FILE --data\.test"
        ):
            ready("test", **own)
        with pytest.raises(ValueError, match=r"there is nothing to learn from; give --data\.name, or --data\.source"):
            ready("fit", predict_path="in.txt")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {},
                "no data: give --data.name, one of 'dates', 'iwslt14', 'multi30k', or data of your own with",
            ),
            ({"name": "multi3k"}, r"name='multi3k' is no known data set \(did you mean 'multi30k'\?\): there are"),
            ({"name": "multi30k", "source": "it"}, "multi30k has no source language 'it': there are 'en', 'de', 'fr'"),
            ({"name": "dates", "target": "fr"}, "dates has no target language 'fr': there are 'en', 'de'"),
            ({"name": "dates", "source": "de", "target": "de"}, "must be two languages, got 'de' twice"),
            ({"source": "a.en"}, "source and target go together, got source='a.en', target=None"),
            ({"name": "dates", "val_source": "a"}, "val_source and val_target go together, got val_source='a', val_t"),
            ({"name": "dates", "test_target": "a"}, "test_source and test_target go together, got test_source=None"),
            ({"name": "dates", "val_fraction": 1.0}, "val_fraction must be between 0 and 1, got 1.0"),
            ({"name": "dates", "vocabulary": 259}, "vocabulary must be at least 260, got 259"),
            ({"name": "dates", "max_length": 0}, "max_length must be at least 1, got 0"),
            ({"name": "dates", "max_ratio": 0.5}, "max_ratio must be at least 1.0, got 0.5"),
            ({"name": "dates", "batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
            ({"name": "dates", "batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"name": "dates", "seed": -1}, "seed must be at least 0, got -1"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            TranslationData(**options)


class TestKnownCorpora:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [({}, "en de"), ({"target": "de"}, "en de"), ({"source": "de"}, "de en"), ({"target": "en"}, "de en")],
    )
    def test_one_language_follows_from_the_other(self, given, expected):
        data = TranslationData("dates", **given)
        assert f"{data.source} {data.target}" == expected

    def test_dates(self):
        splits = {split: DATASETS["dates"].pairs(split, "en", "de") for split in ("train", "val", "test")}
        assert {split: len(pairs.source) for split, pairs in splits.items()} == {"train": 5000, "val": 500, "test": 500}
        for side in (0, 1):  # held-out sentences are not in training, and each has one translation
            sentences = [sentence for pairs in splits.values() for sentence in pairs[side]]
            assert len(set(sentences)) == len(sentences) == 6000
        assert "Monday, " in " ".join(splits["test"].source) and "Montag, " in " ".join(splits["test"].target)

    def test_dates_are_what_their_generator_draws(self):
        babel = pytest.importorskip("babel")
        from ika_lightning.data.dates import generate
        from ika_lightning.data.files import read_lines

        if babel.__version__.split(".")[:2] != ["2", "18"]:
            pytest.skip(f"the pairs were drawn by Babel 2.18, whose CLDR is not that of {babel.__version__}")
        assert ["\t".join(row) for row in generate()] == read_lines(DATASETS["dates"].file("pairs"))

    def test_own_test_files_beside_a_known_corpus(self, tmp_path):
        options = {"test_source": write(tmp_path / "t.en", EN), "test_target": write(tmp_path / "t.de", DE)}
        data = ready("test", name="multi30k", root="nowhere", **options)
        data.prepare_data()  # and nothing is looked for
        assert data._parts["test"].source == EN

    @pytest.mark.parametrize(("source", "target"), [("en", "de"), ("de", "fr"), ("fr", "en")])
    def test_multi30k(self, benchmark_root, source, target):
        data = TranslationData("multi30k", source=source, target=target, root=str(benchmark_root))
        data.prepare_data()
        data.setup("test")
        data.setup("validate")
        assert {split: len(pairs.source) for split, pairs in data._parts.items()} == {"test": 1000, "val": 1014}

    def test_checksums_are_those_of_the_files(self, benchmark_root):
        files = DATASETS["multi30k"].files.values()
        for remote in files:
            content = (benchmark_root / remote.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (remote.size, remote.sha256)
        assert len(files) == 9

    def test_iwslt14_says_where_to_put_it(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no translation/iwslt14/train\.de\.gz under the data root .*wit3"):
            ready(name="iwslt14", root=str(tmp_path))

    def test_iwslt14(self, iwslt14_root):
        data = ready(name="iwslt14", root=str(iwslt14_root), vocabulary=2000)
        assert (len(data._parts["train"].source), len(data._parts["val"].source)) == (8639, 7283)
        assert len(data.train_dataloader()) > 50


def test_checkpoint_state_is_plain(own, tmp_path) -> None:
    data = ready(**own, joint=False)
    torch.save({"state": data.state_dict(), "hparams": dict(data.hparams)}, tmp_path / "state.pt")
    again = TranslationData(**own)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["state"])
    assert again.vocabularies == data.vocabularies
    tokens = data.learned.target.encode(DE)
    assert again.learned.target.encode(DE) == tokens
