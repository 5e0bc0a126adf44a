"""Fusion of views to one image: the tilt-corrected sum, the exact linear solve, and the network on top of it."""

from misr.fusion.cnn import fuse_cnn
from misr.fusion.linear import fuse_linear, plan_fusion
from misr.fusion.summed import shift_and_add

__all__ = ["fuse_cnn", "fuse_linear", "plan_fusion", "shift_and_add"]
