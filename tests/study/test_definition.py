"""Study files: what they say, and what is wrong with them in one line."""

import math
import re
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml

from ika_lightning.study.cells import cells_of, configuration_hash, files_of, find_cell, words_of
from ika_lightning.study.definition import Choice, Range, Study, Variant, read_study

WHOLE: dict[str, Any] = {
    "baseline": "DotProduct",
    "data": {"hills": {"config": "hills.yaml", "overrides": {"trainer.max_epochs": 3}}},
    "variants": {
        "DotProduct": {"overrides": {"model.attention": "DotProduct"}},
        "MIKAN": {"overrides": {"model.attention": "MIKAN"}, "ranges": {"model.attention.smoothing": [0.0, 0.5]}},
        "trees": {"reference": "sklearn.ensemble.ExtraTreesRegressor", "arguments": {"random_state": 0}},
    },
    "tune": {
        "metric": "val/rmse",
        "mode": "min",
        "trials": 5,
        "repeats": [0, 2],
        "ranges": {"model.optimizer.lr": {"low": 0.001, "high": 0.1, "log": True, "limits": [0.0001, 1]}},
    },
    "repeats": {"options": ["data.seed", "seed_everything"], "values": 3},
    "report": {"test/rmse": "min", "test/r2": "max"},
}


def write(folder: Path, changes: dict[str, Any]) -> Path:
    """Write a study whose keys, given with dots, are changed; None takes one away."""
    given: Any = yaml.safe_load(yaml.safe_dump(WHOLE))
    for place, value in changes.items():
        inner = given
        *way, last = place.split("|")
        for key in way:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    (folder / "hills.yaml").write_text("model: {class_path: Regression}\n")
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    return file


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write(tmp_path, {}))


def test_a_whole_file(study: Study, tmp_path: Path) -> None:
    assert (study.name, study.baseline, study.threads) == ("study", "DotProduct", 1)
    assert study.report == {"test/rmse": "min", "test/r2": "max"}
    hills = study.data["hills"]
    assert hills.config == tmp_path / "hills.yaml" and hills.repeats.values == (0, 1, 2)
    assert study.tuning is not None
    assert (study.tuning.sampler, study.tuning.seed, study.tuning.repeats) == ("quasi-random", 0, (0, 2))
    lr = Range(0.001, 0.1, log=True, limits=(0.0001, 1))
    assert study.ranges(study.variants["DotProduct"]) == {"model.optimizer.lr": lr}
    smoothing = {"model.attention.smoothing": Choice((0.0, 0.5))}
    assert study.ranges(study.variants["MIKAN"]) == {"model.optimizer.lr": lr, **smoothing}
    assert study.ranges(study.variants["trees"]) == {}


def test_a_data_set_may_have_repeats_of_its_own(tmp_path: Path) -> None:
    own = {"config": "hills.yaml", "repeats": {"options": ["data.fold"], "values": [0, 2, 3, 7]}}
    assert read_study(write(tmp_path, {"data|hills": own})).data["hills"].repeats.values == (0, 2, 3, 7)


def test_a_data_set_may_have_a_refit_of_its_own(tmp_path: Path) -> None:
    every, own = {"data.val_fraction": 0.0}, {"trainer.max_epochs": 5}
    assert read_study(write(tmp_path, {"refit": every})).data["hills"].refit == every
    hills = {**WHOLE["data"]["hills"], "refit": own}
    assert read_study(write(tmp_path, {"refit": every, "data|hills": hills})).data["hills"].refit == own


