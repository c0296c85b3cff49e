"""Find and load the C library, if it was built."""

import ctypes
from collections.abc import Callable
from functools import cache

from torchlasso.errors import TorchlassoError
from torchlasso.optim.kernels.build import LIBRARY, digest

Walk = Callable[..., None]

_ARGUMENTS = (
    ctypes.c_int32,  # kind
    ctypes.c_void_p,  # rows
    ctypes.c_int64,
    ctypes.c_void_p,  # chunks
    ctypes.c_int64,
    ctypes.c_void_p,  # settings
    ctypes.c_double,  # scale
    ctypes.c_int32,  # frozen
    ctypes.c_int32,  # noise
    ctypes.c_int32,  # threads
)
_AGAIN = "`python -m torchlasso.optim.kernels.build` builds it"


def available() -> bool:
    """Return whether the C library can be used; without it the same steps run in torch, slower.

    Example:
        >>> available() or bool(why_not())
        True
    """
    return not why_not()


def why_not() -> str:
    """Return what keeps the C library from being used, or an empty text."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


def walk() -> Walk:
    """Return the library's one function.

    Raises:
        TorchlassoError: the library is not available.
    """
    loaded = _load()
    if isinstance(loaded, str):
        msg = f"the C library of torchlasso cannot be used: {loaded}"
        raise TorchlassoError(msg)
    return loaded


@cache
def _load() -> Walk | str:
    """Return the library's function, or what prevents its use."""
    if not LIBRARY.exists():
        return f"it was not built, for want of a C compiler at installation; {_AGAIN}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.torchlasso_source.restype = ctypes.c_char_p
        built_from = library.torchlasso_source().decode()
    except (OSError, AttributeError) as error:
        return f"it does not load ({error}); {_AGAIN}"
    if built_from != digest():  # its tables would be laid out otherwise
        return f"it was built from another version of its source; {_AGAIN}"
    function = library.torchlasso_walk
    function.argtypes, function.restype = _ARGUMENTS, None
    return function
