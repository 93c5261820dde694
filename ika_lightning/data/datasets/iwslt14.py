"""IWSLT'14, talks in German and English, tokenised and lower-cased by the recipe of fairseq."""

from ika_lightning.data.datasets.kinds import ParallelSet
from ika_lightning.data.download import RemoteFile


def _file(split: str, language: str) -> RemoteFile:
    return RemoteFile(
        path=f"translation/iwslt14/{split}.{language}.gz",
        url=None,
        size=None,
        sha256=None,
        otherwise="put it there, one sentence a line; the original is "
        "https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz",
    )


DATASET = ParallelSet(
    name="iwslt14",
    title="IWSLT'14, talks in German and English",
    licence="CC BY-NC-ND",
    figure="BLEU 34 to 35 German to English, lower-cased and tokenised (fairseq)",
    files={f"{split}.{lang}": _file(split, lang) for split in ("train", "val", "test") for lang in ("de", "en")},
    languages=("de", "en"),
    published_in_lowercase=True,
)
