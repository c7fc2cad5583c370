from __future__ import annotations

from tests.export.conftest import in_process  # noqa: F401
