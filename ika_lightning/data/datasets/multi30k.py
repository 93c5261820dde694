"""Multi30k, task 1: captions of pictures, raw text."""

from ika_lightning.data.datasets.kinds import ParallelSet
from ika_lightning.data.download import RemoteFile

_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"

# Size in bytes and SHA-256 of each file.
_KNOWN = {
    "test_2016_flickr.de": (22_890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
    "test_2016_flickr.en": (21_077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
    "test_2016_flickr.fr": (22_310, "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90"),
    "train.de": (637_044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
    "train.en": (568_929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
    "train.fr": (604_242, "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
    "val.de": (24_681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
    "val.en": (21_650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
    "val.fr": (23_001, "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
}


def _file(split: str, language: str) -> RemoteFile:
    name = f"{'test_2016_flickr' if split == 'test' else split}.{language}"
    return RemoteFile(f"translation/multi30k/{name}.gz", f"{_URL}{name}.gz", *_KNOWN[name])


DATASET = ParallelSet(
    name="multi30k",
    title="Multi30k, captions of pictures in English, German and French",
    licence="non-commercial research (Flickr30k)",
    figure="BLEU 41.0 English to German on test_2016, lower-cased and tokenised (LividWo/Revisit-MMT)",
    files={f"{split}.{lang}": _file(split, lang) for split in ("train", "val", "test") for lang in ("en", "de", "fr")},
    languages=("en", "de", "fr"),
    published_in_lowercase=True,
)
