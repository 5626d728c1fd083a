"""`hydra/launcher=tandem_local` under the tests that Hydra gives to writers of launchers."""

import pytest
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("tandem_local", ["hydra.launcher.jobs=2"])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("tandem_local", ["hydra.launcher.jobs=2", "hydra.sweeper.max_batch_size=2"])]
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=tandem_local", "hydra.launcher.jobs=2"])]
)
class TestIntegration(IntegrationTestSuite):
    pass
