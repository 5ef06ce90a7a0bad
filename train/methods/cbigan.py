"""CBiGAN: Carrara et al., Combining GANs and AutoEncoders for efficient anomaly detection, ICPR 2020."""

from train.methods.method import Method

METHOD = Method(
    source="CBiGAN (Carrara et al., *Combining GANs and AutoEncoders for efficient anomaly detection*, ICPR 2020)",
    score="(1 − λ)·L_R + λ·L_fD",
)
