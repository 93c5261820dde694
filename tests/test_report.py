"""``report``: a page for a checkpoint, whole or not at all."""

import base64
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, chdir
from pathlib import Path

import pytest
import torch

import ika_lightning.cli.report
from ika_lightning.cli import main
from ika_lightning.cli.report import Drawn

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.enable_model_summary", "false"]
SMALL = ["--trainer.max_epochs", "1", "--model.width", "16", "--model.num_heads", "2", "--model.depth", "1"]


def fit(*options: str) -> None:
    main(["fit", *options, *QUIET, *SMALL, "--pictures", "0"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of regression and one of text classification, whose training data is gone."""
    with chdir(tmp_path_factory.mktemp("trained")):
        Path("rows.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 3},{i * i % 7}\n" for i in range(40)))
        Path("texts.tsv").write_text("".join(f"{'ab'[i % 2]}\t{['good', 'bad'][i % 2]} <one> {i}\n" for i in range(40)))
        rows = ["--data", "RegressionData", "--data.path", "rows.csv", "--data.target", "y"]
        # whose heads are coupled, so that there are pictures of all kinds
        fit("--model", "Regression", "--model.attention=MIKAN", *rows)
        fit("--model", "TextClassification", "--data", "TextClassificationData", "--data.path", "texts.tsv")
        Path("rows.csv").rename("away.csv")
        Path("texts.tsv").rename("away.tsv")
        return {
            name: Path(f"runs/{data}/version_0/checkpoints/best.ckpt").resolve()
            for name, data in (("regression", "rows"), ("textclassification", "texts"))
        }


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def report(checkpoint: Path, *options: str) -> str:
    main(["report", *QUIET, "--ckpt_path", str(checkpoint), *options])
    return Path("report/report.html").read_text()


def drawn(image: bytes) -> Drawn:
    return Drawn(image, "Of 3 rows.")


def kinds() -> set[str]:
    return {file.name.split("-")[0] for file in Path("report").glob("*.svg")}


def error_of(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["report", *QUIET, *options])
    assert end.value.code == 2
    return capsys.readouterr().err.removeprefix("error: ").rstrip()


def test_with_the_validation_data(capsys: pytest.CaptureFixture[str]) -> None:
    fit(
        "--model",
        "Regression",
        "--model.attention=MIKAN",
        "--data",
        "RegressionData",
        "--data.name",
        "airline_passengers",
    )
    page = report(Path("runs/airline_passengers/version_0/checkpoints/best.ckpt"))
    assert kinds() == {"results", "attention", "similarity", "spectrum", "correlation", "magnitude"}
    assert "val/rmse" in page and "MIKAN(p=2.0" in page and "best val/loss of the run" in page
    assert capsys.readouterr().out.splitlines()[-1] == "6 pictures: report/report.html"
    # the pictures in the page are those beside it
    inside = {base64.b64decode(data) for data in re.findall(r"base64,([\w+/=]+)", page)}
    assert inside == {file.read_bytes() for file in Path("report").glob("*.svg")}
    assert {path.name for path in Path().iterdir()} == {"report", "runs"}


def test_the_page_fits_any_window_and_says_what_it_shows(trained) -> None:
    page = report(trained["regression"])
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "prefers-color-scheme: dark" in page and "<script" not in page
    # nothing is wider than a telephone but what a click asks for
    style = page.partition("<style>")[2].partition("</style>")[0]
    fixed = re.findall(r"(?<![-\w])(?:min-)?width: ([\d.]+)rem", style.partition("figure:target")[0])
    assert all(float(width) * 16 <= 360 for width in fixed)
    # each picture has a caption, and a link to itself in full size
    pictures = list(Path("report").glob("*.svg"))
    captions = re.findall(r"<figcaption><strong>(.*?)</strong> (.*?)</figcaption>", page)
    assert len(captions) == len(pictures) and all(len(text) > 60 for _, text in captions)
    targets = re.findall(r'<figure id="([^"]+)">', page)
    assert len(set(targets)) == len(pictures) and all(f'href="#{target}"' in page for target in targets)
    told = dict(captions)
    assert "context" in told["attention/net.encoder.layers.0.attention"]
    # what the network says itself is not said by the layer again
    arguments = page.partition('<h2 id="arguments">')[2]
    assert "batch_first" not in arguments and "<td>num_heads</td><td>2</td>" in arguments


def test_the_parts_of_kernels_are_told_over_the_training(tmp_path: Path) -> None:
    data = ["--model", "Regression", "--data", "RegressionData", "--data.name", "airline_passengers"]
    attention = ["--model.attention=IKAN", "--model.attention.init", "softmax"]
    main(["fit", *data, *attention, *QUIET, *SMALL, "--trainer.max_epochs", "3", "--pictures", "0.01"])
    page = report(Path("runs/airline_passengers/version_0/checkpoints/last.ckpt"))
    assert "have learned, at 3 validations up to step 3: s is the precision" in page


def test_a_layer_that_cannot_be_drawn_is_left_out(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no <ink>")

    monkeypatch.setattr("ika_lightning.pictures.layers.draw_similarity", fail)
    page = report(trained["regression"])
    assert kinds() == {"attention", "spectrum", "correlation", "magnitude"}
    assert "No picture similarity/net.encoder.layers.0.attention: RuntimeError: no &lt;ink&gt;" in page
    monkeypatch.setattr("ika_lightning.cli.report.record_spectra", fail)
    monkeypatch.setattr("ika_lightning.callbacks.pictures.draw", fail)
    page = report(trained["regression"])
    assert kinds() == set() and "No pictures of kernels: RuntimeError: no &lt;ink&gt;" in page


def test_a_checkpoint_is_enough_for_the_context_of_a_regression(trained) -> None:
    page = report(trained["regression"])
    assert kinds() == {"attention", "similarity", "spectrum", "correlation", "magnitude"}
    assert "Without examples, as the validation data could not be had: " in page and "rows.csv" in page


def test_and_for_what_needs_no_examples_at_all(trained) -> None:
    report(trained["textclassification"])
    assert kinds() == {"similarity", "spectrum", "correlation", "parts"}


def test_examples_may_be_given(trained) -> None:
    Path("new.txt").write_text("bad & <b>bold</b>\ngood good\n")
    page = report(trained["textclassification"], "--input", "new.txt")
    assert kinds() == {"attention", "tokens", "similarity", "spectrum", "correlation", "magnitude", "parts"}
    assert "Without examples" not in page


def test_translations_are_a_table_and_the_decoder_is_in_the_pictures() -> None:
    for name, word in (("en.txt", "page"), ("de.txt", "Seite")):
        Path(name).write_text("".join(f"{word} {i}\n" for i in range(40)))
    files = ["--data.source", "en.txt", "--data.target", "de.txt", "--data.vocabulary", "280"]
    fit("--model", "Translation", "--data", "TranslationData", *files)
    checkpoint = Path("runs/en/version_0/checkpoints/best.ckpt")
    page = report(checkpoint)
    assert "<th>reference</th>" in page and "<td>Seite " in page
    assert Path("report/attention-net.layers.0.cross_attention.svg").is_file()
    Path("new.txt").write_text("May 18, 1964\n")
    report(checkpoint, "--input", "new.txt")
    assert Path("report/similarity-net.layers.0.cross_attention.svg").is_file()
    assert Path("report/attention-net.encoder.layers.0.attention.svg").is_file()


def test_it_is_the_same_twice_and_replaces_a_former_one(trained) -> None:
    first = report(trained["regression"])
    Path("report/old.svg").touch()
    Path("report/older.png").touch()  # of a version that wrote such
    assert report(trained["regression"]) == first
    assert not Path("report/old.svg").exists() and not Path("report/older.png").exists()
    assert [path.name for path in Path().iterdir()] == ["report"]


def test_a_failure_leaves_the_former_report(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report(trained["regression"])

    def fail(*_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(ika_lightning.cli.report, "_page", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        report(trained["regression"])
    assert Path("report/report.html").read_text() == first and [path.name for path in Path().iterdir()] == ["report"]


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_a_full_disk_leaves_the_former_report(file_size_limit: Callable[[int], AbstractContextManager[None]]) -> None:
    write = ika_lightning.cli.report._write
    pictures = {f"spectrum/{number}": drawn(bytes([number]) * 500) for number in range(100)}
    write(Path("report"), "old", [], {}, pictures)
    before = contents()
    assert len(before) == 101 and before["report/spectrum-7.svg"] == bytes([7]) * 500
    # the pictures are larger than the first, the page than both
    for folder, size in (("report", 400), ("new", 400), ("report", 5000), ("new", 5000)):
        with file_size_limit(size), pytest.raises(OSError, match=rf"^cannot write {folder}/.*: File too large$"):
            write(Path(folder), "new", [], {}, dict.fromkeys(pictures, drawn(b"x" * 500)))
        assert contents() == before and not Path("new").exists()


def test_it_has_more_pictures_than_a_process_may_open_files() -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limits on open files")
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))
    try:
        ika_lightning.cli.report._write(
            Path("report"), "many", [], {}, {f"results/{i}": drawn(b"x") for i in range(101)}
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    assert len(contents()) == 102


@pytest.mark.skipif(os.name != "posix", reason="Windows lets not everybody make links")
@pytest.mark.parametrize("there", [False, True])
def test_a_link_to_a_folder(there) -> None:
    write, check = ika_lightning.cli.report._write, ika_lightning.cli.report.check_folder
    Path("link").symlink_to("reports")
    if there:
        Path("reports").mkdir(mode=0o750)
    for title in ("first", "second"):
        write(check("link"), title, [], {}, {"results/fit": drawn(b"svg")})
        Path("reports/report.html").chmod(0o640)
    assert Path("link").is_symlink() and sorted(contents()) == ["reports/report.html", "reports/results-fit.svg"]
    assert "second" in Path("reports/report.html").read_text()
    assert Path("reports/report.html").stat().st_mode & 0o777 == 0o640
    assert not there or Path("reports").stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
def test_what_is_no_folder_is_left_alone() -> None:
    check = ika_lightning.cli.report.check_folder
    os.mkfifo("fifo")
    Path("file").write_text("mine")
    Path("link").symlink_to("file")
    for output in ("fifo", "file", "link", "/dev/stdout"):
        with pytest.raises(FileExistsError, match=rf"cannot write {output}: it is there, and is no report; choose"):
            check(output)
    Path("nowhere").symlink_to("no/report")
    with pytest.raises(FileNotFoundError, match=r"cannot write nowhere: there is no folder .*/no; create it first"):
        check("nowhere")
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    with pytest.raises(OSError, match=r"cannot write a: its symbolic links lead in a circle"):
        check("a")


def test_mistakes_are_one_line(trained, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = ["--ckpt_path", str(trained["regression"])]
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    assert error_of(capsys, *checkpoint, "--output", "mine") == (
        "cannot write mine: it is there, and is no report; choose another --output"
    )
    assert error_of(capsys, *checkpoint, "--output", "no/report") == (
        "cannot write no/report: there is no folder no; create it first"
    )
    assert error_of(capsys, *checkpoint, "--input", "no.csv").startswith("there is no file no.csv")
    assert error_of(capsys).startswith("--ckpt_path FILE is missing")
    assert [path.name for path in Path().iterdir()] == ["mine"]


def test_training_takes_its_time_for_pictures_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--model", "Regression", "--data", "RegressionData", "--data.name", "airline_passengers"]
    main(["fit", *data, *QUIET, *SMALL, "--pictures", "1.0"])
    folder = Path("runs/airline_passengers/version_0")
    assert b"results/fit" in next(folder.glob("events.*")).read_bytes()
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert "pictures: 1.0" in saved["config"]
    main(["fit", *data, *QUIET, *SMALL, "--pictures", "0"])
    assert b"results/fit" not in next(Path("runs/airline_passengers/version_1").glob("events.*")).read_bytes()
    with pytest.raises(SystemExit):
        main(["fit", *data, *QUIET, "--pictures", "2"])
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: pictures must be from 0 to 1, a share")
