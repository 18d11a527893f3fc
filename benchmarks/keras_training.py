"""The same training in PyTorch and on Keras 3: CIFAR-10, 2,000 images, two epochs, the same batches in the same order.

    python -m benchmarks.keras_training pytorch FOLDER DIR
    python -m benchmarks.keras_training tensorflow FOLDER

The first writes the weights that both begin with, `--model best` or new ones, the batches and what PyTorch's class made
of them; the second, in a process of its own, says how far the losses of the first 20 updates and the accuracy are from
it. So do jax and torch, Keras's other backends.
"""

import argparse
import io
import json
import os
import time
from pathlib import Path

import numpy as np

BATCH, EPOCHS, RATE = 50, 2, 5e-4
SIZE = {"image_size": 32, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}
SIZE |= {"intermediate_size": 384, "use_relative_position_bias": True, "num_labels": 10}
STILL = {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def read(data: str, split: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (rows, 3, 32, 32), scaled to -1 to 1, and their classes."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(sorted(Path(data).glob(f"{split}-*.parquet"))[0]).slice(0, rows).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"]]
    return (np.stack(images).transpose(0, 3, 1, 2) / 127.5 - 1).astype("float32"), np.array(table["label"])


def pytorch(folder: Path, data: str, model: str | None) -> None:
    import torch

    import d2v

    torch.manual_seed(0)
    cls = d2v.Data2VecVisionForImageClassification
    net = cls.from_pretrained(model, **STILL) if model else cls(d2v.Data2VecVisionConfig(**SIZE | STILL))
    net.save_pretrained(folder / "start")
    x, y = read(data, "train", 2000)
    test_x, test_y = read(data, "test", 500)
    order = np.concatenate([np.random.default_rng(epoch).permutation(len(x)) for epoch in range(EPOCHS)])
    np.savez(folder / "data.npz", x=x, y=y, test_x=test_x, test_y=test_y, order=order)
    optimizer, losses, times = torch.optim.AdamW(net.train().parameters(), lr=RATE, weight_decay=0.0), [], []
    for rows in np.split(order, len(order) // BATCH):
        loss = net(torch.from_numpy(x[rows]), labels=torch.from_numpy(y[rows])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        times.append(time.time())
    seconds = float(np.median(np.diff(times)))
    with torch.inference_mode():
        found = net.eval()(torch.from_numpy(test_x)).logits.argmax(1).numpy()
    report = {"losses": losses, "accuracy": float((found == test_y).mean()), "seconds": seconds}
    (folder / "pytorch.json").write_text(json.dumps(report), "utf-8")
    print(f"pytorch: accuracy {report['accuracy']:.3f}, {1000 * seconds:.0f} ms an update")


def on_keras(folder: Path, backend: str) -> None:
    os.environ["KERAS_BACKEND"] = backend
    import keras

    from d2v.keras import TFData2VecVisionForImageClassification, build_optimizer

    net = TFData2VecVisionForImageClassification.from_pretrained(folder / "start")
    data, theirs = np.load(folder / "data.npz"), json.loads((folder / "pytorch.json").read_text("utf-8"))
    net.compile(build_optimizer(net, RATE))
    sums, times = [0.0], []

    def note(step: int, logs: dict) -> None:  # Keras says the mean of all batches so far
        sums.append(float(logs["loss"]) * (step + 1))
        times.append(time.time())

    order = data["order"]
    inputs = {"pixel_values": data["x"][order], "labels": data["y"][order]}
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    net.fit(inputs, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[callback])
    losses, seconds = np.diff(sums), float(np.median(np.diff(times)))
    found = net.predict(data["test_x"], batch_size=100, verbose=0).logits.argmax(1)
    accuracy, apart = float((found == data["test_y"]).mean()), np.abs(losses[:20] - theirs["losses"][:20]).max()
    print(
        f"{backend}: losses of 20 updates at most {apart:.1e} apart; accuracy {accuracy:.3f} beside",
        end=" ",
    )
    print(f"{theirs['accuracy']:.3f}; {1000 * seconds:.0f} ms an update beside {1000 * theirs['seconds']:.0f}")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.keras_training", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "what", choices=("pytorch", "tensorflow", "jax", "torch"), help="our PyTorch class, or a backend"
    )
    parser.add_argument("folder", type=Path, help="the folder that all share")
    parser.add_argument(
        "data",
        nargs="?",
        help="the folder that recipes/configs/image_classification/cifar10.yaml describes, for pytorch",
    )
    parser.add_argument("--model", help="trained folder that pytorch begins with; by default new weights")
    return parser


def main() -> None:
    args = command_line().parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == "pytorch":
        pytorch(args.folder, args.data, args.model)
    else:
        on_keras(args.folder, args.what)


if __name__ == "__main__":
    main()
