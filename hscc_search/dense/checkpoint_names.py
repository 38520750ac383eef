"""Fit the names in a checkpoint to those of a network: wrappers put prefixes before them, or components into them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

# Components that wrappers put into names: DataParallel and averages of weights, torch.compile.
_OF_WRAPPERS = ("module", "_orig_mod")
# Counts that only batch norms with a momentum of None read, and that older programs do not write.
_COUNTER = "num_batches_tracked"
# The count of steps that `torch.optim.swa_utils.AveragedModel` keeps beside the weights.
_STEPS = "n_averaged"

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A checkpoint by the names of a network.

    Attributes:
        state: tensors by the network's names, with its types; only to be used where there are no problems.
        remarks: what was done to names and values, each a few words.
        problems: differences that remain, each a few words.
        near: words on the names that the problems are counted with; empty where they are the checkpoint's own.
    """

    state: dict[str, torch.Tensor]
    remarks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    near: str = ""


def fit(state: State, expected: State) -> Fitted:
    """Find the names, among those that wrappers explain, under which a checkpoint fits a network best.

    Args:
        state: of the checkpoint.
        expected: the network's state dict; names of one and the same tensor are known by its memory.
    """
    same = _same_tensors(expected)
    best: tuple[list[str], dict[str, torch.Tensor], str] | None = None
    for remark, renamed in _renamings(state, list(expected)):
        problems = _problems(renamed, expected, same)
        if best is None or len(problems) < len(best[0]):
            best = problems, renamed, remark
        if not problems:
            break
    assert best is not None  # the names as they are come first
    problems, renamed, remark = best
    if problems:
        common = _dotted_prefixes(list(renamed))[-1]
        near = remark or (f"all its names begin with {common!r}" if common else "")
        return Fitted({}, (), tuple(problems), near or _other_classes(renamed, expected))
    remarks = [remark] if remark else []
    if any(name.endswith(_COUNTER) for name in expected.keys() - renamed.keys()):
        remarks.append(f"its batch norms have no {_COUNTER}")
    kinds = {
        str(value.dtype).removeprefix("torch.") for name, value in renamed.items() if _converts(name, value, expected)
    }
    if kinds:
        remarks.append(f"converted {' and '.join(sorted(kinds))} to float32")
    return Fitted(_complete(renamed, expected, same), tuple(remarks))


def _converts(name: str, value: torch.Tensor, expected: State) -> bool:
    wanted = expected.get(name, value)
    return value.is_floating_point() and wanted.is_floating_point() and value.dtype != wanted.dtype


def _renamings(state: State, expected: list[str]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield a checkpoint under other names, each time with words on what was done; under its own names first."""
    plain = {name: value for name, value in state.items() if name != _STEPS}
    within = {name: ".".join(part for part in name.split(".") if part not in _OF_WRAPPERS) for name in plain}
    yield "", dict(state)
    for names, dropped in (({name: name for name in plain}, ""), (within, "dropped 'module' or '_orig_mod' in names")):
        if dropped and (names.keys() == set(names.values()) or len(set(names.values())) < len(names)):
            continue
        stripped, added = _dotted_prefixes(list(names.values())), _dotted_prefixes(expected)
        for put, cut in itertools.product(added, stripped):
            words = [
                dropped,
                f"stripped {cut!r} from all names" if cut else "",
                f"put {put!r} before them" if put else "",
            ]
            renamed = {put + names[name].removeprefix(cut): value for name, value in plain.items()}
            yield " and ".join(word for word in words if word) or f"ignored {_STEPS!r}", renamed
    yield from _below_prefixes(plain, expected)


def _below_prefixes(state: State, expected: list[str]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield the tensors below each prefix that gives all the network's names, where others stand beside them.

    Lightning keeps what a loss or a metric holds beside the network.
    """
    names = [name for name in expected if not name.endswith(_COUNTER)]
    if not names:
        return
    for found in [name for name in state if name.endswith(f".{names[0]}")]:
        prefix = found.removesuffix(names[0])
        others = [name for name in state if not name.startswith(prefix)]
        if others and all(prefix + name in state for name in names):
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            below = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            yield f"stripped {prefix!r} and left out {shown}", below


def _dotted_prefixes(names: list[str]) -> list[str]:
    """The prefixes that all names share, each of whole components: '', 'module.', 'module.model.'."""
    prefixes = [""]
    for components in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(components)) > 1:
            break
        prefixes.append(f"{prefixes[-1]}{components[0]}.")
    return prefixes


def _same_tensors(expected: State) -> dict[str, list[str]]:
    """By each name of a tensor that has several its other names."""
    by_memory: dict[object, list[str]] = {}
    for name, value in expected.items():
        if value.numel():
            by_memory.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    return {name: [other for other in names if other != name] for names in by_memory.values() for name in names}


def _problems(state: State, expected: State, same: Mapping[str, list[str]]) -> list[str]:
    """List what keeps tensors from being the network's."""
    problems = [
        f"{name} is missing"
        for name in expected.keys() - state.keys()
        if not name.endswith(_COUNTER) and not any(other in state for other in same.get(name, ()))
    ]
    problems += [f"{name} is unknown to the network" for name in state.keys() - expected.keys() if _matters(name)]
    for name in expected.keys() & state.keys():
        value, wanted = state[name], expected[name]
        if value.shape != wanted.shape:
            problems.append(f"{name} has shape {tuple(value.shape)} instead of {tuple(wanted.shape)}")
        elif wanted.is_floating_point() and not value.is_floating_point():
            problems.append(f"{name} holds {str(value.dtype).removeprefix('torch.')} where floats are expected")
        elif value.dtype == torch.float64 and not torch.isfinite(value.to(wanted.dtype)).all():
            problems.append(f"{name} holds values beyond {str(wanted.dtype).removeprefix('torch.')}")
        for other in same.get(name, ()):
            if name < other and other in state and not torch.equal(value, state[other]):
                problems.append(f"{name} and {other} differ, and are one tensor in the network")
    return problems


def _matters(name: str) -> bool:
    return not name.endswith(_COUNTER)


def _other_classes(state: State, expected: State) -> str:
    """Words on a checkpoint that differs only in the number of its classes; empty where it is something else."""
    if any(map(_matters, state.keys() ^ expected.keys())):
        return ""
    shapes = [(state[name].shape, expected[name].shape) for name in state.keys() & expected.keys()]
    different = {
        (was[0], wanted[0]) for was, wanted in shapes if was != wanted and was and wanted and was[1:] == wanted[1:]
    }
    if len(different) != 1 or any(was[1:] != wanted[1:] for was, wanted in shapes):
        return ""
    ((was, wanted),) = different
    return f"it gives {was} classes and the images have {wanted}"


def _complete(state: State, expected: State, same: Mapping[str, list[str]]) -> dict[str, torch.Tensor]:
    """Give every name of the network its tensor: the checkpoint's, that of another name, or the network's counter."""
    complete = {}
    for name, wanted in expected.items():
        found = next((state[known] for known in (name, *same.get(name, ())) if known in state), wanted)
        complete[name] = found.to(wanted.dtype)
    return complete
