"""The configuration of a training: typed, complete, and refused with the offending key where it is wrong."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from farfield.datasets.quantities import Columns, Conventions, Units


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
        Key of the info that holds the total charge (e), where the model is to know it.
    """

    train: tuple[SourceConfig, ...]
    split: SplitConfig | None = None
    validation: tuple[SourceConfig, ...] = ()
    test: tuple[SourceConfig, ...] = ()
    columns: Columns | None = None
    units: Units | None = None
    conventions: Conventions = Conventions()
    total_charge: str | None = None

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
        ``kind`` (``cace``, or one registered under the entry point ``farfield.backbones``) and its arguments.
        ``elements`` is filled in from the data where it is left out.
    long_range
        Arguments of `farfield.LongRange`; null for a short-range model.
    zbl
        Pair repulsion of close nuclei (Ziegler, Biersack, Littmark).
    reference_energies
        ``least-squares``: energies of the elements fitted to the training frames (minimum norm); ``none``: zero;
        or a mapping from element symbol to energy (eV).
    """

    backbone: dict[str, Any]
    long_range: dict[str, Any] | None = None
    zbl: bool = False
    reference_energies: Literal["least-squares", "none"] | dict[str, float] = "least-squares"

    @field_validator("backbone")
    @classmethod
    def _kind(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("kind"), str):
            raise ValueError("`kind` is missing: name the backbone, for example kind: cace")
        return value


class StageConfig(_Strict):
    """Weights of the parts of the loss from one epoch on.

    Attributes
    ----------
    from_epoch
        First epoch of the stage.
    ramp
        Number of epochs over which the weights go linearly from those of the stage before to these.
    energy, forces, stress
        Weights. Energies are counted per atom (eV/atom), forces in eV/Å, stress in eV/Å³.
    """

    from_epoch: int = Field(default=0, ge=0)
    ramp: int = Field(default=0, ge=0)
    energy: float = Field(default=1.0, ge=0)
    forces: float = Field(default=100.0, ge=0)
    stress: float = Field(default=0.0, ge=0)


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
    delta: dict[Literal["energy", "forces", "stress"], float] = {"energy": 0.01, "forces": 0.1, "stress": 0.01}
    stages: tuple[StageConfig, ...] = (StageConfig(),)

    @model_validator(mode="after")
    def _ascending(self) -> LossConfig:
        starts = [stage.from_epoch for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"`from_epoch` of the stages must start at 0 and ascend, but is {starts}")
        for index, stage in enumerate(self.stages):
            if stage.energy == stage.forces == stage.stress == 0:
                raise ValueError(f"all weights of stage {index} are zero: at least one must be positive")
        if self.kind == "huber":
            lacking = {"energy", "forces", "stress"} - set(self.delta)
            if lacking or any(value <= 0 for value in self.delta.values()):
                raise ValueError("`delta` must give a positive number for each of energy, forces and stress")
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
    """Adam or AdamW."""

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(default=5e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    amsgrad: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(default=100, ge=0)
    decay: DecayConfig = DecayConfig()
    clip: float | None = Field(default=10.0, gt=0)
    ema: float | None = Field(default=0.99, gt=0, lt=1)


class StopConfig(_Strict):
    """Early stopping: after ``patience`` epochs of the last loss stage without an improvement of the validation loss."""

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
    description
        Goes into the model's card.
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
    data: DataConfig
    model: ModelConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stop: StopConfig | None = StopConfig()

    @property
    def directory(self) -> Path:
        """Directory of the run's outputs."""
        return Path(self.output) / self.name


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes inside a type such as ``tuple[StageConfig, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for part in typing.get_args(annotation) for model in _models_of(part)]
    return []


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed where an unknown key stands."""
    model: type[BaseModel] = TrainingConfig
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _models_of(field.annotation) if field is not None else []
        if inner:
            model = inner[0]
    return sorted(model.model_fields)


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """A hint at the known words nearest to ``word``, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = _allowed_keys(problem["loc"])
            hint = did_you_mean(str(problem["loc"][-1]), allowed)
            lines.append(f"{key}: unknown key.{hint} Allowed here: {', '.join(allowed)}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing, but required")
        else:
            value = problem.get("input")
            hint = ""
            expected = problem.get("ctx", {}).get("expected")
            if isinstance(value, str) and isinstance(expected, str):
                hint = did_you_mean(value, expected.replace(" or ", ", ").replace("'", "").split(", "))
            message = problem["msg"].removeprefix("Value error, ")
            given = f" (is {value!r})" if isinstance(value, str | int | float | bool | type(None)) else ""
            lines.append(f"{key or 'configuration'}{given}: {message}.{hint}".replace("..", "."))
    return "\n".join(lines)


def parse_config(values: dict[str, Any], source: str = "configuration") -> TrainingConfig:
    """Check a configuration given as a mapping.

    Raises
    ------
    ConfigError
        If anything is wrong: every offending key is named, with what is allowed.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must be a mapping of keys to values, but is {type(values).__name__}")
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source} is not valid:\n{_explain(error)}") from error


def apply_overrides(values: dict[str, Any], overrides: typing.Sequence[str]) -> dict[str, Any]:
    """Set keys of a nested mapping from strings such as ``optimizer.learning_rate=0.01``; values are YAML.

    Raises
    ------
    ConfigError
        If an override is not of the form ``key=value``, or goes through something that is no mapping.
    """
    import copy

    values = copy.deepcopy(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"the override {override!r} must have the form key=value, for example epochs=10")
        *path, leaf = key.strip().split(".")
        node: Any = values
        for part in path:
            if isinstance(node, list):
                if not part.isdigit() or int(part) >= len(node):
                    raise ConfigError(f"the override {override!r}: {part!r} is not an index below {len(node)}")
                node = node[int(part)]
                continue
            node[part] = {} if node.get(part) is None else node[part]
            node = node[part]
            if not isinstance(node, dict | list):
                raise ConfigError(f"the override {override!r} goes through {part!r}, which is no mapping")
        value = yaml.safe_load(text)
        # YAML 1.1 reads "1e-3" as a string: numbers are what is meant.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                pass
        if isinstance(node, list):
            if not leaf.isdigit() or int(leaf) >= len(node):
                raise ConfigError(f"the override {override!r}: {leaf!r} is not an index below {len(node)}")
            node[int(leaf)] = value
        else:
            node[leaf] = value
    return values


def read_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> TrainingConfig:
    """Read a YAML configuration; ``overrides`` such as ``epochs=10`` are applied before it is checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ConfigError
        If it is not YAML, or not a valid configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {str(path)!r}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{str(path)!r} must be a mapping of keys to values, but is {type(values).__name__}")
    return parse_config(apply_overrides(values, overrides), str(path))
