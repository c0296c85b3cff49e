"""Every error that torchlasso raises on purpose.

TorchlassoError
├── InputError (ValueError)          an argument that cannot be used as given
│   ├── RuleError                    regularizer rules that match nothing or clash
│   ├── TableError                   a table of data that cannot be learnt from
│   └── ModelFileError               a model file that is corrupt, foreign or hostile
├── CompactionError (RuntimeError)  a compacted model would not give the same outputs
├── UnsupportedOptimizerError (TypeError)   an optimizer whose metric is not known
└── OutputError (OSError)            a result that cannot be written where it was asked for

A message says what was expected, what came and what to do about it.
"""


class TorchlassoError(Exception):
    """Root of the tree: catch this to catch everything the library raises on purpose."""


class InputError(TorchlassoError, ValueError):
    """An argument has a value that cannot be used."""


class RuleError(InputError):
    """The rules of a regularizer match nothing, or ask for what a parameter cannot do."""


class TableError(InputError):
    """A table of data cannot be read, or nothing can be learnt from it."""


class ModelFileError(InputError):
    """A model file is corrupt, was not written by torchlasso, or lies about its content."""


class UnsupportedOptimizerError(TorchlassoError, TypeError):
    """The optimizer's metric is not known, so the strength would lose its meaning."""


class CompactionError(TorchlassoError, RuntimeError):
    """A compacted model does not give the outputs of the original, so it is not returned."""


class OutputError(TorchlassoError, OSError):
    """A result cannot be written where it was asked for."""
