"""The look that all figures share."""

from typing import Any


def style() -> tuple[Any, Any, Any]:
    """matplotlib's pyplot, seaborn, and colours that the colour-blind tell apart."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    return plt, sns, sns.color_palette("colorblind")
