"""What FID of two folders costs by gendistill, clean-fid and torch-fidelity with the same network, side by side.

    python benchmarks/bench_metrics.py --images 2000

Every library gets the same PNGs (emoji) and the same random weights, each in its own form of the network, and goes the whole
way: list the folders, decode, resize, network, statistics, distance. gendistill runs twice, with clean-fid's resize and with
torch-fidelity's. The libraries take turns in one process. `inception` is Inception-v3; `small` a network that costs next to
nothing, so that what the libraries add to it shows. `five metrics` are FID, KID, precision and recall, density and coverage,
and Vendi, all of the features that FID was computed from. The last table is the peak resident memory of
`gendistill evaluate --metrics fid` of 1,000 and of 20,000 images, in fresh processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from gendistill.data.sources.source import ImageFolder, open_source
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import FeatureExtractor, InceptionFeatures, ModuleFeatures, extract
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.metrics.measure import measure
from gendistill.metrics.metric import ReferenceFeatures, SampleFeatures

EMOJI = Path(__file__).parents[1] / "assets" / "emoji" / "train-*.tar.gz"
OTHERS = ("kid", "prdc", "vendi")  # prdc is two: precision and recall, density and coverage
MOST_FIVE = 1.15  # times FID alone, with Inception-v3
MAX_MEMORY = 1.1  # of 20,000 images, to 1,000
FEW, MANY = 1_000, 20_000
AGREES = 1e-3  # relative

Distance = Callable[[str, str], float]


class SmallNetwork(nn.Module):
    """Images (B, 3, 299, 299) in [0, 255] to 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 64, 16, stride=16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images / 128 - 1).relu().mean(dim=(2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="in each of the two folders")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--network", choices=["inception", "small", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=1, help="of which the median counts; small takes thrice")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of 20,000 images")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # theirs
    results: dict[str, dict[str, dict[str, float]]] = {}
    memory: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("a", "b")]
        write_images(folders, args.images, args.size)
        for network in ("inception", "small") if args.network == "both" else (args.network,):
            rivals = of_inception(Path(scratch)) if network == "inception" else of_small()
            rounds = args.rounds * (1 if network == "inception" else 3)
            results[network] = in_turns(rivals, str(folders[0]), str(folders[1]), rounds)
        if not args.no_memory:
            memory = {count: peak_of_fresh_process(folders[0], Path(scratch), count) for count in (FEW, MANY)}
    if args.json:
        print(json.dumps({"images": args.images, "fid": results, "memory": memory}, indent=1))
    else:
        show(results, memory, args.images)
    problems = list(what_is_wrong(results, memory))
    if problems:
        sys.exit("\n".join(problems))


def write_images(folders: list[Path], count: int, size: int) -> None:
    """Emoji as PNG: one half in each folder."""
    samples = islice(cycle(open_source(EMOJI)), count * len(folders))
    for folder in folders:
        folder.mkdir()
        for number, sample in enumerate(islice(samples, count)):
            sample.image.resize((size, size), Image.Resampling.LANCZOS).save(folder / f"{number:05}.png")


