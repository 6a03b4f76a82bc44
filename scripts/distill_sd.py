"""Distill a Stable Diffusion pipeline into a few-step student: a script to copy and change.

The embedded default, in minutes on a CPU:

    python scripts/distill_sd.py

Stable Diffusion 1.5 from the hub on a 12 GB GPU: a LoRA on the frozen base in bfloat16, from your own pictures (a folder
with `metadata.jsonl` or `.txt` captions, or WebDataset shards):

    accelerate launch scripts/distill_sd.py --teacher stable-diffusion-v1-5/stable-diffusion-v1-5 --data my-pictures \\
        --lora --dtype bfloat16 --mixed-precision bf16 --gradient-checkpointing \\
        --batch-size 16 --gradient-accumulation-steps 4 --guidance-scale 7.5 --max-steps 2000 --out runs/sd15-lora

A local fine-tune, from prompts alone (the teacher makes the pictures):

    accelerate launch scripts/distill_sd.py --teacher /models/my-fine-tune --prompts prompts.txt --lora --out runs/mine

Stable Diffusion XL from a local folder, at its own 1024 pixels:

    accelerate launch scripts/distill_sd.py --teacher /models/stable-diffusion-xl-base-1.0 --data my-pictures \\
        --lora --dtype bfloat16 --mixed-precision bf16 --gradient-checkpointing \\
        --batch-size 8 --gradient-accumulation-steps 8 --guidance-scale 7.5 --max-steps 2000 --out runs/sdxl-lora

One checkpoint file, as other programs share them; a Stable Diffusion 2 file does not say what it predicts, so it is told:

    accelerate launch scripts/distill_sd.py --teacher v2-1_768-ema-pruned.safetensors --teacher-config sd2-v \\
        --prompts prompts.txt --lora --out runs/sd21

By step-halving: 32 steps of the teacher become 16, 8, 4, and the same seed gives the teacher's picture, sooner:

    accelerate launch scripts/distill_sd.py --method progressive --teacher my-model --steps 4 --prompts prompts.txt --lora
"""

import argparse
from pathlib import Path

from gendistill.run.config import load_config
from gendistill.run.distill import distill

CONFIGS = Path(__file__).parents[1] / "configs"
DEFAULTS = {"consistency": CONFIGS / "demo.yaml", "progressive": CONFIGS / "progressive.yaml"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="diffusers folder, hub id or .safetensors file; without it, the embedded default")
    parser.add_argument("--teacher-config", help="of a checkpoint: sd1, sd2-base, sd2-v, sdxl or a folder with its configs")
    parser.add_argument("--method", default="consistency", choices=["consistency", "progressive"])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2, 1], help="of the student, the main count first")
    parser.add_argument("--start-steps", type=int, default=32, help="progressive: of the teacher")
    parser.add_argument("--data", help="image folder or WebDataset shards, with captions")
    parser.add_argument("--prompts", help="text file, one prompt a line, instead of pictures")
    parser.add_argument("--out", default="runs/distill-sd")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--dtype", default="float32", help="of the frozen teacher")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "fp16", "bf16"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="baked into the student")
    parser.add_argument("--max-steps", type=int, default=1000, help="of training; progressive: of each stage")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    if args.teacher is None:
        config = load_config(DEFAULTS[args.method], {"out": args.out, "method": args.method, "steps": args.steps})
    else:
        config = load_config(
            overrides={
                "teacher": args.teacher,
                "teacher_config": args.teacher_config,
                "out": args.out,
                "method": args.method,
                "steps": args.steps,
                "progressive.start_steps": args.start_steps,
                "dtype": args.dtype,
                "data.path": args.data,
                "data.prompts": args.prompts,
                "lora.enabled": args.lora,
                "guidance.scale": args.guidance_scale,
                "trainer.mixed_precision": args.mixed_precision,
                "trainer.gradient_checkpointing": args.gradient_checkpointing,
                "trainer.batch_size": args.batch_size,
                "trainer.gradient_accumulation_steps": args.gradient_accumulation_steps,
                "trainer.learning_rate": args.learning_rate,
                "trainer.max_steps": args.max_steps,
            }
        )
    result = distill(config, resume=args.resume)
    print(f"{result.student_folder}: sampled by {result.spec.solver} in {result.spec.num_inference_steps[0]} steps")


if __name__ == "__main__":
    main()
