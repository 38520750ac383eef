"""Words on what a network answers with."""

from typing import Any

import torch


def described(answer: Any) -> str:
    """Words on an answer that is no tensor: its type, its keys or length, and the shapes in it."""

    def brief(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__

    if isinstance(answer, dict):
        keys = ", ".join(f"{key!r} {brief(value)}" for key, value in list(answer.items())[:6])
        return f"{_kind(answer)} of {keys or 'nothing'}"
    if isinstance(answer, (tuple, list)):
        return f"{_kind(answer)} of {len(answer)}: {', '.join(map(brief, answer[:6]))}"
    return _kind(answer)


def _kind(answer: Any) -> str:
    kind = type(answer).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def picked(answer: Any, shape: tuple[int, ...] | None) -> str:
    """The code that takes the scores out of ``answer``, as far as it can be guessed: the likeliest entry.

    Args:
        answer: of a network.
        shape: of the scores; None where it is not known.
    """

    def fits(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and tuple(value.shape) == shape

    if isinstance(answer, dict):
        likely = [key for key in ("logits", "scores", "out", "output", "pred") if key in answer]
        fitting = [key for key, value in answer.items() if fits(value)]
        keys = [*likely, *fitting, *(key for key, value in answer.items() if isinstance(value, torch.Tensor)), "logits"]
        return f"answer[{keys[0]!r}]"
    if isinstance(answer, (tuple, list)):
        return f"answer[{next((position for position, value in enumerate(answer) if fits(value)), 0)}]"
    return "answer.logits"
