"""``python -m ika_lightning report``: what a trained model has learned, as a page with pictures."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from ika_lightning.callbacks.pictures import Examples, Pictures, parts_in
from ika_lightning.cli.checkpoint import read_checkpoint, restore
from ika_lightning.output import follow, open_output
from ika_lightning.pictures import Recorder, Recording, record_spectra
from ika_lightning.pictures.canvas import caption_of, to_svg
from ika_lightning.pictures.page import gallery, page, picture, table
from ika_lightning.protocols import DrawsResults, RunsExample, Tables, TellsTables

PAGE = "report.html"
ARGUMENTS = "Arguments"  # the last table of the page

#: What the pictures of a kind show, in the order of the page.
KINDS = {
    "results": "What the model answers, beside the truth.",
    "attention": "How much each query attends to each key, for a few examples; bright is much.",
    "alignment": "Which words of the translation look at which of the sentence.",
    "tokens": "How much weight each token of a sentence gets.",
    "similarity": "The kernel of each head as a function, beside the Gaussian inside dot-product attention. Along the "
    "diagonal of a surface, or at distance 0, query and key are equal.",
    "spectrum": "The density of the kernel's frequencies: wide means that small differences matter.",
    "parts": "How the kernel of each head is made up: an exact part, and one that is sampled.",
    "correlation": "How far the heads draw the same frequencies.",
    "magnitude": "How much keys ask for attention whatever the query is, and over how many keys a head spreads it.",
}
# Arguments of a layer that the network gives it, whatever a configuration says.
_GIVEN = frozenset({"heads", "concat", "edge_dim", "batch_first", "device", "dtype"})
# Most characters of an argument that is shown.
_LONGEST_FACT = 200


class Drawn(NamedTuple):
    """A picture of the page.

    Attributes:
        image: An SVG.
        caption: What there is to know of it.
    """

    image: bytes
    caption: str


class ReportingTrainer(Trainer):
    """A trainer that can also draw what a trained model has learned."""

    def report(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str = "report",
    ) -> None:
        """Draw what a checkpoint has learned.

        Examples are those of ``--input``; else the validation data, if it is there; else what the checkpoint holds.

        Args:
            model: The model.
            datamodule: Its data.
            ckpt_path: The checkpoint.
            output: The folder to write: a page, ``report.html``, and its pictures. A former report is replaced.
        """
        folder = check_folder(output)
        assert ckpt_path is not None
        checkpoint = read_checkpoint(Path(ckpt_path))
        examples = Examples()
        self.callbacks.append(examples)  # type: ignore[attr-defined]
        notes = []
        if getattr(datamodule, "predict_path", None) is not None:
            self.predict(model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)
        else:
            try:
                self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True)
            except (OSError, ValueError) as error:
                notes.append(f"Without examples, as the validation data could not be had: {error}")
                restore(model, checkpoint)
                examples.recordings = _own_examples(model)
        drawing, missing = _drawing(model.eval(), examples, checkpoint, with_results=not notes)
        figures, failed = _draw(drawing)
        notes += missing + failed
        facts = _facts(checkpoint, ckpt_path, {k: float(v) for k, v in self.callback_metrics.items()})
        told = model.tables() if isinstance(model, TellsTables) else {}
        tables: Tables = {"Run": (("", ""), facts), **told, ARGUMENTS: (("", ""), _arguments(model))}
        _write(folder, f"{type(model).__name__} after {checkpoint['global_step']:,} steps", notes, tables, figures)
        print(f"{len(figures)} pictures: {folder / PAGE}")


def check_folder(output: str | Path) -> Path:
    """Check that a report can be written, before any work is done.

    Raises:
        FileNotFoundError: If there is no folder to put it in.
        FileExistsError: If something else than a report is there already.
        PermissionError: If the folder cannot be written to.

    Example:
        >>> check_folder("nowhere/report")
        Traceback (most recent call last):
        ...
        FileNotFoundError: cannot write nowhere/report: there is no folder nowhere; create it first
    """
    folder, target = Path(output), follow(output)
    if isinstance(target, int) or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"cannot write {folder}: it is there, and is no report; choose another --output")
    if not target.parent.is_dir():
        parent = target.parent if folder.is_symlink() else folder.parent
        raise FileNotFoundError(f"cannot write {folder}: there is no folder {parent}; create it first")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).is_file():
        raise FileExistsError(f"cannot write {folder}: it is there, and is no report; choose another --output")
    if not os.access(target if target.is_dir() else target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {folder}: no permission to write in {target.parent}")
    return folder


def _own_examples(model: LightningModule) -> dict[str, Recording]:
    """What layers do with the examples that a model has itself; nothing if it has none."""
    if not isinstance(model, RunsExample):
        return {}
    with torch.no_grad(), Recorder(model) as recorder:
        model.run_example()
    return recorder.recordings


def _drawing(
    model: LightningModule, examples: Examples, checkpoint: Mapping[str, Any], with_results: bool
) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Find all that can be drawn, by name, and say what cannot: a layer of somebody else's stops no report."""
    found: dict[str, Callable[[], Any]] = {}
    notes: list[str] = []

    def attempt(what: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        try:
            return make()
        except Exception as error:
            notes.append(f"No pictures of {what}: {type(error).__name__}: {error}")
            return {}

    step = int(checkpoint["global_step"])
    if with_results and isinstance(model, DrawsResults):
        found.update(attempt("the results", model.pictures))
    recordings: dict[str, Recording] = {**attempt("kernels", partial(record_spectra, model)), **examples.recordings}
    callbacks = checkpoint.get("callbacks")
    state = callbacks.get(Pictures.__name__) if isinstance(callbacks, Mapping) else None
    course = attempt("the way of the training", partial(parts_in, state)) if isinstance(state, Mapping) else {}
    for name, recording in recordings.items():
        before = [moment for moment in course.get(name, ()) if moment[0] < step]
        make = partial(examples.draw_layer, model, recording, step, parts_before=before)
        found.update(attempt(name or "the layer", make))
    return found, notes


def _draw(drawing: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Drawn], list[str]]:
    """Draw what can be drawn, and say what failed."""
    drawn: dict[str, Drawn] = {}
    notes = []
    for tag, draw_it in drawing.items():
        try:
            with torch.no_grad():
                figure = draw_it()
                drawn[tag] = Drawn(to_svg(figure), caption_of(figure))
        except Exception as error:
            notes.append(f"No picture {tag}: {type(error).__name__}: {error}")
    return drawn, notes


