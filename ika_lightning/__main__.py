"""``python -m ika_lightning``: see :func:`ika_lightning.cli.main`."""

from ika_lightning.cli import main

if __name__ == "__main__":
    main()
