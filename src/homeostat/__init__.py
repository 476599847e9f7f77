"""Homeostat keeps a deployed tabular model fit, unattended, and can prove that it did."""

__version__ = "0.1.0"
