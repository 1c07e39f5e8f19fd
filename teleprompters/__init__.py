"""The compilers. `from cuesmith.teleprompters import ABO`; another name is another compiler."""

from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.registry import COMPILERS, compile

__all__ = ["COMPILERS", "Compiler", "compile"]
