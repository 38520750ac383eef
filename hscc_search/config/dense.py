"""The sections on the dense network: its architecture, its training and fine-tuning."""

from typing import Literal

from pydantic import Field, model_validator

from hscc_search.config.section import FilePath, Section

# Name of a network that was an object in memory where the study was searched.
IN_MEMORY = "in memory"


class ModelConfig(Section):
    """The dense network."""

    name: str = Field(
        max_length=200, description="'digits_cnn', a torchvision or timm classifier, or your own 'module:function'"
    )
    weights: str | None = Field(
        None,
        max_length=200,
        description="published weights to start from, such as DEFAULT; without it they are drawn at random",
    )
    checkpoint: FilePath | None = Field(
        None,
        description="file of trained weights, a plain state dict or safetensors; without it the network is trained",
    )
    checkpoint_key: str | None = Field(
        None,
        max_length=500,
        description="which weights of the checkpoint: the key of a state dict in it, such as state_dict_ema, dotted "
        "where it lies deeper; or what their names begin with, such as ema_model; without it the likeliest, as is said",
    )
    output: str | None = Field(
        None,
        max_length=500,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="'package.module:function' that takes what the network answers with, such as a dict, and returns "
        "the scores; without it the network answers with the scores themselves",
    )


class TrainingConfig(Section):
    """The training of the dense network: SGD with Nesterov momentum under a one-cycle schedule."""

    epochs: int = Field(
        45, ge=0, le=100_000, description="passes over the train part; 0 takes the weights as they come"
    )
    when: Literal["auto", "always"] = Field(
        "auto",
        description="auto keeps the weights that the network of your own function comes with: those that it returns "
        "under different seeds alike; always trains from there. A checkpoint is never trained further",
    )
    batch_size: int = Field(64, ge=2, le=65_536, description="images per step, also when fine-tuning")
    learning_rate: float = Field(0.005, gt=0, le=100, description="highest learning rate of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD; 0 is plain SGD")
    weight_decay: float = Field(5e-4, ge=0, le=100, description="L2 penalty on all weights; 0 is no penalty")
    label_smoothing: float = Field(
        0.05, ge=0, lt=1, description="share of each label that is spread evenly over all classes"
    )
    flip: bool = Field(True, description="mirror half of the images left to right")
    affine: bool = Field(True, description="turn by up to 15 degrees, shift by up to 10 %, scale by 0.85 to 1.15")
    mixup: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="both parameters of the Beta distribution that mixes two images, 0.001 or more; 0 mixes none",
    )

    @model_validator(mode="after")
    def _mixup_that_can_be_drawn(self) -> "TrainingConfig":
        if 0 < self.mixup < 0.001:
            raise ValueError(f"mixup {self.mixup:g} is neither 0 nor 0.001 or more")
        return self


class FinetuningConfig(Section):
    """The further training of each compressed network, with the dense network as its teacher.

    Batch size, momentum, augmentation and everything else without a key here are those of ``training``.
    """

    epochs: int = Field(
        0, ge=0, le=100_000, description="passes over the train part; 0 leaves compressed networks as they are"
    )
    learning_rate: float = Field(0.002, gt=0, le=100, description="highest learning rate of the schedule")
    distillation: float = Field(
        0.5, ge=0, le=1, description="weight of the teacher's scores in the loss; that of the labels is the rest"
    )
    temperature: float = Field(
        2.0,
        ge=0.01,
        le=1000,
        description="divides the scores of teacher and student before softmax, so that unlikely classes count for more",
    )


class RefineConfig(Section):
    """The bringing of compressed networks nearer to the dense network's answers, all weights together, without labels.

    Of the train images some are set aside: a network is never farther from the dense one on these than it was before.
    """

    trials: Literal["front", "all", "none"] = Field(
        "front",
        description="which trials are refined: front for those that cannot be told apart from the front, as trials of "
        "their own once all others are finished; all for each trial, before it is measured; or none",
    )
    most: int = Field(
        5,
        ge=1,
        le=1_000_000,
        description="number of trials that are refined at most each time a study has all its trials, with trials: "
        "front: those that are on the front first, then those that are most probably",
    )
    epochs: int = Field(8, ge=1, le=10_000, description="passes over the images at most")
    learning_rate: float = Field(
        0.01,
        gt=0,
        le=1,
        description="highest step of Adam, relative to the size of each weight; falls where it does not help",
    )
    images: int = Field(
        4096,
        ge=16,
        le=10_000_000,
        description="train images at most, a tenth of which are set aside; labels are not read",
    )
