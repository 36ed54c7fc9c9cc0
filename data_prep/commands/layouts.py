"""`layouts`: which collections can be sharded, and the folder tree that each expects."""

from collections.abc import Sequence

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest
from data_prep.layouts import list_layouts

COMMANDS = {"pretraining": "shard", "segmentation": "shard-seg"}
"""The command of each stage."""


def layouts(arguments: Sequence[str]) -> None:
    """List all layouts, or describe those that are named."""
    known = list_layouts()
    for name in arguments:
        if name not in known:
            hint = nearest(name, known) or f"; there are {', '.join(known)}"
            raise UserError(f"there is no layout {name!r}{hint}")
    if not arguments:
        width = max(map(len, known))
        for name, classes in known.items():
            commands = " and ".join(COMMANDS[layout.stage] for layout in classes)
            print(f"{name:<{width}}  {commands:<19}  {classes[0].summary}")
        print("\n`python -m data_prep layouts NAME` shows the folder tree that a layout expects.")
    for name in arguments:
        for layout in known[name]:
            print(f"{name} ({COMMANDS[layout.stage]}): {(layout.__doc__ or '').strip()}")
            if layout.tree:
                print("\n" + "\n".join(f"    {line}" for line in layout.tree.strip().split("\n")))
            print(
                f"\nIts options: `python -m data_prep {COMMANDS[layout.stage]} --layout {name}"
                " --help`\n"
            )
