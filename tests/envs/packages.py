"""Packages with tasks as `pip install` leaves them: modules, and metadata that name entry points."""


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
