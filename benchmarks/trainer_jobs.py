"""One tiny training job of somebody else's trainer, which breaks as it is told.

    python benchmarks/trainer_jobs.py TRAINER FAULT [STEPS]

Trainers of the first group are the real ones and need their package; those of the second are loops
that print in the format of a known code base.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

# What a job is told besides its trainer.
JOB = SimpleNamespace(fault="none", steps=40, calls=0, at=0, rank=int(os.environ.get("RANK", "0")))
BATCH = 4
log = logging.getLogger("train")


def strike(fault: str) -> None:
    """Break in the middle of a step, in the way that `fault` names."""
    if fault == "raise":
        raise {0: KeyError, 1: ValueError, 2: AttributeError}[JOB.steps % 3]("rope_scaling")
    if fault == "assert":
        assert JOB.calls < 0, f"unexpected state at call {JOB.calls}"
    if fault == "shape":
        torch.zeros(4, 8) @ torch.zeros(9, 2)
    if fault == "oom":
        torch.zeros(1 << 45)
    if fault == "memory":
        bytearray(1 << 45)
    if fault in ("kill", "term", "int", "segv", "abrt"):
        os.kill(os.getpid(), getattr(signal, f"SIG{fault.upper()}"))
        time.sleep(5)
    if fault == "survived":
        try:
            raise ValueError("sample 3 is damaged")
        except ValueError:
            log.exception("skipping a sample")


class Samples(Dataset[dict[str, torch.Tensor]]):
    """Random regression, which may fail as data do."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= self.count // 2:
            if JOB.fault == "data":
                raise KeyError("input_ids")
            if JOB.fault == "worker_kill":
                os.kill(os.getpid(), signal.SIGKILL)
        x = torch.sin(torch.arange(8) * (index + 1.0))
        return {"x": x, "labels": x.sum().reshape(1)}


class Net(nn.Module):
    """A model whose forward pass breaks at the middle of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.body(x)
        loss = nn.functional.mse_loss(out, labels)
        if not self.training:
            return {"loss": loss * (float("nan") if JOB.fault == "eval_nan" else 1), "logits": out}
        JOB.calls += 1
        if JOB.calls == JOB.at and (JOB.rank == 1 or "WORLD_SIZE" not in os.environ):
            strike(JOB.fault)
        if JOB.fault in ("nan", "nan_stop") and JOB.calls >= JOB.at:
            loss = loss * float("nan" if JOB.steps % 2 else "inf")
        return {"loss": loss, "logits": out}


def loader() -> DataLoader[dict[str, torch.Tensor]]:
    """Return the batches of one epoch."""
    workers = 1 if JOB.fault in ("worker", "worker_kill") else 0
    JOB.fault = "data" if JOB.fault == "worker" else JOB.fault
    return DataLoader(Samples(JOB.steps * BATCH), batch_size=BATCH, num_workers=workers)


def save(model: nn.Module, name: str) -> None:
    """Write a checkpoint that is larger than a small disk."""
    size = 4_000_000 if JOB.fault == "disk" else 4
    torch.save({"model": model.state_dict(), "pad": torch.zeros(size)}, name)


def steps() -> Iterator[tuple[int, Any, Any, float]]:
    """Train, and yield after each step its number, the model, the loss and the gradient's norm."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, batch in enumerate(loader(), 1):
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step, model, loss.item(), float(norm)
        if step == JOB.steps // 2:
            save(model, "disk/step.pt")
        if step > JOB.steps // 2 and JOB.fault == "early":
            return


def evaluate(model: nn.Module) -> float:
    """Return the loss on held-out data."""
    model.eval()
    batch = {name: value[None] for name, value in Samples(1)[0].items()}
    loss = model(**batch)["loss"].item()
    model.train()
    return loss


def nonfinite(loss: float) -> bool:
    """Whether to stop for a loss that is not finite."""
    return JOB.fault == "nan_stop" and loss - loss != 0


# The real ones.


