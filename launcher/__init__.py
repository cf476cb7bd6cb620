"""Starts a job from a checkpoint and brings every checkpoint that it writes back.

What is listed in `__all__` is the Python API, and docs/python.md tells of it; the errors are in `launcher.errors`. Each name is
imported when it is used, so that `import launcher` costs nothing.
"""

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Event",
    "JobSpec",
    "LauncherError",
    "Result",
    "Store",
    "__version__",
    "checkpoint_path",
    "fetch_checkpoint",
    "open_store",
    "push_checkpoint",
    "run",
]

TYPE_CHECKING = False  # As typing's, without its import: the plain init starts with this module.
if TYPE_CHECKING:
    from launcher.api import (
        Checkpoint,
        Event,
        JobSpec,
        LauncherError,
        Result,
        Store,
        checkpoint_path,
        fetch_checkpoint,
        open_store,
        push_checkpoint,
        run,
    )


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from launcher import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
