"""What an error tells a logger that also logs the local variables of its frames, as crash reporters do."""

from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb

import backupd

_OURS = str(Path(backupd.__file__).parent)


def variables(error: BaseException) -> str:
    """The local variables of our frames, of this error and of those behind it, as Python shows them."""
    return "\n".join(
        f"{frame.f_code.co_name}: {name} = {value!r}"
        for each in _chain(error)
        for frame, _ in walk_tb(each.__traceback__)
        if frame.f_code.co_filename.startswith(_OURS)
        for name, value in frame.f_locals.items()
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    yield error
    for behind in {id(each): each for each in (error.__cause__, error.__context__) if each is not None}.values():
        yield from _chain(behind)