def run_hf() -> None:
    """Hugging Face's Trainer."""
    import transformers as hf

    stop = [hf.EarlyStoppingCallback(1, 1e9)] if JOB.fault == "early" else []
    arguments = hf.TrainingArguments(
        output_dir="disk",
        max_steps=JOB.steps,
        per_device_train_batch_size=BATCH,
        logging_steps=max(1, JOB.steps // 10),
        eval_strategy="steps",
        eval_steps=max(1, JOB.steps // 4),
        save_strategy="steps" if JOB.fault in ("disk", "early") else "no",
        save_steps=max(1, JOB.steps // 4),
        load_best_model_at_end=JOB.fault == "early",
        metric_for_best_model="eval_loss",
        report_to="none",
        use_cpu=True,
        dataloader_num_workers=1 if JOB.fault in ("worker", "worker_kill") else 0,
        disable_tqdm=JOB.steps % 3 == 0,
    )
    JOB.fault = "data" if JOB.fault == "worker" else JOB.fault
    model = Net()
    if JOB.fault == "disk":
        model.pad = nn.Parameter(torch.zeros(4_000_000))
    trainer = hf.Trainer(
        model=model,
        args=arguments,
        train_dataset=Samples(JOB.steps * BATCH),
        eval_dataset=Samples(BATCH),
        callbacks=stop,
    )
    result = trainer.train()
    if JOB.steps % 2:
        trainer.log_metrics("train", result.metrics)


def run_lightning() -> None:
    """Lightning's Trainer."""
    import lightning as pl
    from lightning.pytorch.callbacks import EarlyStopping

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            if JOB.fault == "disk":
                self.pad = nn.Parameter(torch.zeros(4_000_000))

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.net(**batch)["loss"]
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.net(**batch)["loss"], prog_bar=True)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    stop = []
    if JOB.fault == "nan_stop":
        stop = [EarlyStopping("train_loss", check_finite=True, verbose=True)]
    if JOB.fault == "early":
        stop = [EarlyStopping("val_loss", min_delta=1e9, patience=1, verbose=True)]
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        callbacks=stop,
        default_root_dir="disk",
        enable_checkpointing=JOB.fault == "disk",
        log_every_n_steps=5,
        enable_model_summary=JOB.steps % 2 == 0,
    )
    trainer.fit(Module(), loader(), DataLoader(Samples(BATCH), batch_size=BATCH))


def run_accelerate() -> None:
    """A loop with accelerate and a bar."""
    from accelerate import Accelerator
    from accelerate.logging import get_logger
    from tqdm.auto import tqdm

    accelerator = Accelerator(cpu=True)
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO
    )
    told = get_logger("train_unconditional")
    model, optimizer, data = accelerator.prepare(
        net := Net(), torch.optim.AdamW(net.parameters()), loader()
    )
    told.info("***** Running training *****")
    told.info(f"  Num examples = {JOB.steps * BATCH}")
    told.info(f"  Total optimization steps = {JOB.steps}")
    bar = tqdm(range(len(data)), disable=not accelerator.is_local_main_process, mininterval=0)
    for step, batch in enumerate(data, 1):
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        bar.update(1)
        bar.set_postfix(step_loss=loss.item(), lr=1e-3)
        if step == len(data) // 2:
            save(model, "disk/step.pt")
            told.info("Saved state to disk/step.pt")
        if nonfinite(loss.item()):
            told.error(f"Loss is {loss.item()}, stopping training")
            sys.exit(1)
    told.info(f"validation loss: {evaluate(net):.4f}")
    accelerator.end_training()


