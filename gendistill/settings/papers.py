"""The publications that settings are from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication; `arxiv` is its number there, None where it is not on arXiv."""

    authors: str
    title: str
    arxiv: str | None = None

    def cited(self, place: str | None = None) -> str:
        """`Luo et al. 2023, "Latent Consistency Models", arXiv:2310.04378, section 4.3`."""
        parts = [self.authors, f'"{self.title}"', f"arXiv:{self.arxiv}" if self.arxiv else None, place]
        return ", ".join(part for part in parts if part)


# diffusion and its distillation
BK_SDM = Paper("Kim et al. 2023", "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", "2305.15798")
BORN_AGAIN = Paper("Furlanello et al. 2018", "Born-Again Neural Networks", "1805.04770")
CFG = Paper("Ho & Salimans 2022", "Classifier-Free Diffusion Guidance", "2207.12598")
CLIP = Paper("Radford et al. 2021", "Learning Transferable Visual Models From Natural Language Supervision", "2103.00020")
CONSISTENCY = Paper("Song et al. 2023", "Consistency Models", "2303.01469")
DDPM = Paper("Ho et al. 2020", "Denoising Diffusion Probabilistic Models", "2006.11239")
DENOISING_STUDENT = Paper("Luhman & Luhman 2021", "Knowledge Distillation in Iterative Generative Models", "2101.02388")
DMD = Paper("Yin et al. 2024", "One-step Diffusion with Distribution Matching Distillation", "2311.18828")
DMD2 = Paper("Yin et al. 2024", "Improved Distribution Matching Distillation for Fast Image Synthesis", "2405.14867")
DPM_SOLVER = Paper(
    "Lu et al. 2022", "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", "2211.01095"
)
DREAMBOOTH = Paper(
    "Ruiz et al. 2023", "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", "2208.12242"
)
GUIDED = Paper("Meng et al. 2023", "On Distillation of Guided Diffusion Models", "2210.03142")
IMPROVED_CONSISTENCY = Paper("Song & Dhariwal 2023", "Improved Techniques for Training Consistency Models", "2310.14189")
LADD = Paper(
    "Sauer et al. 2024", "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation", "2403.12015"
)
LCM = Paper("Luo et al. 2023", "Latent Consistency Models", "2310.04378")
LORA = Paper("Hu et al. 2021", "LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685")
MULTISTEP_CONSISTENCY = Paper("Heek et al. 2024", "Multistep Consistency Models", "2403.06807")
MUTUAL = Paper("Zhang et al. 2018", "Deep Mutual Learning", "1706.00384")
F_DISTILL = Paper("Xu et al. 2025", "One-step Diffusion Models with f-Divergence Distribution Matching", "2502.15681")
PROGRESSIVE = Paper("Salimans & Ho 2022", "Progressive Distillation for Fast Sampling of Diffusion Models", "2202.00512")
SD3 = Paper("Esser et al. 2024", "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", "2403.03206")
TCD = Paper("Zheng et al. 2024", "Trajectory Consistency Distillation", "2402.19159")
TDM = Paper("Luo et al. 2025", "Learning Few-Step Diffusion Models by Trajectory Distribution Matching", "2503.06674")

# networks and optimisation
ADAM = Paper("Kingma & Ba 2015", "Adam: A Method for Stochastic Optimization", "1412.6980")
ADAMW = Paper("Loshchilov & Hutter 2019", "Decoupled Weight Decay Regularization", "1711.05101")
CHECKPOINTING = Paper("Chen et al. 2016", "Training Deep Nets with Sublinear Memory Cost", "1604.06174")
CLIPPING = Paper("Pascanu et al. 2013", "On the Difficulty of Training Recurrent Neural Networks", "1211.5063")
DEPGRAPH = Paper("Fang et al. 2023", "DepGraph: Towards Any Structural Pruning", "2301.12900")
INT8 = Paper(
    "Jacob et al. 2018", "Quantization and Training of Neural Networks for Integer-Arithmetic-Only Inference", "1712.05877"
)
MIXED_PRECISION = Paper("Micikevicius et al. 2018", "Mixed Precision Training", "1710.03740")
MOBILENETS = Paper("Howard et al. 2017", "MobileNets: Efficient CNNs for Mobile Vision Applications", "1704.04861")
QLORA = Paper("Dettmers et al. 2023", "QLoRA: Efficient Finetuning of Quantized LLMs", "2305.14314")
RESIDUAL_ENSEMBLES = Paper(
    "Veit et al. 2016", "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", "1605.06431"
)
SGDR = Paper("Loshchilov & Hutter 2017", "SGDR: Stochastic Gradient Descent with Warm Restarts", "1608.03983")

# losses between a student and its teacher
ATTENTION = Paper("Zagoruyko & Komodakis 2017", "Paying More Attention to Attention", "1612.03928")
CORRELATION = Paper("Peng et al. 2019", "Correlation Congruence for Knowledge Distillation", "1904.01802")
CRD = Paper("Tian et al. 2020", "Contrastive Representation Distillation", "1910.10699")
FITNETS = Paper("Romero et al. 2015", "FitNets: Hints for Thin Deep Nets", "1412.6550")
GRAM = Paper("Gatys et al. 2015", "A Neural Algorithm of Artistic Style", "1508.06576")
HINTON = Paper("Hinton et al. 2015", "Distilling the Knowledge in a Neural Network", "1503.02531")
LPIPS = Paper("Zhang et al. 2018", "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", "1801.03924")
RKD = Paper("Park et al. 2019", "Relational Knowledge Distillation", "1904.05068")
SIMILARITY = Paper("Tung & Mori 2019", "Similarity-Preserving Knowledge Distillation", "1907.09682")

# distances between distributions
DRIFTING = Paper("Deng et al. 2026", "Generative Modeling via Drifting", "2602.04770")
FD_LOSS = Paper("Yang et al. 2026", "Representation Fréchet Loss for Visual Generation", "2604.28190")
MMD = Paper("Gretton et al. 2012", "A Kernel Two-Sample Test, Journal of Machine Learning Research 13")
PATCHES = Paper("Elnekave & Weiss 2022", "Generating Natural Images with Direct Patch Distributions Matching", "2203.11862")
SLICED = Paper("Bonneel et al. 2015", "Sliced and Radon Wasserstein Barycenters of Measures, JMIV 51")

# GANs
APT = Paper("Lin et al. 2025", "Diffusion Adversarial Post-Training for One-Step Video Generation", "2501.08316")
DIFF_AUGMENT = Paper("Zhao et al. 2020", "Differentiable Augmentation for Data-Efficient GAN Training", "2006.10738")
GAN_DISTILLATION = Paper("Aguinaldo et al. 2019", "Compressing GANs Using Knowledge Distillation", "1902.00159")
HINGE = Paper("Lim & Ye 2017", "Geometric GAN", "1705.02894")
PROJECTION = Paper("Miyato & Koyama 2018", "cGANs with Projection Discriminator", "1802.05637")
R1 = Paper("Mescheder et al. 2018", "Which Training Methods for GANs do actually Converge?", "1801.04406")
STYLEGAN2 = Paper("Karras et al. 2020", "Analyzing and Improving the Image Quality of StyleGAN", "1912.04958")
TTUR = Paper("Heusel et al. 2017", "GANs Trained by a Two Time-Scale Update Rule", "1706.08500")
WGAN_GP = Paper("Gulrajani et al. 2017", "Improved Training of Wasserstein GANs", "1704.00028")
