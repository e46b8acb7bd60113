"""The mPLUG network in PyTorch, one file per stage; imported by builders, training and the torch runtime alone."""

from mplug.network.mplug import MPlug

__all__ = ["MPlug"]
