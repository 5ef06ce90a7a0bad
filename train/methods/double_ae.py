"""Double autoencoder: CBiGAN with α = 1 (section IV), an autoencoder of images and one of latents, without D.

E and G minimise L_C of eq. 10. As D is never trained, the score is L_R alone, A(x) with λ = 0.
"""

from train.methods.method import Method

METHOD = Method(
    source="double autoencoder, of images and of latents: CBiGAN (Carrara et al., ICPR 2020) with α = 1",
    score="L_R = ‖x − G(E(x))‖₁",
    settings={"alpha": 1.0, "lambda": 0.0, "warm_start": 0.0, "locator": False},
)
