"""Packages outside ours, as pip would have installed them: modules and a `dist-info` with entry points, in a directory."""


def write(place, name, version, modules, entry_points):
    """Install a package into `place`, which a test puts on the path.

    `modules`: dotted name -> code. `entry_points`: group -> name -> value.
    """
    for dotted, code in modules.items():
        file = place.joinpath(*dotted.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.parent != place:
            (file.parent / "__init__.py").touch()
        file.write_text(code)
    about = place / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in entry_points.items()
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
