"""What every test leaves behind: nothing."""

import pytest

from embedtrain import log


@pytest.fixture(autouse=True)
def _the_log_of_a_run_ends_with_its_test():
    """A run that a test starts in this process puts handlers on the logger; the next test's stdout is not theirs."""
    yield
    log.stop()
