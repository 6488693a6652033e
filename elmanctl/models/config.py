"""What the configurations of all families share: frozen records, checked whole, exact sizes.

Nothing here or in `models.configs` imports torch: a login node counts and checks without it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from elmanctl.errors import InvalidConfiguration, nearest, together

VOCABULARY = 256
"""Models read and predict bytes."""

MAX_DIM = 65_536

DOCUMENTED, STUDY = "documented", "study-2026-01"
"""A model as its documentation has it, or as it ran in the study of January 2026."""

VARIANTS = (DOCUMENTED, STUDY)

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True, slots=True)
class Between:
    """The closed range in which a number must lie."""

    low: float
    high: float


Depth = Annotated[int, Between(1, 1_024)]
Heads = Annotated[int, Between(1, 4_096)]
Expansion = Annotated[float, Between(0.0, 16.0)]
ConvWidth = Annotated[int, Between(2, 16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyConfig:
    """A model of one family: its width, its number of layers, and what the family adds.

    The annotation of a field is its check: bool, int, float, `Annotated[int, Between(1, 9)]`,
    `Literal["silu", "sigmoid"]` or `Literal[32, 64]`.  What concerns several fields at once is in
    `check_together`, what concerns the implementation that runs in `check_backend`.
    """

    norm: ClassVar[Literal["rms", "layer"]] = "rms"
    """The norm before each layer and at the end: RMSNorm, or LayerNorm with a bias."""

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
        """Whether this is the model that ran in the study, faults included."""
        return self.variant == STUDY

    @property
    def sublayers(self) -> int:
        """How many pre-normed steps of the residual stream one layer takes."""
        return 1

    def check_together(self) -> None:
        """Raise InvalidConfiguration when fields do not go together."""

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration when a backend of this family does not compute this model."""

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which sizes a backend computes, empty where it computes all."""
        return ""

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norms before its parts left out."""
        raise self._missing("layer_parameters")

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries from position `seq_len` to the next.

        The state of the recurrence alone, or keys and values of an attention; the few inputs that a
        short convolution keeps are left out.
        """
        raise self._missing("layer_state_size")

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token, on average over a sequence.

        A multiplication and an addition count one each; norms, activations and softmax are left
        out, the tanh of a matrix state is one.
        """
        raise self._missing("layer_flops")

    def _missing(self, method: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not define `{method}`")

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient.

        On backend `torch`, what the norm before it keeps included, the residual itself left out.
        Here, where a family does not know better: each matrix keeps its input and its output, whose
        widths together are about the layer's parameters over its width.
        """
        return 2 * self.dim + 2 * self.layer_parameters() // self.dim

    def norm_parameters(self) -> int:
        """Return the number of parameters of the norms before the layers and of the last one."""
        each = self.dim if self.norm == "rms" else 2 * self.dim
        return each * (self.depth * self.sublayers + 1)

    @classmethod
    def dim_divisor(cls, settings: Mapping[str, object]) -> int:
        """Return what `dim` must be a multiple of, given the other settings."""
        return 1

    @classmethod
    def complete_level(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the settings fixed by a level imply where the configuration is silent."""
        return {}

    @classmethod
    def decode(cls, data: Mapping[str, object]) -> Self:
        """Return the configuration that plain data describes.

        Raises InvalidConfiguration, naming every unknown, missing, ill-typed or impossible setting.
        """
        names = {item.name for item in fields(cls)}
        if not names.issuperset(data) or not cls._required().issubset(data):
            raise together(cls.faults(data))
        return cls(**{name: _widened(cls, name, value) for name, value in data.items()})

    @classmethod
    def faults(cls, data: Mapping[str, object]) -> list[InvalidConfiguration]:
        """Return what is wrong with the settings one by one: unknown, missing, ill-typed."""
        known = {item.name: item for item in fields(cls)}
        default = known["level"].default
        level = str(data.get("level", "" if default is MISSING else default))
        unknown = [name for name in data if name not in known]
        found = [_unknown_setting(level, name, known) for name in unknown]
        # A word that was misspelled is one fault, not two.
        meant = {nearest(name, known) for name in unknown}
        missing = [name for name in known if name in cls._required() - {*data, *meant}]
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
        """Return the plain data that `decode` reads."""
        return asdict(self)


# Solving for a width builds thousands of configurations, and reading hints is most of the work.
_known_annotations: dict[type[FamilyConfig], dict[str, Any]] = {}


def _annotations(config_class: type[FamilyConfig]) -> dict[str, Any]:
    if config_class not in _known_annotations:
        hints = get_type_hints(config_class, include_extras=True)
        found = {item.name: hints[item.name] for item in fields(config_class)}
        for name, annotation in found.items():
            if _kind(annotation)[0] not in _KINDS:
                raise TypeError(
                    f"{config_class.__name__}: nothing checks a `{name}` of type {annotation}; "
                    "the docstring of FamilyConfig has the annotations there are"
                )
        _known_annotations[config_class] = found
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
        return type(get_args(annotation)[0]), None
    return annotation, None


def refuse_unknown(what: str, word: object, known: tuple[str, ...]) -> None:
    """Raise InvalidConfiguration unless a word is one of those known."""
    if word in known:
        return
    near = nearest(str(word), known)
    raise InvalidConfiguration(
        f"there is no {what} `{word}`; known: {', '.join(known)}",
        hint=f"did you mean `{near}`?" if near else None,
    )


def whole(x: float) -> int:
    """Return x without its fraction, so that 25/24 of 24 is 25 and not 24.999999999999996."""
    return int(round(x, 6))


def in_words(sizes: Iterable[int]) -> str:
    """Return sizes for people, three or more at equal steps as a range: `4 to 16 in steps of 4`."""
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


def _unknown_setting(level: str, name: str, known: Iterable[str]) -> InvalidConfiguration:
    near = nearest(name, known)
    return InvalidConfiguration(
        f"{level} has no setting `{name}`",
        hint=f"did you mean `{near}`?" if near else f"it has {', '.join(known)}",
    )


def _listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: `a`, `b` and `c`."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _value_faults(
    config_class: type[FamilyConfig], level: str, values: Mapping[str, object]
) -> list[InvalidConfiguration]:
    """Return what is wrong with each value by itself."""
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
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    if words and value not in words:
        known = [str(word) for word in words]
        near = nearest(str(value), known) if kind is str else None
        return InvalidConfiguration(
            f"{level}: `{name}` is {value!r}, but must be one of {', '.join(known)}",
            hint=f"did you mean `{near}`?" if near else None,
        )
    return None
