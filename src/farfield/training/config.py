"""The configuration of a training: typed, complete, and refused with the offending key where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from farfield.card import EpsilonInfinity, check_epsilon_infinity
from farfield.datasets.quantities import INTERACTIONS, Columns, Conventions, Units

#: Parts of the loss that every potential has.
ENERGETIC_PARTS = ("energy", "forces", "stress")

#: Parts of the loss that only models with charges have.
RESPONSE_PARTS = ("dipole", "charges", "polarizability", "born_charges")

#: All that needs a model with a long range.
LONG_RANGE_PARTS = (*RESPONSE_PARTS, "total_charge")

#: Parts of the loss that compare a system with its fragments; any potential may be trained on them.
INTERACTION_PARTS = INTERACTIONS

#: All parts of the loss, in the order in which they are kept; checkpoints rely on it: new ones go to the end.
PARTS = (*ENERGETIC_PARTS, *LONG_RANGE_PARTS, *INTERACTION_PARTS)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what is allowed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(_Strict):
    """Frames of a registered set or a file, all of them or a choice by what their info says.

    Attributes
    ----------
    set
        Registry name or path.
    where
        Keys and values that a frame must have in its info.
    sort
        Key by which the frames are sorted, ascending.
    per
        Key whose values make groups; ``first`` and ``last`` count within each group.
    first, last
        How many frames to keep from the front or the back.
    """

    set: str
    where: dict[str, Any] | None = None
    sort: str | None = None
    per: str | None = None
    first: int | None = Field(default=None, gt=0)
    last: int | None = Field(default=None, gt=0)

    @property
    def select(self) -> dict[str, Any]:
        """Arguments of `farfield.datasets.dataset.select_frames` that are set."""
        return self.model_dump(exclude={"set"}, exclude_none=True)


class SplitConfig(_Strict):
    """Validation frames taken from the training frames.

    Attributes
    ----------
    method
        ``random``: shuffled with ``seed``. ``contiguous``: the last frames, for trajectories whose frames are
        correlated.
    count, fraction
        How many frames to take: exactly one of the two.
    seed
        Seed of the random split: the split does not change with the seed of the training.
    """

    method: Literal["random", "contiguous"] = "random"
    count: int | None = Field(default=None, gt=0)
    fraction: float | None = Field(default=None, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one(self) -> SplitConfig:
        if (self.count is None) == (self.fraction is None):
            raise ValueError("give exactly one of `count` and `fraction`")
        return self


class DataConfig(_Strict):
    """What to train, validate and test on.

    Attributes
    ----------
    train
        Training frames: a set, a path, or a mapping with a choice of frames; or a list of these.
    split
        Takes validation frames out of the training frames.
    validation
        Validation frames given as such, instead of ``split``. With neither there is no validation: nothing stops the
        training early and the last weights are kept.
    test
        Frames on which the final model is evaluated once, at the end.
    columns, units, conventions
        Names, units and index orders of the labels. By default those of the registry's entry, else of the shared
        files.
    total_charge
        Key of the info that holds the total charge (e), where the model is to know it; or a number, the charge of every
        frame, such as 0.
    """

    train: tuple[SourceConfig, ...]
    split: SplitConfig | None = None
    validation: tuple[SourceConfig, ...] = ()
    test: tuple[SourceConfig, ...] = ()
    columns: Columns | None = None
    units: Units | None = None
    conventions: Conventions = Conventions()
    total_charge: str | FiniteFloat | None = None

    @field_validator("total_charge", mode="before")
    @classmethod
    def _no_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("it is no switch: name the key of the frames' info, or give the charge (e) of all frames")
        return value

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [] if value is None else [value]
        return tuple({"set": item} if isinstance(item, str) else item for item in items)

    @model_validator(mode="after")
    def _one_validation(self) -> DataConfig:
        if not self.train:
            raise ValueError("`train` is empty: name at least one set")
        if self.split is not None and self.validation:
            raise ValueError("give either `split` or `validation`, not both")
        return self


class ModelConfig(_Strict):
    """The model: a short-range backbone, and the long range or none.

    Attributes
    ----------
    backbone
        ``kind`` (``cace``, or one registered under the entry point ``farfield.backbones``) and its arguments; or
        ``host``, a name that ``farfield hosts`` lists, with the arguments of its adapter, or with ``checkpoint``, the
        file in which the host keeps a trained model, ``trust: true`` (it is a pickle, which may run any code) and
        ``head``, where it has several. ``elements`` is filled in from the data where it is left out.
    long_range
        Arguments of `farfield.LongRange`; null for a short-range model.
    zbl
        Pair repulsion of close nuclei (Ziegler, Biersack, Littmark).
    reference_energies
        ``least-squares``: energies of the elements fitted to the training frames (minimum norm), or to what a
        checkpoint of a host leaves of them; ``host``: those of the checkpoint; ``none``: zero; or a mapping from
        element symbol to energy (eV).
    epsilon_infinity
        High-frequency dielectric constant of the bulk, where it is known; it goes into the card, and into a constraint
        on the total charge. ``explicit``: the model's own response makes all of it, as labels of polarizabilities of
        bulk ask it to; this needs ``induced_dipoles`` and ``response: scf``.
    """

    backbone: dict[str, Any]
    long_range: dict[str, Any] | None = None
    zbl: bool = False
    reference_energies: Literal["least-squares", "host", "none"] | dict[str, float] = "least-squares"
    epsilon_infinity: EpsilonInfinity | None = None

    @field_validator("backbone")
    @classmethod
    def _kind(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "host" in value and "kind" in value:
            raise ValueError("give either `kind` or `host`, not both")
        if not isinstance(value.get("kind", value.get("host")), str):
            raise ValueError("`kind` is missing: name the backbone, for example kind: cace, or a host, host: mace")
        if "checkpoint" in value and "host" not in value:
            raise ValueError("`checkpoint` is a file of a host: name it, for example host: mace")
        return value

    @field_validator("epsilon_infinity", mode="before")
    @classmethod
    def _epsilon(cls, value: Any) -> Any:
        check_epsilon_infinity(value)
        return value

    @model_validator(mode="after")
    def _explicit(self) -> ModelConfig:
        far = self.long_range or {}
        if self.epsilon_infinity == "explicit" and not (far.get("induced_dipoles") and far.get("response") == "scf"):
            raise ValueError(
                "`epsilon_infinity` is 'explicit', but only induced dipoles that feel each other can make all of ε∞ "
                "(one-shot response that did would multiply long-wave energies by 1 − χ = 2 − ε∞ instead of 1/ε∞): set "
                "`long_range.induced_dipoles: true` and `long_range.response: scf`, or give a number"
            )
        return self

    @model_validator(mode="after")
    def _host_energies(self) -> ModelConfig:
        if self.reference_energies == "host" and "checkpoint" not in self.backbone:
            raise ValueError("`reference_energies` are those of a host but `backbone` names no `checkpoint` of one")
        return self


class StageConfig(_Strict):
    """Weights of the parts of the loss from one epoch on.

    Attributes
    ----------
    from_epoch
        First epoch of the stage.
    ramp
        Number of epochs over which the weights go linearly from those of the stage before to these.
    energy, forces, stress
        Weights. Energies are counted per atom (eV/atom), forces in eV/Å, stress in eV/Å³. Of each a batch's loss has
        the mean over the frames that have the label; frames may lack any, as open systems lack a stress.
    total_charge
        Weight of the total charge (e, of each system) that the charges have of themselves, before a constraint on it
        spreads what is missing over the atoms: only with this part does the loss see what the constraint mends, and a
        molecule's charges know which of them to change. It needs no label but ``data.total_charge``.
    interaction_energy, interaction_forces
        Weights of the energy (eV, of the whole system) and forces (eV/Å) of a system less those of its fragments
        (`farfield.datasets.fragments`). What fragments do to each other from beyond the cutoff is the far field alone,
        whatever the short range has wrong within them: these labels say of charges in a few hundred frames what total
        forces hold only in their noise.
    dipole, charges, polarizability, born_charges
        Weights of labels that need a model with a long range: dipoles (e·Å, of whole systems), atomic charges (e),
        polarizabilities (Å³, of whole systems; the model needs response) and Born charges (e), each the mean over its
        components. All count in systems that are open along all axes; charges and Born charges also in systems that
        are periodic along all three axes where ``model.epsilon_infinity`` is given, polarizabilities there where it is
        ``explicit``.
    """

    from_epoch: int = Field(default=0, ge=0)
    ramp: int = Field(default=0, ge=0)
    energy: float = Field(default=1.0, ge=0)
    forces: float = Field(default=100.0, ge=0)
    stress: float = Field(default=0.0, ge=0)
    total_charge: float = Field(default=0.0, ge=0)
    dipole: float = Field(default=0.0, ge=0)
    charges: float = Field(default=0.0, ge=0)
    polarizability: float = Field(default=0.0, ge=0)
    born_charges: float = Field(default=0.0, ge=0)
    interaction_energy: float = Field(default=0.0, ge=0)
    interaction_forces: float = Field(default=0.0, ge=0)


class DeltaConfig(_Strict):
    """Where Huber's loss turns linear.

    Attributes
    ----------
    energy, forces, stress
        Size of a difference beyond which it counts linearly: eV/atom, eV/Å, eV/Å³.
    total_charge, dipole, charges, polarizability, born_charges
        The same in e, e·Å, e, Å³, e.
    interaction_energy, interaction_forces
        The same in eV and eV/Å.
    """

    energy: float = Field(default=0.01, gt=0)
    forces: float = Field(default=0.1, gt=0)
    stress: float = Field(default=0.01, gt=0)
    total_charge: float = Field(default=0.1, gt=0)
    dipole: float = Field(default=0.1, gt=0)
    charges: float = Field(default=0.1, gt=0)
    polarizability: float = Field(default=0.1, gt=0)
    born_charges: float = Field(default=0.1, gt=0)
    interaction_energy: float = Field(default=0.1, gt=0)
    interaction_forces: float = Field(default=0.1, gt=0)


class LossConfig(_Strict):
    """The loss.

    Attributes
    ----------
    kind
        ``mse``: squared errors; ``huber``: squared up to ``delta``, linear beyond.
    delta
        Where Huber's loss turns linear, for each part, in its unit.
    stages
        Weights by epoch, ascending; the first stage starts at epoch 0.
    """

    kind: Literal["mse", "huber"] = "mse"
    delta: DeltaConfig = DeltaConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(),)

    @model_validator(mode="after")
    def _ascending(self) -> LossConfig:
        starts = [stage.from_epoch for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"`from_epoch` of the stages must start at 0 and ascend, but is {starts}")
        for index, stage in enumerate(self.stages):
            if all(getattr(stage, part) == 0 for part in PARTS):
                raise ValueError(f"all weights of stage {index} are zero: at least one must be positive")
        return self


class DecayConfig(_Strict):
    """How the learning rate falls.

    Attributes
    ----------
    kind
        ``plateau``: times ``factor`` when the monitored loss has not improved for ``patience`` epochs; ``cosine``:
        half a cosine over the whole training; ``exponential``: times ``factor`` each epoch; ``none``.
    factor, patience
        See ``kind``.
    threshold
        Smallest relative improvement that counts (plateau).
    minimum
        Smallest fraction of the learning rate that is left.
    """

    kind: Literal["plateau", "cosine", "exponential", "none"] = "plateau"
    factor: float = Field(default=0.5, gt=0, le=1)
    patience: int = Field(default=20, gt=0)
    threshold: float = Field(default=1e-3, ge=0)
    minimum: float = Field(default=1e-3, ge=0, le=1)


class OptimizerConfig(_Strict):
    """The optimizer, its learning rate, and the average of the weights.

    Attributes
    ----------
    kind, weight_decay, amsgrad, betas
        Adam or AdamW and their parameters.
    learning_rate
        Highest learning rate, reached after the warm-up.
    warmup_steps
        Steps over which the learning rate rises to that.
    decay
        How it falls from there.
    clip
        Largest norm of the gradient; longer ones are shortened. null: none.
    ema
        Decay per step of the exponential average of the weights, which is what is validated and kept. null: none.
    short_range_rate
        Factor on the learning rate of the short-range backbone, below 1 for one that is trained already; 0 keeps its
        weights as they are.
    """

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(default=5e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    amsgrad: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(default=100, ge=0)
    decay: DecayConfig = DecayConfig()
    clip: float | None = Field(default=10.0, gt=0)
    ema: float | None = Field(default=0.99, gt=0, lt=1)
    short_range_rate: float = Field(default=1.0, ge=0)


class StopConfig(_Strict):
    """Early stopping.

    Attributes
    ----------
    patience
        Stop after so many epochs of the last loss stage without an improvement of the validation loss.
    threshold
        Smallest relative improvement that counts.
    """

    patience: int = Field(default=100, gt=0)
    threshold: float = Field(default=0.0, ge=0)


class TrainingConfig(_Strict):
    """Everything that determines a training.

    Attributes
    ----------
    name
        Name of the run: outputs go to ``<output>/<name>``.
    seed
        Seed of the initial weights and of the order of the frames.
    precision
        Floating-point type of positions, weights and forces; energies are summed in float64 in any case.
    threads
        Threads of torch on the CPU; null leaves torch's own choice. Bitwise repetition holds at one thread count.
    epochs, batch_size
        Length of the training, and systems per batch and device.
    validate_every
        Epochs between validations.
    keep
        Which weights become the final model: ``best`` on validation, or ``last``.
    checkpoint_minutes
        Longest time between checkpoints within an epoch; one is written after every epoch anyway.
    accelerator, devices
        Where to train, in Lightning's words; several devices share each epoch (DDP), so that the effective batch is
        ``devices × batch_size``.
    description, licence
        Go into the model's card; the licence is that of the training data.
    validation_batch_size
        Systems per batch in validation: changes its speed only.
    output
        Directory of all runs.
    initial
        A trained model, by path or shipped name, whose weights the training starts from; ``model`` must describe the
        same backbone. A long range that it lacks starts fresh. null: fresh weights.
    data, model, loss, optimizer, stop
        See there. ``stop`` null: no early stopping.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    licence: str = ""
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "float64"] = "float32"
    threads: int | None = Field(default=None, gt=0)
    epochs: int = Field(default=500, gt=0)
    batch_size: int = Field(default=4, gt=0)
    validation_batch_size: int = Field(default=16, gt=0)
    validate_every: int = Field(default=1, gt=0)
    keep: Literal["best", "last"] = "best"
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    output: str = "runs"
    accelerator: Literal["cpu", "gpu", "cuda", "mps", "auto"] = "cpu"
    devices: int = Field(default=1, gt=0)
    initial: str | None = None
    data: DataConfig
    model: ModelConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stop: StopConfig | None = StopConfig()

    @model_validator(mode="after")
    def _able(self) -> TrainingConfig:
        far = self.model.long_range
        if far is None and self.optimizer.short_range_rate == 0:
            raise ValueError(
                "`optimizer.short_range_rate` is 0 and `model.long_range` null: nothing is left to be trained"
            )
        for index, stage in enumerate(self.loss.stages):
            for part in LONG_RANGE_PARTS:
                weight, key = getattr(stage, part), f"loss.stages.{index}.{part}"
                if weight > 0 and far is None:
                    raise ValueError(
                        f"`{key}` is {weight:g} but `model.long_range` is null: a short-range model has no charges to "
                        f"train on {part} with; set the weight to 0, or give the model a long range"
                    )
                induces = far is not None and (far.get("induced_dipoles") or far.get("induced_charges"))
                if part == "polarizability" and weight > 0 and not induces:
                    raise ValueError(
                        f"`{key}` is {weight:g} but nothing is induced in the model: set "
                        "`model.long_range.induced_dipoles` or `induced_charges` to true, or the weight to 0"
                    )
        return self

    @property
    def directory(self) -> Path:
        """Directory of the run's outputs."""
        return Path(self.output) / self.name
