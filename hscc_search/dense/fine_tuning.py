"""Train a compressed network further, with the dense network as its teacher."""

import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hscc_search.config import StudyConfig
from hscc_search.data import Part
from hscc_search.dense.epochs import Batch, Loss, label_loss, run_epoch, start_descent, training_scores
from hscc_search.dense.trainable import make_trainable, of_numbers
from hscc_search.progress import Progress, Report, silent

# Share of all steps, counted from the last one, that the average of the weights covers.
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
    and temperature t of ``config.finetuning``; both networks see the same augmented images. The network ends with an
    exponential moving average of its weights over about the last tenth of the steps (Polyak and Juditsky 1992).

    Args:
        network: a compressed network, or any other that takes the same images and gives the same classes.
        dense: the teacher.
        config: of the study.
        train: the train part.
        device: where both networks are.
        report: told after each epoch.
    """
    finetuning = config.finetuning
    make_trainable(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    descent = start_descent(network, config, train, finetuning.learning_rate, finetuning.epochs, device)
    decay = max(0.0, 1 - 1 / (_AVERAGED_SHARE * finetuning.epochs * descent.steps_per_epoch))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    descent.optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(network))
    loss = _with_teacher(label_loss(config), dense, finetuning.distillation, finetuning.temperature)
    for epoch in range(finetuning.epochs):
        mean_loss = run_epoch(descent, epoch, loss)
        report(Progress("fine-tuning", epoch + 1, finetuning.epochs, f"loss {mean_loss:.3f}"))
    # A mean of integers is cut off to one, so their tables stay as they are in the network.
    means = {name: value for name, value in averaged.module.state_dict().items() if of_numbers(value)}
    network.load_state_dict({**network.state_dict(), **means})
    network.eval()


def _with_teacher(by_labels: Loss, dense: nn.Module, weight: float, temperature: float) -> Loss:
    """Mix a loss with the divergence from the dense network's scores, weighted 1 - ``weight`` and ``weight``."""
    if weight == 0:
        return by_labels

    def loss(batch: Batch, scores: torch.Tensor) -> torch.Tensor:
        labels_loss = by_labels(batch, scores)
        with torch.no_grad():
            dense_scores = training_scores(dense, batch.images)
        teacher_loss = _divergence(scores, dense_scores, temperature)
        return (1 - weight) * labels_loss + weight * teacher_loss

    return loss


def _divergence(scores: torch.Tensor, dense_scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """t^2 times the Kullback-Leibler divergence of scores divided by t; by t^2 gradients keep their size for any t."""
    divergence = functional.kl_div(
        (scores / temperature).log_softmax(1),
        (dense_scores / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    # Of maps the mean over positions, as the cross entropy is.
    return divergence * temperature**2 / dense_scores[0, 0].numel()
