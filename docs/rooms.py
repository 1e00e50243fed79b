#!/usr/bin/env python
"""Count rooms, modules and arrows of a checkout: python docs/rooms.py [FOLDER]."""

import sys
from collections import Counter
from pathlib import Path

import grimp


def room_of(module: str) -> str:
    """Return the room of a module: `pipeline.engine` of `pipeline.engine.packing`."""
    return ".".join(module.split(".")[:2])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    sys.path.insert(0, str(folder))
    graph = grimp.build_graph("pipeline", cache_dir=None)
    arrows = {
        (importer, imported)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    rooms = Counter(room_of(module) for module in graph.modules if module.count(".") > 1)
    between = {(room_of(a), room_of(b)) for a, b in arrows if room_of(a) != room_of(b)}
    circles = [(a, b) for a, b in between if (b, a) in between and a < b]
    modules = [module for module in graph.modules if not (folder / Path(*module.split("."))).is_dir()]
    print(f"{len(modules)} modules, {len(arrows)} imports between them")
    print(f"{len(rooms)} rooms, {len(between)} arrows between rooms and root modules, {len(circles)} circles of two")
    for room, files in sorted(rooms.items()):
        print(f"{room} {files}")


if __name__ == "__main__":
    main()
