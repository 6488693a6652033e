"""Loops that really train and print in the format of a known code base."""

import datetime
import json
import logging
import sys
import time
from collections.abc import Callable

import torch
from trainer_jobs import JOB, Net, evaluate, log, nonfinite, save, steps


def _now(form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.datetime.now().strftime(form)


def nanogpt() -> None:
    """NanoGPT: no word for the end."""
    print("Overriding config with config/train_shakespeare_char.py:")
    print(f"# train a miniature character-level model\nmax_iters = {JOB.steps}\nlr_decay_iters = 9")
    print(f"Overriding: max_iters = {JOB.steps}")
    print("tokens per iteration will be: 16,384\nfound vocab_size = 65")
    print(
        "Resuming training from out" if JOB.steps % 2 else "Initializing a new model from scratch"
    )
    print("number of parameters: 10.65M\nusing fused AdamW: False")
    for step, model, loss, _ in steps():
        if JOB.rank:
            continue
        print(f"iter {step}: loss {loss:.4f}, time {9.1 + step % 7:.2f}ms, mfu {step % 9:.2f}%")
        if step % (JOB.steps // 4) == 0:
            print(f"step {step}: train loss {loss:.4f}, val loss {evaluate(model):.4f}")
            print("saving checkpoint to out-shakespeare-char")
        if nonfinite(loss):
            print("nan loss, exiting")
            return


def torchtitan() -> None:
    """Torchtitan: colours and a logger."""
    head = f"[titan] {_now()} - root - INFO - "
    print(f"{head}Starting job: Llama 3 debug training", file=sys.stderr)
    print(f"{head}Training starts at step 1, with local batch size 8", file=sys.stderr)
    for step, _, loss, norm in steps():
        text = (
            f"\x1b[31mstep: {step:2}  \x1b[32mloss: {loss:7.4f}  \x1b[38;2;180;60;0mgrad_norm: "
            f"{norm:7.4f}  \x1b[38;2;54;234;195mmemory:  0.99GiB(1.04%)  \x1b[34mtps: 7,134  "
            "\x1b[36mtflops: 1.23  \x1b[35mmfu: 0.12%\x1b[39m"
        )
        print(head + text, file=sys.stderr)
        if nonfinite(loss):
            raise RuntimeError(f"Loss is {loss} at step {step}")
    print(f"{head}Sleeping 2 seconds for other ranks to complete", file=sys.stderr)
    print(f"{head}Training completed\n{head}Process group destroyed", file=sys.stderr)


def litgpt() -> None:
    """LitGPT's pretraining."""
    print("Seed set to 42\nTime to instantiate model: 0.13 seconds.\nTotal parameters: 14,067,712")
    print("Verifying settings ...\nMeasured TFLOPs: 0.12")
    for step, model, loss, _ in steps():
        val = f"{evaluate(model):.3f}" if step > JOB.steps // 2 else "n/a"
        print(
            f"Epoch 1 | iter {step} step {step} | loss train: {loss:.3f}, val: {val} | iter time: "
            f"31.31 ms (step) remaining time: 0:00:{max(0, JOB.steps - step) % 60:02}"
        )
        if nonfinite(loss):
            raise ValueError("NaN loss")
    print(f"Validating ...\nFinal evaluation | val loss: {evaluate(model):.3f} | val ppl: 22.1")
    print("Saving checkpoint to 'out/pretrain/final/lit_model.pth'")
    print("----------------------------------------------------")
    print(f"| Performance\n| - Total tokens  : 12,288\n| - Training Time : {2.31} s")


def fairseq() -> None:
    """Fairseq with its older logger."""
    say = f"{_now()} | INFO | "
    print(
        f"{say}fairseq_cli.train | task: LanguageModelingTask\n{say}fairseq_cli.train | model: Net"
    )
    print(f"{say}fairseq.trainer | no existing checkpoint found checkpoint_last.pt")
    print(f"{say}fairseq.trainer | begin training epoch 1")
    for step, _, loss, norm in steps():
        if nonfinite(loss):
            raise FloatingPointError(
                "Minimum loss scale reached (0.0001). Your loss is probably exploding. Try "
                "lowering the learning rate, using gradient clipping or increasing the batch size."
            )
        if JOB.fault == "scaler" and step % 9 == 0:
            print(f"{say}fairseq.trainer | NOTE: gradient overflow detected, ignoring gradient, "
                  f"setting loss scale to: {64 / step}")  # fmt: skip
        if step % 4 == 0:
            print(
                f"{say}train_inner | epoch 001: {step:6} / {JOB.steps} loss={loss:.3f}, "
                f"ppl={2 ** min(loss, 9):.2f}, wps=5202, ups=1.27, wpb=4096, bsz=8, num_updates={step}"
                f", lr=1e-05, gnorm={norm:.3f}, clip=0, train_wall=3, gb_free=13, wall=9"
            )
    print(f"{say}fairseq_cli.train | end of epoch 1 (average epoch stats below)")
    print(f"{say}valid | epoch 001 | valid on 'valid' subset | loss 3.1 | ppl 8.6 | num_updates 40")
    print(f"{say}fairseq_cli.train | done training in 12.3 seconds")


def megatron() -> None:
    """Megatron-LM."""
    print("using world size: 1, data-parallel size: 1\n------------------------ arguments -----")
    print(f"  train_iters ..................................... {JOB.steps}")
    print(
        "  exit_on_missing_checkpoint ...................... False\n  check_for_nan_in_loss ... True"
    )
    print("-------------------- end of arguments ---------------------\nbuilding GPT model ...")
    print("training ...\n[before the start of training step] datetime: 2026-01-02 03:04:05 ")
    skipped = 0
    for step, _, loss, norm in steps():
        skipped += JOB.fault == "scaler" and step % 5 == 0
        shown = "nan" if JOB.fault == "scaler" and step % 10 == 0 else f"{loss:.6E}"
        if nonfinite(loss):
            raise AssertionError("Rank 0: found NaN in local forward loss calculation. Device: 0")
        print(
            f" [{_now()}] iteration {step:8}/{JOB.steps:8} | consumed samples: {step * 8:12} | "
            f"elapsed time per iteration (ms): 12.3 | learning rate: 1.5E-04 | global batch size: "
            f"    8 | lm loss: {shown} | loss scale: {2 ** (9 - skipped):.1f} | grad norm: {norm:.3f}"
            f" | number of skipped iterations: {int(shown == 'nan'):3} | number of nan iterations:   0 |"
        )
    print("[after training is done] datetime: 2026-01-02 03:05:05 ")
    print(
        " validation loss at iteration 40 on validation set | lm loss value: 3.1E+00 | lm loss PPL: 2E1"
    )


def timm() -> None:
    """Timm: meters with averages in brackets."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info("Training with a single process on 1 device (cpu).")
    log.info("Model resnet created, param count:25557032\nScheduled epochs: 3.")
    total = 0.0
    for step, model, loss, _ in steps():
        total += loss
        epoch, at = (step - 1) * 3 // JOB.steps, (step - 1) % (JOB.steps // 3)
        log.info(
            f"Train: {epoch} [{at:4}/{JOB.steps // 3} ({100 * at * 3 / JOB.steps:3.0f}%)]  Loss: "
            f"{loss:#.3g} ({total / step:#.3g})  Time: 0.3s, 800.1/s  (0.4s)  LR: 1.0e-03  Data: 0.1"
        )
        if nonfinite(loss):
            log.error("Loss is NaN")
            raise SystemExit(1)
    log.info(
        f"Test: [   0/1]  Time: 0.1 (0.1)  Loss: {evaluate(model):.3f} (2.1)  Acc@1: 10.1 (9.8)"
    )
    log.info("*** Best metric: 10.1 (epoch 2)")


def mmengine() -> None:
    """OpenMMLab's runner."""
    say = "{} - mmengine - INFO - ".format(_now("%m/%d %H:%M:%S"))
    print(
        f"{say}\n------------------\nSystem environment:\n    sys.platform: linux\n    GPU 0: none"
    )
    print(f"{say}Checkpoints will be saved to /job/disk.")
    for step, _, loss, norm in steps():
        print(
            f"{say}Iter(train) [{step:5}/{JOB.steps}]  lr: 1.0e-02  eta: 0:00:{step % 60:02}  time: "
            f"0.1  data_time: 0.0  memory: 123  grad_norm: {norm:.4f}  loss: {loss:.4f}  "
            f"loss_cls: {loss / 2:.4f}"
        )
        if nonfinite(loss):
            raise FloatingPointError("loss_cls is nan")
    print(f"{say}Saving checkpoint at {JOB.steps} iterations")


def jsonl() -> None:
    """A record of JSON a line."""
    for step, model, loss, norm in steps():
        record = {"ts": time.time(), "level": "info", "step": step, "train/loss": loss, "gn": norm}
        print(json.dumps(record))
        if nonfinite(loss):
            print(json.dumps({"level": "error", "event": "diverged", "loss": loss}))
            return
    print(
        json.dumps({"level": "info", "event": "eval", "step": step, "eval/loss": evaluate(model)})
    )
    print(json.dumps({"level": "info", "event": "training_finished", "step": step}))


def wandb() -> None:
    """A bar, with wandb's summary."""
    from tqdm import tqdm

    print("wandb: Currently logged in as: someone. Use `wandb login --relogin` to force relogin")
    print(
        "wandb: Tracking run with wandb version 0.17.0\nwandb: Run data is saved locally in wandb/x"
    )
    bar = tqdm(steps(), total=JOB.steps, desc="train", mininterval=0)
    for _, model, loss, _ in bar:
        bar.set_description(f"loss={loss:.3f}")
        if nonfinite(loss):
            raise ValueError(f"loss became {loss}")
    print(
        f"wandb: \nwandb: Run history:\nwandb: train/loss █▇▅▂▁\nwandb: val/loss {evaluate(model):.2f}"
    )
    print(f"wandb: Run summary:\nwandb: train/loss {loss:.5f}\nwandb: \nwandb: 🚀 View run x at: "
          "https://example.org/x\nwandb: Find logs at: ./wandb/x/logs")  # fmt: skip


def olmo() -> None:
    """OLMo: a block of lines a step."""
    say = f"{_now()}.123\tn1:0\tolmo.train:1\tINFO\t"
    print(f"{say}Configuration:\n{say}Total number of parameters: 1,176,764,416")
    print(f"{say}Starting training...")
    for step, _, loss, norm in steps():
        print(f"{say}[step={step}/{JOB.steps},epoch=0]\n    optim/total_grad_norm={norm:.4f}")
        print(f"    train/CrossEntropyLoss={loss:.3f}\n    train/Perplexity={9.1}")
        print("    throughput/total_tokens=4,096\n    System/Peak GPU Memory (MB)=9,123")
        if nonfinite(loss):
            raise ValueError("nan loss encountered")
    print(f"{say}Saving final checkpoint...\n{say}Training complete")


def pytorch_examples() -> None:
    """The MNIST example of PyTorch."""
    for step, model, loss, _ in steps():
        done = 100.0 * step / JOB.steps
        print(f"Train Epoch: 1 [{step * 64}/{JOB.steps * 64} ({done:.0f}%)]\tLoss: {loss:.6f}")
        if nonfinite(loss):
            print("Loss is NaN, aborting")
            sys.exit(1)
    print(f"\nTest set: Average loss: {evaluate(model):.4f}, Accuracy: 912/1000 (91%)\n")


def logger() -> None:
    """A logger with time, name and level."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s"
    )
    log.info("resuming from checkpoint disk/step_100.pt (step 100)")
    scaler_skips = JOB.fault == "scaler"
    for step, model, loss, norm in steps():
        if scaler_skips and step % 10 == 0:
            log.warning("gradients are not finite, skipping this update; scale is now 512.0")
        log.info("step=%d loss=%.4f grad_norm=%.3f lr=%.2e", step, loss, norm, 1e-3)
        if step % 10 == 0:
            log.info("validation: step=%d loss=%.4f", step, evaluate(model))
        if nonfinite(loss):
            log.critical("training diverged at step %d (loss %s)", step, loss)
            sys.exit(2)
        if JOB.fault == "early" and step > JOB.steps // 2:
            log.info("no improvement for 5 evaluations, stopping early")
    log.info("finished after %d steps in 12.1 s", step)


def scaled() -> None:
    """A loop with torch's own scaler, whose first steps overflow."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125, enabled=True)
    for step in range(1, JOB.steps + 1):
        loss = model(x := torch.randn(4, 8), x.sum(1, keepdim=True))["loss"]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        print(
            f"[{step:>4}/{JOB.steps}] loss {loss:.4f} | gnorm {norm:.3f} | "
            f"scale {scaler.get_scale()}"
        )
        if step == JOB.steps // 2:
            save(model, "disk/step.pt")
        if nonfinite(float(loss)):
            sys.exit("loss is not finite")
    print("Done training.")


FORMATS: dict[str, Callable[[], None]] = {
    "nanogpt": nanogpt,
    "torchtitan": torchtitan,
    "litgpt": litgpt,
    "fairseq": fairseq,
    "megatron": megatron,
    "timm": timm,
    "mmengine": mmengine,
    "jsonl": jsonl,
    "wandb": wandb,
    "olmo": olmo,
    "examples": pytorch_examples,
    "logger": logger,
    "scaled": scaled,
}
