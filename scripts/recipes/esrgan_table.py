"""Compare a compressed ESRGAN with its teacher: cost, time on the CPU, PSNR on held-out emoji, and its programs at three sizes.

    python scripts/recipes/esrgan_table.py runs/esrgan/teacher runs/esrgan/student/student --image runs/esrgan/images.png

Times are those of one image on one thread; both networks run alternately in one process. `cpu` is the time of the
process itself, which other processes on the machine do not change.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.utils import save_image

from gendistill.data.gan_batches import downsampled
from gendistill.gan.gan_export import ONNX, PROGRAM, open_onnx
from gendistill.gan.gan_folder import open_gan
from gendistill.gan.generator import Generator
from gendistill.networks import counting
from gendistill.networks.pruning.depth import residual_blocks
from gendistill.networks.pruning.pruned_architecture import RemovedBlock
from train_esrgan import SCALE, SPEC, enlarged, psnr, upscaled

SIZES = (16, 32, 64, 128)  # edges of the input in pixels; the output has four times as many
SHOWN = 8


@torch.inference_mode()
def seconds(generators: list[Generator], edge: int, rounds: int) -> list[tuple[float, float]]:
    """The median wall time and the median time of the process of each generator, which run alternately."""
    image = torch.rand(1, 3, edge, edge) * 2 - 1
    times: list[list[tuple[float, float]]] = [[] for _ in generators]
    for turn in range(rounds + 1):
        for generator, of_generator in zip(generators, times, strict=True):
            wall, process = time.perf_counter(), time.process_time()
            generator(image)
            if turn:  # the first round warms up
                of_generator.append((time.perf_counter() - wall, time.process_time() - process))
    return [tuple(map(statistics.median, zip(*of_generator, strict=True))) for of_generator in times]


@torch.inference_mode()
def program_errors(folder: Path, student: Generator) -> list[str]:
    """The largest error of each program against the network, at three sizes that are not all square."""
    lines = []
    for name, opened in ((PROGRAM, torch.export.load(folder / PROGRAM).module()), (ONNX, open_onnx(folder / ONNX))):
        errors = []
        for height, width in ((16, 16), (24, 40), (64, 64)):
            image = torch.rand(2, 3, height, width) * 2 - 1
            errors.append(f"{height}x{width} {(opened(image) - student(image)).abs().max():.1e}")
        lines.append(f"{name}: {', '.join(errors)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--every", type=int, default=3, help="measure every n-th held-out emoji")
    parser.add_argument(
        "--image", type=Path, help="write inputs (nearest), bicubic, teacher, student and targets as a PNG file"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks = [open_gan(folder).generator for folder in (args.teacher, args.student)]
    macs = [counting.macs(generator.network, generator.example()) for generator in networks]
    parameters = [counting.parameters(generator.network) for generator in networks]
    blocks = len(residual_blocks(networks[0].network, networks[0].example()))
    removed = sum(isinstance(module, RemovedBlock) for module in networks[1].network.modules())
    print(f"multiply-accumulates {macs[0]:,} and {macs[1]:,}: {macs[0] / macs[1]:.2f} times fewer")
    print(f"parameters {parameters[0]:,} and {parameters[1]:,}: {parameters[0] / parameters[1]:.2f} times fewer")
    print(f"blocks {blocks} and {blocks - removed}")

    targets = enlarged("heldout", args.every)
    inputs = downsampled(targets, SPEC)
    bicubic = F.interpolate(inputs, scale_factor=SCALE, mode="bicubic")
    images = [upscaled(generator, inputs) for generator in networks]
    values = [psnr(of_network, targets) for of_network in (bicubic, *images)]
    print(
        f"PSNR on {len(targets)} held-out emoji: bicubic {values[0]:.2f}, teacher {values[1]:.2f}, student {values[2]:.2f} dB"
    )
    print(f"PSNR of the student to the teacher: {psnr(images[1], images[0].clamp(-1, 1)):.2f} dB")
    if args.image:
        rows = torch.arange(0, len(targets), max(1, len(targets) // SHOWN))[:SHOWN]
        nearest = F.interpolate(inputs, scale_factor=SCALE)
        shown = torch.cat([of_row[rows] for of_row in (nearest, bicubic, *images, targets)]).clamp(-1, 1)
        save_image(F.interpolate(shown, scale_factor=2) / 2 + 0.5, args.image, nrow=len(rows))

    for edge in SIZES:
        (teacher_wall, teacher_cpu), (student_wall, student_cpu) = seconds(networks, edge, args.rounds)
        print(
            f"{edge} to {SCALE * edge} pixels: {1e3 * teacher_wall:,.0f} and {1e3 * student_wall:,.0f} ms, "
            f"{teacher_wall / student_wall:.2f} times as fast (cpu: {teacher_cpu / student_cpu:.2f} times)",
            flush=True,
        )
    print("\n".join(program_errors(args.student, networks[1])))


if __name__ == "__main__":
    main()