LR = "tune|ranges|model.optimizer.lr"
WRONG = {
    "no baseline": ({"baseline": None}, "baseline: is missing"),
    "two baselines": (
        {"baseline": ["DotProduct", "MIKAN"]},
        "baseline: must be the name of one variant, got '[DotProduct",
    ),
    "unknown baseline": ({"baseline": "MIKAM"}, "baseline: unknown variant 'MIKAM' (did you mean 'MIKAN'?); there are"),
    "one variant": ({"variants": {"DotProduct": {}}}, "variants: there is nothing to compare 'DotProduct' to"),
    "no variants": ({"variants": {}}, "variants: there is none"),
    "slash": ({"variants|a/b": {}}, "variants: a name is not empty and has no /, got 'a/b'"),
    "unknown key": ({"tune|trails": 3}, "tune.trails: there is no such key (did you mean 'trials'?); there are"),
    "no file": ({"data|hills|config": "hill.yaml"}, "data.hills.config: no configuration file at"),
    "number as file": ({"data|hills|config": 3}, "data.hills.config: must be a text, got '3'"),
    "no option": (
        {"data|hills|overrides": {"--model.width": 3}},
        "hills.overrides.--model.width: '--model.width' is no option",
    ),
    "empty range": ({f"{LR}|high": 0.001}, "lr: is empty, or has no end: low is 0.001, high is 0.001"),
    "range upside down": ({f"{LR}|low": 0.2}, "lr: is empty, or has no end: low is 0.2, high is 0.1"),
    "endless range": ({f"{LR}|high": math.inf}, "lr: is empty, or has no end"),
    "not a number": ({f"{LR}|low": math.nan}, "lr: is empty, or has no end"),
    "log of zero": ({f"{LR}|low": 0}, "lr: a logarithmic range begins above 0, got low 0"),
    "true as number": ({f"{LR}|low": True}, "lr.low: must be a whole number or a number, got 'true'"),
    "one choice": ({"tune|ranges|model.width": [3]}, "tune.ranges.model.width: must be two or more different values"),
    "narrow limits": ({f"{LR}|limits": [0.01, 1]}, "limits: 0.01 to 1 does not hold the range"),
    "few trials": ({"tune|trials": 1}, "tune.trials: must be at least 2, got 1"),
    "test decides": (
        {"tune|metric": "test/rmse"},
        "tune.metric: must be one of validation, such as val/loss, got 'test/rmse'",
    ),
    "mode": ({"tune|mode": "least"}, "tune.mode: must be min or max, got 'least'"),
    "sampler": ({"tune|sampler": "grid"}, "tune.sampler: must be quasi-random or tpe, got 'grid'"),
    "tuned on a stranger": ({"tune|repeats": [0, 5]}, "tune.repeats: 5 is no repeat of hills, which are 0, 1, 2"),
    "tuned on texts": ({"tune|repeats": ["0"]}, "tune.repeats: '0' is no repeat of hills, which are 0, 1, 2"),
    "tuned on nothing": ({"tune|repeats": []}, "tune.repeats: must be a list of repeats, or each, got '[]'"),
    "no repeats": ({"repeats": None}, "data.hills.repeats: is missing, here and for all data sets"),
    "one repeat": ({"repeats|values": 1, "tune|repeats": [0]}, "repeats.values: one repeat tells nothing of chance"),
    "equal repeats": ({"repeats|values": [0, 1, "1"]}, "repeats.values: are not all different"),
    "fraction": ({"repeats|values": [0.5, 1]}, "repeats.values: must be whole numbers or texts, got '0.5'"),
    "no options": ({"repeats|options": []}, "repeats.options: there is none"),
    "validation is reported": (
        {"report": {"val/rmse": "min"}},
        "report: must be measures of test, such as test/loss, got 'val/rmse'",
    ),
    "nothing is reported": ({"report": {}}, "report: there is none"),
    "tuned and set": (
        {"variants|MIKAN|overrides": {"model.optimizer.lr": 0.1}},
        "MIKAN.overrides.model.optimizer.lr: is tuned as well",
    ),
    "repeated and set": (
        {"data|hills|overrides": {"data.seed": 1}},
        "repeats of hills: data.seed is set or tuned as well",
    ),
    "tuned reference": (
        {"variants|trees|ranges": {"n": [1, 2]}},
        "variants.trees.ranges: a reference has arguments alone",
    ),
    "arguments of none": ({"variants|MIKAN|arguments": {"n": 1}}, "variants.MIKAN.arguments: those are of a reference"),
    "ranges without tune": ({"tune": None}, "variants.MIKAN.ranges: needs tune, which says by what and how often"),
    "tuned and refitted": (
        {"refit": {"model.optimizer.lr": 0.1}},
        "refit of hills: model.optimizer.lr is tuned as well",
    ),
    "repeated and refitted": (
        {"data|hills|refit": {"data.seed": 1}},
        "repeats of hills: data.seed is set or tuned as well",
    ),
    "refit without tune": (
        {"tune": None, "variants|MIKAN|ranges": None, "refit": {"data.val_fraction": 0.0}},
        "refit: is what changes once tuning is over; without tune, give overrides",
    ),
    "threads": ({"threads": 0}, "threads: must be at least 1, got 0"),
    "a list": ({"data": ["hills"]}, "data must be names with values, got '[hills]'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_a_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path, changes)
    with pytest.raises(ValueError) as error:
        read_study(file)
    assert message in str(error.value) and str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_yaml_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("data:\n  a: [1\n")
    with pytest.raises(ValueError, match=r"study.yaml:3: not valid YAML"):
        read_study(file)


def test_nothing_is_tuned_where_there_are_no_ranges(tmp_path: Path) -> None:
    changes = {"tune|ranges": {}, "variants|MIKAN|ranges": {}}
    with pytest.raises(ValueError, match="tune: there are no ranges; give some, or leave out tune"):
        read_study(write(tmp_path, changes))


class TestCells:
    def test_all_variants_of_a_repeat_come_before_the_next(self, study: Study) -> None:
        names = [cell.name for cell in cells_of(study)]
        assert names[:4] == ["hills/DotProduct/0", "hills/MIKAN/0", "hills/trees/0", "hills/DotProduct/1"]
        assert len(names) == 9
        assert [find_cell(study, name).name for name in names] == names

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("hills/MIKAN", "must be DATA/VARIANT/REPEAT, such as hills/DotProduct/0"),
            ("hill/MIKAN/0", r"unknown data set 'hill' \(did you mean 'hills'\?\)"),
            ("hills/Mikan/0", "unknown variant 'Mikan'.*; there are 'DotProduct', 'MIKAN', 'trees'"),
            ("hills/MIKAN/3", "unknown repeat '3'; there are '0', '1', '2'"),
        ],
    )
    def test_a_cell_that_is_none(self, study: Study, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"--only {name}: {message}"):
            find_cell(study, name)

    def test_words_are_those_of_the_command_line(self, study: Study) -> None:
        hills, mikan = study.data["hills"], study.variants["MIKAN"]
        chosen = {"model.optimizer.lr": 0.1 + 0.2, "model.attention.smoothing": 0.5}
        assert words_of(hills, mikan, 2, chosen) == [
            "--config", str(hills.config), "--trainer.max_epochs=3", "--model.attention=MIKAN",
            "--model.optimizer.lr=0.30000000000000004", "--model.attention.smoothing=0.5", "--data.seed=2",
            "--seed_everything=2",
        ]  # fmt: skip

    def test_a_refit_is_on_top_once_tuning_is_over(self, tmp_path: Path) -> None:
        changed = {"refit": {"trainer.max_epochs": 7, "checkpoint.monitor": None}}
        study = read_study(write(tmp_path, changed))
        hills, mikan = study.data["hills"], study.variants["MIKAN"]
        trial, cell = (words_of(hills, mikan, 2, {}, refit=refit)[2:] for refit in (False, True))
        repeat = ["--data.seed=2", "--seed_everything=2"]
        assert trial == ["--trainer.max_epochs=3", "--model.attention=MIKAN", *repeat]
        assert cell == ["--trainer.max_epochs=7", "--model.attention=MIKAN", "--checkpoint.monitor=null", *repeat]

    def test_words_that_yaml_takes_for_something_else_stay_words(self, study: Study) -> None:
        hills = study.data["hills"]
        values = {"a": "No", "b": None, "c": True, "d": [1, "x"], "e": {"k": math.inf}, "f": "x y", "g": "1"}
        words = words_of(hills, Variant("v", values), 0, {})[3:-2]
        assert words == ['--a="No"', "--b=null", "--c=true", "--d=[1, x]", "--e={k: .inf}", "--f=x y", '--g="1"']

    def test_whatever_a_training_is_made_of_changes_its_hash(self, study: Study, tmp_path: Path) -> None:
        def hashes(changes: dict[str, Any]) -> dict[str, str]:
            changed = read_study(write(tmp_path, changes))
            return {
                name: configuration_hash(changed, changed.data["hills"], each)
                for name, each in changed.variants.items()
            }

        same = hashes({})
        assert same == hashes({}) and len(set(same.values())) == 3
        every = {"DotProduct", "MIKAN", "trees"}
        for changes, differing in (
            ({"data|hills|overrides": {"trainer.max_epochs": 5}}, every),
            ({"variants|MIKAN|overrides": {"model.attention": "IKAN"}}, {"MIKAN"}),
            ({"variants|MIKAN|ranges": {"model.attention.smoothing": [0.0, 0.7]}}, {"MIKAN"}),
            ({"variants|trees|arguments": {"random_state": 1}}, {"trees"}),
            ({"tune|trials": 7}, every - {"trees"}),
            ({"threads": 2}, every),
            ({"refit": {"data.val_fraction": 0.0}}, every),
            # more to report, to compare and to repeat leaves what is done what it is
            ({"report|test/mae": "min"}, set()),
            ({"variants|RBF": {"overrides": {"model.attention": "RBF"}}}, set()),
            ({"repeats|values": 5}, set()),
        ):
            found = hashes(changes)
            assert {name for name in every if found[name] != same[name]} == differing, changes
        file = write(tmp_path, {})
        (tmp_path / "hills.yaml").write_text("model: {class_path: Regression, init_args: {width: 8}}\n")
        changed = read_study(file)
        assert configuration_hash(changed, changed.data["hills"], changed.variants["trees"]) != same["trees"]


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.5e3", "-2e+7", ".5e1"])
def test_numbers_are_those_of_the_command_line(number: str, tmp_path: Path) -> None:
    """YAML 1.1 takes them for texts, which have no ends."""
    file = write(tmp_path, {"tune|ranges": {"model.optimizer.lr": ["NUMBER", 12345678.0]}})
    file.write_text(file.read_text().replace("NUMBER", number))
    assert read_study(file).ranges(Variant("x"))["model.optimizer.lr"] == Choice((float(number), 12345678.0))


