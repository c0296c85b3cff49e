"""The file that a path leaves after every strength, and the way back from it."""

from pathlib import Path
from typing import Any

from torchlasso.errors import InputError, ModelFileError
from torchlasso.files import AnyPath, failing_as, read_tensors, refuse, write_tensors
from torchlasso.lasso_run import Problem, Run
from torchlasso.nested import decode, encode
from torchlasso.streams import count_batches

_KIND = "lasso_path"


def save_run(path: AnyPath, run: Run, arguments: dict[str, Any]) -> None:
    """Write a path so far, whole or not at all.

    Args:
        path: the file, replaced if it is there.
        run: the path on its way.
        arguments: as ``arguments_of`` returned them.

    Raises:
        OutputError: the file cannot be written there.
        InputError: a state holds something that is neither a tensor nor a number or string.
    """
    tensors, content = encode(run.saved())
    write_tensors(path, tensors, {"kind": _KIND, "arguments": arguments, "content": content})


def load_run(path: AnyPath, run: Run, arguments: dict[str, Any]) -> bool:
    """Bring a path to where a file says that it was, and return whether there is such a file.

    Args:
        path: the file.
        run: the path, not yet started.
        arguments: as ``arguments_of`` returned them.

    Raises:
        InputError: the file is of a path with other arguments.
        ModelFileError: it is damaged, or no file of a path.
    """
    if not Path(path).exists():
        return False
    tensors, config = read_tensors(path)
    with failing_as(ModelFileError, f"read {str(path)!r}"):
        if config.get("kind") != _KIND:
            refuse("it is not the checkpoint of a path")
        there = dict(config["arguments"])
    differing = [name for name, here in arguments.items() if there.get(name) != here]
    if differing:
        name = differing[0]
        msg = (
            f"the checkpoint {str(path)!r} is of a path with another {name}: {there.get(name)} there, "
            f"{arguments[name]} here; give the same arguments, or another checkpoint"
        )
        raise InputError(msg)
    with failing_as(ModelFileError, f"go on from {str(path)!r}"):
        run.restore(decode(tensors, config["content"]))
    return True


def arguments_of(problem: Problem, run: Run) -> dict[str, Any]:
    """Return what makes a path this path, in JSON types.

    Args:
        problem: what is asked for.
        run: the path, not yet started.
    """
    shapes = {name: list(p.shape) for name, p in problem.model.named_parameters()}
    return {
        "model": [[name, shape] for name, shape in shapes.items()],
        "regularizer": str(problem.regularizer),
        "optimizer": str(run.optimizer),
        "strengths": problem.strengths if isinstance(problem.strengths, int) else list(problem.strengths),
        "steps": problem.steps,
        "dense_steps": problem.dense_steps,
        "number of train_batches": count_batches(problem.train_batches),
    }