def in_turns(rivals: dict[str, Distance], a: str, b: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds (the median) and the distance, which must agree."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    distances: dict[str, float] = {}
    for _ in range(rounds):
        for name, distance in rivals.items():
            started = time.perf_counter()
            distances[name] = distance(a, b)
            seconds[name].append(time.perf_counter() - started)
    found = {name: {"seconds": statistics.median(seconds[name]), "fid": distances[name]} for name in rivals}
    mine = rivals[PAIRS[0][0]]
    assert isinstance(mine, Ours)
    together = found[PAIRS[0][0]]["seconds"] + mine.seconds_of_others()
    return {**found, "five metrics": {"seconds": together, "fid": distances[PAIRS[0][0]]}}


def of_inception(scratch: Path) -> dict[str, Distance]:
    """Each library's own Inception-v3 with one file of random weights."""
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL, InceptionV3
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    file = scratch / "checkpoints" / FID_WEIGHTS_URL.rsplit("/", 1)[1]
    file.parent.mkdir()
    weights = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if name.endswith("conv.weight"):  # so that images still differ after 94 layers
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    torch.save(weights, file)
    torch.hub.set_dir(scratch)  # where clean-fid's network looks for a file of this name before it downloads it
    theirs = InceptionV3(output_blocks=[3], resize_input=False).eval()

    def scaled_as_tensorflow(images: torch.Tensor) -> torch.Tensor:  # clean-fid's default network scales so too
        return theirs(((images - 128) / 128 + 1) / 2)[0].flatten(1)

    return {
        "gendistill, clean": Ours(InceptionFeatures(file, resize="clean")),
        "clean-fid": clean_fid(scaled_as_tensorflow),
        "gendistill, legacy": Ours(InceptionFeatures(file, resize="legacy")),
        "torch-fidelity": torch_fidelity("inception-v3-compat", "2048", feature_extractor_weights_path=str(file)),
    }


def of_small() -> dict[str, Distance]:
    """One small network in all of them."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    torch.manual_seed(0)
    network = SmallNetwork().eval().requires_grad_(False)

    class Small(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
            super().__init__(name, features_list)
            self.network = network

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            resized = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(299, 299), align_corners=False)
            return (self.network(resized),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("64",)

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    register_feature_extractor("small", Small)
    return {
        "gendistill, clean": Ours(ModuleFeatures(network, "small", 299, "clean")),
        "clean-fid": clean_fid(network),
        "gendistill, legacy": Ours(ModuleFeatures(network, "small", 299, "legacy")),
        "torch-fidelity": torch_fidelity("small", "64"),
    }


class Ours:
    """FID of two folders; it keeps the features, for what other metrics cost besides."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self.features: list[torch.Tensor] = []

    def __call__(self, a: str, b: str) -> float:
        self.features = [extract(self.extractor, (s.image for s in ImageFolder(of))) for of in (a, b)]
        return frechet_distance(*map(gaussian_statistics, self.features))

    def seconds_of_others(self) -> float:
        """That the other four of the five metrics take, of the features of the last call."""
        generated, real = self.features
        reference = ReferenceFeatures(gaussian_statistics(real), real)
        started = time.perf_counter()
        measure(SampleFeatures(generated), reference, OTHERS, fd="fid", intervals=False)
        return time.perf_counter() - started


def clean_fid(network: Callable[[torch.Tensor], torch.Tensor]) -> Distance:
    from cleanfid.fid import compare_folders

    workers = os.cpu_count() or 1  # its own default of 12 is slower on few cores

    def distance(a: str, b: str) -> float:
        options = {"num_workers": workers, "batch_size": 64, "device": torch.device("cpu"), "verbose": False}
        return float(compare_folders(a, b, network, "clean", **options))

    return distance


def torch_fidelity(extractor: str, layer: str, **options: str) -> Distance:
    from torch_fidelity import calculate_metrics

    def distance(a: str, b: str) -> float:
        metrics = calculate_metrics(
            input1=a,
            input2=b,
            fid=True,
            cuda=False,
            cache=False,
            verbose=False,
            batch_size=64,
            feature_extractor=extractor,
            feature_layer_fid=layer,
            **options,
        )
        return float(metrics["frechet_inception_distance"])

    return distance


def peak_of_fresh_process(images: Path, scratch: Path, count: int) -> int:
    """Bytes that `gendistill evaluate` takes at most. The folder holds hard links: 20,000 images take no room."""
    folder = scratch / f"{count} images"
    folder.mkdir()
    for number, file in enumerate(islice(cycle(sorted(images.iterdir())), count)):
        os.link(file, folder / f"{number:05}.png")
    command = ["evaluate", folder, "--reference", images, "--extractor", "emoji", "--metrics", "fid", "--no-intervals"]
    command += ["--cache", scratch / "cache", scratch / "status"]
    subprocess.run([sys.executable, "-c", TELLING, *map(str, command)], check=True, capture_output=True)
    told = (scratch / "status").read_text()
    return int(next(line for line in told.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


# The process tells of itself at its end: what its parent learns of it begins with the parent's own size.
TELLING = """
import sys
from gendistill.cli import main
file = sys.argv.pop()
try:
    main()
finally:
    open(file, "w").write(open("/proc/self/status").read())
"""
PAIRS = (("gendistill, clean", "clean-fid"), ("gendistill, legacy", "torch-fidelity"))
SHOWN = ("gendistill, clean", "five metrics", "clean-fid", "gendistill, legacy", "torch-fidelity")


def show(results: dict[str, dict[str, dict[str, float]]], memory: dict[int, int], images: int) -> None:
    console = Console()
    for network, of in results.items():
        table = Table("library", "seconds", "FID", "times ours", title=f"{network}, 2 x {images} images")
        for name in SHOWN:
            mine = "gendistill, legacy" if name in PAIRS[1] else "gendistill, clean"
            ratio = of[name]["seconds"] / of[mine]["seconds"]
            table.add_row(name, f"{of[name]['seconds']:.2f}", f"{of[name]['fid']:.6g}", f"{ratio:.2f}")
        console.print(table)
    if memory:
        table = Table("images", "peak memory, MB", title="gendistill evaluate --metrics fid")
        for count, peak in memory.items():
            table.add_row(str(count), f"{peak / 1e6:.0f}")
        console.print(table)


def what_is_wrong(results: dict[str, dict[str, dict[str, float]]], memory: dict[int, int]) -> Iterator[str]:
    for network, of in results.items():
        ratio = of["five metrics"]["seconds"] / of["gendistill, clean"]["seconds"]
        if network == "inception" and ratio > MOST_FIVE:
            yield f"five metrics take {ratio:.2f} times as long as FID alone; take at most {MOST_FIVE}"
        for mine, theirs in PAIRS:
            if of[mine]["seconds"] > of[theirs]["seconds"]:
                yield f"{network}: {mine} expects {of[mine]['seconds']:.2f} s, {theirs} {of[theirs]['seconds']:.2f} s"
            if abs(of[mine]["fid"] - of[theirs]["fid"]) > AGREES * of[theirs]["fid"]:
                yield f"{network}: {mine} finds FID {of[mine]['fid']:.6g}, {theirs} {of[theirs]['fid']:.6g}"
    if memory and memory[MANY] > MAX_MEMORY * memory[FEW]:
        yield f"memory grows: {memory[FEW]} bytes for {FEW} images, {memory[MANY]} for {MANY}"


if __name__ == "__main__":
    main()
