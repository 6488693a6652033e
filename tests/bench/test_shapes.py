import pytest
import torch

from elmanctl.bench.products import Product, measure_products, products_ms
from elmanctl.bench.shapes import Projection, projections, step_shape
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import build_model

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_models_of_a_gpu_are_those_of_the_comparison() -> None:
    shape = step_shape(CUDA)
    assert shape.tokens == 8192
    sizes = {m.name: count_parameters(m.level, m.config.encode()) for m in shape.models}
    assert [name.split()[0] for name in sizes] == ["e88", "mamba2", "e88", "fla-gdn", "transformer"]
    assert all(430e6 < count < 510e6 for count in sizes.values()), sizes
    for model in shape.models:
        config = model.config
        letters = {word[0]: int(word[1:]) for word in model.name.split()[1:]}
        assert letters["D"] == config.dim and letters["L"] == config.depth


@pytest.mark.parametrize("model", step_shape(CUDA).models, ids=lambda model: model.name)
def test_projections_are_nearly_all_that_a_model_has(model: object) -> None:
    found = projections(model.config)  # type: ignore[attr-defined]
    weights = sum(p.n_in * p.n_out * p.count for p in found)
    total = count_parameters(model.level, model.config.encode())  # type: ignore[attr-defined]
    assert 0.998 * total < weights <= total


def test_projections_are_those_of_the_model_that_is_built() -> None:
    for model in step_shape(CPU).models:
        built = build_model(model.config, seed=0, backend="torch")
        wanted: dict[tuple[int, int], int] = {}
        for module in built.modules():
            if isinstance(module, torch.nn.Linear):
                key = (module.in_features, module.out_features)
                wanted[key] = wanted.get(key, 0) + 1
        *layers, head = projections(model.config)
        assert {(p.n_in, p.n_out): p.count for p in layers} == wanted
        assert head == Projection(n_in=model.config.dim, n_out=256, count=1)


def test_every_width_is_measured_once_and_a_step_counts_all_of_them() -> None:
    shape = step_shape(CPU)
    found = list(measure_products(shape.models, shape.tokens, CPU, 0))
    widths = [(p.n_in, p.n_out) for p in found]
    assert len(set(widths)) == len(widths)
    for model in shape.models:
        assert products_ms(model, found) > 0


def test_step_is_the_sum_of_its_products() -> None:
    (model, *_) = step_shape(CPU).models
    made = [
        Product(
            tokens=64,
            n_in=p.n_in,
            n_out=p.n_out,
            forward_ms=1.0,
            input_gradient_ms=2.0,
            weight_gradient_ms=4.0,
            spread=0.0,
        )
        for p in projections(model.config)
    ]
    assert products_ms(model, made) == 7.0 * sum(p.count for p in projections(model.config))
    with pytest.raises(KeyError):
        products_ms(model, made[1:])