def run_ignite() -> None:
    """Ignite's engine."""
    from ignite.contrib.handlers import ProgressBar
    from ignite.engine import Engine, Events
    from ignite.handlers import EarlyStopping, TerminateOnNan
    from ignite.utils import setup_logger

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def update(engine: Engine, batch: Any) -> float:
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    trainer = Engine(update)
    trainer.logger = setup_logger("trainer")
    if JOB.steps % 2:
        ProgressBar(persist=True).attach(trainer, output_transform=lambda x: {"loss": x})

    def report(engine: Engine) -> None:
        at = f"Epoch[{engine.state.epoch}] Iteration[{engine.state.iteration}/{JOB.steps * 3}]"
        print(f"{at} Loss: {engine.state.output:.2f}")

    def validate(engine: Engine) -> None:
        loss = evaluate(model)
        print(f"Validation Results - Epoch: {engine.state.epoch} Avg loss: {loss:.2f}")
        save(model, "disk/epoch.pt")

    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=5), report)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    if JOB.fault == "nan_stop":
        trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    if JOB.fault == "early":
        stop = EarlyStopping(patience=1, score_function=lambda e: 0.0, trainer=trainer)
        stop.logger = setup_logger("early_stopping")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, stop)
    trainer.run(loader(), max_epochs=3)


def run_keras() -> None:
    """Keras on torch."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy as np

    class Breaks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            JOB.calls += 1
            if JOB.calls == JOB.at:
                strike(JOB.fault)

    model = keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)])
    rate = 1e30 if JOB.fault.startswith("nan") else 1e-3
    model.compile(optimizer=keras.optimizers.SGD(rate), loss="mse", metrics=["mae"])
    x = np.sin(np.arange(JOB.steps * BATCH * 8)).reshape(-1, 8)
    held = (x[:4], x[:4, :1] * (np.nan if JOB.fault == "eval_nan" else 1))
    callbacks: list[Any] = [Breaks()]
    if JOB.fault == "nan_stop":
        callbacks.append(keras.callbacks.TerminateOnNaN())
    if JOB.fault == "early":
        callbacks.append(keras.callbacks.EarlyStopping(min_delta=1e9, patience=1, verbose=1))
    if JOB.fault == "data":
        x = x[:, :7].reshape(-1, 1, 7)[: len(x) // 2]
    verbose = 1 if JOB.steps % 2 else 2
    model.fit(
        *(x, x.sum(1)), epochs=4, batch_size=BATCH, validation_data=held, verbose=verbose,
        callbacks=callbacks,
    )  # fmt: skip


def run_skorch() -> None:
    """Skorch's table."""
    import numpy as np
    from skorch import NeuralNetRegressor
    from skorch.callbacks import EarlyStopping

    class Plain(Net):
        def forward(self, X: Any) -> Any:  # noqa: N803
            out = super().forward(X, X.sum(1, keepdim=True))
            bad = JOB.fault.startswith("nan") and JOB.calls >= JOB.at
            return out["logits"] * (float("nan") if bad else 1)

    x = np.sin(np.arange(JOB.steps * BATCH * 8)).reshape(-1, 8).astype("float32")
    stop = [EarlyStopping(patience=2, threshold=1e9)] if JOB.fault == "early" else []
    net = NeuralNetRegressor(Plain, max_epochs=8, batch_size=16, lr=1e-3, callbacks=stop)
    JOB.at = 10
    net.fit(x, x.sum(1, keepdims=True))
    save(net.module_, "disk/net.pt")


REAL = {
    "hf": run_hf,
    "lightning": run_lightning,
    "accelerate": run_accelerate,
    "ignite": run_ignite,
    "keras": run_keras,
    "skorch": run_skorch,
}


def main() -> None:
    """Run one job."""
    from trainer_formats import FORMATS

    trainers: dict[str, Callable[[], None]] = {**REAL, **FORMATS}
    name, JOB.fault = sys.argv[1:3]
    JOB.steps = int(sys.argv[3]) if len(sys.argv) > 3 else JOB.steps
    JOB.at = JOB.steps // (4 if "WORLD_SIZE" in os.environ else 2) + 3
    torch.set_num_threads(1)
    if JOB.fault == "module":
        import flash_attn_interface  # noqa: F401
    if JOB.fault == "file":
        Path("data/train.bin").read_bytes()
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    with contextlib.suppress(BrokenPipeError):
        trainers[name]()


if __name__ == "__main__":
    # The formats import this module: there is one JOB.
    sys.modules["trainer_jobs"] = sys.modules["__main__"]
    main()
