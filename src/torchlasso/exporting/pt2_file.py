"""The PyTorch format: an exported program, which runs without the classes of the model."""

import io

import torch

from torchlasso.exporting.calls import Call, difference, leaves, refuse_export

METADATA = "torchlasso.json"
"""Name of the extra file that holds the description."""


def pt2_bytes(call: Call, description: str) -> tuple[bytes, float]:
    """Return the content of a ``.pt2`` file and its largest relative difference to the model.

    Args:
        call: the model and its example inputs; any number of rows may come later.
        description: what is kept beside the program.

    Raises:
        InputError: torch cannot export the model.
    """
    rows = tuple({0: torch.export.Dim.DYNAMIC} for _ in call.inputs)
    stream = io.BytesIO()
    worst = 0.0
    try:
        with torch.no_grad():
            program = torch.export.export(call.module, call.inputs, dynamic_shapes=rows)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # the user's source paths, and most of a small file
            torch.export.save(program, stream, extra_files={METADATA: description})
            stream.seek(0)
            loaded = torch.export.load(stream).module()
            for trial in (call, call.more()):
                worst = max(worst, difference(leaves(loaded(*trial.inputs)), trial.outputs()))
    except Exception as error:  # torch raises of every kind for what it cannot trace
        refuse_export("pt2", error)
    return stream.getvalue(), worst
