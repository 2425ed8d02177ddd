"""What tests know of other packages' releases, of which several are supported."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version

TRANSFORMERS_5 = Version(version("transformers")) >= Version("5")
# of names, classes and ways of their models that the test is about
of_transformers_5 = pytest.mark.skipif(not TRANSFORMERS_5, reason="of models in transformers 5")
