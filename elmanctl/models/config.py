"""Model configurations: frozen records, checked whole, with one strict way in from plain data."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

from elmanctl.errors import InvalidConfiguration, nearest
from elmanctl.kernels.matrix_recurrence.sizes import check_size

VOCABULARY = 256
"""Models read and predict bytes."""

MAX_DIM = 65_536

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True, slots=True)
class Between:
    """The closed range in which a number must lie."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyConfig:
    """What the configurations of all families share: a width, a number of layers, the checks.

    The annotation of a field is its check: bool, int, float, `Annotated[int, Between(1, 9)]` or
    `Literal["silu", "sigmoid"]`.  What concerns several fields at once is in `check_together`.
    """

    level: str
    dim: Annotated[int, Between(1, MAX_DIM)]
    depth: Annotated[int, Between(1, 1_024)]

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            _check_value(self.level, name, annotation, getattr(self, name))
        self.check_together()

    def check_together(self) -> None:
        """Raise InvalidConfiguration when fields do not go together."""

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        raise NotImplementedError

    def layer_state_size(self) -> int:
        """Return how many numbers the recurrence of one layer carries to the next position."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: Mapping[str, object]) -> Self:
        """Return the configuration that plain data describes.

        Raises InvalidConfiguration on an unknown, missing, ill-typed or impossible setting.
        """
        known = {item.name: item for item in fields(cls)}
        level = known["level"].default
        for name in data:
            if name not in known:
                near = nearest(name, known)
                raise InvalidConfiguration(
                    f"{level} has no setting `{name}`",
                    hint=f"did you mean `{near}`?" if near else f"it has {', '.join(known)}",
                )
        for name, item in known.items():
            if item.default is MISSING and name not in data:
                raise InvalidConfiguration(f"{level} needs the setting `{name}`")
        return cls(**{name: _widened(cls, name, value) for name, value in data.items()})

    def encode(self) -> dict[str, Any]:
        """Return the plain data that `decode` reads."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(FamilyConfig):
    """E88: heads with a squashed matrix state, key by value, and a delta-rule write."""

    level: Literal["e88"] = "e88"
    n_heads: Annotated[int, Between(1, 4_096)]
    n_state: int
    expansion: Annotated[float, Between(0.0, 16.0)] = 1.0
    use_gate: bool = True
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    decay: Literal["mamba", "simple", "none", "constant"] = "mamba"
    linear_state: bool = False
    write_gate: bool = False
    use_conv: bool = False
    d_conv: Annotated[int, Between(2, 16)] = 4
    output_norm: bool = False
    value_residual: bool = False
    tie_kv: bool = False

    @property
    def key_width(self) -> int:
        """Keys of all heads together."""
        return self.n_heads * self.n_state

    @property
    def value_width(self) -> int:
        """Values of all heads together."""
        # Rounded first, so that 25/24 of 24 is 25 and not 24.999999999999996.
        return int(round(self.key_width * self.expansion, 6))

    @property
    def head_values(self) -> int:
        """Values of one head."""
        return self.value_width // self.n_heads

    @property
    def mixed_width(self) -> int:
        """Outputs of the joint projection to queries, keys and, unless tied, values."""
        return 2 * self.key_width + (0 if self.tie_kv else self.value_width)

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a state size without code or values that do not fit."""
        check_size("torch", self.n_state)
        if self.value_width % self.n_heads or not self.value_width:
            below = int(self.n_state * self.expansion)
            around = [str(values / self.n_state) for values in (below, below + 1) if values]
            raise InvalidConfiguration(
                f"{self.level}: {self.value_width} values (`expansion` {self.expansion:g}) cannot "
                f"be shared out evenly to {self.n_heads} heads",
                hint=f"the nearest expansions that can are {' and '.join(around)}",
            )
        if self.tie_kv and self.value_width != self.key_width:
            raise InvalidConfiguration(
                f"{self.level}: `tie_kv` takes the keys for values and needs `expansion` 1, "
                f"not {self.expansion:g}"
            )

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        from_decay = {
            "mamba": self.dim * self.n_heads + 2 * self.n_heads,
            "simple": self.dim * self.n_heads,
            "constant": self.n_heads,
            "none": 0,
        }
        return (
            self.dim * self.mixed_width
            + self.value_width * self.dim
            + self.use_gate * self.dim * self.value_width
            + from_decay[self.decay]
            + self.write_gate * self.dim * self.n_heads
            + self.use_conv * self.d_conv * self.mixed_width
            + self.output_norm * self.head_values
            + self.value_residual * self.value_width
        )

    def layer_state_size(self) -> int:
        """Return how many numbers the recurrence of one layer carries to the next position."""
        return self.value_width * self.n_state


# Solving for a width builds thousands of configurations, and reading hints is most of the work.
_known_annotations: dict[type[FamilyConfig], dict[str, Any]] = {}


def _annotations(config_class: type[FamilyConfig]) -> dict[str, Any]:
    if config_class not in _known_annotations:
        _known_annotations[config_class] = get_type_hints(config_class, include_extras=True)
    return _known_annotations[config_class]


def _widened(config_class: type[FamilyConfig], name: str, value: object) -> Any:
    """A whole number for a setting that takes any number, as that number."""
    kind, _ = _kind(_annotations(config_class)[name])
    return float(value) if kind is float and type(value) is int else value


def _kind(annotation: Any) -> tuple[type, Between | None]:
    if get_origin(annotation) is Annotated:
        kind, between = get_args(annotation)
        return kind, between
    if get_origin(annotation) is Literal:
        return str, None
    return annotation, None


def _check_value(level: str, name: str, annotation: Any, value: object) -> None:
    kind, between = _kind(annotation)
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted:
        raise InvalidConfiguration(f"{level}: `{name}` must be {_KINDS[kind]}, not {value!r}")
    if between is not None and not between.low <= value <= between.high:  # type: ignore[operator]
        raise InvalidConfiguration(
            f"{level}: `{name}` is {value}, but must be from {between.low:g} to {between.high:g}"
        )
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    if words and value not in words:
        near = nearest(str(value), words)
        raise InvalidConfiguration(
            f"{level}: `{name}` is {value!r}, but must be one of {', '.join(words)}",
            hint=f"did you mean `{near}`?" if near else None,
        )
