"""How much of a style students of a teacher with a style LoRA have kept.

    python benchmarks/style_effect.py assets/tiny-sd runs/style/student runs/style-steps/student \\
        --lora runs/recipes/style-loras/hue.safetensors --prompts runs/recipes/styles/hue/prompts.txt

The effect of the style is the mean shift of image features from the plain teacher to the teacher with the LoRA, for the same
prompts and seeds. What a student keeps is its own mean shift from the plain teacher along that direction, relative to it: 1 is
the same style, 0 is none. The teacher is sampled with 50 steps, each student with its own settings.
"""

import argparse

from gendistill.cli.shared import quieten_libraries
from gendistill.data.sources.prompts import Prompts
from gendistill.evaluation.add_ons import SampledModel, effect_of
from gendistill.metrics.features.load_extractor import load_extractor
from gendistill.samplers import FewStepSampler
from gendistill.samplers.weighted_lora import WeightedLora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="without the LoRA")
    parser.add_argument("students", nargs="+")
    parser.add_argument("--lora", required=True, help="FILE:WEIGHT")
    parser.add_argument("--prompts", required=True, help="text file with one prompt per line, with the trigger word")
    parser.add_argument("--num", type=int, default=128, help="images of each model")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of the teacher")
    parser.add_argument("--steps", type=int, help="of the students; their own main step count by default")
    parser.add_argument("--extractor", default="emoji")
    args = parser.parse_args()
    quieten_libraries()
    lines, extractor = Prompts(args.prompts).prompts, load_extractor(args.extractor)
    prompts, seeds = [lines[number % len(lines)] for number in range(args.num)], list(range(9000, 9000 + args.num))

    def features(name, sampler, steps, scale):
        return SampledModel(name, sampler, steps, scale, prompts, seeds).features(extractor)

    plain = features("teacher", FewStepSampler.from_pretrained(args.teacher), 50, args.guidance_scale)
    lora = WeightedLora.parse(args.lora)
    styled = features("teacher", FewStepSampler.from_pretrained(args.teacher, loras=[lora]), 50, args.guidance_scale)
    for folder in args.students:
        sampler = FewStepSampler.from_pretrained(folder)
        own = features("student", sampler, args.steps or sampler.default_steps, sampler.default_guidance_scale)
        effect = effect_of(styled - plain, own - plain)
        print(f"{folder}: kept {effect.kept:.3f}, cosine {effect.cosine:.3f}, ratio {effect.ratio:.3f}, {effect.repeated=:.3f}")


if __name__ == "__main__":
    main()