@pytest.mark.parametrize("text", ["1e", "e4", "1e4x", "v1e4", "1e-4-5"])
def test_texts_that_look_like_numbers_stay_texts(text: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"tune|ranges": {"model.optimizer.lr": ["NUMBER", "b"]}})
    file.write_text(file.read_text().replace("NUMBER", text))
    assert read_study(file).ranges(Variant("x"))["model.optimizer.lr"] == Choice((text, "b"))


@pytest.mark.parametrize("key", ["MIKAN", "baseline"])
def test_a_name_that_is_there_twice_is_refused(key: str, tmp_path: Path) -> None:
    file = write(tmp_path, {})
    lines = file.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    lines.insert(place, f"{indent}{key}: {{}}")
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(file))}:{place + 2}: not valid YAML: {key} is there twice; "
    ):
        read_study(file)


class TestFiles:
    """What trainings are made of besides numbers: a change of any is another study."""

    def hashes(self, folder: Path, changes: dict[str, Any], variant: str = "MIKAN") -> list[list[str]]:
        study = read_study(write(folder, changes))
        return files_of(study.data["hills"], study.variants[variant], study.ranges(study.variants[variant]))

    def test_there_may_be_none(self, tmp_path: Path) -> None:
        assert self.hashes(tmp_path, {}) == []

    @pytest.mark.parametrize("place", ["repeat", "variant", "data", "refit", "choice", "reference"])
    def test_wherever_they_are_named(self, place: str, tmp_path: Path) -> None:
        file = tmp_path / "table.csv"
        file.write_text("a,b\n1,2\n")
        other = tmp_path / "other.csv"
        other.write_text("a,b\n1,2\n")
        overrides = {"data.path": str(file)}
        changes = {
            # names of cells have slashes, so values have none
            "repeat": {"repeats": {"options": ["data.path"], "values": ["table.csv", "x"]}, "tune|repeats": ["x"]},
            "variant": {"variants|MIKAN|overrides": overrides},
            "data": {"data|hills|overrides": overrides},
            "refit": {"refit": overrides},
            "choice": {"tune|ranges|data.path": [str(file), str(other)]},
            "reference": {"variants|trees|arguments": {"warm_start": {"from": [str(file)]}}},
        }[place]
        with chdir(tmp_path):
            self.check(tmp_path, file, changes, "trees" if place == "reference" else "MIKAN")

    def check(self, folder: Path, file: Path, changes: dict[str, Any], variant: str) -> None:
        before = self.hashes(folder, changes, variant)
        assert file.name in dict(before)
        file.write_text("a,b\n1,3\n")
        assert self.hashes(folder, changes, variant) != before

    def test_configurations_inside_a_configuration(self, tmp_path: Path) -> None:
        study = read_study(write(tmp_path, {}))
        (tmp_path / "hills.yaml").write_text("model: parts/model.yaml\n")
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "model.yaml").write_text("class_path: Regression\ninit_args: {vectors: words.txt}\n")
        (tmp_path / "parts" / "words.txt").write_text("a 1\n")
        found = files_of(study.data["hills"], study.variants["MIKAN"], {})
        assert dict(found).keys() == {"model.yaml", "words.txt"}

    def test_an_encoder(self, tmp_path: Path) -> None:
        folder = tmp_path / "encoder"
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(name)
        found = self.hashes(tmp_path, {"variants|MIKAN|overrides": {"model.pretrained": str(folder)}})
        assert dict(found).keys() == {"config.json", "model.safetensors"}
