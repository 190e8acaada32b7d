"""One cluster and one clone of the repository for all tests here; a user with results of his own for each
test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing
from tests.slurm.jobs import Site, disturbed_clone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("cluster") / "c") as cluster:
        cluster.start_forks()
        yield cluster


@pytest.fixture(scope="session")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path has a space, a quote and a percent sign, which SLURM's file patterns and bash would take
    for their own.
    """
    return disturbed_clone(tmp_path_factory.mktemp("clone") / "it's 100% a clone")


@pytest.fixture
def site(cluster: Cluster, repo: Path, tmp_path: Path) -> Site:
    return Site(cluster, repo, tmp_path / "results")
