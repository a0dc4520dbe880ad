"""pytest-xdist keeps a group of tests on one worker by a suffix of their node ids; a pytest that ignores it runs two
Slurms beside each other, and makes again what a module's tests share."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("grouped")
def test_a_group_is_in_the_node_id(request):
    if request.config.getoption("dist", "no") == "no" and not hasattr(request.config, "workerinput"):
        pytest.skip("not run by workers")
    assert request.node.nodeid.endswith("@grouped")