def _facts(checkpoint: Mapping[str, Any], path: str, measured: Mapping[str, float]) -> list[tuple[str, str]]:
    """What the page says of the run: where it is, and its scores."""
    facts = [("checkpoint", path), ("epoch", str(checkpoint["epoch"]))]
    callbacks = checkpoint.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        score = state.get("best_model_score") if isinstance(state, Mapping) else None
        if isinstance(score, Tensor | float) and torch.as_tensor(score).numel() == 1:
            facts.append((f"best {state.get('monitor')} of the run", f"{float(score):.6g}"))
    return facts + [(name, f"{value:.6g}") for name, value in sorted(measured.items())]


def _arguments(model: LightningModule) -> list[tuple[str, str]]:
    """What the page says of the model: its arguments, a class and its own on one line."""
    facts = []
    for name, value in model.hparams.items():
        if isinstance(value, Mapping) and "class_path" in value:
            options = [
                f"{key}={option}"
                for key, option in (value.get("init_args") or {}).items()
                if option is not None and option is not False and key not in _GIVEN
            ]
            facts.append((name, f"{value['class_path'].rpartition('.')[2]}({', '.join(options)})"))
        elif isinstance(value, str | int | float) and not isinstance(value, bool) and not name.startswith("_"):
            # the configuration of a whole encoder is for no reader
            facts += [(name, text)] if len(text := str(value)) <= _LONGEST_FACT else []
    return facts


def _write(folder: Path, title: str, notes: Sequence[str], tables: Tables, figures: Mapping[str, Drawn]) -> None:
    """Write page and pictures, all under other names first, and move them into place, the page last."""
    page = _page(title, notes, tables, figures)
    pictures = {folder / f"{tag.replace('/', '-')}.svg": drawn.image for tag, drawn in figures.items()}
    new = not folder.is_dir()
    # what a link points to is made, too
    os.makedirs(os.path.realpath(folder), exist_ok=True)
    try:
        # left in the opposite order
        with ExitStack() as files:
            for path, content in {folder / PAGE: page.encode(), **pictures}.items():
                file = files.enter_context(open_output(path))
                file.write(content)
                # a disk that is full says so before anything is moved, and processes may have few files open at once
                file.close()
    except BaseException:
        with suppress(OSError):
            if new:
                folder.rmdir()
        raise
    for former in {*folder.glob("*.svg"), *folder.glob("*.png")} - pictures.keys():
        former.unlink()


def _page(title: str, notes: Sequence[str], tables: Tables, figures: Mapping[str, Drawn]) -> str:
    """Make a page that needs no other file."""
    say = html.escape
    shown = {kind: {tag: drawn for tag, drawn in figures.items() if tag.startswith(f"{kind}/")} for kind in KINDS}
    told = {name: [table(header, rows)] for name, (header, rows) in tables.items()}
    chapters = [(name, content) for name, content in told.items() if name != ARGUMENTS]
    for kind, pictures in shown.items():
        if pictures:
            cards = [picture(tag, drawn.image, drawn.caption) for tag, drawn in pictures.items()]
            chapters.append((kind.capitalize(), [f"<p>{say(KINDS[kind])}</p>", gallery(cards)]))
    chapters += [(name, content) for name, content in told.items() if name == ARGUMENTS]
    parts = [f"<h1>{say(title)}</h1>", *(f"<p>{say(note)}</p>" for note in notes)]
    links = (f'<a href="#{say(name.lower())}">{say(name)}</a>' for name, _ in chapters)
    parts += ["<nav>", *links, "</nav>"]
    for name, content in chapters:
        parts += [f'<h2 id="{say(name.lower())}">{say(name)}</h2>', *content]
    return page(title, parts)
