"""The verifier: is the hand right, and does the picture show what the prompt says?"""

from pipeline.verifier.vilt import Verifier

__all__ = ["Verifier"]
