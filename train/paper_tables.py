"""Tables II and III of the paper (Carrara et al., ICPR 2020, arXiv:2011.08102): every figure as printed.

Categories go by the names of MVTec AD's folders, in the paper's order.
"""

from dataclasses import dataclass
from typing import Literal

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    "bottle",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "screw",
    "toothbrush",
    "transistor",
    "zipper",
)
CATEGORIES = TEXTURES + OBJECTS
ROTATED = frozenset({"bottle", "hazelnut", "metal_nut", "screw"})
"""Objects that the paper trains turned by -45° to 45°, as their orientation says nothing of defects (section V.B)."""

MEANS = {"mean of textures": TEXTURES, "mean of objects": OBJECTS, "mean of all": CATEGORIES}
"""The means that the paper prints, by what they are over."""

COLUMNS = (*TEXTURES, "mean of textures", *OBJECTS, "mean of objects", "mean of all")
"""What the paper's tables have figures for, in their order."""

CITATION = (
    "Carrara, Amato, Brombin, Falchi, Gennaro: Combining GANs and AutoEncoders for Efficient Anomaly Detection, "
    "ICPR 2020, arXiv:2011.08102"
)
DATA_CITATION = (
    "Bergmann, Fauser, Sattlegger, Steger: MVTec AD, A Comprehensive Real-World Dataset for Unsupervised Anomaly "
    "Detection, CVPR 2019; licence CC BY-NC-SA 4.0: no commercial use"
)

_BERGMANN = "figures from Bergmann et al. [2]"
_HUANG = "figures from Huang et al. [23]"
_VENKATARAMANAN = "figures from Venkataramanan et al. [27]"
_MORE_DATA = "trained with additional data"


@dataclass(frozen=True)
class Method:
    """One row of a published table.

    Attributes:
        name: of the method; the references are the paper's.
        figures: by ``COLUMNS``, 0 to 1.
        note: where the paper took the figures from, or what it says of the method; "" for its own.
    """

    name: str
    figures: dict[str, float]
    note: str


@dataclass(frozen=True)
class PublishedTable:
    """One of the two tables.

    Attributes:
        number: in the paper.
        metric: its field in the report of ``station-train evaluate``.
        title: what is measured.
        methods: the paper's own first, then as the paper orders them.
    """

    number: str
    metric: Literal["image_auroc", "balanced_accuracy"]
    title: str
    methods: tuple[Method, ...]


def _row(name: str, line: str, note: str = "") -> Method:
    return Method(name, dict(zip(COLUMNS, map(float, line.split()), strict=True)), note)


# The lines are the paper's, so that they can be compared with it at a glance.
TABLE_II = PublishedTable(
    "II",
    "balanced_accuracy",
    "maximum balanced accuracy",
    (
        _row("CBiGAN", "0.60 0.99 0.87 0.84 0.88 0.84 0.84 0.73 0.58 0.75 0.67 0.76 0.67 0.97 0.74 0.55 0.73 0.76"),
        _row("EGBAD", "0.60 0.50 0.65 0.73 0.80 0.66 0.68 0.66 0.55 0.50 0.55 0.63 0.50 0.48 0.68 0.59 0.58 0.61"),
        _row(
            "AnoGAN",
            "0.49 0.51 0.52 0.51 0.68 0.54 0.69 0.53 0.58 0.50 0.50 0.62 0.35 0.57 0.67 0.59 0.56 0.55",
            _VENKATARAMANAN,
        ),
        _row(
            "VAE-grad",
            "0.67 0.83 0.71 0.81 0.89 0.78 0.86 0.56 0.86 0.74 0.78 0.80 0.71 0.89 0.70 0.67 0.76 0.77",
            _VENKATARAMANAN,
        ),
        _row(
            "AE SSIM",
            "0.67 0.69 0.46 0.52 0.83 0.63 0.88 0.61 0.61 0.54 0.54 0.60 0.51 0.74 0.52 0.80 0.64 0.63",
            _BERGMANN,
        ),
        _row(
            "AE L2",
            "0.50 0.78 0.44 0.77 0.74 0.65 0.80 0.56 0.62 0.88 0.73 0.62 0.69 0.98 0.71 0.80 0.74 0.71",
            _BERGMANN,
        ),
        _row(
            "AVID",
            "0.70 0.59 0.58 0.66 0.83 0.67 0.88 0.64 0.85 0.86 0.63 0.86 0.66 0.73 0.58 0.84 0.75 0.73",
            _VENKATARAMANAN,
        ),
        _row(
            "LSA",
            "0.74 0.54 0.70 0.70 0.75 0.69 0.86 0.61 0.71 0.80 0.67 0.85 0.75 0.89 0.50 0.88 0.75 0.73",
            _VENKATARAMANAN,
        ),
        _row(
            "CAVGA-Du",
            "0.73 0.75 0.71 0.70 0.85 0.75 0.89 0.63 0.83 0.84 0.67 0.88 0.77 0.91 0.73 0.87 0.80 0.78",
            _MORE_DATA,
        ),
        _row(
            "CAVGA-Ru",
            "0.78 0.78 0.75 0.72 0.88 0.78 0.91 0.67 0.87 0.87 0.71 0.91 0.78 0.97 0.75 0.94 0.84 0.82",
            _MORE_DATA,
        ),
    ),
)
TABLE_III = PublishedTable(
    "III",
    "image_auroc",
    "image auROC",
    (
        _row("CBiGAN", "0.55 0.99 0.83 0.91 0.95 0.85 0.87 0.81 0.56 0.77 0.63 0.81 0.58 0.94 0.77 0.53 0.73 0.77"),
        _row("EGBAD", "0.52 0.54 0.55 0.79 0.91 0.66 0.63 0.68 0.52 0.43 0.47 0.57 0.46 0.64 0.73 0.58 0.57 0.60"),
        _row(
            "AE L2",
            "0.64 0.83 0.80 0.74 0.97 0.80 0.65 0.64 0.62 0.73 0.64 0.77 1.00 0.77 0.65 0.87 0.74 0.75",
            _HUANG,
        ),
        _row(
            "GeoTrans",
            "0.44 0.62 0.84 0.42 0.61 0.59 0.74 0.78 0.67 0.36 0.81 0.63 0.50 0.97 0.87 0.82 0.71 0.67",
            _HUANG,
        ),
        _row(
            "GANomaly",
            "0.70 0.71 0.84 0.79 0.83 0.77 0.89 0.76 0.73 0.79 0.70 0.74 0.75 0.65 0.79 0.75 0.76 0.76",
            _HUANG,
        ),
        _row(
            "ITAE",
            "0.71 0.88 0.86 0.74 0.92 0.82 0.94 0.83 0.68 0.86 0.67 0.79 1.00 1.00 0.84 0.88 0.85 0.84",
            _HUANG,
        ),
    ),
)
TABLES = (TABLE_III, TABLE_II)
