"""The thin library behind the SAO reproduction notebooks (arXiv 2510.06652)."""

__version__ = "0.1.0"
