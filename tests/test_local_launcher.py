"""`hydra/launcher=tandem_local` under the tests that Hydra gives to writers of launchers."""

import pytest
from hydra import version
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def first_version_base(hydra_restore_singletons):
    """What these tests expect of a job's directory is Hydra's behaviour before 1.2; that of the last application which
    another test of this process started stays in force until somebody chooses again."""
    with pytest.warns(match="selects Hydra 1.1 compatibility"):
        version.setbase("1.1")


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
