"""Base class of model configurations: validation, plain-data codec, exact sizes.

Neither this module nor `models.configs` imports torch, so login nodes can check and count models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from elmanctl.constants import VOCABULARY
from elmanctl.errors import InvalidConfiguration, meant, nearest, together

MAX_DIM = 65_536

DOCUMENTED, STUDY = "documented", "study-2026-01"
"""Variants: a model as documented, or as it ran in the study of January 2026."""

VARIANTS = (DOCUMENTED, STUDY)

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True, slots=True)
class Between:
    """Closed range of valid numbers."""

    low: float
    high: float


Depth = Annotated[int, Between(1, 1_024)]
Heads = Annotated[int, Between(1, 4_096)]
Expansion = Annotated[float, Between(0.0, 16.0)]
ConvWidth = Annotated[int, Between(2, 16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyConfig:
    """Configuration of a model: width, depth and the settings of its family.

    The annotation of a field defines its validation: bool, int, float,
    `Annotated[int, Between(1, 9)]`, `Literal["silu", "sigmoid"]` or `Literal[32, 64]`.
    Constraints across fields go into `check_together`, those of a backend into `check_backend`.
    """

    norm: ClassVar[Literal["rms", "layer"]] = "rms"
    """Norm before each layer and at the end: RMSNorm, or LayerNorm with a bias."""

    level: str
    dim: Annotated[int, Between(1, MAX_DIM)]
    depth: Depth
    variant: Literal["documented", "study-2026-01"] = "documented"

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        faults = _value_faults(type(self), self.level, values)
        if faults:
            raise together(faults)
        self.check_together()

    @property
    def is_study(self) -> bool:
        """Whether this is the model that ran in the study, bugs included."""
        return self.variant == STUDY

    @property
    def sublayers(self) -> int:
        """Pre-norm residual sublayers per layer."""
        return 1

    def check_together(self) -> None:
        """Raise InvalidConfiguration if fields contradict each other."""

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration if a backend of this family does not support this model."""

    def is_supported_by(self, backend: str) -> bool:
        """Whether a backend of this family supports this model."""
        try:
            self.check_backend(backend)
        except InvalidConfiguration:
            return False
        return True

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports; empty if it supports all."""
        return ""

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norms before its sublayers."""
        raise self._missing("layer_parameters")

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer after `seq_len` positions, in elements.

        It is the state of the recurrence, or the cached keys and values of attention, without the
        few inputs that a short convolution keeps.
        """
        raise self._missing("layer_state_size")

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer, averaged over a sequence.

        A multiplication and an addition count as one FLOP each, the tanh of a matrix state as one;
        norms, other activations and softmax are not counted.  Raises InvalidConfiguration for a
        family without a count, which trains under any budget but one in FLOPs.
        """
        raise InvalidConfiguration(
            f"{type(self).__name__} does not define `layer_flops`",
            hint="define it, or train under a budget in minutes, steps or tokens",
        )

    def _missing(self, method: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not define `{method}`")

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass.

        They are those of backend `torch`, including the norm before the layer but not the residual
        stream.  By default each matrix saves its input and output, whose widths add up to roughly
        the layer's parameter count over `dim`.
        """
        return 2 * self.dim + 2 * self.layer_parameters() // self.dim

    def norm_parameters(self) -> int:
        """Return the parameter count of the norms before the sublayers and of the final norm."""
        each = self.dim if self.norm == "rms" else 2 * self.dim
        return each * (self.depth * self.sublayers + 1)

    def parameters(self) -> int:
        """Return the exact parameter count of the model, whose head is tied to its embedding."""
        return VOCABULARY * self.dim + self.depth * self.layer_parameters() + self.norm_parameters()

    @classmethod
    def dim_divisor(cls, settings: Mapping[str, object]) -> int:
        """Return the number that `dim` must be a multiple of, given the other settings."""
        return 1

    @classmethod
    def complete_level(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return defaults implied by the settings that a level fixes."""
        return {}

    @classmethod
    def decode(cls, data: Mapping[str, object]) -> Self:
        """Decode a configuration from plain data.

        Raises InvalidConfiguration listing all unknown, missing, ill-typed and invalid settings.
        """
        names = {item.name for item in fields(cls)}
        if not names.issuperset(data) or not cls._required().issubset(data):
            raise together(cls.faults(data))
        return cls(**{name: _widened(cls, name, value) for name, value in data.items()})

    @classmethod
    def faults(cls, data: Mapping[str, object]) -> list[InvalidConfiguration]:
        """Return the errors of individual settings: unknown, missing, ill-typed, out of range."""
        known = {item.name: item for item in fields(cls)}
        default = known["level"].default
        level = str(data.get("level", "" if default is MISSING else default))
        unknown = [name for name in data if name not in known]
        found = [
            InvalidConfiguration(
                f"{level} has no setting `{name}`",
                hint=meant(name, known, f"it has {', '.join(known)}"),
            )
            for name in unknown
        ]
        # A misspelled setting is one error: unknown, but not also missing.
        intended = {nearest(name, known) for name in unknown}
        missing = [name for name in known if name in cls._required() - {*data, *intended}]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            found.append(
                InvalidConfiguration(f"{level} needs the setting{plural} {_listed(missing)}")
            )
        given = {n: _widened(cls, n, value) for n, value in data.items() if n in known}
        return [*found, *_value_faults(cls, level, given)]

    @classmethod
    def _required(cls) -> set[str]:
        return {item.name for item in fields(cls) if item.default is MISSING}

    def encode(self) -> dict[str, Any]:
        """Encode as plain data for `decode`."""
        return asdict(self)


# Cached because solving for `dim` builds thousands of configurations, and resolving type hints
# would dominate.
_annotation_cache: dict[type[FamilyConfig], dict[str, Any]] = {}


def _annotations(config_class: type[FamilyConfig]) -> dict[str, Any]:
    if config_class not in _annotation_cache:
        hints = get_type_hints(config_class, include_extras=True)
        annotations = {item.name: hints[item.name] for item in fields(config_class)}
        for name, annotation in annotations.items():
            if _kind(annotation)[0] not in _KINDS:
                raise TypeError(
                    f"{config_class.__name__}: `{name}` has the unsupported type {annotation}; "
                    "the docstring of FamilyConfig lists the supported annotations"
                )
        _annotation_cache[config_class] = annotations
    return _annotation_cache[config_class]


def _widened(config_class: type[FamilyConfig], name: str, value: object) -> Any:
    """Convert an integer to float for a setting of type float."""
    kind, _ = _kind(_annotations(config_class)[name])
    return float(value) if kind is float and type(value) is int else value


def _kind(annotation: Any) -> tuple[type, Between | None]:
    if get_origin(annotation) is Annotated:
        kind, between = get_args(annotation)
        return kind, between
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0]), None
    return annotation, None


