"""Train a compressed network further, with the dense network as its teacher."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hscc_search.config import StudyConfig
from hscc_search.data import Part
from hscc_search.dense.training import _on_device, _optimizer, _scores, _steps, _train_epoch
from hscc_search.progress import Progress, Report, silent

# The share of the steps of fine-tuning that the average of its weights reaches back.
_AVERAGED_SHARE = 0.1


def fine_tune(
    network: nn.Module,
    dense: nn.Module,
    config: StudyConfig,
    train: Part,
    device: torch.device,
    report: Report = silent,
) -> None:
    """Train a compressed network further, in place, with distillation from the dense network (Hinton et al. 2015).

    The loss is ``(1 - d) * cross entropy + d * t^2 * KL(dense || compressed)`` of scores divided by t, with weight d
    and temperature t of ``config.finetuning``; both networks see the same augmented images. What is left at the end is
    an exponential moving average of the weights over about the last tenth of the steps (Polyak and Juditsky 1992).

    Args:
        network: a compressed network, or any other that takes the same images and gives the same classes.
        dense: the teacher.
        config: of the study.
        train: the train part.
        device: where both networks are.
        report: told after each epoch.
    """
    tuning = config.finetuning
    data = _on_device(train, device)
    network.requires_grad_(True)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(network, config.training, tuning.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=tuning.learning_rate, total_steps=tuning.epochs * _steps(config, data)
    )
    teacher = Teacher(dense, tuning.distillation, tuning.temperature) if tuning.distillation > 0 else None
    decay = max(0.0, 1 - 1 / (_AVERAGED_SHARE * tuning.epochs * _steps(config, data)))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(network))
    for epoch in range(tuning.epochs):
        loss = _train_epoch(network, data, config, epoch, optimizer, schedule, teacher)
        report(Progress("fine-tuning", epoch + 1, tuning.epochs, f"loss {loss:.3f}"))
    network.load_state_dict(averaged.module.state_dict())
    network.eval()


@dataclass(frozen=True)
class Teacher:
    """A network to learn from.

    Attributes:
        network: gives the scores.
        weight: of its scores against the labels, 0 to 1.
        temperature: that softens the scores.
    """

    network: nn.Module
    weight: float
    temperature: float

    def loss(self, batch: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """How far the scores ``output`` of a batch are from the teacher's."""
        with torch.no_grad():
            wanted = _scores(self.network, batch)
        divergence = functional.kl_div(
            (output / self.temperature).log_softmax(1),
            (wanted / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * self.temperature**2
