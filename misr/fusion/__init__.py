"""Fusion of views to one image: the tilt-corrected sum and the exact linear solve."""

from misr.fusion.linear import fuse_linear, plan_fusion
from misr.fusion.summed import shift_and_add

__all__ = ["fuse_linear", "plan_fusion", "shift_and_add"]
