"""EGBAD: Zenati et al., Efficient GAN-based anomaly detection, 2018; CBiGAN with α = 0, as the paper compares it (V.B).

E and G play the game of eq. 4 from the first step, without any consistency. The score is A(x) of eq. 7.
"""

from train.methods.method import Method

METHOD = Method(
    source="EGBAD (Zenati et al., *Efficient GAN-based anomaly detection*, 2018) as CBiGAN with α = 0",
    score="(1 − λ)·L_R + λ·L_fD",
    settings={"alpha": 0.0, "warm_start": 0.0, "locator": False},
)