def floor_exact(x: float) -> int:
    """Round down after removing float error, so that 25/24 of 24 is 25, not 24."""
    return int(round(x, 6))


def format_sizes(sizes: Iterable[int]) -> str:
    """Format sizes, three or more at equal steps as a range such as `4 to 16 in steps of 4`."""
    rest, parts = sorted(sizes), []
    while rest:
        step = rest[1] - rest[0] if len(rest) > 1 else 1
        length = next((n for n, size in enumerate(rest) if size != rest[0] + n * step), len(rest))
        if length < 3:
            length = 1
            parts.append(str(rest[0]))
        else:
            parts.append(f"{rest[0]} to {rest[length - 1]} in steps of {step}")
        rest = rest[length:]
    return ", ".join(parts)


def _listed(names: Sequence[str]) -> str:
    """Join names as in `a`, `b` and `c`."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _value_faults(
    config_class: type[FamilyConfig], level: str, values: Mapping[str, object]
) -> list[InvalidConfiguration]:
    """Return the errors of individual values."""
    annotations = _annotations(config_class)
    found = (_value_fault(level, name, annotations[name], value) for name, value in values.items())
    return [fault for fault in found if fault is not None]


def _value_fault(
    level: str, name: str, annotation: Any, value: object
) -> InvalidConfiguration | None:
    kind, between = _kind(annotation)
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted:
        return InvalidConfiguration(f"{level}: `{name}` must be {_KINDS[kind]}, not {value!r}")
    if between is not None and not between.low <= value <= between.high:  # type: ignore[operator]
        return InvalidConfiguration(
            f"{level}: `{name}` is {value}, but must be from {between.low:g} to {between.high:g}"
        )
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if choices and value not in choices:
        known = [str(choice) for choice in choices]
        return InvalidConfiguration(
            f"{level}: `{name}` is {value!r}, but must be one of {', '.join(known)}",
            hint=meant(str(value), known) if kind is str else None,
        )
    return None
