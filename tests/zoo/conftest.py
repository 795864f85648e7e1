from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the whole zoo unless `-m zoo` selects them."""
    if "zoo" in str(config.getoption("markexpr")):
        return
    left_out = [item for item in items if item.get_closest_marker("zoo")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
