"""What every test run shares: the real servers as plugins, one fixed hypothesis profile, and CI's rule against skipping.

It holds no fixture for a single room; those live beside the room's tests.
"""

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, Phase, settings

# The real servers. Their own asserts explain themselves too, if they are marked before anything imports them.
pytest.register_assert_rewrite("tests.parts")
from tests.parts import PLUGINS  # noqa: E402  it has to follow the line above

pytest_plugins = list(PLUGINS)

# Thousands of collected tests and their modules stay, and looking through them for garbage all the time finds none.
gc.set_threshold(50_000, 20, 100)

# One profile for everyone: the same examples on every run and machine, and no deadline, because a busy machine is not a bug.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# For finding new counter-examples by hand: HYPOTHESIS_PROFILE=explore. Never used by CI.
settings.register_profile("explore", deadline=None, max_examples=2000, phases=tuple(Phase))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

IN_CI = os.environ.get("CI", "") not in {"", "0", "false"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that was skipped, or was expected to fail, has failed: what is not run proves nothing."""
    report = yield
    if IN_CI and (report.skipped or hasattr(report, "wasxfail")):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped or expected to fail; in CI that is a failure:\n{report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same rule for whole modules, which skip while they are collected."""
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped while it was collected; in CI that is a failure:\n{report.longrepr}"
    return report
