"""Folders and workspaces that are made once and copied by the tests that change them."""

import pytest
import small_runs
import toys


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Three folders of two classes each, 12 images per class."""
    root = tmp_path_factory.mktemp("folders")
    return [toys.write_folder(root / str(i), range(2 * i, 2 * i + 2)) for i in range(3)]


@pytest.fixture(scope="session")
def bases(tmp_path_factory, folders):
    """Return the workspace of a method after its base increment, trained once."""
    made = {}

    def get(method, **settings):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("bases") / method / ".edgecil"
            small_runs.learn(folders[0], made[method], method=method, **settings)
        return made[method]

    return get


@pytest.fixture
def base(bases, tmp_path):
    """Return a copy, to be changed, of the workspace of a method after its base increment."""

    def get(method="lwm"):
        return small_runs.copied(bases(method), tmp_path / method / ".edgecil")

    return get
