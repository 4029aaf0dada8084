"""Stands in for SGLang's CUDA kernels where there is no GPU: every name imports, none works.

SGLang imports names of this package in passing even where it then runs PyTorch's own operators.
Whatever is called after all says so, rather than giving a wrong result.
"""

import functools
import importlib.abc
import importlib.machinery
import sys

import torch


class _Missing:
    """A kernel that can be named and not run."""

    def __init__(self, name):
        self._name = name

    def __call__(self, *_args, **_kwargs):
        raise NotImplementedError(f"{self._name} needs a GPU")


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes every submodule that is asked for, but the one that SGLang replaces by itself."""

    def find_spec(self, name, path=None, target=None):
        if not name.startswith("sgl_kernel.") or name == "sgl_kernel.scalar_type":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module):
        module.__getattr__ = lambda name: _named(module.__name__, name)


def _named(module, name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(f"{module}.{name}")


def __getattr__(name):
    return _named("sgl_kernel", name)


sys.meta_path.append(_Submodules())

if not torch.cuda.is_available():
    # SGLang asks for pinned memory where it prepares the prompt's logprobs, and PyTorch refuses
    # without a driver. To the CPU, memory is memory.
    _tensor = torch.tensor

    @functools.wraps(_tensor)
    def _unpinned(*args, pin_memory=False, **kwargs):
        return _tensor(*args, **kwargs)

    torch.tensor = _unpinned
