"""Build the wheel: one package, `offramp`, out of the repository's three folders.

In the repository `models`, `pipeline` and `jobs` stand at the top and import each other by these names, which are much too
common to be put into anybody's site-packages. So the wheel holds them below `offramp`, and absolute imports of them are
rewritten while the files are copied (`from models.errors import UserError` -> `from offramp.models.errors import UserError`):

    models/        ->  offramp/models/
    pipeline/      ->  offramp/pipeline/
    jobs/          ->  offramp/jobs/
    pipeline/api/  ->  offramp/             its __init__.py, __main__.py and py.typed: what `import offramp` gives

An editable install copies nothing: there `offramp` is pipeline/api, and the three folders are importable as they stand.
setuptools finds this command by `[tool.setuptools.cmdclass]` in pyproject.toml.
"""

import ast
import re
import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

PACKAGE = "offramp"
FOLDERS = ("jobs", "models", "pipeline")
FACE = ("__init__", "__main__")
"""Modules of pipeline/api that stand at the top of the package as well."""
FROM_IMPORT = re.compile(rb"from\s+(?=[A-Za-z_])")


class BuildOfframp(build_py):
    """Copy the three folders below `offramp`, with their imports rewritten."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.packages = [PACKAGE]
        self.package_dir = {PACKAGE: "pipeline/api"}
        for folder in FOLDERS:
            self.package_dir[f"{PACKAGE}.{folder}"] = folder
            packages = sorted(path.parent for path in Path(folder).rglob("__init__.py"))
            self.packages += [".".join((PACKAGE, *package.parts)) for package in packages]

    def run(self) -> None:
        if self.editable_mode:
            self.distribution.packages = [PACKAGE, *FOLDERS]
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)  # setuptools would pack what an older build has left there
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        return [module for module in found if package != PACKAGE or module[1] in FACE]

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        outfile, copied = super().build_module(module, module_file, package)
        Path(outfile).write_bytes(rewrite_imports(Path(module_file).read_bytes()))
        return outfile, copied

    def get_source_files(self) -> list[str]:
        """Return the files of a source distribution: this one is needed to build from it."""
        return [*super().get_source_files(), "infra/wheel.py"]


def rewrite_imports(source: bytes) -> bytes:
    """Put `offramp.` before the modules of the three folders in a file's import statements; touch nothing else.

    `import pipeline.clock`, without `as`, binds `pipeline`, so the statement goes on: `; from offramp import pipeline`.
    """
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    insertions: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module or ""):
            start = starts[node.lineno - 1] + node.col_offset
            keyword = FROM_IMPORT.match(source, start)
            if keyword is None:
                raise SyntaxError(f"line {node.lineno}: the module does not follow 'from' at once")
            insertions.append((keyword.end(), f"{PACKAGE}."))
        elif isinstance(node, ast.Import):
            ours = [name for name in node.names if _is_ours(name.name)]
            insertions += [(starts[name.lineno - 1] + name.col_offset, f"{PACKAGE}.") for name in ours]
            bound = sorted({name.name.partition(".")[0] for name in ours if name.asname is None})
            if bound:
                end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
                insertions.append((end, f"; from {PACKAGE} import {', '.join(bound)}"))
    for position, text in sorted(insertions, reverse=True):
        source = source[:position] + text.encode() + source[position:]
    return source


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in FOLDERS
