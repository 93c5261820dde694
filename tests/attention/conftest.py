"""Fixtures for tests of attention."""

import definition
import pytest


@pytest.fixture(params=[2, 512])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Small tiles, blocks and slabs leave ragged edges on all axes; large ones hold everything."""
    definition.cut_into(request.param, monkeypatch)
    return int(request.param)
